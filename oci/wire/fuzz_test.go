package wire

import (
	"bytes"
	"testing"
)

// fuzzSide holds one decoder against arbitrary bytes: no panic, and whatever is
// accepted is written back to the same bytes, so that nothing in a message is
// silently ignored.
func fuzzSide(f *testing.F, dec func(Header, []byte) (Body, error)) {
	for _, m := range samples() {
		b, err := Encode(Highest, 3, m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseHeader(b)
		if err != nil || h.Memfd {
			return
		}
		m, err := dec(h, b[HeaderSize:])
		if err != nil {
			return
		}
		again, err := Encode(h.Version, h.ID, m)
		if err != nil {
			t.Fatalf("%T was decoded and cannot be encoded: %v", m, err)
		}
		if tail := h.Type == TypeHello || h.Type == TypeWelcome; tail {
			b, again = b[HeaderSize:], again[HeaderSize:]
			b = b[:min(len(b), len(again))]
		}
		if !bytes.Equal(b, again) {
			t.Fatalf("%T:\n  in %x\n out %x", m, b, again)
		}
	})
}

func FuzzDecodeRequest(f *testing.F) { fuzzSide(f, DecodeRequest) }

func FuzzDecodeReply(f *testing.F) { fuzzSide(f, DecodeReply) }

func FuzzParseSetup(f *testing.F) {
	f.Add((&Setup{Pod: "p", Hostname: "h", Sysctls: []Sysctl{{"a.b", "1"}}}).Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseSetup(b)
		if err == nil && !bytes.Equal(s.Encode(), b) {
			t.Fatalf("in %x\nout %x", b, s.Encode())
		}
	})
}
