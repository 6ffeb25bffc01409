package monitor

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/wire"
)

// stdio is a container's three descriptors and our ends of the pipes.
type stdio struct {
	child   [3]*sys.FD  // null, or an end of a pipe
	output  [3]*os.File // read ends of 1 and 2; nil where discarded
	console *sys.FD     // the child's end of the socket for its terminal, which then becomes all three
}

// openStdio makes what the request asks for: /dev/null or a pipe as stdin,
// pipes as output if somebody reads it, and for a terminal only the way to get it.
func (c *container) openStdio(null *sys.FD, r *wire.Create) (s *stdio, err error) {
	s = &stdio{child: [3]*sys.FD{null, null, null}}
	defer func() {
		if err != nil {
			s.closeChildEnds(null)
			s.closeOurEnds()
		}
	}()
	if r.TTY {
		s.console, err = c.openConsole()
		return s, err
	}
	if r.Stdin {
		if s.child[0], c.stdin, err = openPipe(r.UID); err != nil {
			s.child[0] = null
			return s, err
		}
	}
	for i := 1; i <= 2 && (c.log != nil || r.Output); i++ {
		read, write, err := openPipe(r.UID)
		if err != nil {
			return s, err
		}
		s.child[i] = write
		if err := unix.SetNonblock(read.Int(), true); err != nil { // for the poller; the child's end stays blocking
			read.Close()
			return s, fmt.Errorf("make pipe non-blocking: %w", err)
		}
		s.output[i] = read.File("container output")
	}
	return s, nil
}

// openPipe makes a pipe that belongs to the container's user: what is opened
// again as /dev/stdout or /dev/stdin is checked against its owner.
func openPipe(uid uint32) (read, write *sys.FD, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("make pipe: %w", err)
	}
	read, write = sys.NewFD(p[0]), sys.NewFD(p[1])
	if err := unix.Fchown(p[0], int(uid), -1); err != nil {
		read.Close()
		write.Close()
		return nil, nil, fmt.Errorf("give pipe to uid %d: %w", uid, err)
	}
	return read, write, nil
}

func (s *stdio) closeChildEnds(null *sys.FD) {
	for _, f := range s.child {
		if f != null {
			f.Close()
		}
	}
	s.console.Close()
}

func (s *stdio) closeOurEnds() {
	for _, f := range s.output {
		if f != nil {
			f.Close()
		}
	}
}

// copyTo moves our ends into the log, which closes them at their end, or has them
// read for who attaches.
func (s *stdio) copyTo(c *container) {
	for i, name := range []string{1: "stdout", 2: "stderr"} {
		switch {
		case s.output[i] == nil:
		case c.log != nil:
			c.log.Stream(name, s.output[i])
		default:
			c.outputs[i] = s.output[i]
			c.viewers.copy(name, s.output[i])
		}
	}
}
