package link

import (
	"encoding/json"
	"fmt"
	"io"
	"sync"
)

// Process is a command that runs in the guest, as the agent hands it to Serve.
type Process interface {
	Stdin() io.WriteCloser
	Outputs() (stdout, stderr io.Reader) // stderr is nil for a terminal
	Resize(rows, cols uint16)
	Kill()
	Wait() Result // returns once the process ended; the outputs may still hold data
	Drop()        // ends what the process left behind and closes the outputs
}

// Serve is the agent's side: it greets, waits for the welcome and runs commands until the stream ends. Commands are killed then.
func Serve(rw io.ReadWriteCloser, g Greeting, start func(Command) (Process, error)) error {
	s := &server{conn: NewConn(rw), start: start, running: map[uint32]*served{}}
	defer s.killAll()
	if err := s.conn.send(Hello, 0, g); err != nil {
		return err
	}
	if err := s.conn.skipTo(Frame{Kind: Welcome, Body: []byte(g.Nonce)}); err != nil {
		return err
	}
	for {
		f, err := s.conn.Read()
		if err != nil {
			return err
		}
		s.take(f)
	}
}

type server struct {
	conn    *Conn
	start   func(Command) (Process, error)
	mu      sync.Mutex
	running map[uint32]*served
}

// served is one session in the guest.
type served struct {
	p   Process
	in  *queue
	out *credit
}

// take must not block: it is the only reader.
func (s *server) take(f Frame) {
	s.mu.Lock()
	r := s.running[f.Session]
	s.mu.Unlock()
	if f.Kind == Open && r == nil {
		s.open(f)
		return
	}
	if r == nil {
		return
	}
	switch f.Kind {
	case Stdin:
		r.in.push(f)
	case Credit:
		r.out.add(f.Body)
	case Resize:
		if len(f.Body) == 4 {
			r.p.Resize(uint16(f.Body[0])|uint16(f.Body[1])<<8, uint16(f.Body[2])|uint16(f.Body[3])<<8)
		}
	case Kill:
		r.p.Kill()
		r.out.close() // its listener is gone or has given up: nothing may wait for credit
	}
}

func (s *server) open(f Frame) {
	var cmd Command
	err := json.Unmarshal(f.Body, &cmd)
	if err == nil && len(cmd.Args) == 0 {
		err = fmt.Errorf("open: no command")
	}
	var p Process
	if err == nil {
		p, err = s.start(cmd)
	}
	if err != nil {
		_ = s.conn.send(Exit, f.Session, Result{Code: -1, Error: err.Error()}) // a dead stream ends Serve
		return
	}
	r := &served{p: p, in: newQueue(), out: newCredit()}
	s.mu.Lock()
	s.running[f.Session] = r
	s.mu.Unlock()
	go s.feed(f.Session, r)
	go s.run(f.Session, r)
}

// feed writes a command's input. It ends when the command is gone, by a failed write or by the queue's end.
func (s *server) feed(id uint32, r *served) {
	w := r.p.Stdin()
	defer w.Close()
	broken := false
	for {
		f, err := r.in.pop()
		if err != nil || len(f.Body) == 0 {
			return
		}
		if !broken {
			_, err = w.Write(f.Body)
			broken = err != nil // the rest is taken and dropped, else its sender would wait for ever
		}
		if s.conn.Write(granted(id, len(f.Body))) != nil {
			return
		}
	}
}

// run brings a command's output out and ends the session.
func (s *server) run(id uint32, r *served) {
	var pumps sync.WaitGroup
	stdout, stderr := r.p.Outputs()
	pumps.Go(func() { pump(s.conn, Stdout, id, stdout, r.out) })
	if stderr != nil {
		pumps.Go(func() { pump(s.conn, Stderr, id, stderr, r.out) })
	}
	res := r.p.Wait()
	drained := make(chan struct{})
	go func() { pumps.Wait(); close(drained) }()
	r.p.Drop() // what is left behind holds the pipes open, perhaps for ever
	<-drained
	r.in.close(io.EOF)
	s.mu.Lock()
	delete(s.running, id)
	s.mu.Unlock()
	_ = s.conn.send(Exit, id, res) // a dead stream ends Serve
}

func (s *server) killAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.running {
		r.p.Kill()
		r.out.close()
	}
}
