package seccomp

import (
	"errors"
	"slices"
)

// MaxLen is the kernel's limit for one filter (BPF_MAXINSNS).
const MaxLen = 4096

// ErrTooLong is returned for profiles that need more than MaxLen instructions.
var ErrTooLong = errors.New("seccomp profile: needs more than 4096 instructions")

// Insn is one instruction, laid out as the kernel's struct sock_filter.
type Insn struct {
	Code   uint16 // operation
	Jt, Jf uint8  // distances of a conditional jump, if true and if false
	K      uint32 // operand
}

// assembler lays a graph out from its end to its beginning. What an instruction jumps to is then always there already; places are counted from the end.
type assembler struct {
	out   []Insn
	place map[*node]int
}

// assemble gives the program of a graph, in the order in which it runs.
func assemble(root *node) ([]Insn, error) {
	a := assembler{out: make([]Insn, 0, 512), place: make(map[*node]int, 512)}
	if err := a.emit(root); err != nil {
		return nil, err
	}
	slices.Reverse(a.out)
	return a.out, nil
}

// emit appends a node after everything that it leads to.
func (a *assembler) emit(n *node) error {
	if _, ok := a.place[n]; ok {
		return nil
	}
	switch n.code {
	case codeReturn:
	case codeLoad, codeAnd:
		if err := a.emit(n.yes); err != nil {
			return err
		}
		if a.place[n.yes] != len(a.out)-1 {
			a.repeat(n.yes)
		}
	default:
		for _, to := range []*node{n.no, n.yes} {
			if err := a.emit(to); err != nil {
				return err
			}
		}
		for a.distance(n.yes) > 255 || a.distance(n.no) > 255 {
			far := n.yes
			if a.distance(far) <= 255 {
				far = n.no
			}
			a.repeat(far)
		}
	}
	insn := Insn{Code: n.code, K: n.k}
	if n.no != nil {
		insn.Jt, insn.Jf = uint8(a.distance(n.yes)), uint8(a.distance(n.no))
	}
	a.append(n, insn)
	if len(a.out) > MaxLen {
		return ErrTooLong
	}
	return nil
}

// distance is what an instruction appended now would have to skip.
func (a *assembler) distance(n *node) int { return len(a.out) - 1 - a.place[n] }

// repeat makes a node reachable from here: a return by a copy, others by a jump, whose distance has 32 bits.
func (a *assembler) repeat(n *node) {
	if n.code == codeReturn {
		a.append(n, Insn{Code: codeReturn, K: n.k})
		return
	}
	a.append(n, Insn{Code: codeJump, K: uint32(a.distance(n))})
}

func (a *assembler) append(n *node, i Insn) {
	a.out = append(a.out, i)
	a.place[n] = len(a.out) - 1
}
