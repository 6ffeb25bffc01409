package oci

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// console is the way on which the terminal of an exec comes: its program sends the master
// over a socket, straight to the daemon.
type console struct {
	ours, child *sys.FD
}

// newConsole returns nil where there is no terminal.
func newConsole(terminal bool) (*console, error) {
	if !terminal {
		return nil, nil
	}
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	return &console{sys.NewFD(p[0]), sys.NewFD(p[1])}, nil
}

func (c *console) close() {
	if c != nil {
		c.ours.Close()
		c.child.Close()
	}
}

// index is where the program finds the socket among its files.
func (c *console) index() int {
	if c == nil {
		return 0
	}
	return 1
}

// take receives the master of a program whose execve has succeeded.
func (c *console) take() (*os.File, error) {
	if c == nil {
		return nil, nil
	}
	fd, err := sys.ReceiveFD(c.ours.Int(), unix.MSG_DONTWAIT)
	if err != nil {
		return nil, fmt.Errorf("receive the terminal: %w", err)
	}
	return pollable(fd, "terminal")
}

// setSize sets the size of a terminal's window. A size without an extent would make programs draw
// nothing, and says nothing.
func setSize(master *os.File, width, height uint16) error {
	if width == 0 || height == 0 {
		return nil
	}
	raw, err := master.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) {
		err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: height, Col: width})
	})
	if cerr != nil {
		return cerr
	}
	return os.NewSyscallError("ioctl TIOCSWINSZ", err)
}
