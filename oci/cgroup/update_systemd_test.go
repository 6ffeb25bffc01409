package cgroup

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// An update reaches unit and files, and lasts.
func TestUpdateUnderSystemd(t *testing.T) {
	r := managed(t)
	ctx := context.Background()
	s, _ := r.place(t, "update", kubelet())
	before := r.calls()
	if err := s.Update(ctx, &specs.LinuxResources{
		CPU:    &specs.LinuxCPU{Shares: ptr(uint64(1024)), Quota: ptr(int64(33333)), Period: ptr(uint64(100000))},
		Memory: &specs.LinuxMemory{Limit: ptr(int64(128 << 20)), Swap: ptr(int64(128 << 20))},
	}); err != nil {
		t.Fatal(err)
	}
	if n := r.calls() - before; n > 2 { // the first odd quota asks for the version
		t.Errorf("%d messages for an update, want 1", n)
	}
	files := map[string]string{}
	for k, v := range limited {
		files[k] = v
	}
	files["cpu.weight"], files["cpu.max"], files["memory.max"] = "100", "33333 100000", "134217728"
	for i := range 2 {
		r.checkFiles(t, "updated", s, files)
		if got := show(t, s, "MemoryMax"); got != "134217728" {
			t.Errorf("MemoryMax=%s", got)
		}
		if got := show(t, s, "CPUWeight"); got != "100" {
			t.Errorf("CPUWeight=%s", got)
		}
		r.reload(t, i)
	}
	if err := s.Update(ctx, &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(50000))}}); err != nil {
		t.Fatal(err)
	}
	files["cpu.max"] = "50000 100000"
	r.reload(t, 2)
	r.checkFiles(t, "updated to what systemd can keep", s, files)
}

// What the kernel shows in another form than it was written in is written again a few times, and not for ever: each write is an event of the
// watch. What else is kept stays so.
func TestKeptInAnotherForm(t *testing.T) {
	r := managed(t)
	res := kubelet()
	res.Unified["memory.oom.group"] = "01"
	res.CPU.Quota = ptr(int64(12345))
	s, _ := r.place(t, "form", res)
	before := r.tree.kept.repairs.Load()
	time.Sleep(500 * time.Millisecond)
	if n := r.tree.kept.repairs.Load(); n-before > 10 || r.file(s, "memory.oom.group") != "1" {
		t.Errorf("%d writes in half a second, %d before; memory.oom.group is %s", n-before, before, r.file(s, "memory.oom.group"))
	}
	if err := os.WriteFile(filepath.Join(r.root, s.Path(), "cpu.max"), []byte("13000"), 0); err != nil { // as systemd does at a reload
		t.Fatal(err)
	}
	r.checkFiles(t, "the quota, which is kept", s, map[string]string{"cpu.max": "12345 100000"})
}

// A niceness is a view of the weight, so systemd has the weight: a reload changes nothing, shares that come later count, and one that could not
// be recorded does not come back.
func TestNiceUnderSystemd(t *testing.T) {
	r := managed(t)
	ctx := context.Background()
	res := kubelet()
	res.CPU.Shares = nil
	res.Unified["cpu.weight.nice"] = "5"
	s, _ := r.place(t, "nice", res)
	weight := r.file(s, "cpu.weight")
	check := func(when, weight string) {
		t.Helper()
		r.checkFiles(t, when, s, map[string]string{"cpu.weight": weight})
		if got := show(t, s, "CPUWeight"); got != weight {
			t.Errorf("%s: CPUWeight=%s, want %s", when, got, weight)
		}
	}
	if weight == "100" || r.file(s, "cpu.weight.nice") != "5" {
		t.Fatalf("cpu.weight is %s, cpu.weight.nice %s", weight, r.file(s, "cpu.weight.nice"))
	}
	check("placed", weight)
	r.reload(t, 0)
	check("reloaded", weight)
	if err := s.Update(ctx, &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr(uint64(2048))}}); err != nil {
		t.Fatal(err)
	}
	shares := r.file(s, "cpu.weight")
	if shares == weight {
		t.Errorf("cpu.weight is %s as before", shares)
	}
	r.reload(t, 1)
	check("shares", shares)
	full := errors.New("no room for the record")
	nice := &specs.LinuxResources{Unified: map[string]string{"cpu.weight.nice": "-5"}}
	if err := s.UpdateThen(ctx, nice, func(*specs.LinuxResources) error { return full }); !errors.Is(err, full) {
		t.Errorf("%v", err)
	}
	check("undone", shares)
	r.reload(t, 2)
	check("undone and reloaded", shares)
}

// An update that cannot be recorded is taken back in the files and in the unit, so that systemd does not bring it again.
func TestUpdateUndoneUnderSystemd(t *testing.T) {
	r := managed(t)
	s, _ := r.place(t, "undone", kubelet())
	shown := map[string]string{"MemoryMax": "67108864", "MemoryMin": "8388608", "CPUWeight": "35", "CPUQuotaPerSecUSec": "250ms", "TasksMax": "77"}
	check := func(when string) {
		t.Helper()
		r.checkFiles(t, when, s, limited)
		for p, want := range shown {
			if got := show(t, s, p); got != want {
				t.Errorf("%s: %s=%s, want %s", when, p, got, want)
			}
		}
	}
	full := errors.New("no room for the record")
	told := false
	err := s.UpdateThen(context.Background(), &specs.LinuxResources{
		CPU:     &specs.LinuxCPU{Shares: ptr(uint64(1024)), Quota: ptr(int64(33333)), Period: ptr(uint64(100000))},
		Memory:  &specs.LinuxMemory{Limit: ptr(int64(128 << 20)), Swap: ptr(int64(128 << 20))},
		Pids:    &specs.LinuxPids{Limit: ptr(int64(99))},
		Unified: map[string]string{"memory.min": "4194304"},
	}, func(*specs.LinuxResources) error {
		told = show(t, s, "MemoryMax") == "134217728" && show(t, s, "CPUWeight") == "100"
		return full
	})
	if !errors.Is(err, full) || !told {
		t.Errorf("%v; systemd was told: %v", err, told)
	}
	check("undone")
	r.reload(t, 0)
	check("after daemon-reload")
}
