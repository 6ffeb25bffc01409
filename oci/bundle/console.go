package bundle

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// socketFor returns the connected socket that a terminal's master goes out over, or
// nil for a process without a terminal.
func socketFor(p *specs.Process, path string) (*sys.FD, error) {
	switch {
	case !p.Terminal && path == "":
		return nil, nil
	case !p.Terminal:
		return nil, fmt.Errorf("process.terminal: false, but there is a console socket: %w", ErrInvalid)
	case path == "":
		return nil, fmt.Errorf("process.terminal: needs --console-socket where nobody stays to serve it: %w", ErrInvalid)
	}
	return connect(path)
}

// connect connects to a Unix socket, also one whose path is longer than the 107
// bytes that an address has room for.
func connect(path string) (*sys.FD, error) {
	n, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	s := sys.NewFD(n)
	dir, err := sys.OpenAt2(unix.AT_FDCWD, filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		s.Close()
		return nil, err
	}
	defer dir.Close()
	name := "/proc/self/fd/" + strconv.Itoa(dir.Int()) + "/" + filepath.Base(path)
	if err := unix.Connect(n, &unix.SockaddrUnix{Name: name}); err != nil {
		s.Close()
		return nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	return s, nil
}

// receive takes the descriptor that comes over a socket.
func receive(from *sys.FD) (*sys.FD, error) {
	text, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, err := sys.ReceiveMessage(from.Int(), text, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("receive descriptor: %w", err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return nil, errors.Join(fmt.Errorf("receive descriptor: %d messages: %w", len(msgs), unix.EBADMSG), err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.Join(fmt.Errorf("receive descriptor: %d of them: %w", len(fds), unix.EBADMSG), err)
	}
	return sys.NewFD(fds[0]), nil
}
