package link

import (
	"encoding/binary"
	"io"
	"sync"
)

// credit counts the bytes that may still be sent before the other side has taken some.
type credit struct {
	mu   sync.Mutex
	cond *sync.Cond
	left int
	dead bool
}

func newCredit() *credit {
	c := &credit{left: window}
	c.cond = sync.NewCond(&c.mu)
	return c
}

// take waits for room and returns how many of n bytes may be sent; 0 after close.
func (c *credit) take(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.left <= 0 && !c.dead {
		c.cond.Wait()
	}
	if c.dead {
		return 0
	}
	n = min(n, c.left)
	c.left -= n
	return n
}

func (c *credit) add(body []byte) {
	if len(body) != 4 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left += int(binary.LittleEndian.Uint32(body))
	c.cond.Broadcast()
}

func (c *credit) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dead = true
	c.cond.Broadcast()
}

// pump sends what r yields as frames of a kind, with an empty frame for its end.
func pump(conn *Conn, kind Kind, session uint32, r io.Reader, c *credit) {
	buf := make([]byte, chunk)
	for {
		n, err := r.Read(buf)
		for sent := 0; sent < n; {
			part := c.take(n - sent)
			if part == 0 || conn.Write(Frame{kind, session, buf[sent : sent+part]}) != nil {
				return
			}
			sent += part
		}
		if err != nil {
			_ = conn.Write(Frame{Kind: kind, Session: session}) // a dead stream ends the session elsewhere
			return
		}
	}
}

// granted is a credit frame for n bytes.
func granted(session uint32, n int) Frame {
	return Frame{Credit, session, binary.LittleEndian.AppendUint32(nil, uint32(n))}
}

// queue holds frames between the one reader of a stream, which must never block, and their consumer. What can be in it is bounded
// by the sessions' windows.
type queue struct {
	mu     sync.Mutex
	cond   *sync.Cond
	frames []Frame
	err    error
}

func newQueue() *queue {
	q := &queue{}
	q.cond = sync.NewCond(&q.mu)
	return q
}

func (q *queue) push(f Frame) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.frames = append(q.frames, f)
	q.cond.Signal()
}

// close lets pop return err once the queue is empty.
func (q *queue) close(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err == nil {
		q.err = err
	}
	q.cond.Broadcast()
}

func (q *queue) pop() (Frame, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.frames) == 0 && q.err == nil {
		q.cond.Wait()
	}
	if len(q.frames) == 0 {
		return Frame{}, q.err
	}
	f := q.frames[0]
	q.frames = q.frames[1:]
	return f, nil
}
