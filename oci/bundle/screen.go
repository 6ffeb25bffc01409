package bundle

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// screen is a terminal that this process serves, for a container or an exec that is
// not detached: between our own stdin and stdout and the master.
type screen struct{ ours *sys.FD }

// newScreen returns the screen and the socket that the program sends the master
// over. The caller closes both.
func newScreen() (s *screen, socket *sys.FD, err error) {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return &screen{sys.NewFD(p[0])}, sys.NewFD(p[1]), nil
}

func (s *screen) close() {
	if s != nil {
		s.ours.Close()
	}
}

// What is still shown of a terminal when its process has ended: as much as the kernel may hold, as soon
// as it comes. Others may keep the terminal open, and write to it, for ever.
const (
	lastWait  = time.Second
	lastBytes = 1 << 20
)

// tail reads a terminal up to its end, or to what others may add to that.
type tail struct {
	master *os.File
	ended  atomic.Bool   // the process has
	wait   time.Duration // for what may still be waited
	left   int           // bytes that may still come
}

// end lets tail come to its end.
func (t *tail) end() {
	t.ended.Store(true)
	_ = t.master.SetReadDeadline(time.Now().Add(lastWait)) // of the Read that is under way
}

// Read waits for the terminal. Who shows what was read may take its time: that does not count.
//
// One EIO is doubted, as by package crilog: the next read has what was written and closed too late for this one.
func (t *tail) Read(p []byte) (n int, err error) {
	ended := t.ended.Load()
	if ended && t.left <= 0 {
		return 0, io.EOF
	}
	began := time.Now()
	if ended {
		_ = t.master.SetReadDeadline(began.Add(t.wait))
	}
	if n, err = t.master.Read(p); errors.Is(err, unix.EIO) {
		n, err = t.master.Read(p)
	}
	if ended {
		t.left, t.wait = t.left-n, t.wait-time.Since(began)
	}
	return n, err
}

// serve copies between the terminals until the process behind pidfd has ended and
// everything that it wrote was shown, and returns its exit code.
func (s *screen) serve(pidfd *sys.FD) (int, error) {
	fd, err := receive(s.ours)
	if err != nil {
		return 0, err
	}
	if err := unix.SetNonblock(fd.Int(), true); err != nil { // for Close to end a Read
		fd.Close()
		return 0, fmt.Errorf("make terminal non-blocking: %w", err)
	}
	n := fd.Int()
	master := fd.File("terminal")
	defer master.Close()
	defer rawMode()()
	// A stdout that nobody reads any more ends the showing, not us.
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
	follow(n)
	go func() { _, _ = io.Copy(master, os.Stdin) }() // ends with the process: nobody else reads our stdin
	shown := make(chan struct{})
	t := &tail{master: master, wait: lastWait, left: lastBytes}
	go func() { // ends with EIO, when the last one has closed the other side, or some time after the process
		defer close(shown)
		_, _ = io.Copy(os.Stdout, t)
	}()
	code, err := attend(pidfd, attendant{resized: func() { follow(n) }})
	t.end()
	<-shown
	return code, err
}

// rawMode has our own terminal pass on every key, and returns what undoes that.
func rawMode() (undo func()) {
	old, err := unix.IoctlGetTermios(0, unix.TCGETS)
	if err != nil {
		return func() {} // stdin is no terminal
	}
	raw := *old
	raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	raw.Oflag &^= unix.OPOST
	raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	raw.Cflag = raw.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	_ = unix.IoctlSetTermios(0, unix.TCSETS, &raw) // it works worse without
	return func() { _ = unix.IoctlSetTermios(0, unix.TCSETS, old) }
}

// follow gives the master the size of our own terminal.
func follow(master int) {
	if size, err := unix.IoctlGetWinsize(1, unix.TIOCGWINSZ); err == nil {
		_ = unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, size)
	}
}
