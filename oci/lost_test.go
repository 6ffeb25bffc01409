package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/wire"
)

// alive says whether a process is there and no zombie.
func alive(t *testing.T, pid int) bool {
	state := status(t, pid, "State")
	return state != "" && state[0] != 'Z'
}

// The monitor is killed: the handle says so at once, who was blocked is gone,
// and the pause takes the rest of a shared pid namespace along.
func TestMonitorLost(t *testing.T) {
	n := newNode(t)
	p := n.pod(func(c *PodConfig) { c.SharedPID = true })
	blocked := n.create(p, "blocked", "sleep", "1000")
	c := n.config(p, "running", "sleep", "1000")
	withoutPID(c.Spec)
	running, err := p.Create(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := running.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	e, err := running.Exec(t.Context(), ExecConfig{Process: n.spec("sleep", "1000").Process})
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(p.MonitorPid(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	var last Event
	for ev := range p.Events() {
		last = ev
	}
	if last.Kind != MonitorLost {
		t.Errorf("last event %+v", last)
	}
	if _, err := e.Wait(t.Context()); !errors.Is(err, ErrNoMonitor) {
		t.Errorf("wait: %v", err)
	}
	if err := running.Signal(t.Context(), unix.SIGTERM); !errors.Is(err, ErrNoMonitor) {
		t.Errorf("signal: %v", err)
	}
	for name, pid := range map[string]int{"blocked": blocked.Pid(), "running": running.Pid(), "pause": p.PausePid()} {
		eventually(t, name+" is gone", func() bool { return !alive(t, pid) })
	}
	if _, err := DialPod(t.Context(), filepath.Join(n.dir, p.ID())); !errors.Is(err, ErrNoMonitor) {
		t.Errorf("dial: %v", err)
	}
	if _, err := ReadExit(filepath.Join(n.dir, p.ID(), "running")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an exit record out of nothing: %v", err)
	}
}

// A monitor that does not answer costs its callers their patience and no more.
func TestMonitorStuck(t *testing.T) {
	n := newNode(t)
	p := n.pod(nil)
	pr := n.run(p, "c", "sleep", "1000")
	if err := unix.Kill(p.MonitorPid(), unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is stopped", func() bool { return strings.HasPrefix(status(t, p.MonitorPid(), "State"), "T") })
	for name, ask := range map[string]func(context.Context) error{
		"list":   func(ctx context.Context) error { _, err := p.List(ctx); return err },
		"signal": func(ctx context.Context) error { return pr.Signal(ctx, unix.SIGTERM) },
		"stop":   p.Stop,
		"dial":   func(ctx context.Context) error { _, err := DialPod(ctx, filepath.Join(n.dir, p.ID())); return err },
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if err := ask(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
	}
	// Until its socket is full, and then at once.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var err error
	for range 5000 {
		if _, err = p.List(ctx); errors.Is(err, ErrStuck) {
			break
		}
	}
	if !errors.Is(err, ErrStuck) {
		t.Errorf("a full socket: %v", err)
	}
	if err := unix.Kill(p.MonitorPid(), unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	// All at once, to whoever reads too slowly for that it hangs up; then there is the next connection.
	eventually(t, "it answers again", func() bool {
		l, err := p.List(t.Context())
		if errors.Is(err, ErrNoMonitor) {
			if p, err = DialPod(t.Context(), filepath.Join(n.dir, p.ID())); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { p.Close() })
			return false
		}
		// The SIGTERM was delivered late, to a pid 1 that ignores it.
		return err == nil && len(l) == 1 && l[0].Phase == Running
	})
}

// dialRaw connects without saying hello.
func dialRaw(t *testing.T, dir string) (*wire.Conn, int) {
	t.Helper()
	d, err := openDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Connect(s, socketAddr(d)); err != nil {
		t.Fatal(err)
	}
	c, err := wire.NewConn(sys.NewFD(s), wire.DecodeReply)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, s
}

func expect[T wire.Body](t *testing.T, c *wire.Conn, id uint64) T {
	t.Helper()
	p, err := c.Recv()
	if err != nil {
		t.Fatal(err)
	}
	p.Close()
	b, ok := p.Body.(T)
	if !ok || p.ID != id {
		t.Fatalf("answer %d %T %+v", p.ID, p.Body, p.Body)
	}
	return b
}

func TestProtocol(t *testing.T) {
	n := newNode(t)
	p := n.pod(nil)
	dir := filepath.Join(n.dir, p.ID())

	c, _ := dialRaw(t, dir)
	c.Send(1, 1, &wire.List{}, nil)
	if f := expect[*wire.Failure](t, c, 1); f.Code != wire.CodeInvalid {
		t.Errorf("without hello: %+v", f)
	}
	if _, err := c.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("without hello it goes on: %v", err)
	}

	c, _ = dialRaw(t, dir)
	c.Send(1, 1, &wire.Hello{Lowest: wire.Highest + 1, Highest: wire.Highest + 5}, nil)
	if f := expect[*wire.Failure](t, c, 1); f.Code != wire.CodeVersion {
		t.Errorf("no common version: %+v", f)
	}

	// A newer daemon falls back to what this monitor speaks, and learns by name what
	// it does not serve.
	c, raw := dialRaw(t, dir)
	c.Send(1, 1, &wire.Hello{Lowest: wire.Lowest, Highest: wire.Highest + 5}, nil)
	if w := expect[*wire.Welcome](t, c, 1); w.Version != wire.Highest || w.Pod != p.ID() || int(w.Pid) != p.MonitorPid() {
		t.Errorf("welcome %+v", w)
	}
	id := uint64(2)
	for _, typ := range []wire.Type{wire.TypeResize, wire.TypeTTY, wire.TypeUpdate, wire.TypeStats, wire.TypeStats + 1} {
		c.Send(wire.Highest, id, &wire.Reserved{Of: typ, Raw: []byte("whatever")}, nil)
		if f := expect[*wire.Failure](t, c, id); f.Code != wire.CodeNotYet || f.Text != typ.String() {
			t.Errorf("%s: %+v", typ, f)
		}
		id++
	}
	if err := unix.Sendmsg(raw, []byte("garbage"), nil, nil, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("after garbage: %v", err)
	}
	if _, err := p.List(t.Context()); err != nil {
		t.Errorf("and the others: %v", err)
	}
}

// A daemon that is killed leaves requests behind. Its successor's first look
// sees what has become of them, and nothing changes behind its back.
func TestRequestsOfADeadDaemon(t *testing.T) {
	n := newNode(t)
	p := n.pod(nil)
	dir := filepath.Join(n.dir, p.ID())
	for i := range 40 {
		id := fmt.Sprintf("c%d", i)
		n.create(p, id, "sleep", "1000")
		dying, _ := dialRaw(t, dir)
		dying.Send(1, 1, &wire.Hello{Lowest: 1, Highest: 1}, nil)
		expect[*wire.Welcome](t, dying, 1)
		next, err := DialPod(t.Context(), dir) // is there before, so that its List comes at once
		if err != nil {
			t.Fatal(err)
		}
		dying.Send(1, 2, wire.NewStart(id), nil)
		dying.Close()
		first := phaseOf(t, next, id)
		time.Sleep(5 * time.Millisecond)
		if second := phaseOf(t, next, id); second != first || first != Running {
			t.Errorf("%s was %v and then %v", id, first, second)
		}
		next.Close()
	}
}

func phaseOf(t *testing.T, p *Pod, id string) Phase {
	t.Helper()
	l, err := p.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range l {
		if s.ID == id {
			return s.Phase
		}
	}
	t.Fatalf("%s is not in the list", id)
	return 0
}

// Who does not read is hung up on, and nobody else notices.
func TestDeafDaemon(t *testing.T) {
	n := newNode(t)
	p := n.pod(nil)
	deaf, _ := dialRaw(t, filepath.Join(n.dir, p.ID()))
	deaf.Send(1, 1, &wire.Hello{Lowest: 1, Highest: 1}, nil)
	expect[*wire.Welcome](t, deaf, 1)
	for i := uint64(2); ; i++ {
		if err := deaf.Send(1, i, &wire.List{}, nil); err != nil {
			break // EPIPE: it has closed; or full: it does not read more than it can answer
		}
	}
	pr := n.run(p, "c", "sleep", "1000")
	pr.Signal(t.Context(), unix.SIGKILL)
	exited(t, p, "c")
}

// A handle may be closed at any time, by anybody.
func TestCloseUnderLoad(t *testing.T) {
	n := newNode(t)
	p := n.pod(nil)
	n.run(p, "c", "sleep", "1000")
	for range 20 {
		q, err := DialPod(t.Context(), filepath.Join(n.dir, p.ID()))
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error)
		for range 4 {
			go func() { // ends with the handle
				for {
					if _, err := q.List(t.Context()); err != nil {
						done <- err
						return
					}
				}
			}()
		}
		time.Sleep(time.Millisecond)
		q.Close()
		for range 4 {
			if err := <-done; !errors.Is(err, ErrNoMonitor) {
				t.Errorf("list on a closed handle: %v", err)
			}
		}
		for range q.Events() {
		}
	}
}
