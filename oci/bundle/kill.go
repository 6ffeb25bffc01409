package bundle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/cgroup"
)

// Kill sends a signal to the container's process, or with all to everybody in its
// cgroup. A container that is stopped is ErrNotRunning, unless all is set: what its
// process has left can still be killed.
func (c *Container) Kill(sig unix.Signal, all bool) error {
	if all && c.rec.Cgroup != nil {
		return c.withGroup(func(s *cgroup.Scope) error {
			switch {
			case !ours(s, c.rec.ID):
				return nil // it is gone: who is there is somebody else's
			case sig == unix.SIGKILL:
				return s.Kill()
			}
			return signalAll(s, sig)
		})
	}
	pidfd, err := c.rec.Init.open()
	if err == nil {
		defer pidfd.Close()
		err = sys.PidfdSignal(pidfd, sig)
	}
	if errors.Is(err, os.ErrProcessDone) {
		err = ErrNotRunning
	}
	if err != nil {
		return fmt.Errorf("kill container %s: %w", c.rec.ID, err)
	}
	return nil
}

// signalAll signals everybody in a cgroup. A number may be another's by then: a process
// is signalled that is there after it was got hold of.
func signalAll(s *cgroup.Scope, sig unix.Signal) error {
	pids, err := s.Procs()
	if err != nil {
		return err
	}
	held := map[int]*sys.FD{}
	for _, pid := range pids {
		if fd, err := sys.PidfdOpen(pid); err == nil {
			defer fd.Close()
			held[pid] = fd
		} else if !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	if pids, err = s.Procs(); err != nil {
		return err
	}
	for _, pid := range pids {
		if fd := held[pid]; fd != nil {
			if err := sys.PidfdSignal(fd, sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
				return fmt.Errorf("kill process %d: %w", pid, err)
			}
		}
	}
	return nil
}

// endTime is how long a killed container may take to end: its processes may hold
// much memory, or sit in the kernel.
const endTime = 10 * time.Second

// Delete removes a stopped container and everything of it. One that was created but
// not started is killed before, as others do; with force any is.
func (c *Container) Delete(force bool) error {
	s, err := c.status()
	if err != nil {
		return err
	}
	if s != specs.StateStopped && s != specs.StateCreated && !force {
		return fmt.Errorf("delete container %s: it is %s and not stopped: %w", c.rec.ID, s, ErrState)
	}
	return c.destroy()
}

// destroy undoes create, whatever of it has happened.
func (c *Container) destroy() error {
	pidfd, err := c.rec.Init.open()
	switch {
	case err == nil:
		defer pidfd.Close()
		if err := sys.PidfdSignal(pidfd, unix.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("kill container %s: %w", c.rec.ID, err)
		}
	case !errors.Is(err, ErrNotRunning):
		return err
	}
	if err := c.removeGroup(); err != nil {
		return err
	}
	if pidfd != nil && !c.awaitDeath(pidfd) {
		return fmt.Errorf("delete container %s: its process %d does not end: %w", c.rec.ID, c.rec.Init.Pid, unix.EBUSY)
	}
	spec, specErr := c.Spec() // goes with the directory
	if err := c.dir.remove(); err != nil {
		return err
	}
	c.r.forgetFilters()
	if c.rec.Init.Pid != 0 && specErr == nil && spec.Hooks != nil {
		if err := c.poststopHooks(spec.Hooks); err != nil {
			c.r.warn(err.Error())
		}
	}
	return nil
}

// poststopHooks runs all hooks of a container that is gone: one that fails keeps
// none of the others back.
func (c *Container) poststopHooks(h *specs.Hooks) error {
	var errs []error
	for i := range h.Poststop {
		c.spec = &specs.Spec{Hooks: &specs.Hooks{Poststop: h.Poststop[i : i+1]}}
		errs = append(errs, c.hostHooks(poststop, specs.StateStopped, 0))
	}
	return errors.Join(errs...)
}

// awaitDeath waits until the container's process has ended. The first of a pid
// namespace ends last: it waits for parents outside to reap their execs. Once all
// that is missing is that, it holds nothing any more, and is nobody's to wait for.
func (c *Container) awaitDeath(pidfd *sys.FD) bool {
	const brief = 500 * time.Millisecond
	for range endTime / brief {
		if awaitEnd(pidfd, brief) {
			return true
		}
		if p, alive, err := c.rec.Init.look(); err == nil && (!alive || p.flags&exiting != 0) {
			return true
		}
	}
	return false
}

// removeGroup kills who is left in the cgroup, where the process had no pid namespace
// of its own, and removes it.
func (c *Container) removeGroup() error {
	g, err := c.group()
	if g == nil || err != nil {
		return err
	}
	defer g.close()
	if !ours(g.scope, c.rec.ID) {
		return nil // create did not get that far, or it is gone: who is there is somebody else's
	}
	if g.scope.RemoveIdle() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), endTime)
	defer cancel()
	if err := g.scope.Kill(); err != nil {
		return err
	}
	if err := g.scope.WaitEmpty(ctx); err != nil {
		return err
	}
	return g.scope.Remove(ctx)
}
