package integration

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// classes are what the kubelet asks for a container of each QoS class (the Burstable one with its MemoryQoS, and with a quota that
// systemd cannot keep), and what must then be read from the kernel and from systemd.
var classes = []struct {
	name, slice string
	asks        *runtimeapi.LinuxContainerResources
	files       map[string]string
	unit        map[string]string
}{
	{"Guaranteed", "", &runtimeapi.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 100000, CpuShares: 1024, MemoryLimitInBytes: 128 << 20,
		MemorySwapLimitInBytes: 128 << 20, OomScoreAdj: -997, CpusetCpus: "0-1", Unified: map[string]string{"memory.oom.group": "1"}},
		map[string]string{"cpu.max": "100000 100000", "cpu.weight": "100", "memory.max": "134217728", "memory.high": "max", "memory.min": "0",
			"memory.swap.max": "0", "memory.oom.group": "1", "pids.max": "max", "cpuset.cpus": "0-1", "oom_score_adj": "-997"},
		map[string]string{"CPUQuotaPerSecUSec": "1s", "CPUWeight": "100", "MemoryMax": "134217728", "MemoryHigh": "infinity", "MemoryMin": "0",
			"MemorySwapMax": "0", "TasksMax": "infinity", "AllowedCPUs": "0-1"}},
	{"Burstable", "burstable", &runtimeapi.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 12345, CpuShares: 256, MemoryLimitInBytes: 64 << 20,
		MemorySwapLimitInBytes: 96 << 20, OomScoreAdj: 637,
		Unified: map[string]string{"memory.min": "16777216", "memory.high": "50331648", "pids.max": "321", "memory.oom.group": "1"}},
		map[string]string{"cpu.max": "12345 100000", "cpu.weight": "35", "memory.max": "67108864", "memory.high": "50331648", "memory.min": "16777216",
			"memory.swap.max": "33554432", "memory.oom.group": "1", "pids.max": "321", "cpuset.cpus": "", "oom_score_adj": "637"},
		map[string]string{"CPUQuotaPerSecUSec": quotaInSteps(), "CPUWeight": "35", "MemoryMax": "67108864", "MemoryHigh": "50331648",
			"MemoryMin": "16777216", "MemorySwapMax": "33554432", "TasksMax": "321", "AllowedCPUs": ""}},
	{"BestEffort", "besteffort", &runtimeapi.LinuxContainerResources{CpuPeriod: 100000, CpuShares: 2, OomScoreAdj: 1000, Unified: map[string]string{"memory.oom.group": "1"}},
		map[string]string{"cpu.max": "max 100000", "cpu.weight": "1", "memory.max": "max", "memory.high": "max", "memory.min": "0",
			"memory.swap.max": "max", "memory.oom.group": "1", "pids.max": "max", "cpuset.cpus": "", "oom_score_adj": "1000"},
		map[string]string{"CPUQuotaPerSecUSec": "infinity", "CPUWeight": "1", "MemoryMax": "infinity", "MemoryHigh": "infinity", "MemoryMin": "0",
			"MemorySwapMax": "infinity", "TasksMax": "infinity", "AllowedCPUs": ""}},
}

// quotaInSteps is what systemd shows of a quota of 12,345 us: Debian 12's keeps quotas in steps of 10 ms, later ones in steps of half a millisecond.
func quotaInSteps() string {
	if os.Getenv("VITRINE_VM") == "12" {
		return "130ms"
	}
	return "123.500ms"
}

// TestTableOfLimits runs a pod of each QoS class in the kubelet's slices, prints what kernel and systemd hold of its container, and
// demands the same after everything that may happen to a node meanwhile.
func TestTableOfLimits(t *testing.T) {
	needsLimits(t)
	s := open(t)
	ids := map[string]string{}
	for _, c := range classes {
		p := s.runPod(strings.ToLower(c.name), s.inClass(c.slice))
		ids[c.name] = p.run("c", "exec sleep 600", resources(func(r *runtimeapi.LinuxContainerResources) {
			r.CpuPeriod, r.CpuQuota, r.CpuShares, r.CpusetCpus = c.asks.CpuPeriod, c.asks.CpuQuota, c.asks.CpuShares, c.asks.CpusetCpus
			r.MemoryLimitInBytes, r.MemorySwapLimitInBytes, r.OomScoreAdj = c.asks.MemoryLimitInBytes, c.asks.MemorySwapLimitInBytes, c.asks.OomScoreAdj
			r.Unified = maps.Clone(c.asks.Unified)
		}))
	}
	var table strings.Builder
	look := func() (wrong []string) {
		table.Reset()
		for _, c := range classes {
			i := s.info(ids[c.name])
			fmt.Fprintf(&table, "%s %s\n", c.name, i.Cgroup)
			var unit map[string]string
			if s.Stage.Driver == "systemd" {
				unit = s.shown(filepath.Base(i.Cgroup), c.unit) // first: it answers when it has come back
			}
			wrong = append(wrong, compare(c.name, &table, c.files, s.held(i, c.files))...)
			if unit != nil {
				wrong = append(wrong, compare(c.name, &table, c.unit, unit)...)
			}
		}
		return wrong
	}
	s.wantNone("created", look())
	t.Logf("read from the kernel, and from systemctl show:\n%s", table.String())
	events := s.under()
	for _, event := range slices.Sorted(maps.Keys(events)) {
		events[event]()
		s.wantNone("after "+event, look())
		t.Logf("the same after %s", event)
	}
	if s.Stage.Driver != "systemd" {
		return
	}
	for event, command := range map[string][]string{"daemon-reexec": {"systemctl", "daemon-reexec"}, "restart of the bus": {"systemctl", "restart", "dbus.service"}} {
		t.Run(event, func(t *testing.T) {
			if os.Getenv("VITRINE_OWN_GUEST") == "" {
				t.Skip("needs a machine of its own: restarts PID 1 and the bus; set VITRINE_OWN_GUEST=1 there")
			}
			s.command(command[0], command[1:]...)
			s.wantNone("after a "+event, look())
			t.Logf("the same after a %s", event)
		})
	}
}

// inClass puts a pod where the kubelet puts those of a QoS class.
func (s *scene) inClass(class string) func(*runtimeapi.PodSandboxConfig) {
	return func(c *runtimeapi.PodSandboxConfig) {
		if err := s.MoveToClass(c, class); err != nil {
			s.Fatal(err)
		}
	}
}

// command runs a command of the machine, with the patience that PID 1 needs in an emulated one.
func (s *scene) command(name string, args ...string) {
	s.Helper()
	if out, err := exec.CommandContext(s.ctx, name, args...).CombinedOutput(); err != nil {
		s.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}

// held reads files of a container's cgroup, and its init's oom_score_adj.
func (s *scene) held(i info, like map[string]string) map[string]string {
	out := map[string]string{}
	for file := range like {
		path := filepath.Join("/sys/fs/cgroup", i.Cgroup, file)
		if file == "oom_score_adj" {
			path = "/proc/" + strconv.Itoa(i.Pid) + "/oom_score_adj"
		}
		out[file] = textOrWhy(path)
	}
	return out
}

// textOrWhy is what a file holds, or why it cannot be read, which nobody wants.
func textOrWhy(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(b))
}

// shown asks systemd for properties of a unit, until it answers: after a daemon-reexec systemctl returns when PID 1 hangs up, and finds nobody for
// as long as that executes itself. A unit that is not known has no such answer.
func (s *scene) shown(unit string, like map[string]string) map[string]string {
	s.Helper()
	out := map[string]string{}
	args := []string{"show", "-p", "LoadState," + strings.Join(slices.Sorted(maps.Keys(like)), ","), unit}
	for deadline := time.Now().Add(s.Scale(15 * time.Second)); ; time.Sleep(200 * time.Millisecond) {
		b, err := exec.CommandContext(s.ctx, "systemctl", args...).CombinedOutput()
		clear(out)
		for _, line := range strings.Split(string(b), "\n") {
			if k, v, ok := strings.Cut(line, "="); ok {
				out[k] = v
			}
		}
		if err == nil && out["LoadState"] == "loaded" {
			return out
		}
		if time.Now().After(deadline) {
			s.Fatalf("systemctl show %s: %v: %s", unit, err, b)
		}
	}
}

// wantNone complains of what differs from what must hold.
func (s *scene) wantNone(when string, differences []string) {
	s.Helper()
	if len(differences) > 0 {
		s.Errorf("%s:\n%s", when, strings.Join(differences, "\n"))
	}
}

// compare adds lines to the table, and returns what is not as it must be.
func compare(class string, table *strings.Builder, want, got map[string]string) (wrong []string) {
	for _, k := range slices.Sorted(maps.Keys(want)) {
		fmt.Fprintf(table, "  %-20s %s\n", k, got[k])
		if got[k] != want[k] {
			wrong = append(wrong, fmt.Sprintf("%s: %s is %q, want %q", class, k, got[k], want[k]))
		}
	}
	return wrong
}
