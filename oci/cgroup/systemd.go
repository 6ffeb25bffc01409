package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vitrine-runtime/vitrine/internal/dbus"
)

// ErrUnavailable: systemd did not do in time what it was asked for. Nothing of it
// is left, or systemd takes it away itself once it finds no process there.
var ErrUnavailable = errors.New("systemd does not answer")

// answerTime bounds what is asked of systemd. A full node that boots keeps it busy
// for seconds; the kubelet gives a container two minutes.
const answerTime = 30 * time.Second

// units is what the driver wants of systemd. There are two: systemd, and a test's.
type units interface {
	// start makes a unit around a process that is in its cgroup already, and
	// returns when it is active. One that is active so is fine.
	start(ctx context.Context, u unit) error
	// set changes properties of an active unit.
	set(ctx context.Context, name string, props []property) error
	// stop ends a unit, with what lives in it. One that does not exist is fine.
	stop(ctx context.Context, name string) error
	// active says whether the unit is, with that cgroup.
	active(ctx context.Context, name, path string) (bool, error)
	// quotaStep is the precision, in us per second, with which quotas outlive a
	// daemon-reload.
	quotaStep(ctx context.Context) uint64
	close()
}

// unit is a scope to start.
type unit struct {
	name  string
	path  string // of its cgroup, relative to the root
	props []property
}

// property is a unit's, as D-Bus has it.
type property = dbus.Property

func prop(name string, value any) property { return property{Name: name, Value: value} }

// systemd asks PID 1, one message for one wish.
//
// A connection that ends under a question is nothing special: PID 1 ends all when
// it executes itself anew. It keeps its jobs and its units, so the question is
// asked again, and "exists already" then is the answer that was lost.
type systemd struct {
	bus   *bus
	limit time.Duration // answerTime, or a test's
	calls atomic.Uint64 // messages sent for the sake of units
	step  atomic.Uint64 // quotaStep; 0: not known yet
}

func newSystemd() *systemd { return &systemd{bus: newBus(), limit: answerTime} }

func (s *systemd) close() { s.bus.close() }

// Names of errors, as systemd and the bus spell them.
const (
	errExists  = "org.freedesktop.systemd1.UnitExists"
	errNoUnit  = "org.freedesktop.systemd1.NoSuchUnit"
	errNotHere = "org.freedesktop.DBus.Error.UnknownObject"
)

// away are errors of a bus whose other end is not there at the moment.
var away = []string{
	"org.freedesktop.DBus.Error.NoReply", "org.freedesktop.DBus.Error.ServiceUnknown", "org.freedesktop.DBus.Error.NameHasNoOwner",
	"org.freedesktop.DBus.Error.Disconnected", "org.freedesktop.DBus.Error.NoServer",
}

func errorName(err error) string {
	var e *dbus.Error
	if errors.As(err, &e) {
		return e.Name
	}
	return ""
}

// lost says whether an error is of the connection and not an answer.
func lost(err error) bool {
	for _, n := range away {
		if errorName(err) == n {
			return true
		}
	}
	var sys syscall.Errno
	return errors.Is(err, dbus.ErrClosed) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, os.ErrClosed) || errors.As(err, &sys)
}

// ask runs f with a connection, again with a new one when that is lost, until the
// deadline, which is ErrUnavailable, or until the caller goes away, which is
// context.Canceled.
func (s *systemd) ask(caller context.Context, what string, f func(ctx context.Context, l *line) error) error {
	ctx, cancel := context.WithTimeout(caller, s.limit)
	defer cancel()
	var last error
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		l, err := s.bus.get(ctx)
		if err == nil {
			err = f(ctx, l)
			s.bus.put(l)
		}
		switch {
		case err == nil:
		case errors.Is(caller.Err(), context.Canceled):
			return fmt.Errorf("%s: %w", what, caller.Err())
		case ctx.Err() != nil:
			return fmt.Errorf("%s: %w: %w", what, ErrUnavailable, errors.Join(ctx.Err(), last))
		}
		if !lost(err) {
			if err != nil {
				err = fmt.Errorf("%s: %w", what, err)
			}
			return err
		}
		last = err
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

func (s *systemd) call(ctx context.Context, l *line, path, iface, method string, args ...any) ([]any, error) {
	s.calls.Add(1)
	return l.conn.Call(ctx, busName, path, iface, method, args...)
}

// get reads a property that is a string.
func (s *systemd) get(ctx context.Context, l *line, path, iface, name string) (string, error) {
	v, err := s.call(ctx, l, path, properties, "Get", iface, name)
	if err != nil {
		return "", err
	}
	if len(v) == 1 {
		if text, ok := v[0].(string); ok {
			return text, nil
		}
	}
	return "", fmt.Errorf("read property %s: it is no string: %w", name, fs.ErrInvalid)
}

func (s *systemd) start(ctx context.Context, u unit) error {
	return s.ask(ctx, "start unit "+u.name, func(ctx context.Context, l *line) error {
		for range 3 {
			err := s.job(ctx, l, u.name, "StartTransientUnit", u.name, "fail", u.props, []dbus.Unit{})
			if errorName(err) != errExists {
				return err
			}
			if done, err := s.settle(ctx, l, u); done || err != nil {
				return err
			}
		}
		return fmt.Errorf("a unit of that name is in the way: %w", fs.ErrExist)
	})
}

// settle looks at a unit of the name that we want. It is ours, from a question
// whose answer was lost: done. It is what is left of one that failed: that is
// forgotten, and we may ask again. Or it lives, elsewhere. One that is inactive and
// has a job is about to become active: PID 1 was executed anew between the two.
func (s *systemd) settle(ctx context.Context, l *line, u unit) (done bool, err error) {
	for {
		state, path, err := s.state(ctx, l, u.name)
		switch {
		case err != nil:
			return false, err
		case state == "active":
			if path == "/"+u.path {
				return true, nil
			}
			return false, fmt.Errorf("a unit of that name is active: %w", fs.ErrExist)
		case (state == "inactive" || state == "failed") && !s.hasJob(ctx, l, u.name):
			_, err := s.call(ctx, l, managerPath, manager, "ResetFailedUnit", u.name)
			if errorName(err) == errNoUnit {
				err = nil
			}
			return false, err
		}
		select { // it is about to become something
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// hasJob says whether a unit that is loaded waits for a job. It is asked after the state: a job that has ended by then had
// changed that, which settle sees when the unit is in the way once more.
func (s *systemd) hasJob(ctx context.Context, l *line, name string) bool {
	v, err := s.call(ctx, l, unitPath(name), properties, "Get", busName+".Unit", "Job")
	if err != nil || len(v) != 1 {
		return false // no such unit any more; or the connection is lost, and the next question says so
	}
	job, ok := v[0].([]any)
	if !ok || len(job) == 0 {
		return false
	}
	id, _ := job[0].(uint32)
	return id != 0
}

func (s *systemd) state(ctx context.Context, l *line, name string) (state, path string, err error) {
	o := unitPath(name)
	if state, err = s.get(ctx, l, o, busName+".Unit", "ActiveState"); err != nil {
		if n := errorName(err); n == errNoUnit || n == errNotHere {
			return "inactive", "", nil
		}
		return "", "", err
	}
	if state != "active" {
		return state, "", nil
	}
	kind := name[strings.LastIndexByte(name, '.')+1:]
	path, err = s.get(ctx, l, o, busName+"."+strings.ToUpper(kind[:1])+kind[1:], "ControlGroup")
	return state, path, err
}

func (s *systemd) active(ctx context.Context, name, path string) (ok bool, err error) {
	err = s.ask(ctx, "look for unit "+name, func(ctx context.Context, l *line) error {
		state, where, err := s.state(ctx, l, name)
		ok = state == "active" && where == "/"+path
		return err
	})
	return ok, err
}

func (s *systemd) stop(ctx context.Context, name string) error {
	return s.ask(ctx, "stop unit "+name, func(ctx context.Context, l *line) error {
		err := s.job(ctx, l, name, "StopUnit", name, "replace")
		if errorName(err) == errNoUnit {
			return nil
		}
		return err
	})
}

func (s *systemd) set(ctx context.Context, name string, props []property) error {
	return s.ask(ctx, "set properties of unit "+name, func(ctx context.Context, l *line) error {
		_, err := s.call(ctx, l, managerPath, manager, "SetUnitProperties", name, true, props)
		if errorName(err) == errNoUnit {
			err = fmt.Errorf("%w: %w", fs.ErrNotExist, err)
		}
		return err
	})
}

// job calls a method that makes a job of the unit, and waits for the job's end.
func (s *systemd) job(ctx context.Context, l *line, name, method string, args ...any) error {
	w := l.watch(name)
	defer l.unwatch(w)
	answer, err := s.call(ctx, l, managerPath, manager, method, args...)
	if err != nil {
		return err
	}
	job := ""
	if len(answer) == 1 {
		job, _ = answer[0].(string)
	}
	if job == "" {
		return fmt.Errorf("%s: the answer names no job: %w", method, fs.ErrInvalid)
	}
	result, err := l.await(ctx, w, job)
	if err == nil && result != "done" {
		err = fmt.Errorf("the job ended: %s", result)
	}
	return err
}

// quotaStep asks for systemd's version, once. What it writes down of a quota, and
// reads again at a daemon-reload, is whole per cent of a CPU in 252 and hundredths
// of that in 257. Who does not say is taken for old.
func (s *systemd) quotaStep(ctx context.Context) uint64 {
	if n := s.step.Load(); n != 0 {
		return n
	}
	var version string
	err := s.ask(ctx, "ask for the version", func(ctx context.Context, l *line) (err error) {
		version, err = s.get(ctx, l, managerPath, manager, "Version")
		return err
	})
	if err != nil {
		return 10000
	}
	digits := version
	if i := strings.IndexFunc(version, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		digits = version[:i]
	}
	step := uint64(10000)
	if n, err := strconv.Atoi(digits); err == nil && n >= 257 {
		step = 100
	}
	s.step.Store(step)
	return step
}

// unitPath is the unit's object: what is neither letter nor digit becomes _ and
// two hex digits.
func unitPath(name string) string {
	var b strings.Builder
	b.WriteString(managerPath + "/unit/")
	for i := range len(name) {
		c := name[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' && i > 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "_%02x", c)
		}
	}
	return b.String()
}
