package executor

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// fifos are the two ways of a child whose parent goes away.
type fifos struct{ report, start string }

func makeFIFOs(t *testing.T) fifos {
	t.Helper()
	dir := t.TempDir()
	f := fifos{filepath.Join(dir, "report"), filepath.Join(dir, "start")}
	for _, p := range []string{f.report, f.start} {
		if err := unix.Mkfifo(p, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func open(t *testing.T, path string, flags int) *sys.FD {
	t.Helper()
	n, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return sys.NewFD(n)
}

// pipes opens all four ends without waiting for anybody.
func (f fifos) pipes(t *testing.T) *Pipes {
	p := &Pipes{Report: open(t, f.report, unix.O_RDONLY|unix.O_NONBLOCK), ChildReport: open(t, f.report, unix.O_WRONLY),
		ChildStart: open(t, f.start, unix.O_RDWR), Start: open(t, f.start, unix.O_WRONLY)}
	if err := unix.SetNonblock(p.Report.Int(), false); err != nil {
		t.Fatal(err)
	}
	return p
}

// left starts p's program, waits for its milestone and forgets the child, as a
// process does that ends.
func (f fifos) left(t *testing.T, p *prog) (pid int, program []byte) {
	t.Helper()
	b, n := p.encode(t), null(t)
	c, err := Start(Attr{Program: b, CgroupFD: -1, PIDNS: -1, ProcFD: -1, Stdio: [3]int{n, n, n}, Pipes: f.pipes(t)})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Ready(); err != nil {
		t.Fatal(err)
	}
	c.Close()
	return c.Pid(), b
}

// attach is what the next process does.
func (f fifos) attach(t *testing.T, pid int, program []byte) *Child {
	t.Helper()
	pidfd, err := sys.PidfdOpen(pid)
	if err != nil {
		t.Fatal(err)
	}
	c, err := Attach(pid, pidfd, open(t, f.report, unix.O_RDONLY), open(t, f.start, unix.O_WRONLY|unix.O_NONBLOCK), program)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestAttach(t *testing.T) {
	needBusybox(t)
	for _, c := range []struct {
		name, file string
		want       error
		code       int
	}{{"executes", busybox, nil, 5}, {"fails", "/nonexistent", unix.ENOENT, 127}} {
		t.Run(c.name, func(t *testing.T) {
			p := newProg()
			p.block()
			p.exec(c.file, "sh", "-c", "exit 5")
			f := makeFIFOs(t)
			pid, program := f.left(t, p)
			// The end of its parent is not its start.
			time.Sleep(50 * time.Millisecond)
			if wpid, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); wpid != 0 || err != nil {
				t.Fatalf("wait: %d, %v", wpid, err)
			}
			err := f.attach(t, pid, program).Release()
			var se *StepError
			if !errors.Is(err, c.want) || c.want != nil && (!errors.As(err, &se) || se.Name != "execute "+c.file) {
				t.Errorf("release: %v", err)
			}
			if code := (&run{Child: &Child{pid: pid}}).exit(t); code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
		})
	}
}

// A child that was killed before its start is told from one that executed.
func TestAttachToDead(t *testing.T) {
	needBusybox(t)
	p := newProg()
	p.block()
	p.exec(busybox, "true")
	f := makeFIFOs(t)
	pid, program := f.left(t, p)
	hold := open(t, f.start, unix.O_RDWR) // or the FIFO could not be opened any more
	defer hold.Close()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	pidfd, err := sys.PidfdOpen(pid)
	if err != nil {
		t.Fatal(err)
	}
	report := open(t, f.report, unix.O_RDONLY|unix.O_NONBLOCK) // without it this would wait for a writer
	if err := unix.SetNonblock(report.Int(), false); err != nil {
		t.Fatal(err)
	}
	c, err := Attach(pid, pidfd, report, open(t, f.start, unix.O_WRONLY), program)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Release(); !errors.Is(err, ErrDied) {
		t.Errorf("release: %v", err)
	}
	if _, err := unix.Wait4(pid, nil, 0, nil); err != nil {
		t.Fatal(err)
	}
}
