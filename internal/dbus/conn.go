// Package dbus is as much of D-Bus as it takes to talk to systemd: calls with their
// answers, and signals.
//
//	Dial ── AUTH EXTERNAL, BEGIN ──► Conn ── Call ──► answer
//	                                  └─ reader ──► signals, in their order
//
// It is here because the usual library brings reflection and package net along: a
// megabyte in a binary of which one runs behind each pod.
package dbus

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrClosed: the connection ended before the answer came.
var ErrClosed = errors.New("connection to systemd is closed")

// Error is what the other side answers to a call that it does not carry out.
type Error struct {
	Name string // as org.freedesktop.systemd1.UnitExists
	Text string
}

// Error returns the text for people, or the name where there is none.
func (e *Error) Error() string {
	if e.Text == "" {
		return e.Name
	}
	return e.Text
}

// Conn is one connection. Calls may come from any goroutine. Its reader ends with
// it.
type Conn struct {
	f      *os.File
	signal func(iface, member string, body []any)
	lost   chan struct{}

	write sync.Mutex // one message at a time

	mu     sync.Mutex
	serial uint32
	calls  map[uint32]chan *message
}

// Dial connects to a socket and says who we are, which the kernel vouches for. signal
// is called by the reader for each signal, in their order, and must not block. The
// caller closes the Conn.
func Dial(ctx context.Context, path string, signal func(iface, member string, body []any)) (*Conn, error) {
	f, err := dial(path)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = f.Close() }) // its way into the reads
	err = greet(f)
	if !stop() {
		return nil, errors.Join(ctx.Err(), err)
	}
	if err != nil {
		return nil, fmt.Errorf("authenticate at %s: %w", path, errors.Join(err, f.Close()))
	}
	c := &Conn{f: f, signal: signal, lost: make(chan struct{}), calls: map[uint32]chan *message{}}
	go c.read() // ends with the connection
	return c, nil
}

func dial(path string) (*os.File, error) {
	n, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	// Where the queue is full it is EAGAIN, and the caller's to try again.
	if err := unix.Connect(n, &unix.SockaddrUnix{Name: path}); err != nil {
		unix.Close(n)
		return nil, &os.PathError{Op: "connect", Path: path, Err: err}
	}
	return os.NewFile(uintptr(n), path), nil
}

// greet is the client's side of the authentication, in one message, and the wait
// for its answer.
//
// A first call right behind BEGIN can be lost for long: if PID 1 is slow, it reads
// both at once, begins, and goes back to sleep with the call in its buffer; nothing is
// left in the socket that would wake it. The answer to the call then comes when we
// hang up. Here BEGIN was read when the answer comes, as with systemctl.
func greet(c io.ReadWriter) error {
	uid := hex.EncodeToString([]byte(strconv.Itoa(os.Geteuid())))
	if _, err := io.WriteString(c, "\x00AUTH EXTERNAL "+uid+"\r\nBEGIN\r\n"); err != nil {
		return err
	}
	var answer []byte
	for b := make([]byte, 1); !bytes.HasSuffix(answer, []byte("\r\n")); { // not a byte more, the rest are messages
		if _, err := io.ReadFull(c, b); err != nil {
			return err
		}
		if answer = append(answer, b...); len(answer) > 512 {
			return errors.New("a long answer")
		}
	}
	if !bytes.HasPrefix(answer, []byte("OK ")) {
		return fmt.Errorf("the answer is %q", answer)
	}
	return nil
}

// Lost is closed with the connection.
func (c *Conn) Lost() <-chan struct{} { return c.lost }

// Close ends the connection, and with ErrClosed all calls that wait.
func (c *Conn) Close() error {
	if err := c.f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// read takes messages until the connection ends.
func (c *Conn) read() {
	defer close(c.lost)
	defer c.f.Close()
	head := make([]byte, fixedHeader)
	for {
		if _, err := io.ReadFull(c.f, head); err != nil {
			return
		}
		_, fields, body, err := sizes(head)
		if err != nil || fields+body > maxMessage/8 {
			return
		}
		b := append(make([]byte, 0, fixedHeader+fields+body), head...)[:fixedHeader+fields+body]
		if _, err := io.ReadFull(c.f, b[fixedHeader:]); err != nil {
			return
		}
		m, err := decode(b)
		if err != nil {
			return
		}
		c.deliver(m)
	}
}

func (c *Conn) deliver(m *message) {
	switch m.kind {
	case signal:
		c.signal(m.iface, m.member, m.body)
	case methodReturn, errorReply:
		c.mu.Lock()
		answer := c.calls[m.reply]
		delete(c.calls, m.reply)
		c.mu.Unlock()
		if answer != nil {
			answer <- m // there is room for the one that comes
		}
	}
}

// Call calls a method and returns the answer: strings, numbers, truth values, and
// those in variants, where they may be a struct as well, an []any; from the first
// other value on it is cut. A refusal is an *Error.
// If ctx ends first the answer is dropped when it comes.
func (c *Conn) Call(ctx context.Context, dest, path, iface, member string, args ...any) ([]any, error) {
	answer := make(chan *message, 1)
	c.mu.Lock()
	c.serial++
	serial := c.serial
	c.calls[serial] = answer
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.calls, serial)
		c.mu.Unlock()
	}()
	if err := c.send(ctx, call(serial, dest, path, iface, member, args)); err != nil {
		return nil, err
	}
	select {
	case m := <-answer:
		return m.result()
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-c.lost:
		select {
		case m := <-answer: // it came just before
			return m.result()
		default:
			return nil, ErrClosed
		}
	}
}

func (m *message) result() ([]any, error) {
	if m.kind != errorReply {
		return m.body, nil
	}
	e := &Error{Name: m.failure}
	if len(m.body) > 0 {
		e.Text, _ = m.body[0].(string)
	}
	return nil, e
}

// send writes a message. One that is written in part ends the connection, since
// nothing could follow.
func (c *Conn) send(ctx context.Context, b []byte) error {
	c.write.Lock()
	defer c.write.Unlock()
	deadline, _ := ctx.Deadline()
	if err := c.f.SetWriteDeadline(deadline); err != nil && !errors.Is(err, os.ErrNoDeadline) {
		return errors.Join(ErrClosed, err)
	}
	defer func() { _ = c.f.SetWriteDeadline(time.Time{}) }()
	if _, err := c.f.Write(b); err != nil {
		return errors.Join(ErrClosed, err, c.Close())
	}
	return nil
}
