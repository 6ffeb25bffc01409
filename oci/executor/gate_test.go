package executor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
)

// gate appends a milestone and a wait that is not the start.
func (p *prog) gate(name string) {
	rec := p.room(step.RecordSize)
	i := len(p.Steps) + 1
	binary.NativeEndian.PutUint32(p.Data[rec.Val:], uint32(i))
	p.add(unix.SYS_WRITE, c64(step.ReportFD), rec, c64(step.RecordSize))
	s := p.add(unix.SYS_READ, c64(step.StartFD), p.room(8), c64(1))
	s.Result, s.Name = 0, name
	p.add(step.OpExpect, step.Arg{Kind: step.Reg, Val: 0}, c64(1), c64(int(unix.EPIPE)), c64(-1)).Name = "go on"
}

// TestGates: the parent learns which gate a child waits at, what it does there is
// done before the child goes on, and a start ends no gate.
func TestGates(t *testing.T) {
	needBusybox(t)
	p := newProg()
	p.gate(step.GateMaps)
	p.gate(step.GateHooks)
	p.block()
	p.exec(busybox, "cat", "/proc/self/oom_score_adj")
	r := p.start(t)
	if err := r.Ready(); err != nil || r.At() != step.GateMaps {
		t.Fatalf("Ready = %v at %q", err, r.At())
	}
	if err := r.Release(); !errors.Is(err, unix.EINVAL) {
		t.Errorf("Release at a gate = %v", err)
	}
	if r.Free() {
		t.Error("a program with gates may be allowed to go on at once")
	}
	if err := r.Run(); !errors.Is(err, unix.EINVAL) {
		t.Errorf("Run of a program with gates = %v", err)
	}
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", r.Pid()), []byte("613"), 0); err != nil {
		t.Fatal(err)
	}
	if err := r.Pass(); err != nil || r.At() != step.GateHooks {
		t.Fatalf("Pass = %v, at %q", err, r.At())
	}
	if err := r.Pass(); err != nil || r.At() != "" {
		t.Fatalf("Pass to the start wait = %v, at %q", err, r.At())
	}
	if err := r.Pass(); !errors.Is(err, unix.EINVAL) {
		t.Errorf("Pass at the start wait = %v", err)
	}
	if err := r.Release(); err != nil {
		t.Fatal(err)
	}
	if code := r.exit(t); code != 0 || r.output(t) != "613\n" {
		t.Errorf("exit %d, or not the score that was set at the gate", code)
	}
}

// TestGateOfTheDead: a child that dies at a gate, or whose parent does, is not
// taken for one that went on.
func TestGateOfTheDead(t *testing.T) {
	p := newProg()
	p.gate(step.GateNet)
	p.block()
	p.exec("/bin/true")
	r := p.ready(t)
	unix.Kill(r.Pid(), unix.SIGKILL)
	if err := r.Pass(); !errors.Is(err, ErrDied) {
		t.Errorf("Pass of a killed child = %v, want ErrDied", err)
	}
	r.exit(t)
	r = p.ready(t)
	r.start.Close() // as if the parent had died
	if got := r.exit(t); got != 127 {
		t.Errorf("exit %d, want 127: no gate takes end of file for a byte", got)
	}
	p = newProg()
	p.gate("")
	p.add(unix.SYS_CLOSE, c64(99)).Name = "close 99"
	r = p.start(t)
	if err := r.Ready(); err != nil || r.At() == "" {
		t.Fatalf("gate without a name: %v, at %q", err, r.At())
	}
	if err := r.Pass(); !errors.Is(err, unix.EBADF) {
		t.Errorf("failure behind a gate = %v, want EBADF", err)
	}
	r.exit(t)
}
