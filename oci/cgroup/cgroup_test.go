package cgroup

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func ptr[T any](v T) *T { return &v }

// The hierarchies that are no pure v2: this machine's own /sys/fs/cgroup where it
// is v1 or hybrid, a tmpfs, a plain directory.
func TestOpenRefusesOtherHierarchies(t *testing.T) {
	for _, root := range []string{"/sys/fs/cgroup", t.TempDir(), "/proc"} {
		fs, err := statfs(root)
		if err != nil || fs.Type == unix.CGROUP2_SUPER_MAGIC {
			t.Logf("%s: not refused here (%v)", root, err)
			continue
		}
		tr, err := Open(Config{Root: root, Driver: "cgroupfs", AllowUnenforced: true, Prefix: "vitrine-"})
		if !errors.Is(err, ErrHierarchy) || tr != nil {
			t.Fatalf("%s: %v, want ErrHierarchy", root, err)
		}
		for _, arg := range []string{"systemd.unified_cgroup_hierarchy=1", "cgroup_no_v1=all"} {
			if !strings.Contains(err.Error(), arg) {
				t.Errorf("%s: %q does not name %s", root, err, arg)
			}
		}
		t.Log(err)
	}
	if _, err := Open(Config{Root: "/nonexistent", Prefix: "v"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing root: %v", err)
	}
}

func TestDrivers(t *testing.T) {
	root := hierarchy(t)
	booted, plain := t.TempDir(), "/nonexistent"
	for _, tt := range []struct {
		driver, systemd string
		want            error
		is              Driver
	}{
		{"auto", plain, nil, DriverCgroupfs}, {"", plain, nil, DriverCgroupfs}, {"cgroupfs", plain, nil, DriverCgroupfs},
		{"cgroupfs", booted, nil, DriverCgroupfs}, {"auto", booted, nil, DriverSystemd}, {"", booted, nil, DriverSystemd},
		{"systemd", booted, nil, DriverSystemd}, {"systemd", plain, ErrDriver, ""}, {"runc", plain, ErrDriver, ""},
	} {
		tr, err := open(Config{Root: root, Driver: tt.driver, AllowUnenforced: true, Prefix: "v-"}, tt.systemd)
		if !errors.Is(err, tt.want) {
			t.Errorf("%+v: %v", tt, err)
		}
		if err == nil {
			if tr.Driver() != tt.is {
				t.Errorf("%+v: driver %s", tt, tr.Driver())
			}
			if err := tr.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// Here the controllers belong to v1, so the hierarchy is refused unless that is
// allowed, and then says what it does not enforce.
func TestMissingControllers(t *testing.T) {
	root := hierarchy(t)
	have, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(have), "memory") {
		t.Skip("needs a kernel without the memory controller in cgroup v2")
	}
	_, err = Open(Config{Root: root, Driver: "cgroupfs", Prefix: "v-"})
	if !errors.Is(err, ErrUnenforced) || !strings.Contains(err.Error(), "memory") || !strings.Contains(err.Error(), "--allow-unenforced-limits") {
		t.Fatalf("open: %v", err)
	}
	tr, _ := tree(t)
	if !slices.Contains(tr.Unenforced(), "memory") || slices.Contains(tr.Controllers(), "memory") {
		t.Fatalf("unenforced %v, controllers %v", tr.Unenforced(), tr.Controllers())
	}
	s, err := tr.Create("p", "a", &specs.LinuxResources{
		Memory:         &specs.LinuxMemory{Limit: ptr(int64(64 << 20)), Swap: ptr(int64(64 << 20))},
		Pids:           &specs.LinuxPids{Limit: ptr(int64(10))},
		HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	got := s.Unenforced()
	if !slices.Contains(got, "memory.max") || slices.Contains(got, "memory.swap.max") {
		t.Fatalf("unenforced %v", got)
	}
	t.Log("controllers", tr.Controllers(), "unenforced", got)
	if n, err := s.OOMKills(); n != 0 || err != nil {
		t.Fatalf("OOM kills %d, %v", n, err)
	}

	tr.allow = false // as if the controller were missing only here
	_, err = tr.Create("q/r", "b", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(64 << 20))}})
	if !errors.Is(err, ErrUnenforced) || !strings.Contains(err.Error(), "memory.max") {
		t.Fatalf("create: %v", err)
	}
	if _, err := tr.Create("q", "c", &specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB"}}}); err != nil {
		t.Fatalf("hugepage limits of the kubelet: %v", err)
	}
	if err := s.Update(context.Background(), &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(1 << 20))}}); !errors.Is(err, ErrUnenforced) {
		t.Fatalf("update: %v", err)
	}
}

func TestLife(t *testing.T) {
	tr, root := tree(t)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	s, err := tr.Create("/kubepods/pod1/", "abc", nil)
	if err != nil {
		t.Fatal(err)
	}
	if s.Path() != "kubepods/pod1/vitrine-abc" || len(s.Unenforced()) != 0 {
		t.Fatalf("path %q, unenforced %v", s.Path(), s.Unenforced())
	}
	if _, err := tr.Create("kubepods/pod1", "abc", nil); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("second create: %v", err)
	}
	if busy, err := s.Populated(); busy || err != nil {
		t.Fatalf("populated %v, %v", busy, err)
	}
	cmd := run(t, s, "sleep", "1000")
	s = tr.Load(s.Path()) // another daemon
	leaf, err := s.Leaf("exec-1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Leaf("exec-1"); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("second leaf: %v", err)
	}
	inLeaf := run(t, leaf, "sh", "-c", "sleep 1000 & setsid sleep 1000 & wait")
	waitProcs(t, s, 4)
	procs, err := s.Procs()
	if err != nil || !slices.Contains(procs, cmd.Process.Pid) || !slices.Contains(procs, inLeaf.Process.Pid) {
		t.Fatalf("procs %v, %v", procs, err)
	}
	if err := s.Place(ctx, cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if s.RemoveIdle() {
		t.Fatal("a busy cgroup is removed")
	}
	short, stop := context.WithTimeout(ctx, 30*time.Millisecond)
	defer stop()
	if err := s.Remove(short); !errors.Is(err, unix.EBUSY) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("remove of a busy cgroup: %v", err)
	}
	if err := s.WaitEmpty(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("wait of a busy cgroup: %v", err)
	}
	// The leaf alone, with the child that left its session.
	if err := leaf.Kill(); err != nil {
		t.Fatal(err)
	}
	inLeaf.Wait()
	if err := leaf.WaitEmpty(ctx); err != nil {
		t.Fatal(err)
	}
	if err := leaf.Remove(ctx); err != nil {
		t.Fatal(err)
	}
	if idle, err := s.Leaf("exec-3"); err != nil || !idle.RemoveIdle() || idle.RemoveIdle() {
		t.Fatalf("an idle cgroup is not removed once: %v", err)
	}
	if cmd.Process.Signal(unix.Signal(0)) != nil {
		t.Fatal("killing the leaf killed the container")
	}
	// Everything, with a leaf that is still full.
	leaf2, _ := s.Leaf("exec-2")
	cmd2 := run(t, leaf2, "sleep", "1000")
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	cmd2.Wait()
	if err := s.WaitEmpty(ctx); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Remove(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if got := dirsBelow(t, root); got != "kubepods kubepods/pod1" {
		t.Fatalf("left: %s", got)
	}
}

func waitProcs(t *testing.T, s *Scope, want int) {
	t.Helper()
	for range 200 {
		if p, err := s.Procs(); err == nil && len(p) == want {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	p, err := s.Procs()
	t.Fatalf("procs %v, %v; want %d", p, err, want)
}

// Verbs of a cgroup that is gone: stopping and removing must go on, asking must
// not make things up.
func TestGone(t *testing.T) {
	tr, _ := tree(t)
	ctx := context.Background()
	for _, path := range []string{"no/such/thing", "kubepods"} {
		s := tr.Load(path)
		if err := errors.Join(s.Kill(), s.Thaw(), s.WaitEmpty(ctx), s.Remove(ctx)); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if busy, err := s.Populated(); busy || err != nil {
			t.Errorf("%s: populated %v, %v", path, busy, err)
		}
		_, e1 := s.OpenDir()
		_, e2 := s.Procs()
		_, e3 := s.OOMKills()
		_, e4 := s.Leaf("x")
		for _, err := range []error{e1, e2, e3, e4, s.Update(ctx, nil), s.Freeze(ctx)} {
			if !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %v", path, err)
			}
		}
	}
}

// RT-22: whatever names a cgroup stays below its parent. A record that lost its
// path must not kill the node, and no path leaves the tree.
func TestRT22PathsStayInside(t *testing.T) {
	tr, root := tree(t)
	ctx := context.Background()
	for _, p := range []string{"", "/", "..", "a/../..", "a/./b", "a//b", "a\nb", "a\x00b", "a b", "memory.max", "x/cgroup.procs",
		"a\\b", "\xff", strings.Repeat("x", 256), strings.Repeat("xx/", 400)} {
		s := tr.Load(p)
		for _, err := range []error{s.Kill(), s.Remove(ctx), s.Freeze(ctx), s.Update(ctx, nil)} {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("%.40q: %v", p, err)
			}
		}
		if s.RemoveIdle() {
			t.Errorf("%.40q is removed", p)
		}
		if p == "" || p == "/" {
			continue // the root, as a parent
		}
		if _, err := tr.Create(p, "x", nil); !errors.Is(err, ErrInvalid) {
			t.Errorf("create below %.40q: %v", p, err)
		}
		if _, err := tr.Slice(p); !errors.Is(err, ErrInvalid) {
			t.Errorf("slice %.40q: %v", p, err)
		}
	}
	for _, id := range []string{"../x", "a/b", "a\n", strings.Repeat("x", 300)} {
		if _, err := tr.Create("p", id, nil); !errors.Is(err, ErrInvalid) {
			t.Errorf("id %.40q: %v", id, err)
		}
	}
	if got := dirsBelow(t, root); got != "" {
		t.Errorf("left: %s", got)
	}
}

// Whatever fails after the first mkdir takes back what was made, and nothing
// that was there before.
func TestCreateUndoes(t *testing.T) {
	tr, root := tree(t)
	if fd, err := tr.Slice("there"); err != nil {
		t.Fatal(err)
	} else {
		fd.Close()
	}
	tr.allow = false
	// Without the controller there is no such file, and with it the kernel takes no such value.
	bad := &specs.LinuxResources{Unified: map[string]string{"memory.max": "much"}}
	if _, err := tr.Create("there/a/b", "x", bad); err == nil || !strings.Contains(err.Error(), "memory.max") {
		t.Fatalf("create with a limit that does not hold: %v", err)
	}
	if got := dirsBelow(t, root); got != "there" {
		t.Fatalf("left: %s", got)
	}
	// A parent that cannot have children.
	if err := os.WriteFile(filepath.Join(root, "there", "cgroup.max.descendants"), []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	_, err := tr.Create("there/a/b", "x", nil)
	if !errors.Is(err, unix.EAGAIN) || !strings.Contains(err.Error(), "limit on the number") {
		t.Fatalf("create: %v", err)
	}
	if got := dirsBelow(t, root); got != "there" {
		t.Fatalf("left: %s", got)
	}
}

func TestCreateInParallel(t *testing.T) {
	tr, root := tree(t)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			for range 20 {
				s, err := tr.Create("a/b/c", string(rune('a'+i)), nil)
				if err != nil {
					t.Error(err)
					return
				}
				if err := s.Remove(context.Background()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := dirsBelow(t, root); got != "a a/b a/b/c" {
		t.Fatalf("left: %s", got)
	}
}

func TestFreeze(t *testing.T) {
	tr, _ := tree(t)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	s, err := tr.Create("p", "f", nil)
	if err != nil {
		t.Fatal(err)
	}
	cmd := run(t, s, "sh", "-c", "while :; do sleep 0.01; done")
	if err := s.Freeze(ctx); err != nil {
		t.Fatal(err)
	}
	if on, err := s.Frozen(); !on || err != nil {
		t.Fatalf("frozen %v, %v", on, err)
	}
	if err := s.Thaw(); err != nil {
		t.Fatal(err)
	}
	if on, err := s.Frozen(); on || err != nil {
		t.Fatalf("frozen %v, %v", on, err)
	}
	if err := s.Freeze(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Kill(); err != nil { // must reach frozen ones
		t.Fatal(err)
	}
	cmd.Wait()
	if err := s.WaitEmpty(ctx); err != nil {
		t.Fatal(err)
	}
	ended, stop := context.WithCancel(ctx)
	stop()
	run(t, s, "sleep", "1000")
	if err := s.Freeze(ended); err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	} else if err != nil {
		if on, _ := s.Frozen(); on {
			t.Fatal("a freeze that was given up left the scope frozen")
		}
	}
}

// A fork bomb is what WaitEmpty after Kill is for: cgroup.kill catches children
// that are being forked.
func TestKillBeatsForks(t *testing.T) {
	tr, _ := tree(t)
	s, err := tr.Create("p", "bomb", nil)
	if err != nil {
		t.Fatal(err)
	}
	cmd := run(t, s, "sh", "-c", "f() { while :; do sleep 0.001 & sleep 0; done; }; f & f & setsid sh -c 'while :; do sleep 0.001 & sleep 0; done' & wait")
	time.Sleep(100 * time.Millisecond)
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := errors.Join(s.WaitEmpty(ctx), s.Remove(ctx)); err != nil {
		t.Fatal(err)
	}
}

func TestSliceIsIdempotent(t *testing.T) {
	tr, root := tree(t)
	for range 2 {
		fd, err := tr.Slice("vitrine/monitors")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fields(fd.Int(), "cgroup.procs"); err != nil {
			t.Error(err)
		}
		fd.Close()
	}
	if got := dirsBelow(t, root); got != "vitrine vitrine/monitors" {
		t.Fatalf("made: %s", got)
	}
	fd, err := tr.Slice("")
	if err != nil {
		t.Fatal(err)
	}
	fd.Close()
}

func BenchmarkCreateRemove(b *testing.B) {
	tr, _ := tree(b)
	r := &specs.LinuxResources{
		CPU: &specs.LinuxCPU{Shares: ptr(uint64(1024))}, Memory: &specs.LinuxMemory{Limit: ptr(int64(1 << 30))},
		Devices: usualDevices(),
	}
	for b.Loop() {
		s, err := tr.Create("pod", "bench", r)
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Remove(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}

// TestFrozenOfTheGone: a scope that is removed between its opening and the look at it is one that is not there.
func TestFrozenOfTheGone(t *testing.T) {
	tr, _ := tree(t)
	s, err := tr.Create("p", "g", nil)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := s.OpenDir()
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if on, err := frozenIn(dir); on || err != nil {
		t.Errorf("one that is there: %v, %v", on, err)
	}
	if err := s.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if on, err := frozenIn(dir); on || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("one that has gone: %v, %v", on, err)
	}
}
