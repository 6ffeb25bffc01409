package seccomp

import (
	"encoding/binary"
	"fmt"
)

// Call is what a filter sees of a system call: the kernel's struct seccomp_data.
type Call struct {
	Number uint32
	Arch   uint32 // AUDIT_ARCH_*
	IP     uint64
	Args   [6]uint64
}

// encode lays the call out as the kernel of a machine does.
func (c *Call) encode(e binary.ByteOrder) (b [dataSize]byte) {
	e.PutUint32(b[0:], c.Number)
	e.PutUint32(b[4:], c.Arch)
	e.PutUint64(b[8:], c.IP)
	for i, a := range c.Args {
		e.PutUint64(b[offArgs+8*i:], a)
	}
	return b
}

// Run interprets the filter for one call and says what the kernel would be told, and how many instructions that took. It is for tests and for people who
// ask why; the kernel has its own. Preconditions: Check(f.Insns) is nil.
func (f *Filter) Run(c Call) (a Action, steps int) { return f.run(c, binary.NativeEndian) }

// run is Run for a machine of either byte order.
func (f *Filter) run(c Call, order binary.ByteOrder) (a Action, steps int) {
	data := c.encode(order)
	var acc uint32
	for pc := 0; ; pc++ {
		steps++
		i := f.Insns[pc]
		switch i.Code {
		case codeReturn:
			return Action(i.K), steps
		case codeLoad:
			acc = order.Uint32(data[i.K:])
		case codeAnd:
			acc &= i.K
		case codeJump:
			pc += int(i.K)
		default:
			if i.holds(acc) {
				pc += int(i.Jt)
			} else {
				pc += int(i.Jf)
			}
		}
	}
}

// holds evaluates a conditional jump.
func (i Insn) holds(acc uint32) bool {
	switch i.Code {
	case codeEqual:
		return acc == i.K
	case codeGreat:
		return acc > i.K
	case codeAtLow:
		return acc >= i.K
	default:
		return acc&i.K != 0
	}
}

// Check finds out whether the kernel would take a program, as far as Compile makes such instructions: a length of 1 to MaxLen, known
// operations, aligned loads within the data, jumps forward that stay inside, and a return at the end.
func Check(insns []Insn) error {
	n := len(insns)
	if n == 0 || n > MaxLen {
		return fmt.Errorf("check filter: %d instructions", n)
	}
	for pc, i := range insns {
		left := uint64(n - pc - 1)
		switch i.Code {
		case codeReturn, codeAnd:
		case codeLoad:
			if i.K%4 != 0 || i.K >= dataSize {
				return fmt.Errorf("check filter: instruction %d loads from %d", pc, i.K)
			}
		case codeJump:
			if uint64(i.K) >= left {
				return fmt.Errorf("check filter: instruction %d jumps out", pc)
			}
		case codeEqual, codeGreat, codeAtLow, codeSet:
			if uint64(i.Jt) >= left || uint64(i.Jf) >= left {
				return fmt.Errorf("check filter: instruction %d jumps out", pc)
			}
		default:
			return fmt.Errorf("check filter: instruction %d has operation %#x", pc, i.Code)
		}
	}
	if insns[n-1].Code != codeReturn {
		return fmt.Errorf("check filter: no return at the end")
	}
	return nil
}
