package executor

import "testing"

// TestAround: what is hidden begins within the address space, wherever the heap begins.
func TestAround(t *testing.T) {
	for _, base := range []uintptr{arena, 5 * arena, 16 * arena, 17 * arena, 0xc000000000, 1<<46 - arena} {
		start, size := around(base)
		if start > base || start+size < base+rangeAbove || base-start < min(base, rangeBelow) {
			t.Errorf("base %#x: %#x bytes from %#x on", base, size, start)
		}
		if err := dontFork(start, size); err != nil {
			t.Errorf("base %#x: %v", base, err)
		}
	}
}
