package executor

import (
	"testing"
	"unsafe"
)

// TestAround: what is hidden begins behind the program itself, wherever the heap begins, and holds the heap.
func TestAround(t *testing.T) {
	program := uintptr(unsafe.Pointer(&hideOnce))
	first := (program | (arena - 1)) + 1
	for _, base := range []uintptr{first, first + arena, first + 15*arena, first + 16*arena, first + 17*arena, first + 1<<40} {
		start, size := around(base)
		if start <= program || start > base || start+size < base+rangeAbove || base-start < min(base-first, rangeBelow) {
			t.Errorf("base %#x: %#x bytes from %#x on", base, size, start)
		}
	}
}
