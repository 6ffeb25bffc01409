package monitor

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// openConsole makes the socket over which a container's program sends the master of its
// terminal. The child's end goes with the program's files.
func (c *container) openConsole() (child *sys.FD, err error) {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make socket for the terminal: %w", err)
	}
	c.console = sys.NewFD(p[0])
	return sys.NewFD(p[1]), nil
}

// takeTerminal takes the master, which the program has sent by the time that it waits
// for its start, and begins to read it. A terminal has one stream.
//
// The other side is kept open as well, until the main process is dead: a program may
// close its terminal and have another one open it again, and a master that was read to
// its end would then be read by nobody.
func (c *container) takeTerminal() error {
	if c.console == nil {
		return nil
	}
	defer func() { c.console.BriefClose(); c.console = nil }()
	master, err := sys.ReceiveFD(c.console.Int(), unix.MSG_DONTWAIT)
	if err != nil {
		return fmt.Errorf("receive the terminal: %w", err)
	}
	if err = unix.SetNonblock(master.Int(), true); err == nil {
		c.terminal, err = master.Dup()
	}
	if err != nil {
		master.Close()
		return fmt.Errorf("open the terminal: %w", err)
	}
	if n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master.Int()), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC); errno == 0 {
		c.otherSide = sys.NewFD(int(n))
	}
	out := master.File("terminal")
	if c.log != nil {
		c.log.Stream("stdout", out)
	} else {
		c.viewers.copy("stdout", out)
		c.outputs[1] = out
	}
	return nil
}
