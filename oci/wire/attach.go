package wire

// Attach, since version 5, sends a copy of what a running container writes from now on to
// whoever asked, through pipes of his: descriptors are their write ends, for stdout and
// for stderr, each if it is wanted. What does not fit into a pipe is lost for him and for nobody else.
// It ends with Detach, with the connection, or with the container.
type Attach struct {
	ID             string
	Stdin          bool // the container's stdin is wanted
	Stdout, Stderr bool
}

// Type implements Body.
func (*Attach) Type() Type { return TypeAttach }

// Files implements Body.
func (m *Attach) Files() int { return count(m.Stdout, m.Stderr) }

func (m *Attach) encode(b []byte) []byte {
	return appendBool(appendBool(appendBool(appendString(b, m.ID), m.Stdin), m.Stdout), m.Stderr)
}

func (m *Attach) decode(r *reader) {
	m.ID, m.Stdin, m.Stdout, m.Stderr = r.str(), r.boolean(), r.boolean(), r.boolean()
}

// Attached answers Attach, and Detach with what became of it. The first has a descriptor: with
// TTY the master of the container's terminal, with Stdin alone the write end of its stdin.
type Attached struct {
	Stdin, TTY bool
	Lost       uint64 // bytes that did not fit
}

// Type implements Body.
func (*Attached) Type() Type { return TypeAttached }

// Files implements Body.
func (m *Attached) Files() int { return count(m.Stdin || m.TTY) }

func (m *Attached) encode(b []byte) []byte {
	return order.AppendUint64(appendBool(appendBool(b, m.Stdin), m.TTY), m.Lost)
}

func (m *Attached) decode(r *reader) { m.Stdin, m.TTY, m.Lost = r.boolean(), r.boolean(), r.u64() }

// Stdin, since version 5, closes the monitor's own end of a container's stdin, for good: the
// container sees its end when whoever is attached has closed his.
type Stdin struct{ named }

// Type implements Body.
func (*Stdin) Type() Type { return TypeStdin }

// NewStdin returns the request for container id.
func NewStdin(id string) *Stdin { return &Stdin{named{id}} }

// Detach, since version 5, ends the Attach of a request id of the same connection.
type Detach struct {
	Attach uint64
}

// Type implements Body.
func (*Detach) Type() Type { return TypeDetach }

// Files implements Body.
func (*Detach) Files() int { return 0 }

func (m *Detach) encode(b []byte) []byte { return order.AppendUint64(b, m.Attach) }
func (m *Detach) decode(r *reader)       { m.Attach = r.u64() }

func count(wanted ...bool) (n int) {
	for _, w := range wanted {
		if w {
			n++
		}
	}
	return n
}
