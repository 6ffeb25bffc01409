package sys

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// patience bounds in seconds how long connecting to a socket and sending over it may
// take: the other side's queue may be full.
const patience = 10

// DialUnix connects to the stream socket at path. One that is longer than an address
// has room for is reached through its directory. The caller closes the connection.
func DialUnix(path string) (*FD, error) {
	if len(path) < len(unix.RawSockaddrUnix{}.Path) {
		return ConnectUnix(path)
	}
	dir, err := OpenAt2(unix.AT_FDCWD, filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return ConnectUnix(fmt.Sprintf("/proc/self/fd/%d/%s", dir.Int(), filepath.Base(path)))
}

// ConnectUnix is DialUnix for a path that fits into an address. Errors are the
// kernel's, without the path.
func ConnectUnix(path string) (*FD, error) {
	n, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	sock := NewFD(n)
	if err = unix.SetsockoptTimeval(n, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: patience}); err == nil {
		for err = unix.EINTR; err == unix.EINTR; {
			err = unix.Connect(n, &unix.SockaddrUnix{Name: path})
		}
	}
	if err != nil {
		sock.Close()
		return nil, err
	}
	return sock, nil
}
