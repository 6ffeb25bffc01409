package dbus

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Property is a name with a value of any type, (sv) in the words of D-Bus.
type Property struct {
	Name  string
	Value any
}

// Pair is (ss).
type Pair [2]string

// Unit is (sa(sv)): an auxiliary unit of systemd, of which we have none.
type Unit struct {
	Name       string
	Properties []Property
}

// errMessage is wrapped by what is wrong with a message.
var errMessage = errors.New("malformed D-Bus message")

// Limits of the specification.
const (
	maxMessage = 128 << 20
	maxString  = 1 << 20 // ours: no answer that we ask for comes near it
)

// signature returns the type of a value. Those that systemd is asked with are all
// that there are.
func signature(v any) string {
	switch v.(type) {
	case string:
		return "s"
	case bool:
		return "b"
	case uint32:
		return "u"
	case uint64:
		return "t"
	case []byte:
		return "ay"
	case []uint32:
		return "au"
	case []string:
		return "as"
	case []Pair:
		return "a(ss)"
	case []Property:
		return "a(sv)"
	case []Unit:
		return "a(sa(sv))"
	}
	panic(fmt.Sprintf("dbus: no type for a %T", v)) // a mistake of the caller's, at the first try
}

// encoder writes values in little-endian order.
type encoder struct{ b []byte }

func (e *encoder) align(n int) {
	for len(e.b)%n != 0 {
		e.b = append(e.b, 0)
	}
}

func (e *encoder) u32(v uint32) {
	e.align(4)
	e.b = binary.LittleEndian.AppendUint32(e.b, v)
}

func (e *encoder) str(s string) {
	e.u32(uint32(len(s)))
	e.b = append(append(e.b, s...), 0)
}

func (e *encoder) sig(s string) { e.b = append(append(append(e.b, byte(len(s))), s...), 0) }

// array writes a length, and the elements by f. align is that of an element.
func (e *encoder) array(align int, f func()) {
	e.u32(0)
	at := len(e.b)
	e.align(align) // counts as padding, also before no element
	begin := len(e.b)
	f()
	binary.LittleEndian.PutUint32(e.b[at-4:], uint32(len(e.b)-begin))
}

func (e *encoder) variant(v any) {
	e.sig(signature(v))
	e.value(v)
}

func (e *encoder) value(v any) {
	switch v := v.(type) {
	case string:
		e.str(v)
	case bool:
		n := uint32(0)
		if v {
			n = 1
		}
		e.u32(n)
	case uint32:
		e.u32(v)
	case uint64:
		e.align(8)
		e.b = binary.LittleEndian.AppendUint64(e.b, v)
	case []byte:
		e.array(1, func() { e.b = append(e.b, v...) })
	case []uint32:
		e.array(4, func() {
			for _, n := range v {
				e.u32(n)
			}
		})
	case []string:
		e.array(4, func() {
			for _, s := range v {
				e.str(s)
			}
		})
	default:
		e.structs(v)
	}
}

func (e *encoder) structs(v any) {
	e.array(8, func() {
		switch v := v.(type) {
		case []Pair:
			for _, p := range v {
				e.align(8)
				e.str(p[0])
				e.str(p[1])
			}
		case []Property:
			for _, p := range v {
				e.align(8)
				e.str(p.Name)
				e.variant(p.Value)
			}
		case []Unit:
			for _, u := range v {
				e.align(8)
				e.str(u.Name)
				e.value(u.Properties)
			}
		}
	})
}

// decoder reads values in the order that the message says. After an error all that
// follows is zero.
type decoder struct {
	b     []byte // from the beginning of the header or body, which alignment counts from
	at    int
	order binary.ByteOrder
	err   error
}

func (d *decoder) take(align, n int) []byte {
	at := (d.at + align - 1) &^ (align - 1)
	if d.err != nil || n < 0 || at > len(d.b) || n > len(d.b)-at {
		d.err = errMessage
		return nil
	}
	d.at = at + n
	return d.b[at:d.at]
}

func (d *decoder) u32() uint32 {
	if b := d.take(4, 4); b != nil {
		return d.order.Uint32(b)
	}
	return 0
}

func (d *decoder) str() string {
	n := d.u32()
	if n > maxString {
		d.err = errMessage
	}
	s := string(d.take(1, int(n)))
	d.take(1, 1)
	return s
}

func (d *decoder) sig() string {
	b := d.take(1, 1)
	if b == nil {
		return ""
	}
	s := string(d.take(1, int(b[0])))
	d.take(1, 1)
	return s
}

// simpleStruct returns the fields of the signature of a struct that has nothing but strings and numbers.
func simpleStruct(sig string) (fields string, ok bool) {
	n := len(sig) - 1
	if n < 2 || sig[0] != '(' || sig[n] != ')' || strings.Trim(sig[1:n], "sogbut") != "" {
		return "", false
	}
	return sig[1:n], true
}

// values reads what a signature says: strings, numbers, and variants of them and of
// structs of them, which are []any. What else there is nobody asks for; it ends the
// list without being an error.
func (d *decoder) values(sig string) (list []any) {
	for _, c := range []byte(sig) {
		var v any
		switch c {
		case 's', 'o':
			v = d.str()
		case 'g':
			v = d.sig()
		case 'b':
			v = d.u32() != 0
		case 'u':
			v = d.u32()
		case 't':
			if b := d.take(8, 8); b != nil {
				v = d.order.Uint64(b)
			}
		case 'v':
			inner := d.sig()
			fields, isStruct := simpleStruct(inner)
			switch {
			case isStruct:
				d.take(8, 0)
				v = d.values(fields)
			case len(inner) != 1 || inner == "v":
				return list
			default:
				if l := d.values(inner); len(l) == 1 {
					v = l[0]
				}
			}
		default:
			return list
		}
		if d.err != nil {
			return list
		}
		list = append(list, v)
	}
	return list
}

// Kinds of messages and of header fields.
const (
	methodCall   = 1
	methodReturn = 2
	errorReply   = 3
	signal       = 4

	fieldPath        = 1
	fieldInterface   = 2
	fieldMember      = 3
	fieldError       = 4
	fieldReplySerial = 5
	fieldDestination = 6
	fieldSignature   = 8
)

// message is one that was read.
type message struct {
	kind    byte
	reply   uint32
	iface   string
	member  string
	failure string // name of the error
	body    []any
}

// call returns the bytes of a method call.
func call(serial uint32, dest, path, iface, member string, args []any) []byte {
	var body encoder
	sig := ""
	for _, a := range args {
		sig += signature(a)
		body.value(a)
	}
	e := encoder{b: []byte{'l', methodCall, 0, 1}}
	e.u32(uint32(len(body.b)))
	e.u32(serial)
	e.array(8, func() {
		for _, f := range []struct {
			code  byte
			typ   string
			value string
		}{{fieldPath, "o", path}, {fieldInterface, "s", iface}, {fieldMember, "s", member}, {fieldDestination, "s", dest}, {fieldSignature, "g", sig}} {
			if f.value == "" {
				continue
			}
			e.align(8)
			e.b = append(e.b, f.code)
			e.sig(f.typ)
			if f.typ == "g" {
				e.sig(f.value)
			} else {
				e.str(f.value)
			}
		}
	})
	e.align(8)
	return append(e.b, body.b...)
}

const fixedHeader = 16 // up to the length of the header fields

// sizes returns how long a message is from its first bytes.
func sizes(head []byte) (order binary.ByteOrder, fields, body int, err error) {
	order = binary.LittleEndian
	if head[0] == 'B' {
		order = binary.BigEndian
	} else if head[0] != 'l' {
		return nil, 0, 0, fmt.Errorf("byte order %s: %w", strconv.Quote(string(head[:1])), errMessage)
	}
	b, f := order.Uint32(head[4:]), order.Uint32(head[12:])
	if b > maxMessage || f > maxMessage {
		return nil, 0, 0, fmt.Errorf("%d and %d bytes: %w", f, b, errMessage)
	}
	return order, (int(f) + 7) &^ 7, int(b), nil
}

// decode reads a whole message.
func decode(b []byte) (*message, error) {
	if len(b) < fixedHeader {
		return nil, errMessage
	}
	order, fields, body, err := sizes(b)
	if err != nil || len(b) != fixedHeader+fields+body {
		return nil, errors.Join(err, errMessage)
	}
	m := &message{kind: b[1]}
	h := decoder{b: b[:fixedHeader+fields], at: fixedHeader, order: order}
	end := fixedHeader + int(order.Uint32(b[12:]))
	sig := ""
	for h.at < end && h.err == nil {
		code := h.take(8, 1)
		l := h.values("v")
		if h.err != nil || len(l) != 1 {
			return nil, errMessage
		}
		s, _ := l[0].(string)
		switch code[0] {
		case fieldInterface:
			m.iface = s
		case fieldMember:
			m.member = s
		case fieldError:
			m.failure = s
		case fieldSignature:
			sig = s
		case fieldReplySerial:
			m.reply, _ = l[0].(uint32)
		}
	}
	d := decoder{b: b[fixedHeader+fields:], order: order}
	m.body = d.values(sig)
	return m, errors.Join(h.err, d.err)
}
