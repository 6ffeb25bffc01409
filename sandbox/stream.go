package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ErrEnding is the cause with which the context of a stream ends when the daemon does, and not its
// client: the client may come again.
var ErrEnding = errors.New("the daemon is ending")

// Size is that of a terminal's window, in characters.
type Size struct {
	Width, Height uint16
}

// Streams is what a client wants of a command or a container. Its readers and writers are the
// client's connection: they may block for as long as they like, and end when that is closed.
type Streams struct {
	Stdin          io.Reader // nil: not wanted
	Stdout, Stderr io.Writer // nil: not wanted
	TTY            bool
	Resize         <-chan Size // nil, or closed by who sends
}

// copySize is how much is read and written at once.
const copySize = 32 << 10

// follow resizes until the sizes, or the stream, end.
func (s *Streams) follow(ctx context.Context, resize func(width, height uint16) error) {
	for {
		select {
		case size, ok := <-s.Resize:
			if !ok {
				return
			}
			_ = resize(size.Width, size.Height) // a terminal that is gone has no size
		case <-ctx.Done():
			return
		}
	}
}

// CheckStream says whether a command could be run in a container, or a client attached to it, and returns
// its whole id. It runs, and is not frozen: a process that is born into a frozen cgroup does not begin.
func (m *Manager) CheckStream(id string) (string, error) {
	c, err := m.runningContainer(id)
	if err != nil {
		return "", err
	}
	if frozen, err := m.cfg.Cgroups.Load(c.record.Cgroup).Frozen(); err == nil && frozen {
		return "", fmt.Errorf("container %s is frozen: %w", c.id, ErrState)
	}
	return c.id, nil
}

func (m *Manager) runningContainer(id string) (*Container, error) {
	c, err := m.container(id)
	if err != nil {
		return nil, err
	}
	if s := c.facts.Load().state(); s != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return nil, fmt.Errorf("container %s is %s: %w", c.id, stateName(s), ErrState)
	}
	return c, nil
}

// outletFile is what an outlet needs of an *os.File.
type outletFile interface {
	io.ReadCloser
	SetReadDeadline(end time.Time) error
	SyscallConn() (syscall.RawConn, error)
}

// outlet is where output comes from: a pipe, or the master of a terminal.
type outlet struct {
	f    outletFile
	to   io.Writer
	left int           // bytes that may still come once the writer has ended
	over chan struct{} // closed when nothing comes any more
}

// leftBytes bounds what is read of an output whose writer has ended long ago and that others still write to: as much as a
// pipe may have held.
const leftBytes = 1 << 20

// pump copies from f to a client until the end of either. A client that has gone is not waited for: f is closed, and who
// writes to it gets EPIPE, or a hang-up.
func pump(f outletFile, to io.Writer) *outlet {
	o := &outlet{f: f, to: to, left: leftBytes, over: make(chan struct{})}
	go o.copy() // ends with f, with the client, or with finish
	return o
}

func (o *outlet) copy() {
	defer close(o.over)
	buf := make([]byte, copySize)
	for {
		n, err := o.read(buf)
		if n > 0 {
			if _, werr := o.to.Write(buf[:n]); werr != nil {
				o.f.Close()
				return
			}
		}
		if err != nil && !(errors.Is(err, os.ErrDeadlineExceeded) && o.more()) {
			return // EOF; EIO of a terminal that nobody has open; closed
		}
	}
}

// read doubts the EIO with which a terminal that nobody has open ends. The kernel looks for input first, and then whether
// the other side has closed: what was written and closed between the two is behind an EIO, and the next read has it.
func (o *outlet) read(buf []byte) (n int, err error) {
	if n, err = o.f.Read(buf); errors.Is(err, unix.EIO) {
		n, err = o.f.Read(buf)
	}
	return n, err
}

// more says, once the writer has ended and its time is over, whether there still is something that it may have left. A
// client may take long to read it, and loses nothing.
func (o *outlet) more() bool {
	raw, err := o.f.SyscallConn()
	if err != nil {
		return false
	}
	there := 0
	_ = raw.Control(func(fd uintptr) {
		if n, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ); err == nil {
			there = n
		}
	})
	if o.left -= there; there <= 0 || o.left < 0 {
		return false
	}
	return o.f.SetReadDeadline(time.Now().Add(50*time.Millisecond)) == nil
}

// finish waits until what is left was copied. Where somebody was left behind who holds it open, that is drainTime, and
// then as long as the client takes for what is there.
func (o *outlet) finish(ctx context.Context) {
	if o == nil {
		return
	}
	_ = o.f.SetReadDeadline(time.Now().Add(drainTime))
	select {
	case <-o.over:
	case <-ctx.Done():
	}
}

// close ends an outlet at once; what its goroutine is still writing ends with the client's connection.
func (o *outlet) close() {
	if o != nil {
		o.f.Close()
	}
}

// feed copies a client's stdin to where it is read, and closes what it returns at the client's end.
func feed(to io.Writer, from io.Reader) (over chan struct{}) {
	over = make(chan struct{})
	go func() { // ends with the client's connection
		defer close(over)
		buf := make([]byte, copySize)
		for open := true; ; {
			n, err := from.Read(buf)
			if n > 0 && open {
				_, werr := to.Write(buf[:n])
				// Who reads no more does not end the client, who must be read to notice its end.
				open = werr == nil
			}
			if err != nil {
				return
			}
		}
	}()
	return over
}
