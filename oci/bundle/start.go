package bundle

import (
	"errors"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/oci/executor"
)

// Start lets a created container execute its program. When that fails the container
// is stopped afterwards, and the error says which step it was.
func (c *Container) Start() error {
	if err := c.want("start", specs.StateCreated); err != nil {
		return err
	}
	child, err := c.attach()
	if err != nil {
		return err
	}
	defer child.Close()
	return c.release(child)
}

// stop kills the container's process, and whoever else is in its cgroup.
func (c *Container) stop() error {
	err := c.Kill(unix.SIGKILL, true)
	if errors.Is(err, ErrNotRunning) {
		return nil
	}
	return err
}

// release starts a child that waits. If it fails, or a hook does, the container is
// stopped.
func (c *Container) release(child *executor.Child) error {
	err := c.startHooks()
	if err == nil {
		err = c.listen(child, c.rec.Hands)
	}
	if err == nil {
		err = child.Release()
	}
	if err == nil {
		c.rec.Status = specs.StateRunning
		err = c.save()
	}
	if err == nil {
		err = c.hostHooks(poststart, specs.StateRunning, c.rec.Init.Pid)
	}
	if err != nil {
		err = errors.Join(fmt.Errorf("start container %s: %w", c.rec.ID, err), c.stop())
	}
	return err
}

// attach opens a child that an earlier process of ours has left.
func (c *Container) attach() (child *executor.Child, err error) {
	pidfd, err := c.rec.Init.open()
	if err != nil {
		return nil, fmt.Errorf("start container %s: %w", c.rec.ID, err)
	}
	// The report first: a child that fails without a reader says nothing.
	report, err := c.dir.fifo(reportName, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		pidfd.Close()
		return nil, err
	}
	start, err := c.dir.fifo(startName, unix.O_WRONLY|unix.O_NONBLOCK)
	if err == nil {
		var prog []byte
		if prog, err = c.dir.read(programName); err == nil {
			return executor.Attach(c.rec.Init.Pid, pidfd, report, start, prog)
		}
	}
	start.Close()
	report.Close()
	pidfd.Close()
	return nil, err
}
