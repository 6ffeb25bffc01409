package executor

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// startSealed starts the program from a sealed memfd.
func (p *prog) startSealed(t *testing.T, files ...int) *run {
	t.Helper()
	mem, err := sys.SealedMemfd("test-program", p.encode(t), false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mem.Close() })
	return startFrom(t, mem, files...)
}

func startFrom(t *testing.T, mem *sys.FD, files ...int) *run {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	c, err := Start(Attr{Sealed: mem, CgroupFD: -1, PIDNS: -1, ProcFD: -1, Stdio: [3]int{null(t), int(w.Fd()), int(w.Fd())}, Files: files})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); c.Close() })
	return &run{c, r}
}

// A program comes from another process: it is looked at only if nobody can change or
// shorten it any more.
func TestSealedRefuses(t *testing.T) {
	p := newProg()
	p.exec("/bin/true")
	plain, err := unix.MemfdCreate("plain", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	unsealed := sys.NewFD(plain)
	defer unsealed.Close()
	if _, err := unix.Write(plain, p.encode(t)); err != nil {
		t.Fatal(err)
	}
	sealedWith := func(b []byte) *sys.FD {
		f, err := sys.SealedMemfd("test", b, false)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	closed := sealedWith(p.encode(t))
	closed.Close()
	pipe, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	other := sys.NewFD(int(pipe.Fd()))
	defer other.Disown()
	whole := p.encode(t)
	for name, c := range map[string]struct {
		fd   *sys.FD
		want error
	}{
		"unsealed": {unsealed, unix.EINVAL}, "no memfd": {other, unix.EINVAL}, "closed": {closed, unix.EINVAL},
		"empty": {sealedWith(nil), step.ErrFormat}, "short": {sealedWith(whole[:len(whole)-1]), step.ErrFormat},
		"long": {sealedWith(append(whole, 0)), step.ErrFormat}, "large": {sealedWith(make([]byte, step.MaxSize+1)), step.ErrFormat},
	} {
		if _, err := scan(c.fd); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	if _, err := scan(sealedWith(whole[:len(whole):len(whole)])); err != nil {
		t.Errorf("a good one: %v", err)
	}
}

// TestSealedRuns: pointers, results in the data, and more steps than are looked at in one
// piece; twice from one file, which stays what it was.
func TestSealedRuns(t *testing.T) {
	p := newProg()
	p.add(unix.SYS_UNAME, p.room(400))
	p.add(unix.SYS_GETPID).Result = 5
	at := p.room(8)
	p.add(step.OpStore, step.Arg{Kind: step.Reg, Val: 5}, at, c64(8))
	p.add(unix.SYS_WRITE, c64(1), at, c64(8))
	for range 300 {
		p.add(unix.SYS_GETPPID)
	}
	p.exec("/bin/echo", "a", "word", strings.Repeat("x", 100))
	mem, err := sys.SealedMemfd("test-program", p.encode(t), false)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	for range 2 {
		r := startFrom(t, mem)
		if err := r.Ready(); err != nil {
			t.Fatal(err)
		}
		out, _ := io.ReadAll(r.out)
		if want := "a word " + strings.Repeat("x", 100) + "\n"; len(out) < 8 || string(out[8:]) != want {
			t.Errorf("output %q", out)
		}
		r.exit(t)
	}
	b := make([]byte, len(p.encode(t)))
	if _, err := unix.Pread(mem.Int(), b, 0); err != nil || !bytes.Equal(b, p.encode(t)) {
		t.Error("the file has changed")
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil || bytes.Contains(maps, []byte("test-program")) {
		t.Errorf("the program is mapped in the parent: %v", err)
	}
}

// TestSealedFails: a failure has its step's number and name, with a table of any size before it.
func TestSealedFails(t *testing.T) {
	for _, n := range []int{1, 200, 3} {
		files := make([]int, n)
		for i := range files {
			files[i] = null(t)
		}
		p := newProg()
		p.Files = make([]string, n)
		for range 100 {
			p.add(unix.SYS_GETPPID)
		}
		p.add(unix.SYS_FCNTL, c64(step.FirstFD+n-1), c64(unix.F_GETFD)).Name = "the last file"
		p.add(unix.SYS_CHDIR, p.str("/nowhere at all")).Name = "go nowhere"
		r := p.startSealed(t, files...)
		var se *StepError
		if err := r.Ready(); !errors.As(err, &se) || se.Step != 101 || se.Name != "go nowhere" || se.Errno != unix.ENOENT {
			t.Errorf("%d files: %v", n, err)
		}
		r.exit(t)
		end := newProg()
		end.add(unix.SYS_GETPPID).Name = "the end"
		r = end.startSealed(t)
		if err := r.Ready(); !errors.As(err, &se) || se.Errno != unix.ENOEXEC {
			t.Errorf("a program without an end: %v", err)
		}
		r.exit(t)
	}
}

// TestSealedWaits: the start wait, and what is said of it.
func TestSealedWaits(t *testing.T) {
	p := newProg()
	p.block()
	p.exec("/bin/echo", "started")
	r := p.startSealed(t)
	if err := r.Ready(); err != nil {
		t.Fatal(err)
	}
	if err := r.Release(); err != nil {
		t.Fatal(err)
	}
	if out, _ := io.ReadAll(r.out); string(out) != "started\n" {
		t.Errorf("output %q", out)
	}
	r.exit(t)
}
