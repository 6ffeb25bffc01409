package executor

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// follow waits until the program goes on in a sibling of the first child, and is
// the sibling's from then on. The first child is reaped here: nobody knows of it.
//
//	parent ── clone3 ──► first ── setns … ── clone3(PARENT) ── {pid, Born} ── exit
//	       ◄───────────────────────────────── sibling ── step … ── execve
//
// The sibling may be faster than the report of its birth, by one record: it then
// waits or is dead.
func (c *Child) follow() error {
	first := c.pidfd
	born, err := c.birth()
	if errno := c.waitid(new(siginfo), 0); errno != 0 && errno != unix.ECHILD && err == nil {
		err = fmt.Errorf("waitid: %w", errno)
	}
	if born.Errno != step.Born {
		return err
	}
	c.pid = int(born.Step)
	pidfd, perr := sys.PidfdOpen(c.pid)
	if perr != nil {
		return errors.Join(err, perr)
	}
	c.pidfd = pidfd
	first.Close()
	return err
}

// birth reads up to the news of a sibling. Any other record is kept for Ready, or
// told as the failure that it is where there is no sibling.
func (c *Child) birth() (step.Record, error) {
	var other *step.Record
	for {
		rec, err := c.record()
		switch {
		case err == nil && rec.Errno == step.Born:
			c.early = other
			return rec, nil
		case err == nil && other == nil:
			other = &rec
			continue
		case other != nil:
			return rec, &StepError{Step: int(other.Step), Name: c.names(int(other.Step)), Errno: unix.Errno(other.Errno)}
		case errors.Is(err, io.EOF):
			return rec, c.died()
		}
		return rec, err
	}
}

// poll is replaced by a test, which is as slow as the kernel can be.
var poll = unix.Poll

// record reads a record, or returns io.EOF when the first child has died and left
// none. The end of the pipe would not tell: a sibling holds it, too.
func (c *Child) record() (step.Record, error) {
	p := []unix.PollFd{{Fd: int32(c.heard), Events: unix.POLLIN}, {Fd: int32(c.pidfd.Int()), Events: unix.POLLIN}}
	for {
		if _, err := poll(p, -1); err == nil {
			break
		} else if !errors.Is(err, unix.EINTR) {
			return step.Record{}, fmt.Errorf("poll report pipe: %w", err)
		}
	}
	if p[0].Revents&unix.POLLIN == 0 {
		// The kernel looks at one after the other: the child may have reported and died after the look at the pipe. Now that
		// it is dead all that it ever said is there. Whoever missed it would lose a sibling, who is nobody's then.
		if n, _ := unix.Poll(p[:1], 0); n == 0 || p[0].Revents&unix.POLLIN == 0 {
			return step.Record{}, io.EOF
		}
	}
	return c.read()
}
