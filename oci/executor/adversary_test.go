package executor

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
)

// table is a table of descriptors: what a number stands for, and whether execve
// closes it.
type table map[int]struct {
	what    int
	cloexec bool
}

// apply does what the kernel does for one step of a prologue.
func (f table) apply(t *testing.T, regs *[step.Registers]int, s *step.Step) {
	t.Helper()
	arg := func(i int) int {
		if s.Args[i].Kind == step.Reg {
			return regs[s.Args[i].Val]
		}
		return int(s.Args[i].Val)
	}
	got, open := f[arg(0)]
	result := 0
	switch {
	case s.Nr == step.OpSet:
		result = arg(0)
	case s.Nr == unix.SYS_CLOSE_RANGE:
		maps.DeleteFunc(f, func(n int, _ struct {
			what    int
			cloexec bool
		}) bool {
			return n >= arg(0)
		})
	case !open:
		t.Fatalf("step on closed descriptor %d", arg(0))
	case s.Nr == unix.SYS_DUP3:
		if arg(0) == arg(1) {
			t.Fatalf("dup3 of %d to itself", arg(0))
		}
		got.cloexec = arg(2) == unix.O_CLOEXEC
		f[arg(1)] = got
	case s.Nr == unix.SYS_FCNTL && arg(1) == unix.F_SETFD:
		got.cloexec = arg(2) == unix.FD_CLOEXEC
		f[arg(0)] = got
	case s.Nr == unix.SYS_FCNTL && arg(1) == unix.F_DUPFD_CLOEXEC:
		for result = arg(2); ; result++ {
			if _, taken := f[result]; !taken {
				break
			}
		}
		got.cloexec = true
		f[result] = got
	default:
		t.Fatalf("call %d in a prologue", s.Nr)
	}
	if s.Result != step.NoResult {
		regs[s.Result] = result
	}
}

// TestPrologueArrangesAnything: sources that are equal, repeated, in each
// other's places, in rings, and mixed with strangers.
func TestPrologueArrangesAnything(t *testing.T) {
	for range 20_000 {
		files := make([]int, rand.IntN(12))
		span := 6 + rand.IntN(20)
		pick := func() int { return rand.IntN(span) }
		for i := range files {
			files[i] = pick()
		}
		stdio, report, start := [3]int{pick(), pick(), pick()}, pick(), pick()
		want := append([]int{stdio[0], stdio[1], stdio[2], report, start}, files...)
		f := table{}
		for n := range span {
			f[n] = struct {
				what    int
				cloexec bool
			}{n, rand.IntN(2) == 0}
		}
		var regs [step.Registers]int
		regs[step.ReportRegister] = report
		for _, s := range prologue(nil, stdio, report, start, files) {
			if f[regs[step.ReportRegister]].what != report {
				t.Fatalf("%v: failures go to descriptor %d", want, regs[step.ReportRegister])
			}
			f.apply(t, &regs, &s)
		}
		if len(f) != len(want) || regs[step.ReportRegister] != step.ReportFD {
			t.Fatalf("%v: %d descriptors, report at %d", want, len(f), regs[step.ReportRegister])
		}
		for i, w := range want {
			if f[i].what != w || f[i].cloexec != (i > 2) {
				t.Fatalf("%v: place %d has %+v", want, i, f[i])
			}
		}
	}
}

// TestTightLimit: the numbers that a prologue uses must not depend on room far
// above those in use.
func TestTightLimit(t *testing.T) {
	needBusybox(t)
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	p := newProg()
	p.exec(busybox, "true")
	enc, _ := p.Encode()
	n := int(null.Fd())
	var old unix.Rlimit
	unix.Getrlimit(unix.RLIMIT_NOFILE, &old)
	tight := old
	tight.Cur = uint64(n) + 12
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &tight, nil); err != nil {
		t.Fatal(err)
	}
	c, err := Start(Attr{Program: enc, CgroupFD: -1, PIDNS: -1, ProcFD: -1, Stdio: [3]int{n, n, n}})
	unix.Prlimit(0, unix.RLIMIT_NOFILE, &old, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Ready(); err != nil {
		t.Error(err)
	}
	unix.Wait4(c.Pid(), nil, 0, nil)
}

func TestClosedDescriptorIsRefused(t *testing.T) {
	p := newProg()
	p.exec("/bin/true")
	enc, _ := p.Encode()
	if _, err := Start(Attr{Program: enc, CgroupFD: -1, PIDNS: -1, ProcFD: -1, Stdio: [3]int{0, -1, 0}}); !errors.Is(err, unix.EBADF) {
		t.Errorf("Start = %v", err)
	}
	c, err := Start(Attr{Program: enc, CgroupFD: -1, PIDNS: -1, ProcFD: -1, Stdio: [3]int{0, 9999, 0}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Ready(); !errors.Is(err, unix.EBADF) || !strings.HasPrefix(err.Error(), "arrange descriptors") {
		t.Errorf("Ready = %v", err)
	}
	unix.Wait4(c.Pid(), nil, 0, nil)
}

// TestConfinedOpenUnderRenames: openat2 with RESOLVE_IN_ROOT gives up with
// EAGAIN when somebody renames anything while it passes a "..". Images have
// ".." in symlinks (/var/run -> ../run), and a busy node renames all the time.
func TestConfinedOpenUnderRenames(t *testing.T) {
	dir := t.TempDir()
	os.MkdirAll(filepath.Join(dir, "a/b"), 0o755)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		other := t.TempDir()
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			os.Mkdir(filepath.Join(other, "x"), 0o755)
			os.Rename(filepath.Join(other, "x"), filepath.Join(other, "y"))
			os.Remove(filepath.Join(other, "y"))
		}
	})
	defer wg.Wait()
	defer close(stop)
	p := newProg()
	p.Files = []string{"root"}
	path, how := p.str(strings.Repeat("a/b/../../", 100)), p.room(24)
	p.Data[how.Val+2] = unix.O_PATH >> 16
	p.Data[how.Val+16] = unix.RESOLVE_IN_ROOT
	for range 5000 {
		p.add(unix.SYS_OPENAT2, c64(step.FirstFD), path, how, c64(24)).Result = 1
		p.add(unix.SYS_CLOSE, step.Arg{Kind: step.Reg, Val: 1})
	}
	p.add(unix.SYS_EXIT_GROUP, c64(33))
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	r := p.start(t, fd)
	err = r.Ready()
	if code := r.exit(t); code != 33 {
		t.Errorf("exit %d, Ready = %v", code, err)
	}
}

// TestEndlessEAGAINEnds: the repetition is bounded. openat2 with RESOLVE_CACHED
// says EAGAIN for what the cache cannot do, each time.
func TestEndlessEAGAINEnds(t *testing.T) {
	p := newProg()
	how := p.room(24)
	p.Data[how.Val+16] = 0x20      // RESOLVE_CACHED
	p.Data[how.Val] = unix.O_CREAT // never possible from the cache alone
	p.add(unix.SYS_OPENAT2, c64(unix.AT_FDCWD), p.str("/tmp"), how, c64(24)).Name = "open"
	r := p.start(t)
	if err := r.Ready(); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("Ready = %v", err)
	}
	r.exit(t)
}

// TestErrnoBoundary: the kernel's failures end at -4095.
func TestErrnoBoundary(t *testing.T) {
	for v, want := range map[int]error{-4095: unix.Errno(4095), -4096: ErrDied, -1: unix.EPERM, 1 << 62: ErrDied, 0xffffffff: ErrDied} {
		p := newProg()
		p.add(step.OpSet, c64(v))
		p.add(unix.SYS_EXIT_GROUP, c64(33))
		r := p.start(t)
		if err := r.Ready(); !errors.Is(err, want) {
			t.Errorf("%d: Ready = %v, want %v", v, err, want)
		}
		r.exit(t)
	}
}

// TestUnmadeCall: a number between the kernel's last call and the pseudo calls
// is the kernel's to refuse.
func TestUnmadeCall(t *testing.T) {
	p := newProg()
	p.add(0xffff)
	r := p.start(t)
	if err := r.Ready(); !errors.Is(err, unix.ENOSYS) {
		t.Errorf("Ready = %v", err)
	}
	r.exit(t)
}

// TestImageIsNotInOtherChildren: a program that is about to be forked is not
// to be found in a child that another thread makes meanwhile.
func TestImageIsNotInOtherChildren(t *testing.T) {
	q := newProg()
	q.exec("/bin/true", "secret of another container")
	enc, _ := q.Encode()
	v, err := step.Parse(enc)
	if err != nil {
		t.Fatal(err)
	}
	if err := hideMemory(); err != nil {
		t.Fatal(err)
	}
	img, err := load(v, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer img.free()
	at := fmt.Sprintf("%x", img.ctl.data)
	p := newProg()
	s := p.add(unix.SYS_WRITE, c64(1), c64(int(img.ctl.data)), c64(8))
	s.Name = "read the other image"
	r := p.start(t)
	if err := r.Ready(); !errors.Is(err, unix.EFAULT) {
		t.Errorf("Ready = %v, want EFAULT: the image at %s was copied", err, at)
	}
	r.exit(t)
}

// TestNoHeapAfterGrowth: what the heap has grown by since the first fork is
// hidden too.
func TestNoHeapAfterGrowth(t *testing.T) {
	if err := hideMemory(); err != nil {
		t.Fatal(err)
	}
	var keep [][]byte
	for range 20 {
		keep = append(keep, make([]byte, 10<<20)) // more than three arenas
	}
	for i, b := range keep {
		copy(b, "secret")
		p := newProg()
		p.add(unix.SYS_WRITE, c64(1), pointer(b), c64(6))
		r := p.start(t)
		if err := r.Ready(); !errors.Is(err, unix.EFAULT) {
			t.Errorf("block %d: Ready = %v, want EFAULT", i, err)
		}
		r.exit(t)
	}
	runtime.KeepAlive(keep)
}

// TestSignalsWhileBlocked: a start wait takes no signal for a start, and one
// that stops and continues the child for no failure.
func TestSignalsWhileBlocked(t *testing.T) {
	needBusybox(t)
	p := newProg()
	p.block()
	p.exec(busybox, "true")
	r := p.ready(t)
	for _, sig := range []unix.Signal{unix.SIGSTOP, unix.SIGCONT, unix.SIGWINCH, unix.SIGURG, unix.SIGCHLD} {
		if err := unix.Kill(r.Pid(), sig); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Millisecond)
	}
	if err := r.Release(); err != nil {
		t.Fatal(err)
	}
	if code := r.exit(t); code != 0 {
		t.Errorf("exit %d", code)
	}
}

// TestForksAtTheSameTime: several threads fork, with os/exec among them, on one
// processor and on many; every end of a pipe is seen.
func TestForksAtTheSameTime(t *testing.T) {
	needBusybox(t)
	for _, procs := range []int{1, runtime.NumCPU()} {
		t.Run(fmt.Sprint(procs), func(t *testing.T) {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(procs))
			var wg sync.WaitGroup
			for g := range 6 {
				wg.Go(func() {
					for i := range 30 {
						if g == 0 {
							exec.Command(busybox, "true").Run()
							continue
						}
						p := newProg()
						p.block()
						p.exec(busybox, "echo", fmt.Sprint(g, i))
						r := p.start(t)
						if err := r.Ready(); err != nil {
							t.Error(err)
						}
						if err := r.Release(); err != nil {
							t.Error(err)
						}
						if out := r.output(t); out != fmt.Sprintf("%d %d\n", g, i) {
							t.Errorf("output %q", out)
						}
						r.exit(t)
					}
				})
			}
			wg.Wait()
		})
	}
}

// TestPIDNS: a child is born in another's pid namespace, the thread comes back,
// and what is no pid namespace is refused without a trace.
func TestPIDNS(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes a pid namespace")
	}
	p := newProg()
	p.Clone = unix.CLONE_NEWPID
	p.block()
	p.exec("/bin/true")
	first := p.start(t)
	if err := first.Ready(); err != nil {
		t.Fatal(err)
	}
	start := func(ns int) (*Child, error) {
		q := newProg()
		q.add(unix.SYS_GETPID).Result = 1
		q.add(step.OpExpect, step.Arg{Kind: step.Reg, Val: 1}, c64(2), c64(int(unix.ESRCH)), c64(-1)).Name = "be second"
		q.add(unix.SYS_EXIT_GROUP, c64(0))
		enc, _ := q.Encode()
		return Start(Attr{Program: enc, CgroupFD: -1, PIDNS: ns, ProcFD: -1})
	}
	c, err := start(first.PidFD().Int())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Ready(); !errors.Is(err, ErrDied) {
		t.Errorf("Ready = %v: not the second process of the namespace", err)
	}
	unix.Wait4(c.Pid(), nil, 0, nil)
	net, _ := unix.Open("/proc/self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	defer unix.Close(net)
	if _, err := start(net); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a network namespace as pid namespace: %v", err)
	}
	unix.Kill(first.Pid(), unix.SIGKILL)
	first.exit(t)
	if _, err := start(first.PidFD().Int()); err == nil {
		t.Error("born in a dead pid namespace")
	}
	for range 50 { // whichever thread forks now, it does so at home
		q := newProg()
		q.add(unix.SYS_GETPPID).Result = 1
		q.add(step.OpExpect, step.Arg{Kind: step.Reg, Val: 1}, c64(os.Getpid()), c64(int(unix.ESRCH)), c64(-1)).Name = "be at home"
		q.add(unix.SYS_EXIT_GROUP, c64(0))
		r := q.start(t)
		if err := r.Ready(); !errors.Is(err, ErrDied) {
			t.Fatal(err)
		}
		r.exit(t)
	}
}
