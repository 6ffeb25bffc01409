package link

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// ErrGone means that the agent or the stream to it ended while a command ran: the guest died, was rebooted or lost its power.
var ErrGone = errors.New("the guest is gone")

// Client runs commands over a stream. It owns the stream; Close ends it and every session.
type Client struct {
	conn     *Conn
	hello    chan Greeting // one element: the latest greeting
	mu       sync.Mutex
	last     uint32
	sessions map[uint32]*queue
	dead     error
}

// NewClient takes over a stream to an agent or a holder. Its reader goroutine ends with the stream.
func NewClient(rw io.ReadWriteCloser) *Client {
	c := &Client{conn: NewConn(rw), hello: make(chan Greeting, 1), sessions: map[uint32]*queue{}}
	go c.read()
	return c
}

// Close closes the stream. Commands in the guest are killed by the agent or the holder when they notice.
func (c *Client) Close() { c.conn.Close() }

// Greeting waits for the agent's hello.
func (c *Client) Greeting(ctx context.Context) (Greeting, error) {
	select {
	case g, ok := <-c.hello:
		if !ok {
			return g, ErrGone
		}
		return g, nil
	case <-ctx.Done():
		return Greeting{}, fmt.Errorf("await agent: %w", ctx.Err())
	}
}

// read distributes frames until the stream ends.
func (c *Client) read() {
	for {
		f, err := c.conn.Read()
		if err != nil {
			c.mu.Lock()
			c.dead = fmt.Errorf("%w: %w", ErrGone, err)
			c.drop(c.dead)
			c.mu.Unlock()
			close(c.hello)
			return
		}
		if f.Kind == Hello {
			c.greet(f)
			continue
		}
		c.mu.Lock()
		q := c.sessions[f.Session]
		c.mu.Unlock()
		if q != nil {
			q.push(f)
		}
	}
}

// greet answers a new agent; sessions of an earlier one are over. No session begins between the two, and nobody hears of the agent before it
// was welcomed: what comes to it earlier it drops.
func (c *Client) greet(f Frame) {
	var g Greeting
	if json.Unmarshal(f.Body, &g) != nil {
		return
	}
	c.mu.Lock()
	c.drop(fmt.Errorf("%w: its agent started anew", ErrGone))
	_ = c.conn.Write(Frame{Kind: Welcome, Body: []byte(g.Nonce)}) // a dead stream shows in the next read
	c.mu.Unlock()
	select {
	case <-c.hello:
	default:
	}
	c.hello <- g
}

// drop ends all sessions; c.mu is held.
func (c *Client) drop(err error) {
	for _, q := range c.sessions {
		q.close(err)
	}
	c.sessions = map[uint32]*queue{}
}

// attach makes a session; its frames come out of q.
func (c *Client) attach(q *queue) (uint32, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead != nil {
		return 0, c.dead
	}
	c.last++
	c.sessions[c.last] = q
	return c.last, nil
}

func (c *Client) detach(id uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.sessions, id)
}

// Streams are the ends of a command's stdio. Nil means empty or discarded. With a terminal, all output is Stdout.
type Streams struct {
	Stdin          io.Reader // read until its end or until the command ended; the reading goroutine may then still sit in Read
	Stdout, Stderr io.Writer
	Resize         <-chan [2]uint16 // rows, columns; for a terminal
}

// patience is how long the guest may take to kill a command.
const patience = 20 * time.Second

// Run runs a command and waits for its end. When ctx ends the command is killed with all that it started. A command that
// could not be started is an error; an exit code other than 0 is not.
func (c *Client) Run(ctx context.Context, cmd Command, s Streams) (Result, error) {
	q := newQueue()
	id, err := c.attach(q)
	if err != nil {
		return Result{}, err
	}
	defer c.detach(id)
	if err := c.conn.send(Open, id, cmd); err != nil {
		return Result{}, err
	}
	in := newCredit()
	defer in.close()
	if s.Stdin == nil {
		err = c.conn.Write(Frame{Kind: Stdin, Session: id})
	} else {
		go pump(c.conn, Stdin, id, s.Stdin, in)
	}
	if err != nil {
		return Result{}, err
	}
	over := make(chan struct{})
	defer close(over)
	go c.watch(ctx, id, q, s.Resize, over)
	res, err := c.serve(id, q, in, s)
	if err == nil && ctx.Err() != nil {
		err = fmt.Errorf("run %s: %w", cmd.Args[0], ctx.Err())
	}
	if err == nil && res.Code < 0 {
		err = fmt.Errorf("run %s: %s", cmd.Args[0], res.Error)
	}
	return res, err
}

// watch kills the command when ctx ends, and gives the session up when even that has no effect.
func (c *Client) watch(ctx context.Context, id uint32, q *queue, resize <-chan [2]uint16, over <-chan struct{}) {
	for {
		select {
		case <-over:
			return
		case size, ok := <-resize:
			if !ok {
				resize = nil
				continue
			}
			body := binary.LittleEndian.AppendUint16(nil, size[0])
			_ = c.conn.Write(Frame{Resize, id, binary.LittleEndian.AppendUint16(body, size[1])}) // only looks depend on it
		case <-ctx.Done():
			_ = c.conn.Write(Frame{Kind: Kill, Session: id}) // what matters is the exit that follows
			select {
			case <-over:
			case <-time.After(patience):
				q.close(fmt.Errorf("the guest did not kill the command within %v: %w", patience, ctx.Err()))
			}
			return
		}
	}
}

// serve takes in a session's frames up to its exit.
func (c *Client) serve(id uint32, q *queue, in *credit, s Streams) (Result, error) {
	for {
		f, err := q.pop()
		if err != nil {
			return Result{}, err
		}
		switch f.Kind {
		case Stdout, Stderr:
			w := s.Stdout
			if f.Kind == Stderr {
				w = s.Stderr
			}
			if w != nil && len(f.Body) > 0 {
				if _, err := w.Write(f.Body); err != nil {
					_ = c.conn.Write(Frame{Kind: Kill, Session: id}) // nobody listens any more
					return Result{}, fmt.Errorf("take output: %w", err)
				}
			}
			if len(f.Body) > 0 {
				if err := c.conn.Write(granted(id, len(f.Body))); err != nil {
					return Result{}, err
				}
			}
		case Credit:
			in.add(f.Body)
		case Exit:
			var r Result
			if err := json.Unmarshal(f.Body, &r); err != nil {
				return r, fmt.Errorf("decode exit: %w", err)
			}
			return r, nil
		}
	}
}

// Ask sends an order to a holder and waits for its answer.
func (c *Client) Ask(ctx context.Context, o Order) (Order, error) {
	q := newQueue()
	id, err := c.attach(q)
	if err != nil {
		return o, err
	}
	defer c.detach(id)
	stop := context.AfterFunc(ctx, func() { q.close(fmt.Errorf("await answer to %s: %w", o.Verb, ctx.Err())) })
	defer stop()
	if err := c.conn.send(Control, id, o); err != nil {
		return o, err
	}
	f, err := q.pop()
	if err != nil {
		return o, err
	}
	var answer Order
	if err := json.Unmarshal(f.Body, &answer); err != nil {
		return o, fmt.Errorf("decode answer: %w", err)
	}
	if answer.Error != "" {
		return answer, errors.New(answer.Error)
	}
	return answer, nil
}
