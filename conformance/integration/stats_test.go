package integration

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/conformance/stage"
)

const mib = 1 << 20

// cgroupOf returns the directory of a container's cgroup.
func (p *pod) cgroupOf(id string) string {
	p.Helper()
	found := ""
	_ = filepath.WalkDir("/sys/fs/cgroup"+p.cfg.Linux.CgroupParent, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(d.Name(), id) {
			found = path
			return fs.SkipAll
		}
		return nil
	})
	if found == "" {
		p.Fatalf("no cgroup of container %s", id)
	}
	return found
}

// counter reads a number from a file of the kernel's: the whole of it, or what is behind a key.
func (p *pod) counter(path, key string) uint64 {
	p.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		p.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if key != "" && (len(f) != 2 || f[0] != key) {
			continue
		}
		n, err := strconv.ParseUint(f[len(f)-1], 10, 64)
		if err != nil {
			p.Fatal(err)
		}
		return n
	}
	p.Fatalf("no %q in %s", key, path)
	return 0
}

func (s *scene) stats(id string) *runtimeapi.ContainerStats {
	s.Helper()
	st, err := s.cri.ContainerStats(s.ctx, id)
	if err != nil {
		s.Fatalf("stats: %v", err)
	}
	return st
}

func (s *scene) podStats(id string) *runtimeapi.LinuxPodSandboxStats {
	s.Helper()
	st, err := s.cri.PodSandboxStats(s.ctx, id)
	if err != nil {
		s.Fatalf("pod stats: %v", err)
	}
	return st.GetLinux()
}

// has says whether the hierarchy has a controller.
func has(controller string) bool { return !slices.Contains(stage.MissingControllers(), controller) }

// TestStatsOfCPUAndMemory holds what is told against the kernel's own files, read before and after.
func TestStatsOfCPUAndMemory(t *testing.T) {
	s := open(t)
	p := s.runPod("usage")
	id := p.run("c", `trap exit TERM; while [ ! -e /tmp/go ]; do sleep 0.1; done
dd if=/dev/zero bs=32M count=1 2>/dev/null | sleep 1000 & i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; touch /tmp/done; wait`,
		func(c *runtimeapi.ContainerConfig) {
			if has("memory") {
				c.Linux.Resources.MemoryLimitInBytes = 256 * mib
			}
		})
	dir := p.cgroupOf(id)
	idle := s.stats(id)
	if idle.GetAttributes().GetId() != id || idle.GetAttributes().GetMetadata().GetName() != "c" || idle.GetAttributes().GetLabels()["io.kubernetes.container.name"] != "c" {
		t.Errorf("attributes: %v", idle.Attributes)
	}
	s.exec(id, "touch /tmp/go")
	s.eventually("it has worked", func() bool { return s.exec(id, "ls /tmp") == "done\ngo" })
	low := p.counter(dir+"/cpu.stat", "usage_usec")
	busy := s.stats(id)
	high := p.counter(dir+"/cpu.stat", "usage_usec")
	cpu := busy.GetCpu().GetUsageCoreNanoSeconds().GetValue()
	if cpu < low*1000 || cpu > high*1000 || cpu <= idle.GetCpu().GetUsageCoreNanoSeconds().GetValue() {
		t.Errorf("cpu is %d ns, was %d ns, between %d and %d us", cpu, idle.GetCpu().GetUsageCoreNanoSeconds().GetValue(), low, high)
	}
	if _, err := os.Stat(dir + "/cpu.pressure"); (err == nil) != (busy.Cpu.Psi.GetSome() != nil) || (err == nil) != (busy.Io.GetPsi().GetFull() != nil) ||
		(err == nil) != (busy.GetMemory().GetPsi().GetFull() != nil) {
		t.Errorf("pressure: %v, cpu %v, io %v, memory %v", err, busy.Cpu.Psi, busy.Io, busy.GetMemory().GetPsi())
	}
	pod := s.podStats(p.id)
	if pod.GetCpu().GetUsageCoreNanoSeconds().GetValue() < cpu || len(pod.Containers) != 1 || pod.Containers[0].GetAttributes().GetId() != id {
		t.Errorf("pod: %v", pod)
	}
	if n, want := pod.GetProcess().GetProcessCount().GetValue(), uint64(len(p.pids(id))); n != want {
		t.Errorf("%d processes, want %d", n, want)
	}
	checkMemory(t, idle, busy)

	// Nothing of it depends on the daemon that was there at the beginning.
	s.killDaemon()
	s.restart()
	if got := s.stats(id).GetCpu().GetUsageCoreNanoSeconds().GetValue(); got < cpu {
		t.Errorf("cpu after a restart of the daemon is %d ns, was %d", got, cpu)
	}
	if err := s.cri.StopContainer(s.ctx, id, 1); err != nil {
		t.Fatal(err)
	}
	s.eventually("layer of an exited container", func() bool { return s.stats(id).WritableLayer != nil })
	if st := s.stats(id); st.GetAttributes().GetId() != id || st.Cpu != nil || st.Memory != nil || st.Swap != nil || st.Io != nil {
		t.Errorf("of an exited container: %v", st)
	}
}

// checkMemory compares the container before and after it took 32 MiB, of a limit of 256.
func checkMemory(t *testing.T, idle, busy *runtimeapi.ContainerStats) {
	t.Helper()
	m, before := busy.GetMemory(), idle.GetMemory().GetWorkingSetBytes().GetValue()
	if m.GetTimestamp() <= idle.GetMemory().GetTimestamp() {
		t.Errorf("timestamps: %d, then %d", idle.GetMemory().GetTimestamp(), m.GetTimestamp())
	}
	if !has("memory") {
		if m.UsageBytes != nil || m.WorkingSetBytes != nil || m.RssBytes != nil || m.AvailableBytes != nil || m.PageFaults != nil || busy.Swap != nil {
			t.Errorf("memory without its controller: %v, %v", m, busy.Swap)
		}
		return
	}
	if grown := m.GetWorkingSetBytes().GetValue() - before; grown < 31*mib || grown > 64*mib {
		t.Errorf("32 MiB more, and the working set grew by %d to %v", grown, m)
	}
	if rss := m.GetRssBytes().GetValue(); rss < 32*mib || rss > 64*mib {
		t.Errorf("rss is %d", rss)
	}
	if m.GetUsageBytes().GetValue() < m.GetWorkingSetBytes().GetValue() || m.GetAvailableBytes().GetValue()+m.GetWorkingSetBytes().GetValue() != 256*mib {
		t.Errorf("does not add up: %v", m)
	}
	// Huge pages may make few faults of 32 MiB.
	if m.GetPageFaults().GetValue() <= idle.GetMemory().GetPageFaults().GetValue() || m.MajorPageFaults == nil {
		t.Errorf("page faults: %v, then %v", idle.Memory, m)
	}
	if _, err := os.Stat("/sys/fs/cgroup/init.scope/memory.swap.current"); err == nil && busy.Swap.GetSwapUsageBytes() == nil {
		t.Errorf("swap: %v", busy.Swap)
	}
}

// TestStatsOfNetworkAndLayer moves known amounts, and asks after them.
func TestStatsOfNetworkAndLayer(t *testing.T) {
	s := open(t)
	p := s.runPod("traffic")
	id := p.run("c", "sleep 100000")
	url, stop, err := stage.ServeHost(strings.Repeat("x", mib))
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	before := s.podStats(p.id).GetNetwork()
	d := before.GetDefaultInterface()
	if d.GetName() != "eth0" || d.GetRxBytes() == nil || d.GetTxBytes() == nil || d.GetRxErrors() == nil || d.GetTxErrors() == nil || len(before.Interfaces) != 0 {
		t.Fatalf("network: %v", before)
	}
	s.exec(id, fmt.Sprintf("for i in 1 2 3 4; do wget -q -O /dev/null %s || exit 1; done", url))
	after := s.podStats(p.id).GetNetwork()
	rx := after.GetDefaultInterface().GetRxBytes().GetValue() - d.GetRxBytes().GetValue()
	tx := after.GetDefaultInterface().GetTxBytes().GetValue() - d.GetTxBytes().GetValue()
	if rx < 4*mib || rx > 5*mib || tx < 1000 || tx > mib || after.Timestamp <= before.Timestamp {
		t.Errorf("4 MiB received: %d, sent: %d; %v", rx, tx, after)
	}

	s.eventually("layer", func() bool { return s.stats(id).WritableLayer != nil })
	empty := s.stats(id).WritableLayer
	if empty.GetFsId().GetMountpoint() == "" || empty.GetInodesUsed() == nil {
		t.Errorf("layer: %v", empty)
	}
	s.exec(id, "mkdir /data && dd if=/dev/zero of=/data/big bs=1M count=8 2>/dev/null && for i in 1 2 3 4 5 6 7 8 9; do touch /data/$i; done; sync")
	written := time.Now().UnixNano()
	var full *runtimeapi.FilesystemUsage
	s.eventually("layer is measured again", func() bool {
		full = s.stats(id).WritableLayer
		return full.GetTimestamp() > written
	})
	bytes, inodes := full.GetUsedBytes().GetValue()-empty.GetUsedBytes().GetValue(), full.GetInodesUsed().GetValue()-empty.GetInodesUsed().GetValue()
	if bytes < 8*mib || bytes > 9*mib || inodes != 11 {
		t.Errorf("8 MiB in 11 files: %d in %d", bytes, inodes)
	}
	if err := s.cri.StopPodSandbox(s.ctx, p.id); err != nil {
		t.Fatal(err)
	}
	if pod := s.podStats(p.id); pod.Network != nil || pod.Cpu != nil || pod.Memory != nil || len(pod.Containers) != 1 {
		t.Errorf("of a stopped pod: %v", pod)
	}
}
