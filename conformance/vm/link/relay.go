package link

import (
	"encoding/json"
	"io"
	"sync"
)

// Upstream is where a relay sends commands now; it changes with every boot.
type Upstream func() *Client

// Relay serves one client of a holder: its sessions become sessions of the guest's stream under other numbers, its orders are
// carried out by order. It returns when the client's stream ends; its commands are killed then. Relay closes the stream.
func Relay(rw io.ReadWriteCloser, up Upstream, order func(Order) Order) {
	r := &relay{conn: NewConn(rw), ends: map[uint32]relayEnd{}}
	defer r.conn.Close()
	defer r.killAll()
	for {
		f, err := r.conn.Read()
		if err != nil {
			return
		}
		switch f.Kind {
		case Control:
			var o Order
			if json.Unmarshal(f.Body, &o) == nil {
				go func() { _ = r.conn.send(Control, f.Session, order(o)) }() // ends with the order; the client may be gone
			}
		case Open:
			r.open(f, up())
		default:
			r.forward(f)
		}
	}
}

type relayEnd struct {
	client *Client
	id     uint32
}

type relay struct {
	conn *Conn
	mu   sync.Mutex
	ends map[uint32]relayEnd // by the client's number
}

// open starts a session upstream and a goroutine that brings its frames back until its exit.
func (r *relay) open(f Frame, up *Client) {
	q := newQueue()
	var id uint32
	err := ErrGone
	if up != nil {
		id, err = up.attach(q)
	}
	if err == nil {
		r.mu.Lock()
		r.ends[f.Session] = relayEnd{up, id}
		r.mu.Unlock()
		err = up.conn.Write(Frame{Open, id, f.Body})
	}
	if err != nil {
		_ = r.conn.send(Exit, f.Session, Result{Code: -1, Error: err.Error()}) // the client may be gone
		return
	}
	go r.back(f.Session, q)
}

func (r *relay) back(session uint32, q *queue) {
	for {
		f, err := q.pop()
		if err != nil {
			_ = r.conn.send(Exit, session, Result{Code: -1, Error: err.Error()}) // the client may be gone
			r.end(session)
			return
		}
		f.Session = session
		_ = r.conn.Write(f) // a client that is gone has its command killed, whose exit ends this loop
		if f.Kind == Exit {
			r.end(session)
			return
		}
	}
}

func (r *relay) end(session uint32) {
	r.mu.Lock()
	e, ok := r.ends[session]
	delete(r.ends, session)
	r.mu.Unlock()
	if ok {
		e.client.detach(e.id)
	}
}

func (r *relay) forward(f Frame) {
	r.mu.Lock()
	e, ok := r.ends[f.Session]
	r.mu.Unlock()
	if ok {
		_ = e.client.conn.Write(Frame{f.Kind, e.id, f.Body}) // a dead guest ends the session through its queue
	}
}

func (r *relay) killAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.ends {
		_ = e.client.conn.Write(Frame{Kind: Kill, Session: e.id}) // a dead guest has nothing left to kill
	}
}
