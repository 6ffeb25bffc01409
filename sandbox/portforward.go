package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// dialTime bounds the wait for a server inside a pod that neither takes a connection nor refuses it.
const dialTime = 30 * time.Second

// CheckForward says whether connections to a pod could be made, and returns its whole id.
func (m *Manager) CheckForward(id string) (string, error) {
	sb, err := m.readyPod(id)
	if err != nil {
		return "", err
	}
	return sb.id, nil
}

func (m *Manager) readyPod(id string) (*Sandbox, error) {
	sb, err := m.pod(id)
	if err != nil {
		return nil, err
	}
	if sb.facts.Load().state() != runtimeapi.PodSandboxState_SANDBOX_READY {
		return nil, fmt.Errorf("pod sandbox %s is not ready: %w", sb.id, ErrState)
	}
	return sb, nil
}

// PortForward connects to a port of a pod on its loopback interface, IPv4 before IPv6, and copies both ways until both
// are at their end, or ctx or the pod ends. The end of one way is passed on as such. A client that does not read
// holds up the server inside the pod, and nobody else.
func (m *Manager) PortForward(ctx context.Context, id string, port uint16, client io.ReadWriteCloser) error {
	sb, err := m.readyPod(id)
	if err != nil {
		return err
	}
	// A stop ends this, and waits until the pod's namespace is let go of.
	if !sb.gate.enter() {
		return fmt.Errorf("pod sandbox %s is not ready: %w", sb.id, ErrState)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(sb.gate.ctx, cancel)()
	conn, err := sb.dial(ctx, port)
	if err != nil {
		sb.gate.leave()
		return err
	}
	go func() { // ends with forward
		defer sb.gate.leave()
		<-ctx.Done()
		_ = conn.Close()
	}()
	return forward(ctx, conn, client)
}

// forward copies both ways.
func forward(ctx context.Context, conn *net.TCPConn, client io.ReadWriteCloser) error {
	toPod := make(chan struct{})
	go func() { // ends with the client's connection, or when conn is closed
		_, _ = io.Copy(conn, client) // a server that does not want to hear more may still have to say something
		_ = conn.CloseWrite()
		close(toPod)
		// What nobody wants any more is read all the same: it would be in the way of other connections of this client.
		_, _ = io.Copy(io.Discard, client)
	}()
	toClient := make(chan error, 1)
	go func() { // as well
		_, err := io.Copy(client, conn)
		_ = client.Close() // of this direction
		toClient <- err
	}()
	for toPod != nil || toClient != nil {
		select {
		case <-toPod:
			toPod = nil
		case err := <-toClient:
			if err != nil && !errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("copy from the pod: %w", err)
			}
			toClient = nil
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

// dial connects to a port inside the pod.
func (sb *Sandbox) dial(ctx context.Context, port uint16) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	conn, err := sb.dialFamily(ctx, &unix.SockaddrInet4{Port: int(port), Addr: [4]byte{127, 0, 0, 1}}, unix.AF_INET)
	if err == nil {
		return conn, nil
	}
	conn, err6 := sb.dialFamily(ctx, &unix.SockaddrInet6{Port: int(port), Addr: [16]byte{15: 1}}, unix.AF_INET6)
	if err6 != nil {
		return nil, fmt.Errorf("connect to port %d of pod sandbox %s: %w", port, sb.id, err) // of IPv4, which everybody has
	}
	return conn, nil
}

// dialFamily connects a socket that was made in the pod's network namespace; where it is connected from does not matter.
func (sb *Sandbox) dialFamily(ctx context.Context, to unix.Sockaddr, family int) (*net.TCPConn, error) {
	fd, err := sb.socket(family)
	if err != nil {
		return nil, err
	}
	err = unix.Connect(fd.Int(), to)
	f := fd.File("connection into a pod")
	defer f.Close()
	if errors.Is(err, unix.EINPROGRESS) {
		err = awaitConnect(ctx, f)
	}
	if err != nil {
		return nil, os.NewSyscallError("connect", err)
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	conn, ok := c.(*net.TCPConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("connection is a %T", c), c.Close())
	}
	return conn, nil
}

// awaitConnect waits for the answer of the other side.
func awaitConnect(ctx context.Context, f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = f.SetDeadline(time.Unix(1, 0)) })()
	var state int
	err = raw.Write(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		if n, perr := unix.Poll(p, 0); n == 0 && perr == nil {
			return false
		}
		if state, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR); err != nil {
			state = int(unix.EIO)
		}
		return true
	})
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return err
	case state != 0:
		return unix.Errno(state)
	}
	return nil
}

// socket makes a socket in the pod's network namespace. The thread that goes there does not come back.
func (sb *Sandbox) socket(family int) (fd *sys.FD, err error) {
	open := func() error {
		n, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		fd = sys.NewFD(n)
		return nil
	}
	if sb.plan.HostNetwork {
		err := open() // the namespace is the daemon's own
		return fd, err
	}
	ns, err := sys.OpenAt2(unix.AT_FDCWD, sb.netns(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	err = sys.OnLostThread(func() error {
		if err := unix.Setns(ns.Int(), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return open()
	})
	return fd, err
}
