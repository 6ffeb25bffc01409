package executor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
)

// hop appends a clone of a sibling; before is added between the clone and the
// report of it.
func (p *prog) hop(flags uint64, before func()) {
	born := p.room(step.RecordSize)
	binary.NativeEndian.PutUint32(p.Data[born.Val+4:], step.Born)
	args := p.room(64)
	binary.NativeEndian.PutUint64(p.Data[args.Val:], flags|unix.CLONE_PARENT|unix.CLONE_PARENT_SETTID)
	p.Relocs = append(p.Relocs, step.Reloc{At: uint32(args.Val) + 24, To: uint32(born.Val)})
	c := p.add(unix.SYS_CLONE3, args, c64(64))
	c.Result, c.Name = 0, "clone"
	e := len(p.Steps)
	p.add(step.OpExpect, step.Arg{Kind: step.Reg, Val: 0}, c64(0), c64(int(unix.ECHILD)), c64(-1))
	if before != nil {
		before()
	}
	p.add(unix.SYS_WRITE, c64(step.ReportFD), born, c64(step.RecordSize))
	p.add(unix.SYS_EXIT_GROUP, c64(0))
	p.Steps[e].Then = uint16(len(p.Steps) - e - 1)
	p.Steps[e].OnErr = []step.Branch{{Errno: uint16(unix.ECHILD)}}
}

// alone demands that this process has no child left that has ended.
func alone(t *testing.T) {
	t.Helper()
	var si unix.Siginfo
	if err := unix.Waitid(unix.P_ALL, 0, &si, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); err == nil && si.Signo != 0 {
		t.Error("a child is left that nobody knows of")
	}
}

// TestSibling: the Child is the one that goes on, ours to wait for, and the first
// one is gone.
func TestSibling(t *testing.T) {
	needBusybox(t)
	for name, slow := range map[string]bool{"born first": false, "faster than the news": true} {
		t.Run(name, func(t *testing.T) {
			p := newProg()
			p.hop(0, func() {
				if slow {
					p.add(unix.SYS_NANOSLEEP, timespec(p, 30e6))
				}
			})
			p.gate(step.GateNet)
			p.block()
			p.exec(busybox, "sh", "-c", "echo $$ $PPID; exit 3")
			r := p.start(t)
			alone(t)
			if err := r.Ready(); err != nil || r.At() != step.GateNet {
				t.Fatalf("Ready = %v at %q", err, r.At())
			}
			if err := r.Pass(); err != nil {
				t.Fatal(err)
			}
			if err := r.Release(); err != nil {
				t.Fatal(err)
			}
			if code := r.exit(t); code != 3 {
				t.Errorf("exit %d", code)
			}
			if out := r.output(t); out != fmt.Sprint(r.Pid(), " ", os.Getpid(), "\n") {
				t.Errorf("output %q, pid %d of %d", out, r.Pid(), os.Getpid())
			}
		})
	}
}

// TestSiblingIsNotMissed: the kernel looks at the pipe, the first child reports and dies, and the kernel looks at that. What it
// says then is that there is a death and nothing to read, and what there is to read is a sibling.
func TestSiblingIsNotMissed(t *testing.T) {
	needBusybox(t)
	poll = func(fds []unix.PollFd, timeout int) (int, error) {
		if _, err := unix.Poll(fds[1:], timeout); err != nil { // the death
			return 0, err
		}
		fds[0].Revents = 0
		return 1, nil
	}
	t.Cleanup(func() { poll = unix.Poll })
	p := newProg()
	p.hop(0, nil)
	p.block()
	p.exec(busybox, "sh", "-c", "exit 3")
	r := p.start(t)
	alone(t)
	if err := r.Ready(); err != nil {
		t.Fatal(err)
	}
	if err := r.Release(); err != nil {
		t.Fatal(err)
	}
	if code := r.exit(t); code != 3 {
		t.Errorf("exit %d", code)
	}
}

func timespec(p *prog, nsec uint64) step.Arg {
	ts := p.room(16)
	binary.NativeEndian.PutUint64(p.Data[ts.Val+8:], nsec)
	return ts
}

// TestSiblingFails: whoever fails first, Start or Ready says which step it was, and
// nobody is left.
func TestSiblingFails(t *testing.T) {
	fail := func(p *prog, name string) { p.add(unix.SYS_CLOSE, c64(99)).Name = name }
	for name, tt := range map[string]struct {
		add   func(p *prog)
		start string // error of Start
		ready string // error of Ready
	}{
		"before the clone":     {func(p *prog) { fail(p, "first"); p.hop(0, nil) }, "first: bad file descriptor", ""},
		"in the clone":         {func(p *prog) { p.hop(unix.CLONE_THREAD, nil) }, "clone: invalid argument", ""},
		"behind the clone":     {func(p *prog) { p.hop(0, nil); fail(p, "second") }, "", "second: bad file descriptor"},
		"faster than the news": {func(p *prog) { p.hop(0, func() { p.add(unix.SYS_NANOSLEEP, timespec(p, 30e6)) }); fail(p, "second") }, "", "second: bad file descriptor"},
		"death without a word": {func(p *prog) { p.add(unix.SYS_EXIT_GROUP, c64(5)); p.hop(0, nil) }, "exit status 5", ""},
		"death of the sibling": {func(p *prog) { p.hop(0, nil); p.add(unix.SYS_EXIT_GROUP, c64(6)) }, "", "exit status 6"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProg()
			tt.add(p)
			p.exec("/bin/true")
			b, err := p.Encode()
			if err != nil {
				t.Fatal(err)
			}
			c, err := Start(Attr{Program: b, CgroupFD: -1, PIDNS: -1, ProcFD: -1})
			if tt.start != "" {
				if err == nil || !strings.Contains(err.Error(), tt.start) {
					t.Fatalf("Start = %v, want %q", err, tt.start)
				}
				alone(t)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err := c.Ready(); err == nil || !strings.Contains(err.Error(), tt.ready) {
				t.Errorf("Ready = %v, want %q", err, tt.ready)
			}
			unix.Wait4(c.Pid(), nil, 0, nil)
			alone(t)
		})
	}
	p := newProg()
	p.hop(0, nil)
	p.exec("/bin/true")
	b, _ := p.Encode()
	if _, err := Start(Attr{Program: b, CgroupFD: -1, PIDNS: 0, ProcFD: -1}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a sibling in a foreign pid namespace: %v", err)
	}
}
