package program_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/vitrine-runtime/vitrine/oci/program"
)

// TestEncodeIsCompile holds what Encode makes, in rooms that others have used before,
// against what Compile makes in new ones. It fails where a builder keeps something, or
// an encoding leaves a byte as it was.
func TestEncodeIsCompile(t *testing.T) {
	secret := strings.Repeat("secret", 50)
	var rooms [2][]byte
	for i := range 12 {
		in := program.Input{Spec: testSpec("true"), Seccomp: make([]byte, 8*(1+i%3))}
		in.Spec.Process.Env = []string{"KEY=" + secret[:10*(1+i%5)]}
		in.Spec.Mounts = in.Spec.Mounts[:1+i%len(in.Spec.Mounts)]
		p, err := program.Compile(in)
		if err != nil {
			t.Fatal(err)
		}
		want, err := p.Encode()
		if err != nil {
			t.Fatal(err)
		}
		room := rooms[i%2][:cap(rooms[i%2])]
		for j := range room {
			room[j] = 0xa5
		}
		got, err := program.Encode(in, room[:0])
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("program %d: encoding of %d bytes differs from that of Compile, %d bytes", i, len(got), len(want))
		}
		rooms[i%2] = got
	}
	in := program.Input{Spec: testSpec("true")}
	in.Spec.Process.Args = nil
	if b, err := program.Encode(in, rooms[0]); err == nil || len(b) != len(rooms[0]) {
		t.Errorf("no arguments: %d bytes and %v", len(b), err)
	}
}
