package oci

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestKillMonitor: who answers nobody can still be ended by who knows its directory only, and nobody else is hit.
func TestKillMonitor(t *testing.T) {
	n := newNode(t)
	p, other := n.pod(nil), n.pod(nil)
	dir := filepath.Join(n.dir, p.ID())
	if err := unix.Kill(p.MonitorPid(), unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is stopped", func() bool { return strings.HasPrefix(status(t, p.MonitorPid(), "State"), "T") })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := DialPod(ctx, dir); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("dial: %v", err)
	}
	if err := KillMonitor(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if alive(t, p.MonitorPid()) {
		t.Error("it lives")
	}
	if err := KillMonitor(t.Context(), dir); !errors.Is(err, ErrNoMonitor) {
		t.Errorf("a dead one: %v", err)
	}
	if err := KillMonitor(t.Context(), n.dir); !errors.Is(err, ErrNoMonitor) {
		t.Errorf("one that never was: %v", err)
	}
	if err := KillMonitor(t.Context(), filepath.Join(n.dir, "nowhere")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a directory that is not there: %v", err)
	}
	if _, err := other.List(t.Context()); err != nil {
		t.Errorf("the other pod: %v", err)
	}
}

// TestDeathUnderADebugger: a process that is dead and that its debugger has not let go of cannot be reaped. The monitor hears of it when
// it can, and does not take a CPU until then.
func TestDeathUnderADebugger(t *testing.T) {
	n := newNode(t)
	p := n.pod(nil)
	c := n.run(p, "c", "sleep", "1000")
	letGo, held := make(chan struct{}), make(chan error)
	over := make(chan struct{})
	go func() { // the debugger is a thread, which ends with the goroutine
		defer close(over)
		runtime.LockOSThread()
		_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(c.Pid()), 0, 0, 0, 0)
		if errno != 0 {
			held <- errno
			return
		}
		held <- nil
		<-letGo
	}()
	switch err := <-held; {
	case errors.Is(err, unix.EPERM):
		t.Skip("needs CAP_SYS_PTRACE: holds a process as a debugger does")
	case err != nil:
		t.Fatalf("hold the process: %v", err)
	}
	if err := unix.Kill(c.Pid(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is a zombie", func() bool { return strings.HasPrefix(status(t, c.Pid(), "State"), "Z") })
	before := cpuTicks(t, p.MonitorPid())
	time.Sleep(500 * time.Millisecond)
	if used := cpuTicks(t, p.MonitorPid()) - before; used > 10 {
		t.Errorf("the monitor used %d hundredths of a second of half a second", used)
	}
	if l, err := p.List(t.Context()); err != nil || len(l) != 1 || l[0].Phase != Running {
		t.Errorf("list: %+v, %v", l, err)
	}
	close(letGo)
	<-over
	for ev := range p.Events() {
		if ev.Kind == Exited && ev.ID == "c" {
			if ev.Status.ExitCode() != 137 {
				t.Errorf("exit code %d", ev.Status.ExitCode())
			}
			return
		}
	}
}

// cpuTicks is what a process has used, in hundredths of a second.
func cpuTicks(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	user, err := strconv.Atoi(f[11])
	system, serr := strconv.Atoi(f[12])
	if err != nil || serr != nil {
		t.Fatal(err, serr)
	}
	return user + system
}
