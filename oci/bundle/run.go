package bundle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/early"
	"github.com/vitrine-runtime/vitrine/internal/signals"
	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// RunOptions are the settings of Run beside those of Create.
type RunOptions struct {
	CreateOptions
	// Detach returns as soon as the program runs, and leaves the rest to whoever
	// reaps orphans.
	Detach bool
	// Keep leaves the container there, stopped, when its program has ended.
	Keep bool
}

// Run creates a container and starts it. Unless it is detached, it passes on the
// signals that come, waits for the program's end, deletes the container and returns
// the exit code: 128 and the signal's number for one that was killed.
func (r *Runtime) Run(ctx context.Context, id string, o RunOptions) (code int, err error) {
	if err := CheckID(id); err != nil {
		return 0, err
	}
	o.tiny, o.straight, o.attended = enterTiny(), true, !o.Detach
	if o.bundle, err = r.openBundle(o.Bundle); err != nil {
		o.tiny.leave()
		return 0, err
	}
	var tty *screen
	if p := o.bundle.spec.Process; !o.Detach && o.ConsoleSocket == "" && p != nil && p.Terminal {
		if tty, o.console, err = newScreen(); err != nil {
			o.tiny.leave()
			return 0, err
		}
		defer tty.close()
		defer o.console.Close()
	}
	c, child, err := r.create(ctx, id, o.CreateOptions)
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.Close() }() // a lock that ends with us
	defer child.Close()
	if o.attended {
		err = catchAll()
	}
	if err == nil {
		err = c.release(child)
	}
	if err != nil {
		err = errors.Join(err, c.destroy())
		_, _ = reap(child.PidFD()) // it is ours, and dead
		return 0, err
	}
	if o.Detach {
		return 0, nil
	}
	if err := c.Close(); err != nil { // for others to kill it
		return 0, err
	}
	if tty != nil {
		o.console.Close() // the child has its own
		code, err = tty.serve(child.PidFD())
	} else {
		code, err = attend(child.PidFD(), attendant{})
	}
	if err != nil || o.Keep {
		return code, err
	}
	init := c.rec.Init
	if c, err = r.Load(id); errors.Is(err, ErrNotExist) {
		return code, nil // somebody was faster
	}
	if err != nil {
		return code, err
	}
	defer func() { _ = c.Close() }() // a lock that ends with us
	if c.rec.Init != init {
		return code, nil // and has made another one
	}
	c.spec = o.bundle.spec // as it was written
	return code, c.Delete(true)
}

// catchAll has attend pass on the signals that come from here on, and those that were caught before.
var catchAll = sync.OnceValue(func() error {
	_, err := signals.Catch(signals.ToPassOn()...)
	return err
})

// attendant is what attend does beside.
type attendant struct {
	resized func()                 // called where the terminal has another size, if not nil
	pass    func(unix.Signal) bool // says which signals are passed on; nil: all
	asked   *sys.FD                // where answer is asked, or nil
}

// attend passes on the signals that are caught to a child until it ends, and returns its exit
// code.
func attend(pidfd *sys.FD, a attendant) (int, error) {
	caught, err := signals.Catch()
	if err != nil {
		return 0, err
	}
	if n := early.Mount(); n >= 0 { // takes its time, which we have now
		unix.Close(n)
		early.Unmounted()
	}
	var buf [64]byte
	p := []unix.PollFd{{Fd: int32(pidfd.Int()), Events: unix.POLLIN}, {Fd: int32(caught.Int()), Events: unix.POLLIN}, {Fd: int32(a.asked.Int()), Events: unix.POLLIN}}
	for {
		if _, err := unix.Ppoll(p, nil, nil); err != nil && err != unix.EINTR {
			return 0, os.NewSyscallError("ppoll", err)
		}
		if p[0].Revents != 0 {
			return reap(pidfd)
		}
		if p[2].Revents != 0 && !answer(a.asked) {
			p[2].Fd = -1
		}
		for _, n := range signals.Read(caught, buf[:]) {
			if unix.Signal(n) == unix.SIGWINCH && a.resized != nil {
				a.resized()
			}
			if a.pass == nil || a.pass(unix.Signal(n)) {
				_ = sys.PidfdSignal(pidfd, unix.Signal(n)) // it may have ended
			}
		}
	}
}

// reap waits for a child's end and returns its exit code.
func reap(pidfd *sys.FD) (int, error) {
	for {
		var si unix.Siginfo
		err := unix.Waitid(unix.P_PIDFD, pidfd.Int(), &si, unix.WEXITED, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("wait for the process: %w", err)
		}
		return exitCode(&si), nil
	}
}
