package executor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
)

// prog builds test programs by hand, so that these tests do not depend on the
// compiler.
type prog struct{ step.Program }

func newProg() *prog { return &prog{step.Program{Wait: step.NoWait}} }

func (p *prog) str(s string) step.Arg {
	at := len(p.Data)
	p.Data = append(append(p.Data, s...), 0)
	return step.Arg{Kind: step.Addr, Val: uint64(at)}
}

func (p *prog) room(n int) step.Arg {
	p.Data = append(p.Data, make([]byte, (8-len(p.Data)%8)%8)...)
	at := len(p.Data)
	p.Data = append(p.Data, make([]byte, n)...)
	return step.Arg{Kind: step.Addr, Val: uint64(at)}
}

func (p *prog) add(nr uint32, args ...step.Arg) *step.Step {
	p.Steps = append(p.Steps, call(nr, args...))
	return &p.Steps[len(p.Steps)-1]
}

func (p *prog) vector(ss ...string) step.Arg {
	v := p.room(8 * (len(ss) + 1))
	for i, s := range ss {
		p.Relocs = append(p.Relocs, step.Reloc{At: uint32(v.Val) + uint32(8*i), To: uint32(p.str(s).Val)})
	}
	return v
}

// pointer is the address of a parent's memory.
func pointer(b []byte) step.Arg { return c64(int(uintptr(unsafe.Pointer(&b[0])))) }

func (p *prog) exec(argv ...string) {
	path, av, ev := p.str(argv[0]), p.vector(argv...), p.vector("A=B")
	p.add(unix.SYS_EXECVE, path, av, ev).Name = "execute " + argv[0]
}

// block appends the milestone and the start wait.
func (p *prog) block() {
	rec := p.room(step.RecordSize)
	p.Wait = len(p.Steps) + 1
	binary.NativeEndian.PutUint32(p.Data[rec.Val:], uint32(p.Wait))
	p.add(unix.SYS_WRITE, c64(step.ReportFD), rec, c64(step.RecordSize))
	p.add(unix.SYS_READ, c64(step.StartFD), p.room(8), c64(1)).Result = 0
	p.add(step.OpExpect, step.Arg{Kind: step.Reg, Val: 0}, c64(1), c64(int(unix.EPIPE)), c64(-1)).Name = "be released"
}

type run struct {
	*Child
	out *os.File
}

func (p *prog) start(t *testing.T, files ...int) *run {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	c, err := Start(Attr{Program: p.encode(t), CgroupFD: -1, PIDNS: -1, ProcFD: -1,
		Stdio: [3]int{null(t), int(w.Fd()), int(w.Fd())}, Files: files})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); c.Close() })
	return &run{c, r}
}

// ready starts the program and returns when it waits.
func (p *prog) ready(t *testing.T) *run {
	t.Helper()
	r := p.start(t)
	if err := r.Ready(); err != nil {
		t.Fatal(err)
	}
	return r
}

func (p *prog) encode(t *testing.T) []byte {
	t.Helper()
	b, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// null is a descriptor of /dev/null until the end of the test.
func null(t *testing.T) int {
	t.Helper()
	f, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return int(f.Fd())
}

// exit reaps the child and returns its status in the form code or -signal.
func (r *run) exit(t *testing.T) int {
	t.Helper()
	var ws unix.WaitStatus
	if _, err := unix.Wait4(r.Pid(), &ws, 0, nil); err != nil {
		t.Fatal(err)
	}
	if ws.Signaled() {
		return -int(ws.Signal())
	}
	return ws.ExitStatus()
}

func (r *run) output(t *testing.T) string {
	t.Helper()
	b, err := io.ReadAll(r.out)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

const busybox = "/usr/bin/busybox"

func needBusybox(t *testing.T) {
	if _, err := os.Stat(busybox); err != nil {
		t.Skip("needs Debian's busybox-static: " + err.Error())
	}
}

func TestRunsStepsAndExecutes(t *testing.T) {
	needBusybox(t)
	p := newProg()
	p.add(unix.SYS_WRITE, c64(1), p.str("hello "), c64(6))
	p.exec(busybox, "sh", "-c", "echo $0 $A; exit 7")
	r := p.ready(t)
	if code := r.exit(t); code != 7 {
		t.Errorf("exit code %d, want 7", code)
	}
	if got := r.output(t); got != "hello sh B\n" {
		t.Errorf("output %q", got)
	}
}

func TestPseudoCallsAndBranches(t *testing.T) {
	reg := func(n uint64) step.Arg { return step.Arg{Kind: step.Reg, Val: n} }
	mem := func(k step.Kind, a step.Arg) step.Arg { return step.Arg{Kind: k, Val: a.Val} }
	for _, tt := range []struct {
		name string
		add  func(p *prog)
		want string // error text, "" for reaching the end
	}{
		{"result in register", func(p *prog) {
			p.add(unix.SYS_GETPPID).Result = 5
			p.add(step.OpExpect, reg(5), c64(os.Getpid()), c64(int(unix.ESRCH)), c64(-1))
		}, ""},
		{"mismatch", func(p *prog) {
			p.add(step.OpExpect, c64(3), c64(4), c64(int(unix.ELOOP)), c64(-1)).Name = "compare"
		}, "compare: too many levels of symbolic links"},
		{"masked", func(p *prog) { p.add(step.OpExpect, c64(0x1f4), c64(0xf0), c64(1), c64(0xf0)) }, ""},
		{"memory 8 16 32", func(p *prog) {
			d := p.room(16)
			binary.NativeEndian.PutUint64(p.Data[d.Val:], 0x1122334455667788)
			p.add(step.OpExpect, mem(step.Mem8, d), c64(0x88), c64(1), c64(-1))
			p.add(step.OpExpect, mem(step.Mem32, d), c64(0x55667788), c64(2), c64(-1))
			p.add(step.OpExpect, mem(step.Mem64, d), c64(0x1122334455667788), c64(3), c64(-1))
		}, ""},
		{"store 8 and 4 bytes", func(p *prog) {
			d := p.room(16)
			p.Data[d.Val+12] = 0xee
			p.add(unix.SYS_GETPPID).Result = 5
			p.add(step.OpStore, c64(0x1122334455667788), d, c64(8)).Result = 6
			p.add(step.OpExpect, reg(6), c64(0), c64(1), c64(-1))
			p.add(step.OpStore, reg(5), step.Arg{Kind: step.Addr, Val: d.Val + 8}, c64(4))
			p.add(step.OpExpect, mem(step.Mem64, d), c64(0x1122334455667788), c64(2), c64(-1))
			p.add(step.OpExpect, mem(step.Mem64, step.Arg{Val: d.Val + 8}), c64(os.Getpid()|0xee<<32), c64(3), c64(-1))
		}, ""},
		{"set and skip", func(p *prog) {
			s := p.add(step.OpSet, c64(42))
			s.Result, s.Then = 9, 1
			p.add(step.OpExpect, c64(0), c64(1), c64(1), c64(-1)).Name = "not reached"
			p.add(step.OpExpect, reg(9), c64(42), c64(2), c64(-1))
		}, ""},
		{"errno branch", func(p *prog) {
			s := p.add(unix.SYS_CLOSE, c64(99))
			s.OnErr = []step.Branch{{Errno: uint16(unix.EINTR), Skip: 0}, {Errno: uint16(unix.EBADF), Skip: 1}}
			p.add(step.OpExpect, c64(0), c64(1), c64(1), c64(-1)).Name = "not reached"
		}, ""},
		{"errno without branch", func(p *prog) {
			s := p.add(unix.SYS_CLOSE, c64(99))
			s.Name, s.OnErr = "close 99", []step.Branch{{Errno: uint16(unix.EINTR)}}
		}, "close 99: bad file descriptor"},
		{"fall off the end", nil, "step 0: exec format error"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newProg()
			if tt.add != nil {
				tt.add(p)
				p.add(unix.SYS_EXIT_GROUP, c64(33))
			} else {
				s := p.add(step.OpSet, c64(0))
				s.Name = ""
				p.Steps = p.Steps[:1]
			}
			r := p.start(t)
			err := r.Ready()
			code := r.exit(t)
			if tt.want == "" {
				// exit_group is not execve: the child died without executing.
				if !errors.Is(err, ErrDied) || code != 33 {
					t.Fatalf("Ready = %v, exit %d; want ErrDied and 33", err, code)
				}
				return
			}
			if err == nil || (err.Error() != tt.want && tt.add != nil) || code != 127 {
				t.Fatalf("Ready = %v, exit %d; want %q and 127", err, code, tt.want)
			}
		})
	}
}

func TestStepErrorIsAnErrno(t *testing.T) {
	p := newProg()
	p.exec("/nonexistent/program")
	r := p.start(t)
	err := r.Ready()
	r.exit(t)
	var se *StepError
	if !errors.As(err, &se) || !errors.Is(err, unix.ENOENT) || !errors.Is(err, os.ErrNotExist) || se.Step != 0 {
		t.Fatalf("Ready = %#v", err)
	}
}

// TestBlockedChild shows that a child at its start wait holds nothing but what
// its program names, and cannot be looked into.
func TestBlockedChild(t *testing.T) {
	needBusybox(t)
	if os.Geteuid() != 0 {
		t.Skip("needs root: looks into the child's descriptors")
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	defer unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0)
	leak, err := unix.Open("/etc/passwd", unix.O_RDONLY, 0) // not close-on-exec: a careless neighbour
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(leak)
	p := newProg()
	p.Files = []string{"a directory"}
	p.block()
	p.exec(busybox, "true")
	dir, _ := unix.Open("/usr", unix.O_PATH|unix.O_CLOEXEC, 0)
	defer unix.Close(dir)
	r := p.start(t, dir)
	if err := r.Ready(); err != nil {
		t.Fatal(err)
	}
	var got []string
	ents, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", r.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range ents {
		l, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", r.Pid(), e.Name()))
		got = append(got, e.Name()+"="+strings.SplitN(l, ":", 2)[0])
	}
	if want := "0=/dev/null 1=pipe 2=pipe 3=pipe 4=pipe 5=/usr"; strings.Join(got, " ") != want {
		t.Errorf("descriptors %v, want %s", got, want)
	}
	// Not dumpable: its /proc files belong to root whatever its uid, and
	// the flag itself is read by the child of a later step; here ptrace rules are
	// asked through the owner of /proc/<pid>/environ after a change of uid.
	if err := r.Release(); err != nil {
		t.Fatal(err)
	}
	if code := r.exit(t); code != 0 {
		t.Errorf("exit %d", code)
	}
}

// TestAllow: a child that may go on is told of like one that waits.
func TestAllow(t *testing.T) {
	needBusybox(t)
	for _, c := range []struct {
		path string
		want error
	}{{busybox, nil}, {"/nowhere", unix.ENOENT}} {
		p := newProg()
		p.block()
		p.exec(c.path, "true")
		r := p.start(t)
		if !r.Free() {
			t.Error("not free")
		}
		for range 2 {
			if err := r.Allow(); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(20 * time.Millisecond) // it is through
		if err := r.Ready(); err != nil || r.At() != "" {
			t.Errorf("%s: Ready = %v at %q", c.path, err, r.At())
		}
		if err := r.Release(); !errors.Is(err, c.want) {
			t.Errorf("%s: Release = %v, want %v", c.path, err, c.want)
		}
		r.exit(t)
	}
	p := newProg()
	p.block()
	p.exec(busybox, "true")
	r := p.start(t)
	unix.Kill(r.Pid(), unix.SIGKILL)
	if err := r.Allow(); err != nil {
		t.Error(err)
	}
	err := r.Ready()
	if err == nil { // it was there before it was killed
		err = r.Release()
	}
	if !errors.Is(err, ErrDied) {
		t.Errorf("a killed child: %v, want ErrDied", err)
	}
	r.exit(t)
}

// TestRun: what is done to a child before Run is done before its execve; a
// program without a start wait runs too, and a death or a failed step is told.
func TestRun(t *testing.T) {
	needBusybox(t)
	p := newProg()
	p.block()
	p.exec(busybox, "cat", "/proc/self/oom_score_adj")
	r := p.start(t)
	time.Sleep(20 * time.Millisecond) // it would be through long ago
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", r.Pid()), []byte("731"), 0); err != nil {
		t.Fatal(err)
	}
	if err := r.Run(); err != nil {
		t.Fatal(err)
	}
	if code := r.exit(t); code != 0 || r.output(t) != "731\n" {
		t.Errorf("exit %d, not the oom_score_adj that was set", code)
	}
	p = newProg()
	p.exec(busybox, "true")
	if r = p.start(t); r.Run() != nil || r.exit(t) != 0 {
		t.Error("a program without a start wait did not run")
	}
	p = newProg()
	p.block()
	p.exec("/nowhere")
	if r = p.start(t); !errors.Is(r.Run(), unix.ENOENT) {
		t.Error("a failed execve was not told")
	}
	r.exit(t)
	p = newProg()
	p.block()
	p.exec(busybox, "true")
	r = p.start(t)
	unix.Kill(r.Pid(), unix.SIGKILL)
	if err := r.Run(); !errors.Is(err, ErrDied) {
		t.Errorf("Run of a killed child = %v, want ErrDied", err)
	}
	r.exit(t)
}

func TestDeathBeforeExecIsNotASuccess(t *testing.T) {
	p := newProg()
	p.block()
	p.exec("/bin/true")
	r := p.ready(t)
	unix.Kill(r.Pid(), unix.SIGKILL)
	if err := r.Release(); !errors.Is(err, ErrDied) {
		t.Errorf("Release of a killed child = %v, want ErrDied", err)
	}
	if got := r.exit(t); got != -int(unix.SIGKILL) {
		t.Errorf("exit %d", got)
	}
}

func TestAbandonedChildEnds(t *testing.T) {
	p := newProg()
	p.block()
	p.exec("/bin/true")
	r := p.ready(t)
	r.start.Close() // as if the parent had died
	if got := r.exit(t); got != 127 {
		t.Errorf("exit %d, want 127: the start wait must not take end of file for a start", got)
	}
}

// TestChildHasNoHeap shows that the parent's heap is not in the child: a step
// that reads from it gets EFAULT.
func TestChildHasNoHeap(t *testing.T) {
	secret := make([]byte, 1<<16)
	copy(secret, "environment of another container")
	p := newProg()
	s := p.add(unix.SYS_WRITE, c64(1), pointer(secret), c64(8))
	s.Name = "read the parent's heap"
	r := p.start(t)
	err := r.Ready()
	r.exit(t)
	if !errors.Is(err, unix.EFAULT) {
		t.Errorf("Ready = %v, want EFAULT", err)
	}
	if out := r.output(t); out != "" {
		t.Errorf("child read %q", out)
	}
}

// TestLayout holds the assembly's numbers against the Go types.
func TestLayout(t *testing.T) {
	var c control
	for name, v := range map[string][2]uintptr{
		"ARGS": {unsafe.Offsetof(c.args), 512}, "RECORD": {unsafe.Offsetof(c.record), 560}, "CUR": {unsafe.Offsetof(c.cur), 568},
		"END": {unsafe.Offsetof(c.end), 576}, "DATA": {unsafe.Offsetof(c.data), 584}, "INDEX": {unsafe.Offsetof(c.index), 592},
		"SHOWN": {unsafe.Offsetof(c.shown), 608}, "TAKEN": {unsafe.Offsetof(c.taken), 616}, "PATIENCE": {unsafe.Offsetof(c.limit), 624},
		"NEXT": {unsafe.Offsetof(c.next), 632}, "NEXTEND": {unsafe.Offsetof(c.nextEnd), 640},
		"RELOCS": {unsafe.Offsetof(c.relocs), 648}, "RELOCSEND": {unsafe.Offsetof(c.relocsEnd), 656},
		"REPORTFD": {8 * uintptr(step.ReportRegister), 504}, "STEPSIZE": {step.Size, 88},
	} {
		if v[0] != v[1] {
			t.Errorf("%s is %d in Go and %d in assembly", name, v[0], v[1])
		}
	}
	b := make([]byte, step.Size)
	step.PutStep(b, &step.Step{Nr: 0x01020304, Result: 5, Then: 0x0708, OnErr: []step.Branch{{Errno: 0x0a0b, Skip: 0x0c0d}},
		Args: [6]step.Arg{{Kind: step.Mem8, Val: 77}}})
	if b[4] != 5 || b[5] != byte(step.Mem8) || b[11] != 1 || b[12] != 8 || b[16] != 77 || b[64] != 0x0b || b[66] != 0x0d {
		t.Errorf("step layout changed: % x", b)
	}
}

func BenchmarkForkExec(b *testing.B) {
	for b.Loop() {
		p := newProg()
		p.exec("/bin/true")
		enc, _ := p.Encode()
		c, err := Start(Attr{Program: enc, CgroupFD: -1, PIDNS: -1, ProcFD: -1})
		if err != nil {
			b.Fatal(err)
		}
		if err := c.Ready(); err != nil {
			b.Fatal(err)
		}
		var ws unix.WaitStatus
		unix.Wait4(c.Pid(), &ws, 0, nil)
		c.Close()
	}
}
