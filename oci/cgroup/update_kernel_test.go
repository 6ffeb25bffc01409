package cgroup

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// limitedScope is a cgroup with all controllers that there are, and the directory
// where a test sees its files.
func limitedScope(t *testing.T) (*Scope, string) {
	t.Helper()
	tr, root := tree(t)
	if missing := tr.Unenforced(); len(missing) > 0 {
		if os.Getenv("VITRINE_VM") != "" {
			t.Fatalf("a guest without the controllers %v", missing)
		}
		t.Skipf("needs the controllers %v: run it in the guest (make vm-test)", missing)
	}
	s, err := tr.Create("p", strconv.FormatInt(time.Now().UnixNano(), 10), wish(512, 20000, 64<<20, nil))
	if err != nil {
		t.Fatal(err)
	}
	return s, filepath.Join(root, s.Path())
}

// limitsIn reads all files of a cgroup that set limits.
func limitsIn(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, e := range entries {
		if !slices.Contains(unifiedFiles, e.Name()) && !isHugetlbFile(e.Name()) {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		out[e.Name()] = strings.TrimSpace(string(b))
	}
	return out
}

// block returns the number of a block device of this machine.
func block(t *testing.T) string {
	t.Helper()
	devs, err := filepath.Glob("/sys/block/[sv]d[a-z]/dev")
	if err != nil || len(devs) == 0 {
		absent(t, "a disk, for io.max,")
		return ""
	}
	b, err := os.ReadFile(devs[0])
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// absent notes a file that this kernel has not. The guests' kernels have all.
func absent(t *testing.T, file string) {
	t.Helper()
	if os.Getenv("VITRINE_VM") != "" {
		t.Errorf("%s is not in a guest", file)
	}
	t.Logf("%s is not in this kernel", file)
}

// Each file in turn gets a value that this kernel refuses, while all the others
// get good ones: all hold what they held before. Then all get good ones.
func TestKernelRollsBack(t *testing.T) {
	s, dir := limitedScope(t)
	good := map[string]string{
		"cpu.weight": "77", "cpu.max": "12345 50000", "cpu.max.burst": "1234", "cpuset.cpus": "0", "cpuset.mems": "0",
		"memory.min": "1M", "memory.low": "2M", "memory.high": "30M", "memory.max": "40M", "memory.oom.group": "1",
		"memory.swap.high": "5M", "memory.swap.max": "6M", "pids.max": "55", "io.weight": "200", "hugetlb.2MB.max": "2M", "hugetlb.2MB.rsvd.max": "2M",
	}
	bad := map[string]string{
		"cpu.weight": "10001", "cpu.max": "1", "cpu.max.burst": "60000", "cpuset.cpus": "4000", "cpuset.mems": "4000",
		"memory.oom.group": "2", "io.weight": "0",
	}
	if dev := block(t); dev != "" {
		good["io.max"], bad["io.max"] = dev+" rbps=1000000", dev+" rbps=much"
	}
	maps.DeleteFunc(good, func(f, _ string) bool {
		_, err := os.Stat(filepath.Join(dir, f))
		if err != nil {
			absent(t, f)
		}
		return err != nil
	})
	old := limitsIn(t, dir)
	for _, base := range []string{"the first limits", "others"} {
		tried := 0
		before := limitsIn(t, dir)
		for file := range good {
			u := maps.Clone(good)
			if base == "others" {
				u = smaller(good)
			}
			if u[file] = bad[file]; u[file] == "" {
				u[file] = "bogus"
			}
			err := s.Update(context.Background(), &specs.LinuxResources{Unified: u})
			if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), file) || strings.Contains(err.Error(), "restore") {
				t.Errorf("%s=%s: %v", file, u[file], err)
			}
			after := limitsIn(t, dir)
			for f, v := range before {
				if after[f] != v {
					t.Errorf("%s=%s was refused, and %s went from %q to %q", file, u[file], f, v, after[f])
				}
			}
			tried++
		}
		t.Logf("on %s: %d files refused in turn, %d files looked at after each", base, tried, len(before))
		if err := s.Update(context.Background(), &specs.LinuxResources{Unified: good}); err != nil {
			t.Fatal(err)
		}
	}
	changed := 0
	for f, v := range limitsIn(t, dir) {
		if v != old[f] {
			changed++
		}
	}
	if changed < len(good)-3 { // some hold the good value from the beginning
		t.Errorf("only %d of %d files changed", changed, len(good))
	}
	got, err := s.ReadBack(&specs.LinuxResources{Unified: good})
	if err != nil || !maps.Equal(got.Unified, good) {
		t.Errorf("read back %v, %v", got.Unified, err)
	}
}

// smaller makes other good values.
func smaller(good map[string]string) map[string]string {
	u := maps.Clone(good)
	maps.Copy(u, map[string]string{"cpu.weight": "3", "cpu.max": "2000 50000", "cpu.max.burst": "7", "memory.min": "4096", "memory.low": "4096",
		"memory.high": "20M", "memory.max": "21M", "memory.oom.group": "0", "memory.swap.high": "0", "memory.swap.max": "0", "pids.max": "max"})
	maps.DeleteFunc(u, func(f, _ string) bool { _, ok := good[f]; return !ok })
	return u
}

// Any valid limits after any others are taken: the order of writing never meets a
// refusal of the kernel's.
func TestKernelTakesEveryOrder(t *testing.T) {
	s, dir := limitedScope(t)
	rnd := rand.New(rand.NewPCG(3, 4))
	for round := range 60 {
		quota, idle := 1000+rnd.Int64N(90000), int64(rnd.IntN(2))
		limit := (10 + rnd.Int64N(90)) << 20
		r := &specs.LinuxResources{
			CPU:     &specs.LinuxCPU{Shares: ptr(2 + rnd.Uint64N(5000)), Quota: &quota, Period: ptr(1000 + rnd.Uint64N(99000)), Burst: ptr(rnd.Uint64N(uint64(quota))), Idle: &idle},
			Memory:  &specs.LinuxMemory{Limit: &limit, Swap: ptr(limit + rnd.Int64N(1<<30))},
			Unified: map[string]string{"memory.high": fmt.Sprint(limit / 2), "memory.low": fmt.Sprint(limit / 3), "memory.min": fmt.Sprint(rnd.Int64N(limit / 3))},
		}
		if err := s.Update(context.Background(), r); err != nil {
			t.Fatalf("round %d: %v; files %v", round, err, limitsIn(t, dir))
		}
		got, err := s.ReadBack(r)
		if err != nil {
			t.Fatal(err)
		}
		if *got.CPU.Quota != quota || *got.CPU.Period != *r.CPU.Period || *got.CPU.Shares != *r.CPU.Shares || *got.Memory.Limit != limit || *got.Memory.Swap != *r.Memory.Swap ||
			!maps.Equal(got.Unified, r.Unified) {
			t.Fatalf("round %d: asked for %+v %+v %v, files %v", round, *r.CPU, *r.Memory, r.Unified, limitsIn(t, dir))
		}
	}
}

// A cpuset with processes in it cannot become empty again. After a rollback it has at
// least the same effect.
func TestKernelCpusetOfProcesses(t *testing.T) {
	s, dir := limitedScope(t)
	bare, err := s.tree.Create("p", "bare", nil)
	if err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(filepath.Dir(dir), filepath.Base(bare.Path()))
	run(t, bare, "/bin/sleep", "600")
	effective := func() string {
		cpus, cerr := os.ReadFile(filepath.Join(dir, "cpuset.cpus.effective"))
		mems, merr := os.ReadFile(filepath.Join(dir, "cpuset.mems.effective"))
		if err := errors.Join(cerr, merr); err != nil {
			t.Fatal(err)
		}
		return string(cpus) + string(mems)
	}
	before := effective()
	err = bare.UpdateThen(context.Background(), wish(512, 20000, 64<<20, nil), func(*specs.LinuxResources) error {
		if effective() == before {
			t.Log("one CPU and one node: nothing can be seen here")
		}
		return context.DeadlineExceeded
	})
	if !errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "restore") {
		t.Errorf("update: %v", err)
	}
	if after := effective(); after != before {
		t.Errorf("CPUs and nodes were %q and are %q", before, after)
	}
	if l := limitsIn(t, dir); l["memory.max"] != "max" || l["cpu.weight"] != "100" || l["pids.max"] != "max" {
		t.Errorf("files %v", l)
	}
}

// A memory limit below what is used is refused and changes nothing; one above is
// taken.
func TestKernelBelowUsage(t *testing.T) {
	s, dir := limitedScope(t)
	run(t, s, "/bin/sh", "-c", "head -c 20M /dev/zero > "+filepath.Join(t.TempDir(), "data")+"; exec sleep 600")
	used := func() int64 {
		b, err := os.ReadFile(filepath.Join(dir, "memory.current"))
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for deadline := time.Now().Add(time.Minute); used() < 20<<20; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes are used after a minute", used())
		}
	}
	before := limitsIn(t, dir)
	limit := func(n int64) *specs.LinuxResources {
		return &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr(uint64(4096))}, Memory: &specs.LinuxMemory{Limit: &n, Swap: &n}, Pids: &specs.LinuxPids{Limit: ptr(int64(9))}}
	}
	err := s.Update(context.Background(), limit(10<<20))
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "memory.max") {
		t.Errorf("update: %v", err)
	}
	if after := limitsIn(t, dir); !maps.Equal(before, after) {
		t.Errorf("before %v, after %v", before, after)
	}
	if err := s.Update(context.Background(), limit(40<<20)); err != nil {
		t.Error(err)
	}
	if n, err := s.OOMKills(); n != 0 || err != nil {
		t.Errorf("%d OOM kills, %v", n, err)
	}
	t.Logf("refused: %v", err)
}
