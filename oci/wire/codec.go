package wire

import (
	"encoding/binary"
	"fmt"
)

var order = binary.LittleEndian

// What is called from everywhere is not inlined: 15 KB of a binary that runs behind each pod, for
// a nanosecond of a message.

// appendString writes a string. What is longer than MaxString (an error text,
// at most) is cut: a shortened string is better than a wrong length.
//
//go:noinline
func appendString(b []byte, s string) []byte {
	if len(s) > MaxString {
		s = s[:MaxString]
	}
	b = order.AppendUint16(b, uint16(len(s)))
	return append(b, s...)
}

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

// reader takes a body apart. After the first thing that is missing or wrong
// every further read returns zero, and end reports it.
type reader struct {
	b       []byte
	bad     bool
	version uint16 // of the message
}

func (r *reader) take(n int) []byte {
	if r.bad || n > len(r.b) {
		r.bad = true
		return nil
	}
	p := r.b[:n]
	r.b = r.b[n:]
	return p
}

//go:noinline
func (r *reader) u8() uint8 {
	if p := r.take(1); p != nil {
		return p[0]
	}
	return 0
}

//go:noinline
func (r *reader) u16() uint16 {
	if p := r.take(2); p != nil {
		return order.Uint16(p)
	}
	return 0
}

//go:noinline
func (r *reader) u32() uint32 {
	if p := r.take(4); p != nil {
		return order.Uint32(p)
	}
	return 0
}

//go:noinline
func (r *reader) u64() uint64 {
	if p := r.take(8); p != nil {
		return order.Uint64(p)
	}
	return 0
}

func (r *reader) i32() int32 { return int32(r.u32()) }
func (r *reader) i64() int64 { return int64(r.u64()) }

// boolean accepts 0 and 1 only: one meaning has one encoding.
func (r *reader) boolean() bool {
	v := r.u8()
	r.bad = r.bad || v > 1
	return v == 1
}

func (r *reader) str() string {
	n := int(r.u16())
	if n > MaxString {
		r.bad = true
		return ""
	}
	return string(r.take(n))
}

// count reads a list's length and holds it against the bytes that are left, so
// that a small message cannot ask for a large allocation.
func (r *reader) count(elem int) int {
	n := r.u32()
	if r.bad || uint64(n)*uint64(elem) > uint64(len(r.b)) {
		r.bad = true
		return 0
	}
	return int(n)
}

func (r *reader) end(what Type, tail bool) error {
	if r.bad || (len(r.b) > 0 && !tail) {
		return fmt.Errorf("decode %s %#x: %w", what, uint16(what), ErrMalformed)
	}
	return nil
}

// Body is one message's content. The set of bodies is closed: it is the table
// in this package.
type Body interface {
	// Type is the message's type.
	Type() Type
	// Files is how many descriptors travel with the message.
	Files() int

	encode(b []byte) []byte
	decode(r *reader)
}

// versioned is a body whose layout is not the same in all versions. Its encode
// is the first one's.
type versioned interface {
	encodeAs(b []byte, version uint16) []byte
}

// Header is what stands in front of every body.
type Header struct {
	Version uint16
	Type    Type
	ID      uint64
	Length  uint32 // of the body, inside the message or in the memfd
	Memfd   bool   // the body is in the first descriptor
	Files   int    // descriptors, without that memfd
}

const flagMemfd = 1

func (h Header) append(b []byte) []byte {
	var flags uint16
	if h.Memfd {
		flags = flagMemfd
	}
	b = order.AppendUint32(b, Magic)
	b = order.AppendUint16(b, h.Version)
	b = order.AppendUint16(b, uint16(h.Type))
	b = order.AppendUint64(b, h.ID)
	b = order.AppendUint32(b, h.Length)
	b = order.AppendUint16(b, flags)
	return order.AppendUint16(b, uint16(h.Files))
}

// ParseHeader reads the header of a message of len(b) bytes and checks it
// against that length.
func ParseHeader(b []byte) (Header, error) {
	r := reader{b: b}
	magic := r.u32()
	h := Header{Version: r.u16(), Type: Type(r.u16()), ID: r.u64(), Length: r.u32()}
	flags := r.u16()
	h.Memfd, h.Files = flags&flagMemfd != 0, int(r.u16())
	switch {
	case r.bad || magic != Magic || flags&^flagMemfd != 0:
	case h.Files > MaxFiles:
	case h.Memfd && (len(r.b) != 0 || h.Length > MaxBody):
	case !h.Memfd && (uint64(h.Length) != uint64(len(r.b)) || h.Length > MaxInline):
	default:
		return h, nil
	}
	return Header{}, fmt.Errorf("decode header: %w", ErrMalformed)
}

// Encode returns header and body of a message. Where the body is larger than
// MaxInline the header says Memfd, and the caller sends the part behind the
// header in one; Conn.Send does so.
func Encode(version uint16, id uint64, m Body) ([]byte, error) {
	b := make([]byte, HeaderSize, HeaderSize+128)
	if v, ok := m.(versioned); ok {
		b = v.encodeAs(b, version)
	} else {
		b = m.encode(b)
	}
	if len(b)-HeaderSize > MaxBody || m.Files() > MaxFiles {
		return nil, fmt.Errorf("encode %s of %d bytes with %d files: %w", m.Type(), len(b), m.Files(), ErrTooLarge)
	}
	h := Header{Version: version, Type: m.Type(), ID: id, Length: uint32(len(b) - HeaderSize), Files: m.Files()}
	h.Memfd = h.Length > MaxInline
	h.append(b[:0])
	return b, nil
}

// decodeBody fills m from b. Only the two messages that agree on a version may
// have a tail that this version does not know.
func decodeBody(m Body, h Header, b []byte) (Body, error) {
	r := reader{b: b, version: h.Version}
	m.decode(&r)
	tail := h.Type == TypeHello || h.Type == TypeWelcome
	if err := r.end(h.Type, tail); err != nil {
		return nil, err
	}
	if m.Files() != h.Files {
		return nil, fmt.Errorf("decode %s: %d files instead of %d: %w", h.Type, h.Files, m.Files(), ErrMalformed)
	}
	return m, nil
}

// DecodeRequest is the monitor's side: it accepts the left column of the table.
// A type that is reserved, or from a newer daemon, becomes a *Reserved.
func DecodeRequest(h Header, b []byte) (Body, error) {
	var m Body
	switch h.Type {
	case TypeHello:
		m = new(Hello)
	case TypeGetPod:
		m = new(GetPod)
	case TypeCreate:
		m = new(Create)
	case TypeStart:
		m = new(Start)
	case TypeSignal:
		m = new(Signal)
	case TypeList:
		m = new(List)
	case TypeExec:
		m = new(Exec)
	case TypeReopenLog:
		m = new(ReopenLog)
	case TypeRemove:
		m = new(Remove)
	case TypeStop:
		m = new(Stop)
	case TypeAttach:
		m = new(Attach)
	case TypeStdin:
		m = new(Stdin)
	case TypeDetach:
		m = new(Detach)
	default:
		if h.Type == 0 || h.Type >= TypeWelcome {
			return nil, fmt.Errorf("decode request of type %#x: %w", uint16(h.Type), ErrMalformed)
		}
		m = &Reserved{Of: h.Type, count: h.Files}
	}
	return decodeBody(m, h, b)
}

// DecodeReply is the daemon's side: it accepts answers and events.
func DecodeReply(h Header, b []byte) (Body, error) {
	var m Body
	switch h.Type {
	case TypeWelcome:
		m = new(Welcome)
	case TypePodInfo:
		m = new(PodInfo)
	case TypeCreated:
		m = new(Created)
	case TypeDone:
		m = new(Done)
	case TypeStates:
		m = new(States)
	case TypeExecStarted:
		m = new(ExecStarted)
	case TypeFailure:
		m = new(Failure)
	case TypeAttached:
		m = new(Attached)
	case TypeExited:
		m = new(Exited)
	case TypeExecExited:
		m = new(ExecExited)
	default:
		return nil, fmt.Errorf("decode reply of type %#x: %w", uint16(h.Type), ErrMalformed)
	}
	return decodeBody(m, h, b)
}
