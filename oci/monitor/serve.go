package monitor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/executor"
	"github.com/vitrine-runtime/vitrine/oci/wire"
)

// listen opens the pod's socket for connections. It was bound by StartPod, in a
// directory that only root may enter; listening is ours, so that nobody
// connects before we are ready, and what a daemon is told of its peer is us.
func listen(fd *sys.FD) (*os.File, error) {
	if err := unix.Listen(fd.Int(), 16); err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if err := unix.SetNonblock(fd.Int(), true); err != nil {
		return nil, fmt.Errorf("make socket non-blocking: %w", err)
	}
	return fd.File(wire.SocketName), nil
}

// acceptPause is how long nobody is accepted where that has failed: without a descriptor or memory it would fail again at once.
const acceptPause = 50 * time.Millisecond

// accept takes connections until the listener is closed. The wrapper of accept4 would bring 2 KiB of program for addresses that nobody asks for.
func (m *monitor) accept(l *os.File) {
	raw, err := l.SyscallConn()
	for err == nil {
		var n uintptr
		var errno unix.Errno
		err = raw.Read(func(fd uintptr) bool {
			n, _, errno = unix.Syscall6(unix.SYS_ACCEPT4, fd, 0, 0, unix.SOCK_CLOEXEC, 0, 0)
			return errno != unix.EAGAIN
		})
		switch {
		case err != nil:
		case errno == 0:
			go m.converse(sys.NewFD(int(n))) // ends with the connection
		default:
			time.Sleep(acceptPause)
		}
	}
}

// conn is one daemon.
type conn struct {
	*wire.Conn
	version uint16
	busy    sync.WaitGroup // requests that are carried out on their own
	settled chan struct{}  // closed when everything that it had asked for is done
}

// send never waits. A daemon that does not read loses its connection and with
// it nothing that List could not tell it again.
func (c *conn) send(id uint64, b wire.Body, files ...int) {
	if err := c.Send(c.version, id, b, files); err != nil {
		c.Close()
	}
}

// daemons is a set of connections.
type daemons struct {
	mu   sync.Mutex
	list []*conn
}

func (d *daemons) add(c *conn) {
	d.mu.Lock()
	d.list = append(d.list, c)
	d.mu.Unlock()
}

func (d *daemons) remove(c *conn) {
	d.mu.Lock()
	last := len(d.list) - 1
	d.list[slices.Index(d.list, c)], d.list[last] = d.list[last], nil
	d.list = d.list[:last]
	d.mu.Unlock()
}

func (d *daemons) all() []*conn {
	d.mu.Lock()
	l := append([]*conn(nil), d.list...)
	d.mu.Unlock()
	return l
}

// converse serves one connection: root's only, Hello first.
func (m *monitor) converse(fd *sys.FD) {
	w, err := wire.NewConn(fd, wire.DecodeRequest)
	if err != nil {
		return
	}
	c := &conn{Conn: w, version: wire.Lowest, settled: make(chan struct{})}
	defer c.Close()
	cred, err := c.PeerCred()
	if err != nil || cred.Uid != 0 {
		return
	}
	// Before it is greeted: what it then asks for may be all that is left of it.
	m.peers.add(c)
	defer func() {
		c.busy.Wait()
		m.detach(c, 0)
		m.peers.remove(c)
		close(c.settled)
	}()
	if !m.greet(c) {
		return
	}
	m.conns.add(c)
	defer m.conns.remove(c)
	for {
		p, err := c.Recv()
		if err != nil {
			return // gone, or speaking something else
		}
		if quick(p.Body) {
			m.handle(c, p)
			continue
		}
		c.busy.Add(1)
		go func() { // ends with the request
			defer c.busy.Done()
			m.handle(c, p)
		}()
		runtime.Gosched() // who asked goes before a look for what nobody may have asked yet
	}
}

// greet answers Hello with the highest version that both sides know.
func (m *monitor) greet(c *conn) bool {
	p, err := c.Recv()
	if err != nil {
		return false
	}
	defer p.Close()
	h, ok := p.Body.(*wire.Hello)
	if !ok {
		c.send(p.ID, refuse(wire.CodeInvalid, "hello comes first"))
		return false
	}
	if h.Lowest > wire.Highest || h.Highest < wire.Lowest || h.Lowest > h.Highest {
		c.send(p.ID, refuse(wire.CodeVersion, fmt.Sprintf("monitor speaks versions %d to %d", wire.Lowest, wire.Highest)))
		return false
	}
	c.version = min(h.Highest, wire.Highest)
	w := &wire.Welcome{Version: c.version, Pid: int32(os.Getpid()), Pod: m.setup.Pod}
	if m.pause != nil {
		w.Pause = int32(m.pause.Pid())
	}
	c.send(p.ID, w)
	return true
}

// quick says which requests are done at once. The others may wait for a
// program, a disk or a death, and hold up nobody else meanwhile.
func quick(b wire.Body) bool {
	switch b.(type) {
	case *wire.Create, *wire.Start, *wire.Exec, *wire.ReopenLog, *wire.Stop:
		return false
	}
	return true
}

// handle carries one request out and answers it.
func (m *monitor) handle(c *conn, p *wire.Packet) {
	defer m.tidyLater()
	defer p.Close()
	answer := func(b wire.Body) { c.send(p.ID, b) }
	var err error
	switch r := p.Body.(type) {
	case *wire.GetPod:
		c.send(p.ID, &wire.PodInfo{Started: m.started, Note: m.note}, m.ns[0].Int(), m.ns[1].Int(), m.ns[2].Int())
	case *wire.List:
		m.answerList(c, answer)
	case *wire.Create:
		err = m.create(r, p, answer)
	case *wire.Start:
		err = m.start(r.ID, answer)
	case *wire.Exec:
		err = m.exec(r, p, answer)
	case *wire.Stop:
		err = m.stop(answer)
	case *wire.Signal:
		err = done(answer, m.signal(r.ID, r.Signal))
	case *wire.ReopenLog:
		err = done(answer, m.reopenLog(r.ID))
	case *wire.Remove:
		err = done(answer, m.remove(r.ID))
	case *wire.Attach:
		err = m.attach(c, r, p)
	case *wire.Stdin:
		err = done(answer, m.closeStdin(r.ID))
	case *wire.Detach:
		answer(&wire.Attached{Lost: m.detach(c, r.Attach)})
	default:
		err = refuse(wire.CodeNotYet, p.Type.String())
	}
	if err != nil {
		answer(failure(err))
	}
}

// settleTime bounds how long a List waits for what a dead daemon had asked for:
// a step that hangs must not keep its successor from the other containers.
const settleTime = 5 * time.Second

// answerList answers List. A daemon that was killed may have left requests in its
// socket, or half carried out; its successor, who asks in order to take over, must
// not be told of a state that they are about to change. So they come first.
func (m *monitor) answerList(c *conn, answer func(wire.Body)) {
	var gone []*conn
	for _, o := range m.peers.all() {
		if o != c && o.Gone() {
			gone = append(gone, o)
		}
	}
	if len(gone) == 0 {
		answer(&wire.States{List: m.list()})
		return
	}
	c.busy.Add(1)
	go func() { // ends after settleTime at the latest
		defer c.busy.Done()
		limit, cancel := context.WithTimeout(context.Background(), settleTime)
		defer cancel()
		for _, o := range gone {
			select {
			case <-o.settled:
			case <-limit.Done():
			}
		}
		answer(&wire.States{List: m.list()})
	}()
}

func done(answer func(wire.Body), err error) error {
	if err == nil {
		answer(&wire.Done{})
	}
	return err
}

// broadcast sends an event to every daemon that is connected.
func (m *monitor) broadcast(b wire.Body) {
	for _, c := range m.conns.all() {
		c.send(0, b)
	}
}

// refuse makes a failure that this package has found itself.
//
//go:noinline
func refuse(code wire.Code, text string) *wire.Failure { return &wire.Failure{Code: code, Text: text} }

// failure says over the wire what err is: kind, errno, and which step.
func failure(err error) *wire.Failure {
	var f *wire.Failure
	if errors.As(err, &f) {
		return f
	}
	var se *executor.StepError
	if errors.As(err, &se) {
		return &wire.Failure{Code: wire.CodeStep, Step: int32(se.Step), Errno: uint32(se.Errno), Text: se.Name}
	}
	f = &wire.Failure{Text: err.Error()}
	var errno unix.Errno
	if errors.As(err, &errno) {
		f.Errno = uint32(errno)
	}
	if errors.Is(err, executor.ErrDied) {
		f.Code = wire.CodeDied
	}
	return f
}
