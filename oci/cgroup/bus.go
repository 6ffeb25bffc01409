package cgroup

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
)

// Where systemd can be asked. The first one is PID 1's own socket, the one that
// systemctl uses: no dbus-daemon stands between, so that one which is restarted or
// hangs is nothing to us. The second one is the bus, for whoever does not see the
// first.
const (
	privateSocket = "/run/systemd/private"
	busSocket     = "/run/dbus/system_bus_socket"
)

const (
	busName     = "org.freedesktop.systemd1"
	managerPath = dbus.ObjectPath("/org/freedesktop/systemd1")
	manager     = busName + ".Manager"
	properties  = "org.freedesktop.DBus.Properties"
)

// idleTime is how long an unused connection stays. PID 1 tells every one of them
// about each change of each unit, which is not for free to either side; a burst of
// starts shares one.
const idleTime = 2 * time.Second

// bus hands out the connection to systemd, dialing it where there is none. It has
// one at most, and that one has a reader that ends with it.
type bus struct {
	private, public string // addresses of sockets

	dialing chan struct{} // holds a token while somebody dials

	mu    sync.Mutex
	line  *line
	users int
	idle  *time.Timer
}

func newBus() *bus {
	return &bus{private: privateSocket, public: busSocket, dialing: make(chan struct{}, 1)}
}

// line is one connection. It is the reader's SignalHandler and hands on the only
// signal that is waited for: the end of a job.
type line struct {
	conn *dbus.Conn
	lost chan struct{} // closed with the connection

	mu   sync.Mutex
	jobs map[string]chan string // by unit: the result of its next job to end
}

// DeliverSignal is called by the reader for every signal, in their order.
func (l *line) DeliverSignal(iface, name string, s *dbus.Signal) {
	if iface != manager || name != "JobRemoved" || len(s.Body) != 4 {
		return
	}
	unit, _ := s.Body[2].(string)
	result, _ := s.Body[3].(string)
	l.mu.Lock()
	defer l.mu.Unlock()
	if c := l.jobs[unit]; c != nil {
		select {
		case c <- result:
		default: // there is room for one, and nobody waits for more
		}
	}
}

// Terminate is called when the connection ends.
func (l *line) Terminate() { close(l.lost) }

// watch returns the channel for the result of the unit's next job. It must be
// called before the job exists, whose end may be heard of before its beginning.
func (l *line) watch(unit string) <-chan string {
	c := make(chan string, 1)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.jobs[unit] = c
	return c
}

func (l *line) unwatch(unit string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.jobs, unit)
}

// get returns a connection, which the caller gives back.
func (b *bus) get(ctx context.Context) (*line, error) {
	select {
	case b.dialing <- struct{}{}:
		defer func() { <-b.dialing }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if l := b.take(nil); l != nil {
		return l, nil
	}
	l, err := b.dial(ctx)
	if err != nil {
		return nil, err
	}
	return b.take(l), nil
}

// take counts a user of the connection: of fresh, or of the one that is there.
func (b *bus) take(fresh *line) *line {
	b.mu.Lock()
	defer b.mu.Unlock()
	if fresh != nil {
		b.line, b.users = fresh, 0
	}
	if b.line == nil {
		return nil
	}
	select {
	case <-b.line.lost:
		b.line = nil
		return nil
	default:
	}
	if b.idle != nil {
		b.idle.Stop()
	}
	b.users++
	return b.line
}

func (b *bus) put(l *line) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if l != b.line {
		return // lost meanwhile
	}
	if b.users--; b.users > 0 {
		return
	}
	if b.idle == nil {
		b.idle = time.AfterFunc(idleTime, b.hangUp)
	} else {
		b.idle.Reset(idleTime)
	}
}

// hangUp ends a connection that nobody uses.
func (b *bus) hangUp() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.line != nil && b.users == 0 {
		_ = b.line.conn.Close() // nothing is under way on it
		b.line = nil
	}
}

// close ends the connection, whoever uses it.
func (b *bus) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.idle != nil {
		b.idle.Stop()
	}
	if b.line != nil {
		_ = b.line.conn.Close() // its users are told
		b.line = nil
	}
}

// dial tries the sockets one after the other.
func (b *bus) dial(ctx context.Context) (*line, error) {
	l, err := dialLine(ctx, b.private)
	if err == nil {
		return l, nil
	}
	l, perr := dialLine(ctx, b.public)
	if perr != nil {
		return nil, errors.Join(err, perr)
	}
	if err := l.join(ctx); err != nil {
		_ = l.conn.Close() // of no use
		return nil, errors.Join(err, perr)
	}
	return l, nil
}

// dialLine connects and says who we are, which the kernel vouches for.
func dialLine(ctx context.Context, path string) (*line, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Close() }) // its way into the reads
	err = greet(c)
	if !stop() {
		return nil, errors.Join(ctx.Err(), err)
	}
	if err != nil {
		return nil, fmt.Errorf("authenticate at %s: %w", path, errors.Join(err, c.Close()))
	}
	l := &line{lost: make(chan struct{}), jobs: map[string]chan string{}}
	if l.conn, err = dbus.NewConn(&greeted{Conn: c}, dbus.WithSignalHandler(l)); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	if err := l.conn.Auth([]dbus.Auth{dbus.AuthExternal("")}); err != nil {
		return nil, errors.Join(err, l.conn.Close())
	}
	return l, nil
}

// greet is the client's side of the authentication, in one message, and the wait
// for its answer.
//
// The library's own sends BEGIN by itself and the first call right behind it. If PID
// 1 is slow, it reads both at once, begins, and goes back to sleep with the call in
// its buffer: nothing is left in the socket that would wake it. The answer to the
// call then comes when we hang up. Here BEGIN was read when the answer comes, as
// with systemctl.
func greet(c net.Conn) error {
	uid := hex.EncodeToString([]byte(strconv.Itoa(os.Geteuid())))
	if _, err := c.Write([]byte("\x00AUTH EXTERNAL " + uid + "\r\nBEGIN\r\n")); err != nil {
		return err
	}
	var answer []byte
	for b := make([]byte, 1); !bytes.HasSuffix(answer, []byte("\r\n")); { // not a byte more, the rest is the library's
		if _, err := io.ReadFull(c, b); err != nil {
			return err
		}
		if answer = append(answer, b...); len(answer) > 512 {
			return errors.New("a long answer")
		}
	}
	if !bytes.HasPrefix(answer, []byte("OK ")) {
		return fmt.Errorf("the answer is %q", answer)
	}
	return nil
}

// greeted is a connection on which greet was done. It plays the other side to the
// library, which insists on doing it.
type greeted struct {
	net.Conn
	begun   bool
	answers []byte
}

func (g *greeted) Write(p []byte) (int, error) {
	if g.begun {
		return g.Conn.Write(p)
	}
	switch line := string(p); {
	case line == "AUTH\r\n":
		g.answers = append(g.answers, "REJECTED EXTERNAL\r\n"...)
	case strings.HasPrefix(line, "AUTH "):
		g.answers = append(g.answers, "OK 0\r\n"...)
	case line == "BEGIN\r\n":
		g.begun = true
	}
	return len(p), nil
}

func (g *greeted) Read(p []byte) (int, error) {
	if g.begun {
		return g.Conn.Read(p)
	}
	n := copy(p, g.answers)
	g.answers = g.answers[n:]
	if n == 0 {
		return 0, io.ErrUnexpectedEOF // asked for more than was foreseen
	}
	return n, nil
}

// join makes us a member of the bus, to which signals come when asked for.
func (l *line) join(ctx context.Context) error {
	bus := l.conn.BusObject()
	if err := bus.CallWithContext(ctx, "org.freedesktop.DBus.Hello", 0).Err; err != nil {
		return err
	}
	rule := "type='signal',sender='" + busName + "',interface='" + manager + "',member='JobRemoved'"
	if err := bus.CallWithContext(ctx, "org.freedesktop.DBus.AddMatch", 0, rule).Err; err != nil {
		return err
	}
	return l.conn.Object(busName, managerPath).CallWithContext(ctx, manager+".Subscribe", 0).Err
}
