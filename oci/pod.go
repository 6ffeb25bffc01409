package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/wire"
)

// Pod is a connection to a pod's monitor. It is safe for concurrent use. It
// keeps nothing that the monitor would not tell a new Pod.
type Pod struct {
	conn     *wire.Conn
	id       string
	pid      int
	pausePid int // 0 unless the pod shares a pid namespace
	version  uint16
	monitor  *sys.FD // pidfd of the monitor
	pause    *sys.FD // pidfd of the pause, or nil
	queue    *eventQueue

	stopping  atomic.Bool // the monitor was asked to end
	mu        sync.Mutex
	last      uint64           // id of the latest request
	calls     map[uint64]*call // requests without their last answer
	processes map[string]*Process
}

// call is one request that waits for answers. Two fit, so that the reader
// never waits for whoever asked: an exec has two, everything else one.
type call struct {
	answers chan *wire.Packet
	more    bool // ExecStarted has come or may come; ExecExited follows
}

// DialPod connects to the monitor of the pod in dir. It returns ErrNoMonitor
// when nobody listens there: the monitor is dead, and what is left of its
// containers is to be killed through their cgroups.
func DialPod(ctx context.Context, dir string) (*Pod, error) {
	d, err := sys.OpenAt2(unix.AT_FDCWD, dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return dialPod(ctx, d)
}

func dialPod(ctx context.Context, dir *sys.FD) (*Pod, error) {
	socket, peer, err := connect(dir)
	if err != nil {
		return nil, err
	}
	defer peer.Close()
	conn, err := wire.NewConn(socket, wire.DecodeReply)
	if err != nil {
		return nil, err
	}
	p := &Pod{
		conn: conn, version: wire.Lowest, queue: newEventQueue(),
		calls: map[uint64]*call{}, processes: map[string]*Process{},
	}
	go p.read() // ends with the connection
	if err := p.greet(ctx); err != nil {
		p.drop()
		// It hung up on us, as one does that is out of descriptors. That is no death.
		if errors.Is(err, ErrNoMonitor) && !gone(peer, monitorEnd) {
			err = fmt.Errorf("dial %s: hung up: %w", wire.SocketName, ErrStuck)
		}
		return nil, err
	}
	return p, nil
}

// connect connects to who listens in a pod's directory, and takes hold of that process, whether it answers or not.
func connect(dir *sys.FD) (socket, peer *sys.FD, err error) {
	n, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socket", err)
	}
	socket = sys.NewFD(n)
	// Non-blocking: where the monitor does not accept and its backlog is full,
	// connect says EAGAIN at once instead of hanging.
	err = unix.Connect(n, socketAddr(dir))
	if err == nil {
		peer, err = holdPeer(n)
	}
	switch {
	case err == nil:
		return socket, peer, nil
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESRCH):
		err = fmt.Errorf("%w: %w", ErrNoMonitor, err)
	case errors.Is(err, unix.EAGAIN):
		err = ErrStuck
	}
	socket.Close()
	return nil, nil, fmt.Errorf("dial %s: %w", wire.SocketName, err)
}

// holdPeer returns a pidfd of who listened at the other end of a fresh connection: ESRCH where that has ended. A number may be
// another's by the time that it is used; but the connection ends with its listener, and has not ended then.
func holdPeer(socket int) (*sys.FD, error) {
	cred, err := unix.GetsockoptUcred(socket, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return nil, os.NewSyscallError("getsockopt SO_PEERCRED", err)
	}
	peer, err := sys.PidfdOpen(int(cred.Pid))
	if err != nil {
		return nil, err
	}
	if sys.HungUp(socket) {
		peer.Close()
		return nil, unix.ESRCH
	}
	return peer, nil
}

// KillMonitor ends the monitor of the pod in dir, which need not answer, and waits for its end. It returns ErrNoMonitor when nobody
// listens there, and ErrStuck where as many connections wait as may wait. The pause, and the containers' cgroups, are the caller's to kill.
func KillMonitor(ctx context.Context, dir string) error {
	d, err := sys.OpenAt2(unix.AT_FDCWD, dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer d.Close()
	socket, peer, err := connect(d)
	if err != nil {
		return err
	}
	defer socket.Close()
	defer peer.Close()
	if err := sys.PidfdSignal(peer, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill monitor: %w", err)
	}
	for !gone(peer, 10*time.Millisecond) {
		if ctx.Err() != nil {
			return fmt.Errorf("kill monitor: %w", ctx.Err())
		}
	}
	return nil
}

// greet agrees on a version and takes hold of the monitor and the pause as
// processes. The monitor answers after that, so the numbers were theirs.
func (p *Pod) greet(ctx context.Context) error {
	w, err := ask[*wire.Welcome](ctx, p, &wire.Hello{Lowest: wire.Lowest, Highest: wire.Highest})
	if err != nil {
		return fmt.Errorf("greet monitor: %w", err)
	}
	monitor, err := sys.PidfdOpen(int(w.Pid))
	if err != nil {
		return fmt.Errorf("hold monitor: %w", err)
	}
	var pause *sys.FD
	if w.Pause != 0 {
		pause, _ = sys.PidfdOpen(int(w.Pause)) // dead: then there is nothing to hold
	}
	p.mu.Lock()
	p.id, p.pid, p.version = w.Pod, int(w.Pid), w.Version
	p.monitor, p.pause, p.pausePid = monitor, pause, int(w.Pause)
	p.mu.Unlock()
	if _, err := ask[*wire.States](ctx, p, &wire.List{}); err != nil {
		monitor.Close() // the reader may have hung up before it could see them
		pause.Close()
		return fmt.Errorf("greet monitor: %w", err)
	}
	return nil
}

// ID returns the pod's id as the monitor was told it.
func (p *Pod) ID() string { return p.id }

// PausePid returns the process id of pid 1 in a shared pid namespace, 0 in a pod
// without one.
func (p *Pod) PausePid() int { return p.pausePid }

// MonitorPid returns the monitor's process id. It may be somebody else's once
// the monitor is dead.
func (p *Pod) MonitorPid() int { return p.pid }

// read is the pod's one reader. It hands answers to who asked and events to the
// queue, and waits for neither.
func (p *Pod) read() {
	for {
		packet, err := p.conn.Recv()
		if err != nil {
			p.hangUp(err)
			return
		}
		if e, ok := packet.Body.(*wire.Exited); ok && packet.ID == 0 {
			p.mu.Lock()
			if pr := p.processes[e.ID]; pr != nil {
				pr.dead.Store(true)
			}
			p.mu.Unlock()
			p.queue.push(Event{Kind: Exited, ID: e.ID, Status: statusOf(e.Status)})
			runtime.Gosched() // as below
			continue
		}
		p.mu.Lock()
		c := p.calls[packet.ID]
		if _, started := packet.Body.(*wire.ExecStarted); c != nil && !(started && c.more) {
			delete(p.calls, packet.ID)
		}
		p.mu.Unlock()
		if c == nil || len(c.answers) == cap(c.answers) {
			packet.Close() // who asked has gone
			continue
		}
		c.answers <- packet
		runtime.Gosched() // who has waited goes before a look for what may not have come yet
	}
}

// hangUp ends everything that waits for the monitor.
func (p *Pod) hangUp(err error) {
	p.conn.Close()
	p.mu.Lock()
	calls := p.calls
	p.calls = nil
	monitor, pause := p.monitor, p.pause
	p.mu.Unlock()
	for _, c := range calls {
		close(c.answers)
	}
	kind := Disconnected
	if monitor != nil && !errors.Is(err, os.ErrClosed) && !p.stopping.Load() && gone(monitor, monitorEnd) {
		// The pause would hold the pod's pid namespace, and everyone in it, for ever.
		if kind = MonitorLost; pause != nil {
			_ = sys.PidfdSignal(pause, unix.SIGKILL)
		}
	}
	p.queue.finish(Event{Kind: kind})
	p.mu.Lock() // Kill and Stop use the numbers under it
	defer p.mu.Unlock()
	monitor.Close()
	pause.Close()
}

// send registers a request and sends it. Descriptors stay the caller's.
func (p *Pod) send(m wire.Body, files []int, more bool) (uint64, *call, error) {
	c := &call{answers: make(chan *wire.Packet, 2), more: more}
	p.mu.Lock()
	if p.calls == nil {
		p.mu.Unlock()
		return 0, nil, ErrNoMonitor
	}
	p.last++
	id, version := p.last, p.version
	p.calls[id] = c
	p.mu.Unlock()
	err := p.conn.Send(version, id, m, files)
	if err == nil {
		return id, c, nil
	}
	p.forget(id, c)
	return 0, nil, sendError(err)
}

// tell sends a request whose answer nobody waits for.
func (p *Pod) tell(m wire.Body) error {
	p.mu.Lock()
	if p.calls == nil {
		p.mu.Unlock()
		return ErrNoMonitor
	}
	p.last++
	id, version := p.last, p.version
	p.mu.Unlock()
	return sendError(p.conn.Send(version, id, m, nil))
}

// sendError says what it means that a request could not be sent.
func sendError(err error) error {
	switch {
	case errors.Is(err, wire.ErrBlocked):
		return fmt.Errorf("%w: %w", ErrStuck, err)
	case errors.Is(err, os.ErrClosed), errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET):
		return fmt.Errorf("%w: %w", ErrNoMonitor, err)
	}
	return err
}

// forget gives a request up. What comes for it later is dropped.
func (p *Pod) forget(id uint64, c *call) {
	p.mu.Lock()
	delete(p.calls, id)
	p.mu.Unlock()
	for {
		select {
		case packet, ok := <-c.answers:
			if !ok {
				return
			}
			packet.Close()
		default:
			return
		}
	}
}

// await waits for the next answer of a call.
func (p *Pod) await(ctx context.Context, id uint64, c *call) (*wire.Packet, error) {
	select {
	case packet, ok := <-c.answers:
		if !ok {
			return nil, ErrNoMonitor
		}
		if f, ok := packet.Body.(*wire.Failure); ok {
			return nil, fromFailure(f)
		}
		return packet, nil
	case <-ctx.Done():
		p.forget(id, c)
		return nil, ctx.Err()
	}
}

// ask sends a request and returns its one answer, which has no descriptors.
func ask[T wire.Body](ctx context.Context, p *Pod, m wire.Body, files ...int) (answer T, err error) {
	id, c, err := p.send(m, files, false)
	if err != nil {
		return answer, err
	}
	return await[T](ctx, p, id, c, m)
}

// await returns the answer to a request that was sent.
func await[T wire.Body](ctx context.Context, p *Pod, id uint64, c *call, m wire.Body) (answer T, err error) {
	packet, err := p.await(ctx, id, c)
	if err != nil {
		return answer, err
	}
	defer packet.Close()
	answer, ok := packet.Body.(T)
	if !ok {
		return answer, fmt.Errorf("answer to %s is %T: %w", m.Type(), packet.Body, wire.ErrMalformed)
	}
	return answer, nil
}

func askPacket(ctx context.Context, p *Pod, m wire.Body, files []int) (*wire.Packet, error) {
	id, c, err := p.send(m, files, false)
	if err != nil {
		return nil, err
	}
	return p.await(ctx, id, c)
}
