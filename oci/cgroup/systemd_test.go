package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/vitrine-runtime/vitrine/internal/dbus"
)

// row is one driver in a test that both must pass.
type row struct {
	tree   *Tree
	root   string
	parent string // a cgroup for the test's own
}

var rows atomic.Int64

// drivers runs a test with each driver that this machine can have.
func drivers(t *testing.T, f func(t *testing.T, r row)) {
	t.Run("cgroupfs", func(t *testing.T) {
		tr, root := tree(t)
		f(t, row{tr, root, "p"})
	})
	t.Run("systemd", func(t *testing.T) { f(t, managed(t)) })
}

// managed opens the node's own hierarchy with the systemd driver. The test has a slice
// there, whose units and cgroups must be gone at the end.
func managed(t testing.TB) row {
	t.Helper()
	if info, err := os.Lstat("/run/systemd/system"); err != nil || !info.IsDir() {
		t.Skip("needs systemd as PID 1: make vm-test RUN=... runs this in a machine that has it")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes cgroups")
	}
	tr, err := Open(Config{Root: "/sys/fs/cgroup", Driver: "systemd", Prefix: "vitrine-"})
	if err != nil {
		t.Fatal(err)
	}
	tr.KeepAsking()
	r := row{tr, "/sys/fs/cgroup", fmt.Sprintf("vittest-%d-%d.slice", os.Getpid(), rows.Add(1))}
	t.Cleanup(func() {
		path, err := tr.Parent(r.parent)
		if err != nil {
			t.Error(err)
		}
		s := tr.Load(path)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := errors.Join(s.Kill(), s.WaitEmpty(ctx), s.Remove(ctx), tr.Close()); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(filepath.Join(r.root, path)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", path, err)
		}
	})
	return r
}

// file reads a file of a scope; "" if it is not there.
func (r row) file(s *Scope, name string) string {
	b, _ := os.ReadFile(filepath.Join(r.root, s.Path(), name))
	return strings.TrimSpace(string(b))
}

func systemctl(t testing.TB, args ...string) string {
	t.Helper()
	for try := 0; ; try++ {
		out, err := exec.Command("systemctl", args...).CombinedOutput()
		if err == nil {
			return strings.TrimSpace(string(out))
		}
		// It does not ask again when PID 1 executes itself under the question. We do.
		text := string(out)
		away := strings.Contains(text, "Transport endpoint") || strings.Contains(text, "Connection re") || strings.Contains(text, "without replying") ||
			strings.Contains(text, "Broken pipe")
		if !away || try == 100 {
			t.Fatalf("systemctl %v: %v\n%s", args, err, out)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// show returns a property of a scope's unit.
func show(t testing.TB, s *Scope, name string) string {
	t.Helper()
	return systemctl(t, "show", "--value", "-p", name, unitOf(filepath.Base(s.Path())))
}

// showAll returns all properties of a scope's unit.
func showAll(t testing.TB, s *Scope) map[string]string {
	t.Helper()
	all := map[string]string{}
	for line := range strings.Lines(systemctl(t, "show", unitOf(filepath.Base(s.Path())))) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
		all[k] = v
	}
	return all
}

// waitNoUnit waits until systemd has forgotten a scope, cgroup and all.
func (r row) waitNoUnit(t testing.TB, s *Scope) {
	t.Helper()
	name := unitOf(filepath.Base(s.Path()))
	var units string
	for range 100 {
		units = systemctl(t, "list-units", "--all", "--no-legend", "--plain", name)
		if _, err := os.Stat(filepath.Join(r.root, s.Path())); units == "" && errors.Is(err, fs.ErrNotExist) {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("left of %s: units %q, cgroup.procs %q", s.Path(), units, r.file(s, "cgroup.procs"))
}

// calls is how many messages systemd was sent.
func (r row) calls() uint64 { return r.tree.units.(*systemd).calls.Load() }

// place makes a scope with a sleeping process in it.
func (r row) place(t testing.TB, id string, res *specs.LinuxResources) (*Scope, *exec.Cmd) {
	t.Helper()
	s, err := r.tree.Create(r.parent, id, res)
	if err != nil {
		t.Fatal(err)
	}
	cmd := run(t, s, "sleep", "1000")
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	if err := s.Place(ctx, cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	return s, cmd
}

// kubelet are limits as the kubelet asks for them.
func kubelet() *specs.LinuxResources {
	return &specs.LinuxResources{
		CPU:     &specs.LinuxCPU{Shares: ptr(uint64(256)), Quota: ptr(int64(25000)), Period: ptr(uint64(100000)), Cpus: "0"},
		Memory:  &specs.LinuxMemory{Limit: ptr(int64(64 << 20)), Swap: ptr(int64(64 << 20))},
		Pids:    &specs.LinuxPids{Limit: ptr(int64(77))},
		Unified: map[string]string{"memory.oom.group": "1", "memory.high": "33554432", "memory.min": "8388608"},
		Devices: usualDevices(),
	}
}

// moreThanTheKubelet are limits that only the runtime spec, or a map of files, has, and what the files then hold: some are properties of a
// unit, and of some systemd knows nothing.
func moreThanTheKubelet() (*specs.LinuxResources, map[string]string) {
	r := kubelet()
	r.CPU.Burst, r.CPU.Mems = ptr(uint64(3000)), "0"
	r.Memory.Swap, r.Memory.Reservation = ptr(int64(96<<20)), ptr(int64(16<<20))
	r.BlockIO = &specs.LinuxBlockIO{Weight: ptr(uint16(505))}
	r.HugepageLimits = []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4 << 20}}
	files := maps.Clone(limited)
	maps.Copy(files, map[string]string{"cpu.max.burst": "3000", "cpuset.mems": "0", "memory.low": "16777216", "memory.swap.max": "33554432", "io.weight": "default 5000",
		"hugetlb.2MB.max": "4194304", "hugetlb.2MB.rsvd.max": "4194304"})
	return r, files
}

// limited are the files that kubelet() is about, and what they then hold.
var limited = map[string]string{
	"cpu.weight": "35", "cpu.max": "25000 100000", "cpuset.cpus": "0", "memory.max": "67108864", "memory.swap.max": "0",
	"pids.max": "77", "memory.oom.group": "1", "memory.high": "33554432", "memory.min": "8388608",
}

func (r row) checkFiles(t *testing.T, when string, s *Scope, want map[string]string) {
	t.Helper()
	before := t.Failed()
	defer func() {
		if t.Failed() && !before && r.tree.Driver() == DriverSystemd {
			name := unitOf(filepath.Base(s.Path()))
			out, _ := exec.Command("systemctl", "cat", name).CombinedOutput()
			dir, err := s.OpenDir()
			if err != nil {
				t.Error(err)
				return
			}
			defer dir.Close()
			kept, err := readKept(dir)
			t.Logf("%s: kept %v, %v; procs %s\n%s", name, kept, err, r.file(s, "cgroup.procs"), out)
		}
	}()
	for file, v := range want {
		if _, err := os.Stat(filepath.Join(r.root, s.Path(), file)); errors.Is(err, fs.ErrNotExist) && len(r.tree.Unenforced()) > 0 {
			continue // said so
		}
		got := ""
		for range 40 { // what systemd wrote over is put back a moment later
			if got = r.file(s, file); got == v {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		if got != v {
			t.Errorf("%s: %s is %q, want %q", when, file, got, v)
		}
	}
}

// The life of a scope is the same with both drivers: limits before the first
// process, a leaf, kill, removal, and nothing left.
func TestLifeOfAScope(t *testing.T) {
	drivers(t, func(t *testing.T, r row) {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		want, err := r.tree.ScopePath(r.parent, "life")
		if err != nil {
			t.Fatal(err)
		}
		s, err := r.tree.Create(r.parent, "life", kubelet())
		if err != nil {
			t.Fatal(err)
		}
		if s.Path() != want {
			t.Errorf("path %s, ScopePath says %s", s.Path(), want)
		}
		r.checkFiles(t, "before the first process", s, limited)
		cmd := run(t, s, "sleep", "1000")
		if err := s.Place(ctx, cmd.Process.Pid); err != nil {
			t.Fatal(err)
		}
		r.checkFiles(t, "placed", s, limited)
		if got := r.file(s, "cgroup.procs"); got != fmt.Sprint(cmd.Process.Pid) {
			t.Errorf("procs %q, want %d", got, cmd.Process.Pid)
		}
		leaf, err := s.Leaf("exec-1")
		if err != nil {
			t.Fatal(err)
		}
		run(t, leaf, "sleep", "1000")
		if err := leaf.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(leaf.WaitEmpty(ctx), leaf.Remove(ctx)); err != nil {
			t.Fatal(err)
		}
		if busy, err := s.Populated(); !busy || err != nil {
			t.Errorf("the scope is populated: %v, %v", busy, err)
		}
		if err := errors.Join(s.Kill(), s.WaitEmpty(ctx), s.Remove(ctx)); err != nil {
			t.Fatal(err)
		}
		if r.tree.Driver() == DriverSystemd {
			r.waitNoUnit(t, s)
		}
	})
}

// One message for a start, none for the end, none for an exec. It cannot be less
// than one: only systemd makes units.
func TestCallsPerContainer(t *testing.T) {
	r := managed(t)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	began := time.Now()
	s, _ := r.place(t, "calls", kubelet())
	t.Logf("create, fork and place took %v", time.Since(began).Round(time.Millisecond))
	if n := r.calls(); n != 1 {
		t.Errorf("%d messages for a start, want 1", n)
	}
	if _, err := s.Leaf("exec-1"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Kill(), s.WaitEmpty(ctx), s.Remove(ctx)); err != nil {
		t.Fatal(err)
	}
	if n := r.calls(); n != 1 {
		t.Errorf("%d messages for start, exec, kill and removal, want 1", n)
	}
	r.waitNoUnit(t, s)
}

// Nobody removes it: with the last process the unit ends, and its cgroup.
func TestScopeEndsWithItsProcess(t *testing.T) {
	r := managed(t)
	s, cmd := r.place(t, "ends", kubelet())
	if got := show(t, s, "ActiveState"); got != "active" {
		t.Errorf("state %s", got)
	}
	cmd.Process.Kill()
	cmd.Wait()
	r.waitNoUnit(t, s)
	if err := s.Remove(context.Background()); err != nil {
		t.Error(err)
	}
}

// reload has systemd read its files again, and then realize the slice anew, by a
// unit beside ours that wants another controller: each is a moment at which it
// writes its idea of our limits.
func (r row) reload(t testing.TB, n int) {
	t.Helper()
	systemctl(t, "daemon-reload")
	out, err := exec.Command("systemd-run", "--quiet", "--wait", "--slice="+r.parent, fmt.Sprintf("--unit=vittest-%d-%d-%d", os.Getpid(), rows.Load(), n),
		"-p", "CPUWeight=77", "-p", "IOWeight=55", "-p", "AllowedCPUs=0", "-p", "MemoryMax=1G", "true").CombinedOutput()
	if err != nil {
		t.Fatalf("systemd-run: %v\n%s", err, out)
	}
}

// Properties and files say the same, at the start and when systemd has read its
// files again. A quota in steps that it does not know is shown rounded up.
func TestPropertiesAreTheFiles(t *testing.T) {
	r := managed(t)
	odd := kubelet()
	odd.CPU.Quota = ptr(int64(12345))
	files := map[string]string{}
	for k, v := range limited {
		files[k] = v
	}
	files["cpu.max"] = "12345 100000"
	more, moreFiles := moreThanTheKubelet()
	for _, tt := range []struct {
		id    string
		res   *specs.LinuxResources
		files map[string]string
		quota string
	}{
		{"even", kubelet(), limited, "250ms"},
		{"odd", odd, files, map[uint64]string{100: "123.500ms", 10000: "130ms"}[r.tree.units.quotaStep(context.Background())]},
		{"more", more, moreFiles, "250ms"},
		{"none", nil, map[string]string{"cpu.max": "max 100000", "memory.max": "max", "pids.max": "max", "cpu.weight": "100"}, "infinity"},
	} {
		t.Run(tt.id, func(t *testing.T) {
			s, _ := r.place(t, tt.id, tt.res)
			check := func(when string) {
				t.Helper()
				r.checkFiles(t, when, s, tt.files)
				want := map[string]string{
					"CPUQuotaPerSecUSec": tt.quota, "Delegate": "yes", "CollectMode": "inactive-or-failed", "ControlGroup": "/" + s.Path(),
				}
				for p, f := range map[string]string{"CPUWeight": "cpu.weight", "MemoryMax": "memory.max", "MemoryHigh": "memory.high", "MemoryLow": "memory.low",
					"MemoryMin": "memory.min", "MemorySwapMax": "memory.swap.max", "TasksMax": "pids.max", "AllowedCPUs": "cpuset.cpus",
					"AllowedMemoryNodes": "cpuset.mems", "IOWeight": "io.weight"} {
					if v, ok := tt.files[f]; ok {
						want[p] = strings.Replace(strings.TrimPrefix(v, "default "), "max", "infinity", 1)
					}
				}
				want["CPUQuotaPeriodUSec"] = "100ms"
				if tt.res == nil {
					want["CPUWeight"], want["CPUQuotaPeriodUSec"] = "[not set]", "infinity"
				}
				all := showAll(t, s)
				for p, v := range want {
					if got := all[p]; got != v {
						t.Errorf("%s: %s=%s, want %s", when, p, got, v)
					}
				}
			}
			check("placed")
			r.reload(t, 0)
			check("after daemon-reload")
			// And for a daemon that starts then.
			r.tree.kept.drop(s.Path())
			os.WriteFile(filepath.Join(r.root, s.Path(), "memory.oom.group"), []byte("0"), 0)
			if err := s.Resume(); err != nil {
				t.Fatal(err)
			}
			check("resumed")
		})
	}
}

// A device that was granted stays usable after a daemon-reload, and one that was
// not stays denied; a device of a driver without a name, which systemd cannot
// express, is ours alone.
func TestDevicesAcrossReload(t *testing.T) {
	r := managed(t)
	for _, tt := range []struct {
		id     string
		rule   specs.LinuxDeviceCgroup
		policy string
	}{
		{"named", specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: ptr(int64(10)), Minor: ptr(int64(183)), Access: "rw"}, "strict"},
		{"other", specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: ptr(int64(10)), Access: "r"}, "strict"},
		{"odd", specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: ptr(int64(3999)), Access: "rw"}, "auto"},
	} {
		t.Run(tt.id, func(t *testing.T) {
			res := kubelet()
			res.Devices = append(res.Devices, tt.rule)
			s, _ := r.place(t, "dev-"+tt.id, res)
			if got := show(t, s, "DevicePolicy"); got != tt.policy {
				t.Errorf("DevicePolicy=%s, want %s", got, tt.policy)
			}
			hwrng, odd := "open", denied
			if *tt.rule.Major == 3999 {
				hwrng, odd = denied, "No such device" // nobody drives it, and that is what who may open it is told
			}
			r.tryDevices(t, s, hwrng, odd)
			r.reload(t, 0)
			r.tryDevices(t, s, hwrng, odd)
		})
	}
}

// denied is what who may not open a device is told.
const denied = "Operation not permitted"

// tryDevices opens devices in a leaf of the scope, and wants those words of hwrng (10:183), which the guests have, and of 3999:7; null is
// granted to everybody, and kmsg to nobody.
func (r row) tryDevices(t testing.TB, s *Scope, hwrng, odd string) {
	t.Helper()
	leaf, err := s.Leaf("exec-dev")
	if err != nil {
		t.Fatal(err)
	}
	const try = `try() { rm -f n; mknod n c $1 $2; (: <n) 2>&1 | grep -o 'Operation not permitted\|No such device' || echo open; }`
	cmd := exec.Command("sh", "-c", try+"; try 1 3; try 10 183; try 3999 7; try 1 11")
	cmd.Dir = t.TempDir()
	fd, err := leaf.OpenDir()
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	cmd.SysProcAttr = inCgroup(fd.Int())
	out, err := cmd.CombinedOutput()
	if want := strings.Join([]string{"open", hwrng, odd, denied}, "\n"); err != nil || strings.TrimSpace(string(out)) != want {
		t.Errorf("null, hwrng, an odd one, kmsg: %v\n%s\nwant\n%s", err, out, want)
	}
	if err := errors.Join(leaf.WaitEmpty(context.Background()), leaf.Remove(context.Background())); err != nil {
		t.Error(err)
	}
}

// What is left of a unit of the same name, which failed, is no obstacle. One that
// lives elsewhere is, and stays as it is.
func TestUnitOfThatName(t *testing.T) {
	r := managed(t)
	ctx := context.Background()
	left := exec.Command("systemd-run", "--quiet", "--scope", "--slice="+r.parent, "--unit=vitrine-left.scope", "-p", "RuntimeMaxSec=1", "sleep", "100")
	left.Run() // killed at its time-out, so that the scope has failed
	for range 100 {
		if strings.Contains(systemctl(t, "list-units", "--all", "--no-legend", "vitrine-left.scope"), "failed") {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if got := systemctl(t, "list-units", "--all", "--no-legend", "vitrine-left.scope"); !strings.Contains(got, "failed") {
		t.Fatalf("no failed unit: %q", got)
	}
	s, _ := r.place(t, "left", kubelet())
	if got := show(t, s, "ActiveState"); got != "active" {
		t.Errorf("state %s", got)
	}
	other := exec.Command("systemd-run", "--quiet", "--scope", "--slice=vittest.slice", "--unit=vitrine-taken.scope", "sleep", "1000")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { systemctl(t, "stop", "vitrine-taken.scope"); other.Wait() }()
	for range 100 {
		if strings.Contains(systemctl(t, "list-units", "--no-legend", "vitrine-taken.scope"), "running") {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	s, err := r.tree.Create(r.parent, "taken", nil)
	if err != nil {
		t.Fatal(err)
	}
	cmd := run(t, s, "sleep", "1000")
	if err := s.Place(ctx, cmd.Process.Pid); !errors.Is(err, fs.ErrExist) {
		t.Errorf("place with a name that is taken: %v", err)
	}
	if err := errors.Join(s.Kill(), s.WaitEmpty(ctx), s.Remove(ctx)); err != nil {
		t.Error(err)
	}
	if got := systemctl(t, "show", "--value", "-p", "ActiveState", "vitrine-taken.scope"); got != "active" {
		t.Errorf("the other unit is %s", got)
	}
}

// asksTwice loses the answer to its question for a unit, whose job then waits for another unit's: as when PID 1 executes itself anew under it.
type asksTwice struct {
	*systemd
	behind string
}

func (a asksTwice) start(ctx context.Context, u unit) error {
	err := a.ask(ctx, "queue unit "+u.name, func(ctx context.Context, l *line) error {
		props := append(slices.Clone(u.props), prop("After", []string{a.behind}))
		_, err := a.call(ctx, l, managerPath, manager, "StartTransientUnit", u.name, "fail", props, []dbus.Unit{})
		return err
	})
	if err != nil {
		return err
	}
	return a.systemd.start(ctx, u)
}

// A unit that was asked for, and whose job waits, is neither left over nor in the way: it is waited for.
func TestUnitThatIsAboutToStart(t *testing.T) {
	r := managed(t)
	slow := fmt.Sprintf("vittest-slow-%d.service", os.Getpid())
	if out, err := exec.Command("systemd-run", "--quiet", "--no-block", "--unit="+slow, "-p", "Type=oneshot", "sleep", "5").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	r.tree.units = asksTwice{r.tree.units.(*systemd), slow}
	begin := time.Now()
	s, _ := r.place(t, "waiting", kubelet())
	if took := time.Since(begin); took < time.Second {
		t.Errorf("it did not wait: %v", took)
	}
	if got := show(t, s, "ActiveState"); got != "active" {
		t.Errorf("state %s", got)
	}
	if err := errors.Join(s.Kill(), s.WaitEmpty(context.Background()), s.Remove(context.Background())); err != nil {
		t.Error(err)
	}
	r.waitNoUnit(t, s)
}

// A process that has died meanwhile, and a caller that goes away: nothing is left.
func TestPlaceOfTheDead(t *testing.T) {
	r := managed(t)
	ctx := context.Background()
	s, err := r.tree.Create(r.parent, "dead", kubelet())
	if err != nil {
		t.Fatal(err)
	}
	cmd := run(t, s, "true")
	cmd.Wait()
	if err := s.Place(ctx, cmd.Process.Pid); err == nil {
		t.Error("a dead process was placed")
	}
	if err := s.Remove(ctx); err != nil {
		t.Error(err)
	}
	r.waitNoUnit(t, s)
	if s, err = r.tree.Create(r.parent, "left-alone", kubelet()); err != nil {
		t.Fatal(err)
	}
	cmd = run(t, s, "sleep", "1000")
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := s.Place(ended, cmd.Process.Pid); !errors.Is(err, context.Canceled) {
		t.Errorf("place: %v", err)
	}
	if err := errors.Join(s.Kill(), s.WaitEmpty(ctx), s.Remove(ctx)); err != nil {
		t.Error(err)
	}
	r.waitNoUnit(t, s)
}

// Many at once share a connection, and the slice is realized under their feet.
func TestManyScopesAtOnce(t *testing.T) {
	r := managed(t)
	var all sync.WaitGroup
	for i := range 12 {
		all.Add(1)
		go func() {
			defer all.Done()
			s, cmd := r.place(t, fmt.Sprintf("many%d", i), kubelet())
			r.checkFiles(t, "placed", s, limited)
			if i%2 == 0 {
				cmd.Process.Kill()
			} else if err := s.Kill(); err != nil {
				t.Error(err)
			}
			if err := errors.Join(s.WaitEmpty(context.Background()), s.Remove(context.Background())); err != nil {
				t.Error(err)
			}
			r.waitNoUnit(t, s)
		}()
	}
	all.Wait()
	if n := r.calls(); n != 12 {
		t.Errorf("%d messages for 12 containers", n)
	}
}

// A systemd that is not there, that does not even greet, that takes a question and
// says nothing, and that hangs up each time: the deadline holds, and the caller gets
// its cgroup removed.
func TestSystemdDoesNotAnswer(t *testing.T) {
	for _, tt := range []struct {
		id    string
		serve func(c net.Conn) // nil: nobody listens
		asked func(n uint64) bool
	}{
		{"nobody", nil, func(n uint64) bool { return n == 0 }},
		{"silent", func(c net.Conn) { io.Copy(io.Discard, c) }, func(n uint64) bool { return n == 0 }},
		{"deaf", func(c net.Conn) { c.Write([]byte("OK 0\r\n")); io.Copy(io.Discard, c) }, func(n uint64) bool { return n == 1 }},
		{"quitter", func(c net.Conn) { c.Write([]byte("OK 0\r\n")); io.ReadFull(c, make([]byte, 200)); c.Close() }, func(n uint64) bool { return n > 2 }},
	} {
		t.Run(tt.id, func(t *testing.T) {
			t.Parallel()
			tr, root := tree(t)
			sd := newSystemd()
			sd.limit, sd.bus.private, sd.bus.public = 300*time.Millisecond, filepath.Join(t.TempDir(), "socket"), "/nonexistent"
			if tt.id == "quitter" {
				sd.limit = 1200 * time.Millisecond // to be asked three times by a slow machine
			}
			if tt.serve != nil {
				serveUnix(t, sd.bus.private, tt.serve)
			}
			if err := tr.useUnits(sd); err != nil {
				t.Fatal(err)
			}
			tr.KeepAsking()
			defer func() {
				tr.units = nil
				tr.endAsking()
				sd.close()
				if err := tr.kept.close(); err != nil {
					t.Error(err)
				}
			}()
			s, err := tr.Create("a-b.slice", "x", nil)
			if err != nil {
				t.Fatal(err)
			}
			cmd := run(t, s, "sleep", "1000")
			ctx := context.Background()
			if err := s.Place(ctx, cmd.Process.Pid); !errors.Is(err, ErrUnavailable) {
				t.Errorf("%v, want ErrUnavailable", err)
			}
			if n := sd.calls.Load(); !tt.asked(n) {
				t.Errorf("%d messages", n)
			}
			if err := errors.Join(s.Kill(), s.WaitEmpty(ctx), s.Remove(ctx)); err != nil {
				t.Error(err)
			}
			if got := dirsBelow(t, root); got != "a.slice a.slice/a-b.slice" {
				t.Errorf("left: %s", got)
			}
		})
	}
}

// serveUnix calls serve for each connection, until the end of the test.
func serveUnix(t *testing.T, path string, serve func(net.Conn)) {
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Add(1)
	go func() {
		defer all.Done()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Add(1)
			go func() { defer all.Done(); defer c.Close(); serve(c) }()
		}
	}()
	t.Cleanup(func() { l.Close(); all.Wait() })
}

// A pod without a parent has a slice of ours, which goes with it.
func TestPodSlice(t *testing.T) {
	r := managed(t)
	ctx := context.Background()
	path, err := r.tree.PodParent(r.parent, "abc")
	if err != nil {
		t.Fatal(err)
	}
	s, err := r.tree.Create(path, "inpod", nil)
	if err != nil {
		t.Fatal(err)
	}
	cmd := run(t, s, "sleep", "1000")
	if err := s.Place(ctx, cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	name := filepath.Base(path)
	if got := systemctl(t, "show", "--value", "-p", "ActiveState", name); got != "active" || !strings.HasSuffix(name, "-podabc.slice") {
		t.Errorf("%s is %s", name, got)
	}
	pod := r.tree.Load(path)
	for range 2 { // again is fine
		if err := errors.Join(pod.Kill(), pod.WaitEmpty(ctx), pod.Remove(ctx)); err != nil {
			t.Fatal(err)
		}
	}
	if got := systemctl(t, "list-units", "--all", "--no-legend", name); got != "" {
		t.Errorf("left: %s", got)
	}
	r.waitNoUnit(t, s)
}

// PID 1 executes itself anew, and the bus is restarted, between the questions of one
// daemon and under them. This is for a guest that nobody else uses.
func TestManagerComesAndGoes(t *testing.T) {
	if os.Getenv("VITRINE_OWN_GUEST") == "" {
		t.Skip("needs a machine of its own: restarts PID 1 and the bus; set VITRINE_OWN_GUEST=1 there")
	}
	r := managed(t)
	r.tree.units.(*systemd).limit = 3 * time.Minute // in an emulated machine PID 1 needs half a minute for it
	for _, by := range []string{"private socket", "bus"} {
		if by == "bus" {
			r.tree.units.(*systemd).bus.private = "/nonexistent"
		}
		s, _ := r.place(t, "before", kubelet())
		var all sync.WaitGroup
		for i := range 6 {
			all.Add(1)
			go func() {
				defer all.Done()
				time.Sleep(time.Duration(i) * 100 * time.Millisecond)
				s, _ := r.place(t, fmt.Sprintf("under%d", i), kubelet())
				r.checkFiles(t, "placed under a restart", s, limited)
				if err := errors.Join(s.Kill(), s.WaitEmpty(context.Background()), s.Remove(context.Background())); err != nil {
					t.Error(err)
				}
				r.waitNoUnit(t, s)
			}()
		}
		systemctl(t, "daemon-reexec")
		all.Wait()
		r.checkFiles(t, by+": after daemon-reexec", s, limited)
		if out, err := exec.Command("systemctl", "restart", "dbus.service").CombinedOutput(); err != nil {
			t.Fatalf("restart of the bus: %v\n%s", err, out)
		}
		after, _ := r.place(t, "after", kubelet())
		for _, s := range []*Scope{s, after} {
			r.checkFiles(t, by+": after the bus", s, limited)
			if err := errors.Join(s.Kill(), s.WaitEmpty(context.Background()), s.Remove(context.Background())); err != nil {
				t.Error(err)
			}
			r.waitNoUnit(t, s)
		}
	}
}

// Nobody is cloned into a frozen scope, where he would stop in the kernel and the
// monitor with him, and a scope that was killed is not left frozen.
func TestFrozenScopeTakesNobody(t *testing.T) {
	drivers(t, func(t *testing.T, r row) {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		s, _ := r.place(t, "frozen", nil)
		if err := s.Freeze(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Leaf("exec-1"); !errors.Is(err, ErrFrozen) {
			t.Errorf("leaf in a frozen scope: %v", err)
		}
		if err := s.Thaw(); err != nil {
			t.Fatal(err)
		}
		leaf, err := s.Leaf("exec-1")
		if err != nil {
			t.Fatal(err)
		}
		run(t, leaf, "sleep", "1000")
		if err := errors.Join(s.Freeze(ctx), s.Kill(), s.WaitEmpty(ctx)); err != nil {
			t.Fatal(err)
		}
		if on, err := s.Frozen(); on || err != nil && !errors.Is(err, fs.ErrNotExist) { // systemd may have removed it
			t.Errorf("after the kill: frozen %v, %v", on, err)
		}
		if err := s.Remove(ctx); err != nil {
			t.Error(err)
		}
	})
}
