package monitor

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/notify"
	"github.com/vitrine-runtime/vitrine/oci/wire"
)

// listener is who answers the notifications of a process's seccomp filter: the
// directory of its socket, which is of the host's file tree and out of our
// sight, and what it is told. We connect when the process is started and not
// before: one that serves its callers in turn would wait for us meanwhile.
type listener struct {
	dir, message *sys.FD
	name         string
}

// takeListener takes a listener's two descriptors, if there is one.
func takeListener(name string, take func() *sys.FD) *listener {
	if name == "" {
		return nil
	}
	l := &listener{name: name}
	l.dir, l.message = take(), take()
	return l
}

func (l *listener) close() {
	if l != nil {
		l.dir.Close()
		l.message.Close()
	}
}

// text reads what is sent.
func (l *listener) text() ([]byte, error) {
	var st unix.Stat_t
	if err := unix.Fstat(l.message.Int(), &st); err != nil {
		return nil, fmt.Errorf("stat message: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size > wire.MaxBody {
		return nil, fmt.Errorf("message for the seccomp listener of %d bytes: %w", st.Size, unix.EINVAL)
	}
	b := make([]byte, st.Size)
	n, err := unix.Pread(l.message.Int(), b, 0)
	if err != nil || n < len(b) {
		return nil, fmt.Errorf("read message for the seccomp listener: %d of %d bytes: %w", n, len(b), err)
	}
	return b, nil
}

// passOn has the listener of the process's filter sent to l when the process
// is released, and connects for that. The connection ends with what is sent, before
// the process goes on: who reads it to its end answers nobody until then. The returned
// function ends it if it never came to that; it is called after the release.
func (m *monitor) passOn(p *process, l *listener) (done func(), err error) {
	if l == nil {
		return func() {}, nil // a program that needs one is not released
	}
	text, err := l.text()
	if err != nil {
		return nil, err
	}
	sock, err := notify.DialIn(m.proc.root, l.dir, l.name)
	if err != nil {
		return nil, err
	}
	p.Receive(p.Hands(), func(fd *sys.FD) error {
		defer sock.Close()
		defer fd.Close()
		return notify.Send(sock.Int(), text, p.Pid(), fd)
	})
	return func() { sock.Close() }, nil
}
