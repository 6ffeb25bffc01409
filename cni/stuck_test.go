package cni

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// debugger holds a process as a debugger does, which is what this binary does as a process of its own until its input ends: when the
// process is killed, whoever waits for it waits for the debugger, as for one that the kernel does not let go.
func debugger(pid int) {
	runtime.LockOSThread() // it is the thread that holds
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(pid), 0, 0, 0, 0)
	fmt.Println(int(errno))
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// holdProcess has a debugger hold the process whose pid is in a file, and returns what ends that.
func holdProcess(t *testing.T, file string) (letGo func()) {
	t.Helper()
	pid, err := os.ReadFile(file)
	must(t, err)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), debuggerEnv+"="+strings.TrimSpace(string(pid)))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err, cmd.Start())
	letGo = func() {
		in.Close()
		_ = cmd.Wait()
	}
	t.Cleanup(letGo)
	line, err := bufio.NewReader(out).ReadString('\n')
	must(t, err)
	switch line {
	case "0\n":
	case fmt.Sprintln(int(unix.EPERM)):
		t.Skip("needs CAP_SYS_PTRACE: holds a process as a debugger does")
	default:
		t.Fatalf("hold process %s: errno %s", pid, line)
	}
	return letGo
}

// impatient gives up early on what cannot be killed.
func (n *network) impatient() {
	n.grace, n.limit = 200*time.Millisecond, 5*time.Second // an undo has to be possible
}

// A plugin that was killed and does not end keeps its pod, and nobody else. Whoever wants something of the pod is told at once; when the
// plugin has ended, what ADD made is unmade, and the pod's next verb is as ever.
func TestAddThatCannotBeKilled(t *testing.T) {
	n, ns := newNetwork(t), newNetNS(t)
	n.impatient()
	n.fake(`test $CNI_CONTAINERID = slow && { echo $$ > $DIR/self; sleep 1000; }; answer "$(ip 10.0.0.1/8)"`, "")
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	begun := n.hangs()
	go func() {
		_, err := n.Add(ctx, pod("slow", ns))
		done <- err
	}()
	<-begun
	letGo := holdProcess(t, n.dir+"/self")
	cancel(errTest)
	wantStuck(t, n, <-done, errTest)
	wantStuck(t, n, n.Del(t.Context(), "slow"))
	n.pending("slow")
	_, err := n.Add(t.Context(), pod("other", ns))
	must(t, err, n.Del(t.Context(), "other"))
	if strings.Contains(n.calls(), "DEL slow") {
		t.Errorf("DEL beside ADD: %s", n.calls())
	}
	letGo()
	eventually(t, "the ADD is undone", func() bool { return strings.Contains(n.calls(), "DEL slow") && n.turnsLeft() == 0 })
	must(t, n.Del(t.Context(), "slow"))
	n.nothingLeft()
}

// wantStuck fails the test unless the error says which process is waited for, and wraps these.
func wantStuck(t *testing.T, n *network, err error, others ...error) {
	t.Helper()
	self, _ := os.ReadFile(n.dir + "/self")
	for _, want := range append(others, ErrStuck) {
		if !errors.Is(err, want) {
			t.Errorf("%v is not %v", err, want)
		}
	}
	has(t, fmt.Sprint(err), "plugin "+n.dir+"/bin/fake, process "+strings.TrimSpace(string(self)))
}

func (n *network) turnsLeft() int {
	n.turns.mu.Lock()
	defer n.turns.mu.Unlock()
	return len(n.turns.m)
}

// The same of a DEL: the intent stays until one has succeeded.
func TestDelThatCannotBeKilled(t *testing.T) {
	n, ns := newNetwork(t), newNetNS(t)
	n.impatient()
	n.fake(`answer "$(ip 10.0.0.1/8)"`, `test -e $DIR/self || { echo $$ > $DIR/self; sleep 1000; }`)
	_, err := n.Add(t.Context(), pod("p", ns))
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	begun := n.hangs()
	go func() { done <- n.Del(ctx, "p") }()
	<-begun
	letGo := holdProcess(t, n.dir+"/self")
	waiting := make(chan error, 1)
	go func() { waiting <- n.Del(t.Context(), "p") }() // of one who came before it was known
	cancel()
	wantStuck(t, n, <-done, context.Canceled)
	wantStuck(t, n, <-waiting)
	n.pending("p")
	letGo()
	eventually(t, "the pod's turn has ended", func() bool { return n.turnsLeft() == 0 })
	n.pending("p")
	must(t, n.Del(t.Context(), "p"))
	n.nothingLeft()
}

// The same of STATUS, and there is never more than one of these.
func TestStatusThatCannotBeKilled(t *testing.T) {
	needRoot(t)
	n := newNetwork(t)
	n.impatient()
	n.script("fake", `test -e $DIR/self && exit 0; echo $$ > $DIR/self; sleep 1000`)
	n.list("1.1.0", "fake")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	begun := n.hangs()
	go func() { done <- n.Status(ctx) }()
	<-begun
	letGo := holdProcess(t, n.dir+"/self")
	cancel()
	wantStuck(t, n, <-done, context.Canceled, ErrNotReady)
	wantStuck(t, n, n.Status(t.Context()), ErrNotReady)
	if c := strings.Count(n.calls(), "STATUS"); c != 1 {
		t.Errorf("%d plugins were begun: %s", c, n.calls())
	}
	letGo()
	eventually(t, "the turn has ended", func() bool { return n.turnsLeft() == 0 })
	must(t, n.Status(t.Context()))
}

// TestTurnGivenBackInTime: who gives up on a turn that was just given back does not take it from the next one.
func TestTurnGivenBackInTime(t *testing.T) {
	var ts turns
	waiting := ts.use("p") // so that all have the same
	first, err := ts.take(t.Context(), "p")
	must(t, err)
	ts.give(first)
	second, err := ts.take(t.Context(), "p")
	must(t, err)
	if ts.giveUp(first) {
		t.Error("the turn of another was given up")
	}
	if _, err := ts.take(within(t, 20*time.Millisecond), "p"); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrStuck) {
		t.Errorf("beside the second: %v", err)
	}
	ts.give(second)
	third, err := ts.take(t.Context(), "p")
	must(t, err)
	ts.give(third)
	ts.leave("p", waiting)
	if len(ts.m) != 0 {
		t.Errorf("%d turns are left", len(ts.m))
	}
}

// A panic of the library is the caller's, who has a guard against it.
func TestPanicInATurn(t *testing.T) {
	var ts turns
	defer func() {
		if v := recover(); v != "test" {
			t.Errorf("panic %v", v)
		}
		if len(ts.m) != 0 {
			t.Error("the turn is kept")
		}
	}()
	_, err := take(t.Context(), &ts, "p", 0, func(context.Context) (int, error) { panic("test") })
	t.Errorf("no panic but %v", err)
}
