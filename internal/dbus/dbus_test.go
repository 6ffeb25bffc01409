package dbus

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	oracle "github.com/godbus/dbus/v5"
)

// A unit as systemd is asked for one.
var unit = []any{
	"vitrine-x.scope", "fail",
	[]Property{
		{"Description", "a text"}, {"PIDs", []uint32{7, 8}}, {"Delegate", true}, {"TasksMax", ^uint64(0)}, {"AllowedCPUs", []byte{5}},
		{"DeviceAllow", []Pair{{"char-pts", "rw"}, {"/dev/char/1:3", "r"}}}, {"None", []string{}}, {"Some", []string{"x", "yy"}},
	},
	[]Unit{},
}

// The usual library reads what we write.
func TestCallsAreWellFormed(t *testing.T) {
	for _, args := range [][]any{nil, {"one"}, {"u", true, uint32(3), uint64(4), []byte("b")}, unit, {"u", false, []Property{}}} {
		b := call(9, "org.example", "/a/b", "org.example.I", "Do", args)
		m, err := oracle.DecodeMessage(bytes.NewReader(b))
		if err != nil {
			t.Fatalf("%v: %v", args, err)
		}
		if err := m.IsValid(); err != nil {
			t.Errorf("%v: %v", args, err)
		}
		sig := ""
		for _, a := range args {
			sig += signature(a)
		}
		if got, _ := m.Headers[oracle.FieldSignature].Value().(oracle.Signature); got.String() != sig || len(m.Body) != len(args) || m.Serial() != 9 {
			t.Errorf("%v: signature %q, want %q, %d values", args, got, sig, len(m.Body))
		}
		if len(args) == 4 {
			if got := fmt.Sprint(m.Body[2]); got != `[[Description "a text"] [PIDs @au [7, 8]] [Delegate true] [TasksMax @t 18446744073709551615] [AllowedCPUs @ay [0x5]] `+
				`[DeviceAllow [["char-pts", "rw"], ["/dev/char/1:3", "r"]]] [None @as []] [Some ["x", "yy"]]]` {
				t.Errorf("properties: %s", got)
			}
		}
	}
}

// encode writes a message with the usual library.
func encode(t testing.TB, order binary.ByteOrder, typ oracle.Type, headers map[oracle.HeaderField]oracle.Variant, body ...any) []byte {
	t.Helper()
	if len(body) > 0 {
		headers[oracle.FieldSignature] = oracle.MakeVariant(oracle.SignatureOf(body...))
	}
	var b bytes.Buffer
	if err := (&oracle.Message{Type: typ, Headers: headers, Body: body}).EncodeTo(&b, order); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func reply(to uint32) map[oracle.HeaderField]oracle.Variant {
	return map[oracle.HeaderField]oracle.Variant{oracle.FieldReplySerial: oracle.MakeVariant(to)}
}

// job is a struct of simple values.
type job struct {
	ID   uint32
	Path oracle.ObjectPath
}

// We read what the usual library writes, and stop at what nobody asks for.
func TestAnswersAreRead(t *testing.T) {
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		m, err := decode(encode(t, order, oracle.TypeMethodReply, reply(77),
			uint32(1), oracle.ObjectPath("/o"), oracle.MakeVariant("v"), true, uint64(1)<<40,
			oracle.MakeVariant(job{7, "/j"}), uint32(2), []string{"x"}, "after"))
		if err != nil || m.kind != methodReturn || m.reply != 77 || fmt.Sprint(m.body) != "[1 /o v true 1099511627776 [7 /j] 2]" {
			t.Errorf("%v, %+v", err, m)
		}
		h := reply(5)
		h[oracle.FieldErrorName] = oracle.MakeVariant("org.example.No")
		m, err = decode(encode(t, order, oracle.TypeError, h, "because"))
		if err != nil {
			t.Fatal(err)
		}
		_, err = m.result()
		var e *Error
		if !errors.As(err, &e) || e.Name != "org.example.No" || e.Error() != "because" {
			t.Errorf("a refusal is %v", err)
		}
	}
}

// What is cut or changed anywhere is an error, or what the usual library makes of it.
func FuzzDecode(f *testing.F) {
	f.Add(encode(f, binary.LittleEndian, oracle.TypeMethodReply, reply(77), uint32(1), "x", oracle.MakeVariant("v")))
	f.Add(encode(f, binary.BigEndian, oracle.TypeMethodReply, reply(5), "x", true, uint64(1)<<40, oracle.MakeVariant(uint32(3)), uint32(4)))
	f.Add(encode(f, binary.LittleEndian, oracle.TypeMethodReply, reply(5), "x", oracle.MakeVariant(job{7, "/j"}), "y"))
	f.Add(call(9, "org.example", "/a/b", "org.example.I", "Do", unit))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decode(b)
		if err != nil {
			return
		}
		// What we read the usual library reads as well, where it does not want more than we do.
		theirs, err := oracle.DecodeMessage(bytes.NewReader(b))
		if err != nil || theirs.IsValid() != nil {
			return
		}
		if to, ok := theirs.Headers[oracle.FieldReplySerial].Value().(uint32); m.kind != byte(theirs.Type) || ok && m.reply != to {
			t.Errorf("kind %d in answer to %d, and %v in answer to %d", m.kind, m.reply, theirs.Type, to)
		}
		for i := range min(len(m.body), len(theirs.Body)) {
			ours, known := m.body[i], theirs.Body[i]
			if v, ok := known.(oracle.Variant); ok {
				known = v.Value()
			}
			switch known := known.(type) {
			case string, bool, uint32, uint64:
				if ours != known {
					t.Errorf("value %d is %v, and %v", i, ours, known)
				}
			}
		}
	})
}

// serve is a systemd of one connection.
func serve(t *testing.T, f func(c net.Conn)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "socket")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		f(c)
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return path
}

func TestCallsAndSignals(t *testing.T) {
	path := serve(t, func(c net.Conn) {
		hello := make([]byte, len("\x00AUTH EXTERNAL 30\r\nBEGIN\r\n"))
		io.ReadFull(c, hello)
		io.WriteString(c, "OK 0123\r\n")
		for {
			m, err := oracle.DecodeMessage(c)
			if err != nil {
				return
			}
			h := reply(m.Serial())
			switch m.Headers[oracle.FieldMember].Value() {
			case "Echo":
				s := map[oracle.HeaderField]oracle.Variant{oracle.FieldPath: oracle.MakeVariant(oracle.ObjectPath("/")),
					oracle.FieldInterface: oracle.MakeVariant("i.f"), oracle.FieldMember: oracle.MakeVariant("Heard")}
				c.Write(append(encode(t, binary.LittleEndian, oracle.TypeSignal, s, m.Body[0]), encode(t, binary.LittleEndian, oracle.TypeMethodReply, h, m.Body...)...))
			case "No":
				h[oracle.FieldErrorName] = oracle.MakeVariant("org.example.No")
				c.Write(encode(t, binary.LittleEndian, oracle.TypeError, h))
			case "Bye":
				return
			}
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	heard := make(chan string, 10)
	c, err := Dial(ctx, path, func(iface, member string, body []any) { heard <- fmt.Sprint(iface, member, body) })
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if v, err := c.Call(ctx, "d", "/", "i.f", "Echo", "text", uint32(4)); err != nil || fmt.Sprint(v) != "[text 4]" {
		t.Errorf("%v, %v", v, err)
	}
	if s := <-heard; s != "i.fHeard[text]" {
		t.Errorf("heard %q", s)
	}
	var e *Error
	if _, err := c.Call(ctx, "d", "/", "i.f", "No"); !errors.As(err, &e) || e.Error() != "org.example.No" {
		t.Errorf("a refusal without words is %v", err)
	}
	short, end := context.WithTimeout(ctx, 20*time.Millisecond)
	defer end()
	if _, err := c.Call(short, "d", "/", "i.f", "Silence"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no answer: %v", err)
	}
	if _, err := c.Call(ctx, "d", "/", "i.f", "Bye"); !errors.Is(err, ErrClosed) {
		t.Errorf("end of the connection: %v", err)
	}
	if _, err := c.Call(ctx, "d", "/", "i.f", "Echo", "x"); !errors.Is(err, ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
}
