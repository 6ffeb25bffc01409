package wire

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// Packet is one message as it arrived: its body and the descriptors that came
// with it. Whoever receives a packet owns its Files.
type Packet struct {
	Header
	Body  Body
	Files []*sys.FD
}

// Close closes the descriptors that nobody has taken out of p.Files.
func (p *Packet) Close() {
	for i := range p.Files {
		p.Files[i].BriefClose()
	}
}

// Take moves descriptor i out of the packet; the caller closes it.
func (p *Packet) Take(i int) *sys.FD {
	f := p.Files[i]
	p.Files[i] = nil
	return f
}

// Conn is one end of a connection. One goroutine may call Recv while any number
// call Send. It waits in the Go poller and holds no thread. Package net would do
// the same for three hundred kilobytes more of monitor.
//
// What the Go poller watches is not the socket but an epoll instance that says
// when there is something to receive. The poller itself would also ask when there is room
// to send, and be woken for that whenever the other side has received something: once
// for each message, on either side, for nothing.
//
//	socket ── EPOLLIN ──► ears ──► Go poller ──► Recv
type Conn struct {
	f    *os.File // the socket; never in the poller
	ears *os.File
	raw  syscall.RawConn // f's
	hear syscall.RawConn // ears'
	end  atomic.Bool     // Close was called
	dec  func(Header, []byte) (Body, error)
	send sync.Mutex // one packet at a time
	buf  []byte
	oob  []byte
}

// NewConn makes a connection of a connected SEQPACKET socket, which moves into
// it. decode is DecodeRequest or DecodeReply.
func NewConn(socket *sys.FD, decode func(Header, []byte) (Body, error)) (*Conn, error) {
	ears, err := listenTo(socket)
	if err == nil {
		// Blocking, or the file would join the poller. No call here waits all the same.
		err = os.NewSyscallError("fcntl O_NONBLOCK", unix.SetNonblock(socket.Int(), false))
	}
	if err != nil {
		socket.Close()
		ears.Close()
		return nil, err
	}
	c := &Conn{
		f: socket.File("monitor socket"), ears: ears.File("monitor socket's ears"), dec: decode,
		buf: make([]byte, HeaderSize+MaxInline),
		oob: make([]byte, unix.CmsgSpace(4*(MaxFiles+1))),
	}
	if c.raw, err = c.f.SyscallConn(); err == nil {
		c.hear, err = c.ears.SyscallConn()
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// listenTo makes an epoll instance that can be read from, so to say, when the socket
// can. Nobody ever asks it for its events.
func listenTo(socket *sys.FD) (*sys.FD, error) {
	ears, err := sys.Epoll()
	if err != nil {
		return nil, err
	}
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP}
	if err := unix.EpollCtl(ears.Int(), unix.EPOLL_CTL_ADD, socket.Int(), &ev); err != nil {
		ears.Close()
		return nil, os.NewSyscallError("epoll_ctl", err)
	}
	return ears, nil
}

// Close ends the connection; a blocked Recv returns os.ErrClosed.
func (c *Conn) Close() {
	c.end.Store(true)
	c.ears.Close()
	c.f.Close()
}

// closed names an error of the poller that comes from our own Close.
func (c *Conn) closed(err error) error {
	if c.end.Load() {
		return os.ErrClosed
	}
	return err
}

// Gone reports whether the other side has closed the connection, or died.
// Requests that it sent before may still be waiting to be received.
func (c *Conn) Gone() bool {
	gone := true
	// An error means that our own side is closed.
	_ = c.raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, err := unix.Poll(p, 0)
		gone = err == nil && n > 0 && p[0].Revents&(unix.POLLRDHUP|unix.POLLHUP) != 0
	})
	return gone
}

// PeerCred returns who is at the other end: for the side that accepted, the
// process that connected.
func (c *Conn) PeerCred() (cred *unix.Ucred, err error) {
	ctl := c.raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if ctl != nil {
		return nil, ctl
	}
	return cred, os.NewSyscallError("getsockopt SO_PEERCRED", err)
}

// Send sends one message; the descriptors stay the caller's. It never waits: a
// socket holds some two hundred messages, and a peer that has let them pile up
// is stuck. ErrBlocked then says so, and holds up neither a monitor nor a kubelet.
func (c *Conn) Send(version uint16, id uint64, m Body, files []int) error {
	if len(files) != m.Files() {
		return fmt.Errorf("send %s: %d files instead of %d: %w", m.Type(), len(files), m.Files(), ErrMalformed)
	}
	b, err := Encode(version, id, m)
	if err != nil {
		return err
	}
	if len(b) > HeaderSize+MaxInline {
		mem, err := sys.SealedMemfd("vitrine-message", b[HeaderSize:], false)
		if err != nil {
			return fmt.Errorf("send %s: %w", m.Type(), err)
		}
		defer mem.Close()
		b, files = b[:HeaderSize], append([]int{mem.Int()}, files...)
	}
	var oob []byte
	if len(files) > 0 {
		oob = unix.UnixRights(files...)
	}
	if err := c.write(b, oob); err != nil {
		return fmt.Errorf("send %s: %w", m.Type(), err)
	}
	return nil
}

func (c *Conn) write(b, oob []byte) error {
	c.send.Lock()
	defer c.send.Unlock()
	var err error
	wait := c.raw.Write(func(fd uintptr) bool {
		_, err = sys.SendMessage(int(fd), b, oob, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		return true
	})
	if wait != nil {
		return c.closed(wait)
	}
	if errors.Is(err, unix.EAGAIN) {
		return ErrBlocked
	}
	return os.NewSyscallError("sendmsg", err)
}

// Recv waits for one message. It returns io.EOF when the peer is gone and an
// ErrMalformed for what is no message; the connection is of no use after that.
func (c *Conn) Recv() (*Packet, error) {
	var n, oobn, flags int
	var err error
	wait := c.hear.Read(func(uintptr) bool {
		gone := c.raw.Control(func(fd uintptr) {
			n, oobn, flags, err = sys.ReceiveMessage(int(fd), c.buf, c.oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
		})
		if gone != nil {
			err = gone
		}
		return !errors.Is(err, unix.EAGAIN)
	})
	switch {
	case wait != nil:
		return nil, c.closed(wait)
	case err != nil:
		return nil, c.closed(os.NewSyscallError("recvmsg", err))
	}
	files, err := takeRights(c.oob[:oobn])
	p := &Packet{Files: files}
	if err == nil && n == 0 && len(files) == 0 {
		return nil, io.EOF
	}
	if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = fmt.Errorf("receive message: cut short: %w", ErrMalformed)
	}
	if err == nil {
		err = p.open(c.buf[:n], c.dec)
	}
	if err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// open decodes the packet's bytes and checks that it has the descriptors that
// it says it has.
func (p *Packet) open(b []byte, dec func(Header, []byte) (Body, error)) (err error) {
	if p.Header, err = ParseHeader(b); err != nil {
		return err
	}
	want := p.Header.Files
	if p.Memfd {
		want++
	}
	if len(p.Files) != want {
		return fmt.Errorf("receive %s: %d files instead of %d: %w", p.Type, len(p.Files), want, ErrMalformed)
	}
	body := b[HeaderSize:]
	if p.Memfd {
		mem := p.Take(0)
		p.Files = p.Files[1:]
		defer mem.Close()
		if body, err = readSealed(mem, int(p.Length)); err != nil {
			return err
		}
	}
	p.Body, err = dec(p.Header, body)
	return err
}

// readSealed reads a body from a memfd. Without the seals the sender could
// still change what was already checked, or truncate it under a reader.
func readSealed(mem *sys.FD, n int) ([]byte, error) {
	const want = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK
	seals, err := unix.FcntlInt(uintptr(mem.Int()), unix.F_GET_SEALS, 0)
	if err != nil || seals&want != want {
		return nil, fmt.Errorf("receive message: body is not sealed: %w", ErrMalformed)
	}
	b := make([]byte, n)
	for done := 0; done < n; {
		k, err := unix.Pread(mem.Int(), b[done:], int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil || k == 0 {
			return nil, fmt.Errorf("receive message: body is too short: %w", ErrMalformed)
		}
		done += k
	}
	return b, nil
}

// takeRights makes FDs of all descriptors in the control data, also when it
// returns an error: they are in our table whether we like it or not.
func takeRights(oob []byte) (files []*sys.FD, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("receive message: control data: %w", ErrMalformed)
	}
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			continue // credentials, if somebody should ever send them
		}
		for _, n := range fds {
			files = append(files, sys.NewFD(n))
		}
	}
	return files, nil
}
