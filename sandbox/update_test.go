package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/internal/atomicfile"
)

type resources = runtimeapi.LinuxContainerResources

// limited tells whether this hierarchy has the controllers. Without them nothing is enforced, and everything
// else is the same. In a guest they are there, or these tests look at nothing.
func (n *node) limited() bool {
	n.t.Helper()
	missing := n.tree.Unenforced()
	if len(missing) > 0 && os.Getenv("VITRINE_VM") != "" {
		n.t.Fatalf("a guest without the controllers %v", missing)
	}
	return len(missing) == 0
}

// wantFiles compares files of a cgroup, where there are any.
func (n *node) wantFiles(cgroup string, want map[string]string) {
	n.t.Helper()
	if !n.limited() {
		return
	}
	for file, v := range want {
		got, err := os.ReadFile(filepath.Join(filepath.Dir(n.cgroot), cgroup, file))
		if err != nil || strings.TrimSpace(string(got)) != v {
			n.t.Errorf("%s holds %q (%v), want %q", file, got, err, v)
		}
	}
}

// wantShown compares what ContainerStatus shows, and what the records say, also after a restart.
func (n *node) wantShown(id string, want *resources) {
	n.t.Helper()
	if !n.limited() {
		want = &resources{OomScoreAdj: want.OomScoreAdj}
	}
	if got := n.status(id).Resources.Linux; !proto.Equal(got, want) {
		n.t.Errorf("shown: %v\nwant:  %v", got, want)
	}
}

func (n *node) containerCgroup(id string) string {
	return n.m.index.Load().containers[id].record.Cgroup
}

// onDisk is the OCI spec of the record.
func (n *node) onDisk(pod, id string) *specs.LinuxResources {
	n.t.Helper()
	s := &specs.Spec{}
	if err := readRecord(filepath.Join(n.m.podDir(pod), id), "config.json", s); err != nil {
		n.t.Fatal(err)
	}
	return s.Linux.Resources
}

func limitedRequest(name string) *runtimeapi.ContainerConfig {
	cfg := containerRequest(name, "sleep")
	cfg.Linux.Resources = &resources{CpuPeriod: 100000, CpuQuota: 20000, CpuShares: 512, MemoryLimitInBytes: 100_000_000, MemorySwapLimitInBytes: 100_000_000,
		OomScoreAdj: 500, CpusetCpus: "0", Unified: map[string]string{"memory.oom.group": "1", "pids.max": "77"}}
	return cfg
}

// TestUpdateContainer changes limits of a created and of a running container and follows them to the files,
// to the status, to the records and through restarts of the daemon.
func TestUpdateContainer(t *testing.T) {
	n := newNode(t, newFakes())
	pod := n.run(podRequest("web"))
	cfg := limitedRequest("c")
	id := n.create(pod, cfg)
	want := proto.Clone(cfg.Linux.Resources).(*resources)
	n.wantShown(id, want)
	devices := len(n.onDisk(pod, id).Devices)
	if devices == 0 {
		t.Error("the spec has no device rules")
	}
	update := func(change *resources) {
		t.Helper()
		if err := n.m.UpdateContainerResources(bg, id[:12], change); err != nil {
			t.Fatal(err)
		}
		n.wantShown(id, want)
		n.restart()
		n.wantShown(id, want)
	}
	want.CpuShares, want.Unified["memory.oom.group"] = 1024, "0"
	update(&resources{CpuShares: 1024, OomScoreAdj: -5, Unified: map[string]string{"memory.oom.group": "0"}}) // created
	n.start(id)
	want.MemoryLimitInBytes, want.MemorySwapLimitInBytes, want.CpuQuota = 200_000_000, 200_000_000, 12345
	update(&resources{MemoryLimitInBytes: 200_000_000, CpuQuota: 12345})
	want.MemorySwapLimitInBytes, want.CpuPeriod = 300_000_000, 50000
	update(&resources{MemorySwapLimitInBytes: 300_000_000, CpuPeriod: 50000})
	update(&resources{})
	n.wantFiles(n.containerCgroup(id), map[string]string{"cpu.weight": "100", "cpu.max": "12345 50000", "memory.max": "199999488", "memory.swap.max": "99999744",
		"cpuset.cpus": "0", "pids.max": "77", "memory.oom.group": "0"})
	r := n.onDisk(pod, id)
	if len(r.Devices) != devices || *r.CPU.Shares != 1024 || *r.CPU.Quota != 12345 || *r.CPU.Period != 50000 || *r.Memory.Swap != 300_000_000 || r.Unified["pids.max"] != "77" {
		t.Errorf("on disk: %+v %+v %+v", r, r.CPU, r.Memory)
	}
	if s := n.status(id); s.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("%v", s.State)
	}
}

// TestUpdateStates: who has ended, is unknown or would get limits that make no sense is refused, and nothing
// changes.
func TestUpdateStates(t *testing.T) {
	n := newNode(t, newFakes())
	pod := n.run(podRequest("web"))
	cfg := limitedRequest("c")
	id := n.create(pod, cfg)
	for _, bad := range []*resources{
		{MemorySwapLimitInBytes: 4096}, {CpuShares: 9, MemoryLimitInBytes: 4096, MemorySwapLimitInBytes: 4095}, {CpuShares: 9, CpuQuota: 7},
		{CpuShares: 9, CpusetCpus: "x"}, {CpuShares: 9, Unified: map[string]string{"memory.reclaim": "1G"}}, {CpuShares: 9, Unified: map[string]string{"cgroup.kill": "1"}},
	} {
		if err := n.m.UpdateContainerResources(bg, id, bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("%v: %v", bad, err)
		}
	}
	if n.limited() {
		for _, bad := range []*resources{{CpuShares: 9, CpusetCpus: "4000"}, {CpuShares: 9, Unified: map[string]string{"memory.high": "much"}}} {
			if err := n.m.UpdateContainerResources(bg, id, bad); !errors.Is(err, ErrInvalid) {
				t.Errorf("%v: %v", bad, err)
			}
		}
	}
	n.wantShown(id, cfg.Linux.Resources)
	n.wantFiles(n.containerCgroup(id), map[string]string{"cpu.weight": "59", "memory.max": "99999744", "memory.swap.max": "0", "memory.high": "max"})
	n.start(id)
	if err := n.m.StopContainer(bg, id, 0); err != nil {
		t.Fatal(err)
	}
	if err := n.m.UpdateContainerResources(bg, id, &resources{CpuShares: 9}); !errors.Is(err, ErrState) || !strings.Contains(err.Error(), "exited") {
		t.Errorf("exited: %v", err)
	}
	n.wantShown(id, cfg.Linux.Resources)
	if err := n.m.UpdateContainerResources(bg, strings.Repeat("f", 64), &resources{CpuShares: 9}); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown: %v", err)
	}
	ended, cancel := context.WithCancel(bg)
	cancel()
	if err := n.m.UpdateContainerResources(ended, id, &resources{}); !errors.Is(err, context.Canceled) {
		t.Errorf("ended context: %v", err)
	}
}

// TestUpdateBelowUsage needs a kernel that counts.
func TestUpdateBelowUsage(t *testing.T) {
	n := newNode(t, newFakes())
	if !n.limited() {
		t.Skip("needs the memory controller: run it in the guest (make vm-test)")
	}
	pod := n.run(podRequest("web"))
	cfg := limitedRequest("c")
	id := n.create(pod, cfg)
	n.start(id)
	err := n.m.UpdateContainerResources(bg, id, &resources{CpuShares: 9, MemoryLimitInBytes: 4096})
	if !errors.Is(err, ErrState) || !strings.Contains(err.Error(), "memory.max") {
		t.Errorf("update: %v", err)
	}
	n.wantShown(id, cfg.Linux.Resources)
	n.wantFiles(n.containerCgroup(id), map[string]string{"cpu.weight": "59", "memory.max": "99999744"})
	if s := n.status(id); s.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("%v %v", s.State, s.Reason)
	}
}

// pickyDisk refuses to write some files.
type pickyDisk struct {
	atomicfile.FS
	name string
}

func (d pickyDisk) Create(path string, perm os.FileMode) (atomicfile.File, error) {
	if strings.Contains(filepath.Base(path), d.name) {
		return nil, syscall.ENOSPC
	}
	return d.FS.Create(path, perm)
}

// TestUpdateDiskFull: limits that cannot be recorded do not hold.
func TestUpdateDiskFull(t *testing.T) {
	n := newNode(t, newFakes())
	podCfg := podRequest("web")
	podCfg.Linux.Resources = &resources{MemoryLimitInBytes: 1 << 30}
	pod := n.run(podCfg)
	cfg := limitedRequest("c")
	id := n.create(pod, cfg)
	for _, file := range []string{"config.json", "container.json"} {
		n.m.disk.fs = pickyDisk{atomicfile.Disk, file}
		if err := n.m.UpdateContainerResources(bg, id, &resources{CpuShares: 9, CpusetMems: "0", MemoryLimitInBytes: 200_000_000}); !errors.Is(err, syscall.ENOSPC) || strings.Contains(err.Error(), "restore") {
			t.Errorf("%s: %v", file, err)
		}
		n.m.disk.fs = nil
		n.wantShown(id, cfg.Linux.Resources)
		n.wantFiles(n.containerCgroup(id), map[string]string{"cpu.weight": "59", "memory.max": "99999744", "memory.swap.max": "0", "cpuset.mems.effective": "0"})
		if r := n.onDisk(pod, id); *r.CPU.Shares != 512 {
			t.Errorf("%s: on disk %+v", file, r.CPU)
		}
		n.restart()
		n.wantShown(id, cfg.Linux.Resources)
	}
	n.m.disk.fs = pickyDisk{atomicfile.Disk, "pod.json"}
	if err := n.m.UpdatePodSandboxResources(bg, pod, nil, &resources{MemoryLimitInBytes: 2 << 30}); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("pod: %v", err)
	}
	n.m.disk.fs = nil
	n.wantFiles(n.m.index.Load().pods[pod].record.Cgroup, map[string]string{"memory.max": fmt.Sprint(1 << 30)})
	if info := n.podInfo(pod); info.Resources["memory_limit_in_bytes"] != fmt.Sprint(1<<30) {
		t.Errorf("pod: %+v", info)
	}
}

// TestUpdatesAtOnce: many updates leave the limits of one of them, everywhere the same.
func TestUpdatesAtOnce(t *testing.T) {
	n := newNode(t, newFakes())
	pod := n.run(podRequest("web"))
	cfg := limitedRequest("c")
	id := n.create(pod, cfg)
	n.start(id)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Add(1)
		go func() { // ends with the update
			defer wg.Done()
			limit := int64(200+i) << 20
			if err := n.m.UpdateContainerResources(bg, id, &resources{CpuShares: int64(100 + i), MemoryLimitInBytes: limit, MemorySwapLimitInBytes: 2 * limit}); err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	l := n.m.index.Load().containers[id].limits.Load()
	limit := (l.asked.CpuShares + 100) << 20
	if l.asked.MemoryLimitInBytes != limit || l.asked.MemorySwapLimitInBytes != 2*limit {
		t.Errorf("mixed: %v", l.asked)
	}
	n.wantShown(id, l.asked)
	n.wantFiles(n.containerCgroup(id), map[string]string{"memory.max": fmt.Sprint(limit), "memory.swap.max": fmt.Sprint(limit)})
	if r := n.onDisk(pod, id); int64(*r.CPU.Shares) != l.asked.CpuShares || *r.Memory.Limit != limit {
		t.Errorf("on disk: %+v %+v", r.CPU, r.Memory)
	}
	n.restart()
	n.wantShown(id, l.asked)
}

// TestUpdateOfWhatGoes: an update and a removal at once end both, and leave nothing.
func TestUpdateOfWhatGoes(t *testing.T) {
	n := newNode(t, newFakes())
	pod := n.run(podRequest("web"))
	for i := range 10 {
		id := n.create(pod, limitedRequest(fmt.Sprint("c", i)))
		n.start(id)
		done := make(chan error, 1)
		go func() { // ends with the removal
			time.Sleep(time.Duration(i) * 500 * time.Microsecond)
			done <- n.m.RemoveContainer(bg, id)
		}()
		for shares := int64(2); ; shares++ {
			err := n.m.UpdateContainerResources(bg, id, &resources{CpuShares: shares})
			if err == nil {
				continue
			}
			if !errors.Is(err, ErrState) && !errors.Is(err, ErrNotFound) {
				t.Error(err)
			}
			break
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(filepath.Join(n.m.podDir(pod), id)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("directory of container %d: %v", i, err)
		}
	}
}

// slowDisk lets who makes a file of that name wait.
type slowDisk struct {
	atomicfile.FS
	name       string
	come, goOn chan struct{}
}

func (d slowDisk) Create(path string, perm os.FileMode) (atomicfile.File, error) {
	if strings.Contains(filepath.Base(path), d.name) {
		d.come <- struct{}{}
		<-d.goOn
	}
	return d.FS.Create(path, perm)
}

// TestRemovalWaitsForAnUpdate: an update that has begun writes its records before the directory goes. It would otherwise write them into
// a directory that is being emptied, which then stays, or make the cgroup of a pod that has gone.
func TestRemovalWaitsForAnUpdate(t *testing.T) {
	n := newNode(t, newFakes())
	pod := n.run(podRequest("web"))
	id := n.create(pod, limitedRequest("c"))
	slow := slowDisk{atomicfile.Disk, "config.json", make(chan struct{}), make(chan struct{})}
	n.m.disk.fs = slow
	updated, removed := make(chan error, 1), make(chan error, 1)
	go func() { updated <- n.m.UpdateContainerResources(bg, id, &resources{CpuShares: 9}) }() // ends with goOn
	<-slow.come
	go func() { removed <- n.m.RemoveContainer(bg, id) }() // ends with the update
	n.wantStill(removed)
	brief, cancel := context.WithTimeout(bg, 50*time.Millisecond)
	defer cancel()
	if err := n.m.RemoveContainer(brief, id); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("removal with a deadline: %v", err)
	}
	close(slow.goOn)
	if err := errors.Join(<-updated, <-removed); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(n.m.podDir(pod), id)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("directory of the container: %v", err)
	}

	sb := n.m.index.Load().pods[pod]
	if err := sb.changing.take(bg); err != nil {
		t.Fatal(err)
	}
	go func() { removed <- n.m.RemovePodSandbox(bg, pod) }() // ends with the turn
	n.wantStill(removed)
	sb.changing.giveBack()
	if err := <-removed; err != nil {
		t.Error(err)
	}
}

// wantStill wants what ends with a word on the channel not to have ended, nor to end soon.
func (n *node) wantStill(ended chan error) {
	n.t.Helper()
	select {
	case err := <-ended:
		n.t.Errorf("it did not wait: %v", err)
		ended <- err
	case <-time.After(200 * time.Millisecond):
	}
}

// podInfo is what people see of a pod's limits.
type podInfo struct {
	Resources, Overhead, Took map[string]any
	LimitsOf                  string
}

func (n *node) podInfo(pod string) (v podInfo) {
	n.t.Helper()
	_, info, err := n.m.PodSandboxStatus(pod)
	if err == nil {
		err = json.Unmarshal([]byte(info["info"]), &v)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	return v
}

// TestPodLimits: those of a pod's own cgroup are ours to write; those of a cgroup that the caller named are
// kept and shown.
func TestPodLimits(t *testing.T) {
	n := newNode(t, newFakes())
	n.wantPodLimits("ours", "")
	n.wantPodLimits("theirs", filepath.Base(n.cgroot)+"/kubepods/pod1")
}

func (n *node) wantPodLimits(name, parent string) {
	t := n.t
	cfg := podRequest(name)
	cfg.Linux.CgroupParent = parent
	cfg.Linux.Resources = &resources{MemoryLimitInBytes: 64 << 20, CpuQuota: 20000, CpuPeriod: 100000, CpuShares: 512}
	cfg.Linux.Overhead = &resources{MemoryLimitInBytes: 16 << 20, CpuQuota: 1000, CpuPeriod: 100000}
	pod := n.run(cfg)
	n.create(pod, limitedRequest("c")) // so that the caller's cgroup exists
	cgroup := n.m.index.Load().pods[pod].record.Cgroup
	check := func(step, memory, overhead, max, cpu string) {
		t.Helper()
		for range 2 {
			i := n.podInfo(pod)
			of := map[string]string{"": "vitrine"}[parent]
			if of == "" {
				of, max, cpu = "caller", "max", "max 100000"
			}
			if i.LimitsOf != of || i.Resources["memory_limit_in_bytes"] != memory || i.Overhead["memory_limit_in_bytes"] != overhead {
				t.Errorf("%s, %s: %+v", name, step, i)
			}
			if took := i.Took["memory_limit_in_bytes"]; n.limited() && of == "vitrine" && max != "max" && took != max {
				t.Errorf("%s, %s: took %v", name, step, took)
			}
			n.wantFiles(cgroup, map[string]string{"memory.max": max, "cpu.max": cpu})
			n.restart()
		}
	}
	update := func(overhead, sum *resources) {
		t.Helper()
		if err := n.m.UpdatePodSandboxResources(bg, pod, overhead, sum); err != nil {
			t.Fatal(err)
		}
	}
	check("run", "67108864", "16777216", "83886080", "21000 100000")
	update(nil, &resources{MemoryLimitInBytes: 128 << 20, CpuQuota: 30000, CpuPeriod: 100000})
	check("resources", "134217728", "16777216", "150994944", "31000 100000")
	update(&resources{MemoryLimitInBytes: 32 << 20}, nil)
	check("overhead", "134217728", "33554432", "167772160", "30000 100000")
	update(nil, &resources{MemoryLimitInBytes: -1})
	check("no limit", "-1", "33554432", "max", "max 100000")
	if err := n.m.UpdatePodSandboxResources(bg, pod, nil, &resources{CpuQuota: 7}); !errors.Is(err, ErrInvalid) {
		t.Errorf("bad quota: %v", err)
	}
	if err := n.m.StopPodSandbox(bg, pod); err != nil {
		t.Fatal(err)
	}
	if err := n.m.UpdatePodSandboxResources(bg, pod, nil, &resources{}); !errors.Is(err, ErrState) {
		t.Errorf("stopped: %v", err)
	}
	if err := n.m.UpdatePodSandboxResources(bg, strings.Repeat("e", 64), nil, &resources{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown: %v", err)
	}
	if err := n.m.RemovePodSandbox(bg, pod); err != nil {
		t.Fatal(err)
	}
	for p := parent; p != "" && strings.Contains(p, "/"); p = filepath.Dir(p) {
		if err := os.Remove(filepath.Join(filepath.Dir(n.cgroot), p)); err != nil {
			t.Error(err)
		}
	}
}

// TestRereadLimits: a daemon that was killed amidst an update left something in the kernel and nothing in the
// records. The next one shows what holds.
func TestRereadLimits(t *testing.T) {
	n := newNode(t, newFakes())
	if !n.limited() {
		t.Skip("needs controllers: run it in the guest (make vm-test)")
	}
	pod := n.run(podRequest("web"))
	cfg := limitedRequest("c")
	id := n.create(pod, cfg)
	file := filepath.Join(filepath.Dir(n.cgroot), n.containerCgroup(id), "memory.max")
	if err := os.WriteFile(file, []byte("300M"), 0); err != nil {
		t.Fatal(err)
	}
	n.wantShown(id, cfg.Linux.Resources) // a read does not look
	n.restart()
	want := proto.Clone(cfg.Linux.Resources).(*resources)
	want.MemoryLimitInBytes = 300 << 20
	n.wantShown(id, want)
	// The next update brings everything in order.
	if err := n.m.UpdateContainerResources(bg, id, &resources{CpuShares: 600}); err != nil {
		t.Fatal(err)
	}
	want.MemoryLimitInBytes, want.CpuShares = 100_000_000, 600
	n.wantShown(id, want)
}
