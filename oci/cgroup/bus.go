package cgroup

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/vitrine-runtime/vitrine/internal/dbus"
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
	managerPath = "/org/freedesktop/systemd1"
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

// line is one connection. The only signal that is waited for is the end of a job.
type line struct {
	conn *dbus.Conn

	mu      sync.Mutex
	watches map[*watch]bool // guarded by mu
}

// watch waits for the end of one of a unit's jobs. Which one is known by the answer to the call that makes it, and its end may be heard of
// before that; so the results of all are kept. Another job of the unit is one of somebody else's, or of a call that timed out.
type watch struct {
	unit    string
	results map[string]string // by job; guarded by line.mu
	news    chan struct{}     // has a token when results has grown
}

// signal is called by the reader for every signal, in their order.
func (l *line) signal(iface, name string, body []any) {
	if iface != manager || name != "JobRemoved" || len(body) != 4 {
		return
	}
	job, _ := body[1].(string)
	unit, _ := body[2].(string)
	result, _ := body[3].(string)
	l.mu.Lock()
	defer l.mu.Unlock()
	for w := range l.watches {
		if w.unit != unit {
			continue
		}
		w.results[job] = result
		select {
		case w.news <- struct{}{}:
		default:
		}
	}
}

// watch is to be called before the job exists.
func (l *line) watch(unit string) *watch {
	w := &watch{unit: unit, results: map[string]string{}, news: make(chan struct{}, 1)}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.watches[w] = true
	return w
}

func (l *line) unwatch(w *watch) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.watches, w)
}

// await waits for the end of a job of w's unit: "done", or what else systemd says.
func (l *line) await(ctx context.Context, w *watch, job string) (result string, err error) {
	for {
		l.mu.Lock()
		result, over := w.results[job]
		l.mu.Unlock()
		if over {
			return result, nil
		}
		select {
		case <-w.news:
		case <-l.conn.Lost():
			return "", dbus.ErrClosed
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
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
	case <-b.line.conn.Lost():
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
func dialLine(ctx context.Context, path string) (l *line, err error) {
	l = &line{watches: map[*watch]bool{}}
	if l.conn, err = dbus.Dial(ctx, path, l.signal); err != nil {
		return nil, err
	}
	return l, nil
}

// join makes us a member of the bus, to which signals come when asked for.
func (l *line) join(ctx context.Context) error {
	const bus = "org.freedesktop.DBus"
	if _, err := l.conn.Call(ctx, bus, "/org/freedesktop/DBus", bus, "Hello"); err != nil {
		return err
	}
	rule := "type='signal',sender='" + busName + "',interface='" + manager + "',member='JobRemoved'"
	if _, err := l.conn.Call(ctx, bus, "/org/freedesktop/DBus", bus, "AddMatch", rule); err != nil {
		return err
	}
	_, err := l.conn.Call(ctx, busName, managerPath, manager, "Subscribe")
	return err
}
