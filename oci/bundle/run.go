package bundle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"

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
	var tty *screen
	if !o.Detach && o.ConsoleSocket == "" && hasTerminal(o.Bundle) {
		if tty, o.console, err = newScreen(); err != nil {
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
	if !o.Detach {
		defer forward(child.PidFD())()
	}
	if err := c.release(child); err != nil {
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
		code, err = reap(child.PidFD())
	}
	if err != nil || o.Keep {
		return code, err
	}
	if c, err = r.Load(id); errors.Is(err, ErrNotExist) {
		return code, nil // somebody was faster
	}
	if err != nil {
		return code, err
	}
	defer func() { _ = c.Close() }() // a lock that ends with us
	return code, c.Delete(true)
}

// hasTerminal says whether a bundle's process wants a terminal. What is wrong with
// the bundle is told by who makes it.
func hasTerminal(dir string) bool {
	b, err := openBundle(dir)
	return err == nil && b.spec.Process != nil && b.spec.Process.Terminal
}

// forward passes signals on to a process until the returned function is called.
func forward(pidfd *sys.FD) (stop func()) {
	ch := make(chan os.Signal, 32)
	done := make(chan struct{})
	signal.Notify(ch)
	go func() { // ends with stop
		for {
			select {
			case <-done:
				return
			case s := <-ch:
				// SIGURG is the Go runtime's own, SIGCHLD and SIGPIPE are about us.
				if n, ok := s.(syscall.Signal); ok && n != unix.SIGCHLD && n != unix.SIGURG && n != unix.SIGPIPE {
					_ = sys.PidfdSignal(pidfd, n) // it may have ended
				}
			}
		}
	}()
	return func() { signal.Stop(ch); close(done) }
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
