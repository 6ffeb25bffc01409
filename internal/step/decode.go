package step

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// View is an encoded program whose frame was checked: what a runner needs,
// without an allocation per step. Its slices alias the encoding.
type View struct {
	Clone  uint64
	Wait   int    // index of the start wait, or NoWait
	Gates  int    // number of waits before it
	Hands  bool   // whether it hands a descriptor over
	Hops   bool   // whether the child has a sibling go on in its place
	Steps  []byte // N times Size bytes, as the child's loop reads them
	N      int
	Files  int
	Data   []byte
	relocs []byte
	names  []byte
}

// Parse checks b completely (frame, every step, every relocation) and returns
// the view of it. b must not change while the view is used.
func Parse(b []byte) (*View, error) {
	if len(b) < headerSize || len(b) > MaxSize || order.Uint32(b) != magic {
		return nil, fmt.Errorf("program header: %w", ErrFormat)
	}
	if v := order.Uint16(b[4:]); v != version {
		return nil, fmt.Errorf("program version %d: %w", v, ErrFormat)
	}
	if a := order.Uint16(b[6:]); a != archID() {
		return nil, fmt.Errorf("program for machine %d: %w", a, ErrFormat)
	}
	v := &View{Clone: order.Uint64(b[48:]), Wait: int(int32(order.Uint32(b[44:]))), N: field(b, 1), Files: field(b, 8)}
	if field(b, 0) != len(b) || v.N == 0 || v.N > MaxSteps || v.Files > MaxFiles || v.Wait < NoWait || v.Wait >= v.N {
		return nil, fmt.Errorf("program frame: %w", ErrFormat)
	}
	if v.Clone&^cloneFlags != 0 {
		return nil, fmt.Errorf("clone flags %#x: %w", v.Clone, ErrFormat)
	}
	var ok [4]bool
	v.Steps, ok[0] = cut(b, headerSize, v.N*Size)
	v.Data, ok[1] = cut(b, field(b, 2), field(b, 3))
	v.relocs, ok[2] = cut(b, field(b, 4), 8*field(b, 5))
	v.names, ok[3] = cut(b, field(b, 6), field(b, 7))
	if ok != [4]bool{true, true, true, true} {
		return nil, fmt.Errorf("program sections: %w", ErrFormat)
	}
	return v, v.check()
}

func field(b []byte, i int) int { return int(order.Uint32(b[8+4*i:])) }

func cut(b []byte, at, n int) ([]byte, bool) {
	if at < headerSize || n < 0 || at > len(b) || n > len(b)-at {
		return nil, false
	}
	return b[at : at+n : at+n], true
}

func (v *View) check() error {
	// One value for all steps: no allocation, the same rules as Encode.
	var s Step
	var br [MaxBranches]Branch
	for i := range v.N {
		b := v.Steps[i*Size : (i+1)*Size]
		if v.plain(b) {
			continue
		}
		if b[offBranches] > MaxBranches {
			return fmt.Errorf("step %d: branches: %w", i, ErrFormat)
		}
		v.fill(&s, br[:0], b)
		if err := s.validate(i, v.N, len(v.Data)); err != nil {
			return err
		}
		if s.Nr == unix.SYS_READ && s.Args[0] == (Arg{Kind: Const, Val: StartFD}) && i != v.Wait {
			v.Gates++
		}
		v.Hands = v.Hands || s.Nr == OpHand
		v.Hops = v.Hops || s.Nr == unix.SYS_CLONE3
	}
	for r := range v.Relocations() {
		if err := r.validate(len(v.Data)); err != nil {
			return err
		}
	}
	return nil
}

// plain says of most steps that nothing can be wrong with them and nothing is to be
// known: ordinary calls with numbers, addresses and registers within the limits, that lead
// nowhere but to the next step.
func (v *View) plain(b []byte) bool {
	if nr := order.Uint32(b[offNr:]); nr >= OpExpect || nr == unix.SYS_READ || nr == unix.SYS_CLONE3 {
		return false
	}
	if r := Register(b[offResult]); r >= ReportRegister && r != NoResult || b[offBranches] != 0 || order.Uint16(b[offThen:]) != 0 {
		return false
	}
	for i := range MaxArgs {
		switch Kind(b[offKinds+i]) {
		case Const:
		case Addr:
			if order.Uint64(b[offArgs+8*i:]) >= uint64(len(v.Data)) {
				return false
			}
		case Reg:
			if order.Uint64(b[offArgs+8*i:]) >= Registers {
				return false
			}
		default:
			return false
		}
	}
	return true
}

// fill reads the runnable part of an encoded step; branches go to br.
func (v *View) fill(s *Step, br []Branch, b []byte) {
	s.Nr = order.Uint32(b[offNr:])
	s.Result = Register(b[offResult])
	s.Then = order.Uint16(b[offThen:])
	for i := range s.Args {
		s.Args[i] = Arg{Kind: Kind(b[offKinds+i]), Val: order.Uint64(b[offArgs+8*i:])}
	}
	for i := range int(b[offBranches]) {
		br = append(br, Branch{Errno: order.Uint16(b[offOnErr+4*i:]), Skip: order.Uint16(b[offOnErr+4*i+2:])})
	}
	s.OnErr = br
}

// Relocations yields the pointers that are to be patched into Data.
func (v *View) Relocations() func(yield func(Reloc) bool) {
	return func(yield func(Reloc) bool) {
		for b := v.relocs; len(b) >= 8; b = b[8:] {
			if !yield(Reloc{At: order.Uint32(b), To: order.Uint32(b[4:])}) {
				return
			}
		}
	}
}

// Name returns what step i is for, or "" if i is not a step.
func (v *View) Name(i int) string {
	if i < 0 || i >= v.N {
		return ""
	}
	b := v.Steps[i*Size:]
	at, n := int(order.Uint32(b[offName:])), int(order.Uint16(b[offNameLen:]))
	if at > len(v.names) || n > len(v.names)-at {
		return ""
	}
	return string(v.names[at : at+n])
}

// Nr returns the system-call number of step i.
func (v *View) Nr(i int) uint32 { return order.Uint32(v.Steps[i*Size:]) }

// Decode returns the program that Encode made b from.
func Decode(b []byte) (*Program, error) {
	v, err := Parse(b)
	if err != nil {
		return nil, err
	}
	p := &Program{Clone: v.Clone, Wait: v.Wait, Data: append([]byte(nil), v.Data...), Steps: make([]Step, v.N)}
	end := 0
	for i := range v.N {
		v.fill(&p.Steps[i], nil, v.Steps[i*Size:(i+1)*Size])
		p.Steps[i].Name = v.Name(i)
		// Names that overlap would let a small file ask for gigabytes.
		if end += len(p.Steps[i].Name); end > len(v.names) {
			return nil, fmt.Errorf("step names: %w", ErrFormat)
		}
	}
	for r := range v.Relocations() {
		p.Relocs = append(p.Relocs, r)
	}
	// The file names stand behind the step names.
	rest := v.names[end:]
	for range v.Files {
		if len(rest) < 2 || len(rest)-2 < int(order.Uint16(rest)) {
			return nil, fmt.Errorf("file names: %w", ErrFormat)
		}
		n := int(order.Uint16(rest))
		p.Files = append(p.Files, string(rest[2:2+n]))
		rest = rest[2+n:]
	}
	return p, nil
}
