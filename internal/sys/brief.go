package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Brief calls are made without telling the Go scheduler. A process that was idle
// wakes the scheduler's watchman (sysmon) with the first call that the scheduler is told of, and
// he looks around every 20 us from then on, until all is idle again: for one who does a
// few short calls and waits, as a monitor does, that is a futex call, a change of
// threads or three, and an interrupt of another processor, each time. A brief call must be one
// that the kernel ends by itself, within microseconds: nobody takes
// its place on the processor meanwhile. Their errors are bare errnos, and they
// retry EINTR.

// BriefRead reads from a descriptor that does not block, or has something to say.
func BriefRead(fd int, b []byte) (int, error) { return brief(unix.SYS_READ, fd, b) }

// BriefWrite writes to a descriptor that does not block.
func BriefWrite(fd int, b []byte) (int, error) { return brief(unix.SYS_WRITE, fd, b) }

func brief(nr uintptr, fd int, b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	for {
		n, _, errno := unix.RawSyscall(nr, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
			continue
		}
		return 0, errno
	}
}

// BriefClose closes what nothing has to be waited for with: a pipe, a pidfd, a
// directory. It is FD.Close otherwise.
func (f *FD) BriefClose() {
	if n := f.Disown(); n >= 0 {
		_, _, _ = unix.RawSyscall(unix.SYS_CLOSE, uintptr(n), 0, 0)
	}
}
