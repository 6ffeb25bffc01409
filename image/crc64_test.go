package image

import (
	"bytes"
	"hash/crc64"
	"math/rand/v2"
	"testing"
)

// TestContentSum: the sum is that of hash/crc64, of any length, in any pieces.
func TestContentSum(t *testing.T) {
	dice := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, 4096)
	for i := range data {
		data[i] = byte(dice.Uint32())
	}
	for n := range 400 { // whole, at every place in a word
		for _, from := range []int{0, 1, 7} {
			var s contentSum
			s.add(data[from : from+n])
			equal(t, "sum", uint64(s), crc64.Checksum(data[from:from+n], crc64.MakeTable(crc64.ISO)))
		}
	}
	for range 2000 {
		std, rest := crc64.New(crc64.MakeTable(crc64.ISO)), data[:dice.IntN(len(data)+1)]
		var s contentSum
		for len(rest) > 0 {
			n := 1 + dice.IntN(min(len(rest), 1+dice.IntN(200)))
			_, _ = std.Write(rest[:n])
			s.add(rest[:n])
			rest = rest[n:]
		}
		if !bytes.Equal(s.bytes(), std.Sum(nil)) {
			t.Fatalf("%x, not %x", s.bytes(), std.Sum(nil))
		}
	}
}

func BenchmarkContentSum(b *testing.B) {
	data := make([]byte, 256<<10)
	b.Run("ours", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		var s contentSum
		for b.Loop() {
			s.add(data)
		}
	})
	b.Run("standard", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		s := crc64.New(crc64.MakeTable(crc64.ISO))
		for b.Loop() {
			_, _ = s.Write(data)
		}
	})
}
