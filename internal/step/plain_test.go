package step

import (
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"
)

// TestPlainStepsAreValid holds the short cut of Parse against the whole check: what it
// passes is valid, and nothing that Parse has to know of.
func TestPlainStepsAreValid(t *testing.T) {
	const seed = 20261124
	r := rand.New(rand.NewPCG(seed, seed))
	near := func(n uint64) uint64 { return n + uint64(r.IntN(3)) - 1 }
	v := &View{N: 100, Data: Section{headerSize, 64}}
	plain := 0
	for range 500_000 {
		b := make([]byte, Size)
		nr := []uint64{uint64(r.IntN(500)), near(uint64(OpHand)), near(uint64(OpExpect)), unix.SYS_READ, unix.SYS_CLONE3}
		order.PutUint32(b[offNr:], uint32(nr[r.IntN(len(nr))]))
		b[offResult] = []byte{byte(NoResult), byte(r.IntN(256)), byte(near(uint64(ReportRegister)))}[r.IntN(3)]
		for i := range MaxArgs {
			b[offKinds+i] = byte(r.IntN(int(kinds) + 1))
			order.PutUint64(b[offArgs+8*i:], []uint64{near(64), uint64(r.IntN(64)), r.Uint64(), 1 << 63}[r.IntN(4)])
			if r.IntN(2) == 0 {
				b[offKinds+i] = byte(Const)
			}
		}
		if r.IntN(4) == 0 {
			b[offBranches] = byte(r.IntN(6))
		}
		if r.IntN(4) == 0 {
			order.PutUint16(b[offThen:], uint16(r.IntN(200)))
		}
		if !v.plain(b) {
			continue
		}
		plain++
		var s Step
		v.fill(&s, nil, b)
		if err := s.validate(v.N-1, v.N, v.Data.Len); err != nil {
			t.Fatalf("plain step %+v: %v", s, err)
		}
		if s.Nr == OpHand || s.Nr == unix.SYS_CLONE3 || s.Nr == unix.SYS_READ {
			t.Fatalf("plain step %+v", s)
		}
	}
	if plain < 1000 {
		t.Errorf("only %d plain steps were tried", plain)
	}
}
