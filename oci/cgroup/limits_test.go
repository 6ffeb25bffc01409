package cgroup

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// planCases returns requests and the files that they become: file=value in the
// order of writing, a question mark for what may be missing, or ! for refused.
func planCases() []planCase {
	i, u := ptr[int64], ptr[uint64]
	cpu := func(c specs.LinuxCPU) specs.LinuxResources { return specs.LinuxResources{CPU: &c} }
	mem := func(m specs.LinuxMemory) specs.LinuxResources { return specs.LinuxResources{Memory: &m} }
	huge := func(size string, n uint64) specs.LinuxResources {
		return specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: size, Limit: n}}}
	}
	unified := func(k, v string) specs.LinuxResources {
		return specs.LinuxResources{Unified: map[string]string{k: v}}
	}
	pids := func(n int64) specs.LinuxResources {
		return specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &n}}
	}
	dev := specs.LinuxThrottleDevice{Rate: 1000}
	dev.Major, dev.Minor = 8, 16
	return []planCase{
		{specs.LinuxResources{}, ""},
		{cpu(specs.LinuxCPU{}), ""},
		{cpu(specs.LinuxCPU{Shares: u(0)}), ""},
		{cpu(specs.LinuxCPU{Shares: u(1024)}), "cpu.weight=100"},
		{cpu(specs.LinuxCPU{Quota: i(50000), Period: u(100000)}), "cpu.max=50000 100000"},
		{cpu(specs.LinuxCPU{Quota: i(12345), Period: u(100000)}), "cpu.max=12345 100000"},
		{cpu(specs.LinuxCPU{Quota: i(50000)}), "cpu.max=50000"},
		{cpu(specs.LinuxCPU{Quota: i(-1), Period: u(100000)}), "cpu.max=max 100000"},
		{cpu(specs.LinuxCPU{Quota: i(0), Period: u(0)}), ""},
		{cpu(specs.LinuxCPU{Period: u(20000)}), "cpu.max=max 20000"},
		{cpu(specs.LinuxCPU{Quota: i(999)}), "!"},
		{cpu(specs.LinuxCPU{Period: u(999)}), "!"},
		{cpu(specs.LinuxCPU{Period: u(1000001)}), "!"},
		{cpu(specs.LinuxCPU{Quota: i(5000), Burst: u(1000)}), "cpu.max=5000 cpu.max.burst=1000"},
		{cpu(specs.LinuxCPU{Idle: i(1), Shares: u(1024)}), "cpu.idle=1"},
		{cpu(specs.LinuxCPU{Idle: i(0), Shares: u(2)}), "cpu.idle=0 cpu.weight=1"},
		{cpu(specs.LinuxCPU{Idle: i(2)}), "!"},
		{cpu(specs.LinuxCPU{RealtimeRuntime: i(1000)}), "!"},
		{cpu(specs.LinuxCPU{Cpus: "0-3,7", Mems: "0"}), "cpuset.cpus=0-3,7 cpuset.mems=0"},
		{cpu(specs.LinuxCPU{Cpus: "x"}), "!"}, {cpu(specs.LinuxCPU{Cpus: "0-"}), "!"}, {cpu(specs.LinuxCPU{Cpus: "5-1"}), "!"},
		{cpu(specs.LinuxCPU{Cpus: "0,,1"}), "!"}, {cpu(specs.LinuxCPU{Cpus: "0\n1"}), "!"}, {cpu(specs.LinuxCPU{Mems: "+1"}), "!"},
		{cpu(specs.LinuxCPU{Cpus: "-1"}), "!"}, {cpu(specs.LinuxCPU{Cpus: "1-+2"}), "!"}, {cpu(specs.LinuxCPU{Cpus: " 1"}), "!"},

		{mem(specs.LinuxMemory{}), ""},
		{mem(specs.LinuxMemory{Limit: i(0)}), ""},
		{mem(specs.LinuxMemory{Limit: i(1 << 30)}), "memory.max=1073741824"},
		{mem(specs.LinuxMemory{Limit: i(math.MaxInt64)}), "memory.max=9223372036854775807"},
		{mem(specs.LinuxMemory{Limit: i(-1)}), "memory.max=max memory.swap.max=max?"},
		{mem(specs.LinuxMemory{Limit: i(100), Swap: i(100)}), "memory.max=100 memory.swap.max=0?"},
		{mem(specs.LinuxMemory{Limit: i(100), Swap: i(300)}), "memory.max=100 memory.swap.max=200"},
		{mem(specs.LinuxMemory{Limit: i(100), Swap: i(-1)}), "memory.max=100 memory.swap.max=max?"},
		{mem(specs.LinuxMemory{Limit: i(100), Swap: i(99)}), "!"},
		{mem(specs.LinuxMemory{Swap: i(100)}), "!"},
		{mem(specs.LinuxMemory{Limit: i(-1), Swap: i(100)}), "!"},
		{mem(specs.LinuxMemory{Reservation: i(50), Limit: i(100)}), "memory.low=50 memory.max=100"},
		{mem(specs.LinuxMemory{Swappiness: u(60)}), "!"},
		{mem(specs.LinuxMemory{DisableOOMKiller: ptr(true)}), "!"},
		{mem(specs.LinuxMemory{DisableOOMKiller: ptr(false)}), ""},
		{mem(specs.LinuxMemory{KernelTCP: i(1)}), "!"},

		{pids(100), "pids.max=100"}, {pids(-1), "pids.max=max"}, {pids(-7), "pids.max=max"}, {pids(0), "pids.max=1"},
		{specs.LinuxResources{Pids: &specs.LinuxPids{}}, ""},

		{huge("2MB", 0), "hugetlb.2MB.max=0 hugetlb.2MB.rsvd.max=0?"},
		{huge("1GB", 1<<30), "hugetlb.1GB.max=1073741824 hugetlb.1GB.rsvd.max=1073741824?"},
		{huge("3XB", 0), "!"}, {huge("2 MB", 0), "!"}, {huge("", 0), "!"}, {huge("../2MB", 0), "!"}, {huge("MB", 0), "!"},

		{unified("memory.oom.group", "1"), "memory.oom.group=1"},
		{unified("hugetlb.2MB.rsvd.max", "0"), "hugetlb.2MB.rsvd.max=0"},
		{unified("../memory.max", "1"), "!"}, {unified("a/b", "1"), "!"}, {unified("memory.max\n", "1"), "!"},
		{unified("cgroup.procs", "1"), "!"}, {unified("cgroup.kill", "1"), "!"}, {unified("nope.max", "1"), "!"},
		{unified("memory.max", "1\n2"), "!"}, {unified("memory.max", ""), "!"}, {unified("memory.reclaim", "1G"), "!"},
		{unified("cpuset.cpus.partition", "root"), "!"}, {unified("hugetlb.../x.max", "1"), "!"}, {unified("", "1"), "!"},

		{specs.LinuxResources{Rdma: map[string]specs.LinuxRdma{"mlx": {HcaHandles: ptr(uint32(2))}}}, "rdma.max=mlx hca_handle=2"},
		{specs.LinuxResources{Rdma: map[string]specs.LinuxRdma{"a b": {}}}, "!"},
		{specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(10))}}, "io.weight=1"},
		{specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(1000))}}, "io.weight=10000"},
		{specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(9))}}, "!"},
		{specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{LeafWeight: ptr(uint16(10))}}, "!"},
		{specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{ThrottleReadBpsDevice: []specs.LinuxThrottleDevice{dev}}}, "io.max=8:16 rbps=1000"},
		{specs.LinuxResources{Network: &specs.LinuxNetwork{ClassID: ptr(uint32(1))}}, "!"},
	}
}

type planCase struct {
	in   specs.LinuxResources
	want string
}

func TestPlan(t *testing.T) {
	for _, tt := range planCases() {
		settings, err := plan(&tt.in)
		var got []string
		for _, s := range settings {
			opt := ""
			if s.optional {
				opt = "?"
			}
			got = append(got, s.file+"="+s.value+opt)
		}
		text := strings.Join(got, " ")
		if err != nil {
			if text = "!"; !errors.Is(err, ErrInvalid) {
				t.Errorf("%+v: %v is not ErrInvalid", tt.in, err)
			}
		}
		if text != tt.want {
			t.Errorf("got %q (%v), want %q", text, err, tt.want)
		}
	}
	if s, err := plan(nil); s != nil || err != nil {
		t.Errorf("nil: %v, %v", s, err)
	}
}

// The three points that define the curve, and 102 (a request of 100m), for which
// Kubernetes names 17.
func TestCPUWeight(t *testing.T) {
	last := uint64(0)
	for _, tt := range []struct{ shares, want uint64 }{
		{0, 1}, {1, 1}, {2, 1}, {102, 17}, {512, 59}, {1024, 100}, {262143, 10000}, {262144, 10000}, {math.MaxInt64, 10000},
	} {
		got := cpuWeight(tt.shares)
		if tt.want != 0 && got != tt.want {
			t.Errorf("weight of %d is %d, want %d", tt.shares, got, tt.want)
		}
	}
	for s := uint64(0); s <= maxShares+10; s++ {
		w := cpuWeight(s)
		if w < last || w < minWeight || w > maxWeight {
			t.Fatalf("weight of %d is %d after %d", s, w, last)
		}
		last = w
	}
}

// The writer against a plain directory with the files that a kernel with all
// controllers has: names, values, order and what is missing.
func TestApply(t *testing.T) {
	dir := t.TempDir()
	for _, f := range []string{"cpu.weight", "cpu.max", "memory.max", "pids.max", "hugetlb.2MB.max"} {
		if err := os.WriteFile(filepath.Join(dir, f), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	settings, err := plan(&specs.LinuxResources{
		CPU:            &specs.LinuxCPU{Shares: ptr(uint64(512)), Quota: ptr(int64(20000)), Period: ptr(uint64(100000)), Cpus: "0"},
		Memory:         &specs.LinuxMemory{Limit: ptr(int64(4096)), Swap: ptr(int64(4096))},
		Pids:           &specs.LinuxPids{Limit: ptr(int64(5))},
		HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB"}, {Pagesize: "1GB"}},
		Unified:        map[string]string{"memory.high": "4000"},
	})
	if err != nil {
		t.Fatal(err)
	}
	missing, err := applyAll(int(d.Fd()), settings)
	if err != nil || fmt.Sprint(missing) != "[cpuset.cpus hugetlb.1GB.max memory.high]" {
		t.Fatalf("missing %v, %v", missing, err)
	}
	for f, want := range map[string]string{"cpu.weight": "59", "cpu.max": "20000 100000", "memory.max": "4096", "pids.max": "5", "hugetlb.2MB.max": "0"} {
		if got, _ := os.ReadFile(filepath.Join(dir, f)); string(got) != want {
			t.Errorf("%s holds %q, want %q", f, got, want)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "memory.high")); err == nil {
		t.Error("a file was made")
	}
	// What the kernel refuses ends it, with the file's name.
	if err := os.Mkdir(filepath.Join(dir, "io.weight"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err = applyAll(int(d.Fd()), []setting{{file: "io.weight", value: "1"}, {file: "pids.max", value: "6"}})
	if !errors.Is(err, unix.EISDIR) || !strings.Contains(err.Error(), "io.weight") {
		t.Errorf("refused write: %v", err)
	}
	// A link is not followed.
	if err := os.Symlink("/proc/self/comm", filepath.Join(dir, "cpu.idle")); err != nil {
		t.Fatal(err)
	}
	if _, err := applyAll(int(d.Fd()), []setting{{file: "cpu.idle", value: "1"}}); !errors.Is(err, unix.ELOOP) {
		t.Errorf("link: %v", err)
	}
}
