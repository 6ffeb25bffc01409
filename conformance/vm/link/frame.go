package link

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"
)

// Kind says what a frame carries; see the package comment for who sends which.
type Kind byte

// The kinds of frames. An empty body of Stdin, Stdout or Stderr is the end of that stream.
const (
	Hello Kind = iota + 1
	Welcome
	Open
	Stdin
	Stdout
	Stderr
	Credit
	Resize
	Kill
	Exit
	Control
)

const (
	headerSize = 12
	maxBody    = 64 << 10 // larger messages are a sign of a torn stream
	chunk      = 32 << 10 // data per frame; half of what a port takes at once
	window     = 512 << 10
)

// Frame is one message. Session is chosen by the side that opens it; 0 is the stream itself.
type Frame struct {
	Kind    Kind
	Session uint32
	Body    []byte
}

// Greeting is the body of Hello.
type Greeting struct {
	Nonce  string // new for each start of the agent
	BootID string
	Kernel string
}

// Command is the body of Open: a program, run as root in the guest in a cgroup of its own below the agent's.
type Command struct {
	Args       []string
	Env        []string // added to the agent's own few variables
	Dir        string   // "" is /root
	TTY        bool
	Rows, Cols uint16
}

// Result is the body of Exit.
type Result struct {
	Code  int           // the exit code, 128+signal where a signal ended it, -1 where it was never started
	Error string        // why it was not started
	Left  int           // processes that the command left behind; they are killed
	Took  time.Duration // as the guest's monotonic clock has it
}

// Order is the body of Control: what a client wants of the holder, and the same with Error set as the answer.
type Order struct {
	Verb  string
	Text  string `json:",omitempty"` // argument, or what the holder has to say
	Error string `json:",omitempty"`
}

// Conn reads and writes frames. One goroutine may read; any number may write.
type Conn struct {
	rw io.ReadWriteCloser
	r  *bufio.Reader
	mu sync.Mutex // held over one frame's write
}

// NewConn wraps a stream; Close closes it.
func NewConn(rw io.ReadWriteCloser) *Conn {
	return &Conn{rw: rw, r: bufio.NewReaderSize(rw, 64<<10)}
}

// Close closes the stream; a blocked Read returns.
func (c *Conn) Close() { _ = c.rw.Close() } // what is lost with it shows at the reader

// Read returns the next frame; the body is the caller's.
func (c *Conn) Read() (Frame, error) {
	var h [headerSize]byte
	if _, err := io.ReadFull(c.r, h[:]); err != nil {
		return Frame{}, fmt.Errorf("read frame: %w", err)
	}
	size := binary.LittleEndian.Uint32(h[8:])
	if h[0] != 'V' || h[1] != 'M' || size > maxBody {
		return Frame{}, fmt.Errorf("read frame: the stream is torn: %q", h)
	}
	f := Frame{Kind: Kind(h[2]), Session: binary.LittleEndian.Uint32(h[4:]), Body: make([]byte, size)}
	if _, err := io.ReadFull(c.r, f.Body); err != nil {
		return Frame{}, fmt.Errorf("read frame: %w", err)
	}
	return f, nil
}

// Write sends one frame.
func (c *Conn) Write(f Frame) error {
	if len(f.Body) > maxBody {
		return fmt.Errorf("write frame: %d bytes, of %d", len(f.Body), maxBody)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, err := c.rw.Write(f.encode()); err != nil {
		return fmt.Errorf("write frame: %w", err)
	}
	return nil
}

func (f Frame) encode() []byte {
	b := make([]byte, headerSize, headerSize+len(f.Body))
	b[0], b[1], b[2] = 'V', 'M', byte(f.Kind)
	binary.LittleEndian.PutUint32(b[4:], f.Session)
	binary.LittleEndian.PutUint32(b[8:], uint32(len(f.Body)))
	return append(b, f.Body...)
}

// send encodes v as the body of a frame.
func (c *Conn) send(kind Kind, session uint32, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode frame: %w", err)
	}
	return c.Write(Frame{Kind: kind, Session: session, Body: body})
}

// skipTo drops bytes until the encoding of f was read: after a restart of the agent the guest's kernel may still hold half a frame
// that was meant for its predecessor.
func (c *Conn) skipTo(f Frame) error {
	want := f.encode()
	for got := 0; got < len(want); {
		b, err := c.r.ReadByte()
		if err != nil {
			return fmt.Errorf("await welcome: %w", err)
		}
		switch b {
		case want[got]:
			got++
		case want[0]:
			got = 1
		default:
			got = 0
		}
	}
	return nil
}
