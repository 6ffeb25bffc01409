package netdev

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// end is a routing socket. It belongs to the network namespace that it was made
// in, whoever uses it.
type end struct {
	fd  *sys.FD
	seq uint32
}

// open makes a socket in the network namespace of the calling thread.
func open() (*end, error) {
	n, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	return &end{fd: sys.NewFD(n)}, nil
}

func (e *end) close() { e.fd.Close() }

// namespace returns a descriptor of the socket's network namespace.
func (e *end) namespace() (*sys.FD, error) {
	n, err := unix.IoctlRetInt(e.fd.Int(), unix.SIOCGSKNS)
	if err != nil {
		return nil, os.NewSyscallError("ioctl SIOCGSKNS", err)
	}
	return sys.NewFD(n), nil
}

// message is a request under construction.
type message struct {
	b []byte
}

func newMessage(kind, flags uint16) *message {
	m := &message{b: make([]byte, unix.SizeofNlMsghdr, 256)}
	binary.NativeEndian.PutUint16(m.b[4:], kind)
	binary.NativeEndian.PutUint16(m.b[6:], flags|unix.NLM_F_REQUEST)
	return m
}

// body appends one of the fixed structures that follow the header.
func body[T unix.IfInfomsg | unix.IfAddrmsg](m *message, v T) {
	m.b = append(m.b, unsafe.Slice((*byte)(unsafe.Pointer(&v)), unsafe.Sizeof(v))...)
}

// attr appends an attribute. Both are aligned to 4 bytes, as all of netlink is.
func (m *message) attr(kind uint16, value []byte) {
	m.b = binary.NativeEndian.AppendUint16(m.b, uint16(unix.SizeofRtAttr+len(value)))
	m.b = binary.NativeEndian.AppendUint16(m.b, kind)
	m.b = append(m.b, value...)
	for len(m.b)%4 != 0 {
		m.b = append(m.b, 0)
	}
}

func (m *message) attr32(kind uint16, v uint32) {
	m.attr(kind, binary.NativeEndian.AppendUint32(nil, v))
}

func (m *message) attrText(kind uint16, v string) { m.attr(kind, append([]byte(v), 0)) }

// errGarbled is a reply that is no netlink message.
var errGarbled = errors.New("garbled netlink message")

// do sends a request and gives each reply's body to each, if there are any. It
// returns when the kernel is done, with the error that it gave as a unix.Errno.
func (e *end) do(m *message, each func(kind uint16, b []byte) error) error {
	e.seq++
	binary.NativeEndian.PutUint32(m.b, uint32(len(m.b)))
	binary.NativeEndian.PutUint32(m.b[8:], e.seq)
	if err := unix.Sendto(e.fd.Int(), m.b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("send netlink request", err)
	}
	buf := make([]byte, 64<<10) // the kernel sends dumps in pieces of at most half of that
	var failed error
	for {
		n, _, flags, err := sys.ReceiveMessage(e.fd.Int(), buf, nil, 0)
		switch {
		case err != nil:
			return os.NewSyscallError("receive netlink reply", err)
		case flags&unix.MSG_TRUNC != 0:
			return fmt.Errorf("reply of more than %d bytes: %w", len(buf), errGarbled)
		}
		done, err := e.replies(buf[:n], each)
		if failed == nil {
			failed = err
		}
		if done || errors.Is(err, errGarbled) {
			return failed
		}
	}
}

// replies reads the messages of one datagram. It is done at the acknowledgement,
// or at the end of a dump.
func (e *end) replies(b []byte, each func(kind uint16, b []byte) error) (done bool, err error) {
	for len(b) >= unix.SizeofNlMsghdr {
		size := int(binary.NativeEndian.Uint32(b))
		kind, seq := binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint32(b[8:])
		if size < unix.SizeofNlMsghdr || size > len(b) {
			return true, errGarbled
		}
		data := b[unix.SizeofNlMsghdr:size]
		b = b[min((size+3)&^3, len(b)):]
		switch {
		case seq != e.seq: // of a request that was given up
		case kind == unix.NLMSG_ERROR || kind == unix.NLMSG_DONE:
			if len(data) < 4 {
				return true, errGarbled
			}
			if errno := int32(binary.NativeEndian.Uint32(data)); errno < 0 && err == nil {
				err = unix.Errno(-errno)
			}
			return true, err
		case each != nil && err == nil:
			err = each(kind, data)
		}
	}
	return false, err
}

// attrs calls each with the attributes behind a fixed structure of size bytes.
func attrs(b []byte, size int, each func(kind uint16, value []byte)) error {
	if len(b) < size {
		return errGarbled
	}
	for b = b[size:]; len(b) >= unix.SizeofRtAttr; {
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofRtAttr || n > len(b) {
			return errGarbled
		}
		each(binary.NativeEndian.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[unix.SizeofRtAttr:n])
		b = b[min((n+3)&^3, len(b)):]
	}
	return nil
}
