package executor

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// What a child hands over is the listener of its own seccomp filter. From the
// filter on it may make no call that the filter knows nothing of, and execve
// closes the descriptor. So it says the number in its memory and waits for a
// word there, while whoever releases it looks into that memory:
//
//	child                                parent
//	seccomp(...) = 5
//	shown = 5 + 1            ──────────► pread(/proc/<pid>/mem)
//	look at taken, again               pidfd_getfd(5), pass it on
//	and again                ◄────────── pwrite(taken = 1)
//	execve
//
// The parent may die at any point. Before the start is written the child waits
// in read, as ever; after taken is written it needs nobody; and between the two
// it dies by itself when patience is at its end, having taken no more of the
// processor than its cgroup has.
//
// The kernel could send it a signal at once, without a call of the child's, but
// none that fits. That of PR_SET_PDEATHSIG comes when the thread ends that has
// forked, which in Go is no sign of anything, and would have to be taken back
// behind the filter, or it would end the container with its monitor. That of a
// start pipe without writers (O_ASYNC) is not heard by the first process of a pid
// namespace, and who starts the child of an Attach is no writer that matters: the
// child holds the FIFO open itself.

// patience bounds how long a child looks for that word, in cycles of the clock
// that RDTSC reads: ten seconds at 3 GHz, and half a minute on the slowest. It
// is a variable for tests.
var patience int64 = 30e9

// Hands returns where in its memory the child hands a descriptor over, or 0 if
// its program does not. Who attaches to the child later needs to be told.
func (c *Child) Hands() uint64 { return c.handsAt }

// Receive says who gets what the child hands over at the address that Hands has
// returned to whoever forked it. Release or Run calls take with the descriptor,
// which becomes its own, before anything is executed: if take fails, the child is
// killed, and its error is theirs. A program that hands something over
// cannot be released without.
func (c *Child) Receive(at uint64, take func(*sys.FD) error) {
	c.handsAt, c.take = at, take
}

// open opens the child's memory, before it is released: a child that nobody can
// look into is not to wait for that. It returns nil if nothing is handed over, or
// by nobody any more.
func (c *Child) open() (*sys.FD, error) {
	if !c.hands {
		return nil, nil
	}
	if c.take == nil || c.handsAt == 0 {
		return nil, fmt.Errorf("release a child that hands over a descriptor to nobody: %w", unix.EINVAL)
	}
	dir, path := c.proc, strconv.Itoa(c.pid)+"/mem"
	if dir < 0 {
		dir, path = unix.AT_FDCWD, "/proc/"+path
	}
	fd, openErr := unix.Openat(dir, path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	var mem *sys.FD
	if openErr == nil {
		mem = sys.NewFD(fd)
	}
	// If it still lives, the number was not another's. If it does not, await
	// tells what it died of, unless somebody else has taken that away.
	dead, err := c.dead(0)
	if err == nil && dead && c.attached {
		err = ErrDied
	}
	if err == nil && !dead && openErr != nil {
		err = fmt.Errorf("open memory of child: %w", openErr)
	}
	if err != nil || dead {
		mem.Close()
		return nil, err
	}
	return mem, nil
}

// receive waits for what the child hands over and passes it on. A child that
// ended or failed instead has not executed anything.
func (c *Child) receive(mem *sys.FD) error {
	if mem == nil {
		return nil
	}
	n, err := c.shown(mem)
	if err != nil {
		return err
	}
	if n < 0 {
		if err := c.await(); err != nil {
			return err
		}
		return ErrDied
	}
	fd, err := sys.PidfdGetfd(c.pidfd, n)
	if err == nil {
		err = c.take(fd)
	}
	if err != nil {
		_ = sys.PidfdSignal(c.pidfd, unix.SIGKILL) // it would die soon
		return fmt.Errorf("hand over the listener: %w", err)
	}
	const taken = unsafe.Offsetof(control{}.taken) - unsafe.Offsetof(control{}.shown)
	one := binary.NativeEndian.AppendUint64(nil, 1)
	_, _ = unix.Pwrite(mem.Int(), one, int64(c.handsAt+uint64(taken))) // fails for a child that is dead, which await tells
	return nil
}

// shown returns the number that the child shows, or -1 if it reported or ended
// instead.
func (c *Child) shown(mem *sys.FD) (int, error) {
	over := false
	for pause := time.Duration(0); ; pause = min(2*pause+10*time.Microsecond, time.Millisecond) {
		v, alive := c.peek(mem)
		switch {
		case v > math.MaxInt32:
			return -1, fmt.Errorf("child shows descriptor %d: %w", v, unix.EBADF)
		case v > 0:
			return int(v - 1), nil
		case over || !alive:
			return -1, nil
		}
		p := []unix.PollFd{{Fd: int32(c.heard), Events: unix.POLLIN}, {Fd: int32(c.pidfd.Int()), Events: unix.POLLIN}}
		timeout := unix.NsecToTimespec(int64(pause))
		if _, err := unix.Ppoll(p, &timeout, nil); err != nil && err != unix.EINTR {
			return -1, os.NewSyscallError("ppoll", err)
		}
		over = p[0].Revents != 0 || p[1].Revents != 0 // and look once more
	}
}

// peek reads what the child shows. A process that has ended has no memory.
func (c *Child) peek(mem *sys.FD) (v uint64, alive bool) {
	b := make([]byte, 8)
	for {
		n, err := unix.Pread(mem.Int(), b, int64(c.handsAt))
		if err != unix.EINTR {
			return binary.NativeEndian.Uint64(b), n == len(b)
		}
	}
}
