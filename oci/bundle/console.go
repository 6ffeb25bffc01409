package bundle

import (
	"fmt"

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
	sock, err := sys.DialUnix(path)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	return sock, nil
}

// receive takes the descriptor that comes over a socket.
func receive(from *sys.FD) (*sys.FD, error) {
	var msgs []unix.SocketControlMessage
	var fds []int
	text, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, err := sys.ReceiveMessage(from.Int(), text, oob, unix.MSG_CMSG_CLOEXEC)
	if err == nil {
		msgs, err = unix.ParseSocketControlMessage(oob[:n])
	}
	if err == nil && len(msgs) == 1 {
		fds, err = unix.ParseUnixRights(&msgs[0])
	}
	if err == nil && len(fds) != 1 {
		err = unix.EBADMSG
	}
	if err != nil {
		return nil, fmt.Errorf("receive the terminal: %w", err)
	}
	return sys.NewFD(fds[0]), nil
}
