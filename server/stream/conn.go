package stream

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

const (
	// maxStrangers is how many connections may be open that have not shown a token. They have headerTime
	// for it in all, so that nobody on the node can hold the descriptors of the daemon, or keep clients out: not by a
	// body that never comes, by answers that he does not read, or by one wrong token after the other.
	maxStrangers = 256
	headerTime   = 10 * time.Second
	// lookTime is how often a connection is looked at that nobody may be reading.
	lookTime = 2 * time.Second
)

// conn is a client's connection. It notices the client's end, whoever else does.
type conn struct {
	net.Conn
	raw     syscall.RawConn
	idle    time.Duration // a write that takes longer is not going to end
	gone    chan struct{} // closed when the client has gone, or we have closed
	once    sync.Once
	strange *atomic.Int32 // counts who has not shown a token
	limit   *time.Timer   // hangs up on him
	shown   sync.Once
}

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil && !isTimeout(err) { // net/http interrupts its own reads
		c.lost()
	}
	return n, err
}

func isTimeout(err error) bool {
	t, ok := err.(net.Error) //nolint:errorlint // as package net returns it
	return ok && t.Timeout()
}

// Write fails when the client takes nothing for as long as an idle connection may last. A
// connection that is to be closed must not wait for it.
func (c *conn) Write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.idle)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(b)
	if err != nil {
		c.lost()
	}
	return n, err
}

func (c *conn) Close() error {
	c.known()
	c.lost()
	return c.Conn.Close()
}

func (c *conn) lost() { c.once.Do(func() { close(c.gone) }) }

// known says that the client has shown a token, or is gone.
func (c *conn) known() {
	c.shown.Do(func() {
		c.limit.Stop()
		c.strange.Add(-1)
	})
}

// watch cancels ctx when the client has gone, until the returned function is called.
func (c *conn) watch(cancel func()) (stop func()) {
	done := make(chan struct{})
	go func() { // ends with stop
		look := time.NewTicker(lookTime)
		defer look.Stop()
		for {
			select {
			case <-done:
				return
			case <-c.gone:
				cancel()
				return
			case <-look.C:
				if c.hungUp() {
					c.lost()
				}
			}
		}
	}()
	return func() { close(done) }
}

// hungUp asks the kernel whether the other side has closed, which a reader would only learn after everything that
// came before.
func (c *conn) hungUp() bool {
	up := false
	err := c.raw.Control(func(fd uintptr) { up = !sys.HungUp(int(fd)) })
	return err != nil || !up
}

// listener makes conns.
type listener struct {
	*net.TCPListener
	idle    time.Duration
	limit   time.Duration // of strangers
	strange atomic.Int32
}

func (l *listener) Accept() (net.Conn, error) {
	for {
		tcp, err := l.AcceptTCP()
		if err != nil {
			return nil, err
		}
		raw, err := tcp.SyscallConn()
		if err != nil || l.strange.Add(1) > maxStrangers {
			if err == nil {
				l.strange.Add(-1)
			}
			_ = tcp.Close()
			continue
		}
		// A client whose node has gone answers none of these.
		_ = tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 6})
		limit := time.AfterFunc(l.limit, func() { _ = tcp.Close() })
		return &conn{Conn: tcp, raw: raw, idle: l.idle, gone: make(chan struct{}), strange: &l.strange, limit: limit}, nil
	}
}

// connKey is under which a request's context has its conn.
type connKey struct{}

// withConn finds the conn under TLS, too.
func withConn(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	return context.WithValue(ctx, connKey{}, c)
}
