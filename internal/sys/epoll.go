package sys

import (
	"os"

	"golang.org/x/sys/unix"
)

// Epoll returns a new epoll instance, which does not block, so that the Go poller takes
// a file of it.
func Epoll() (*FD, error) {
	n, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err == nil {
		if err = unix.SetNonblock(n, true); err == nil {
			return NewFD(n), nil
		}
		unix.Close(n)
	}
	return nil, os.NewSyscallError("epoll_create1", err)
}
