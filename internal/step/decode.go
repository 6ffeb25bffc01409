package step

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// View is an encoded program whose frame was checked: what a runner needs,
// without an allocation per step. It holds where things are in the encoding, and not the encoding.
type View struct {
	Clone uint64
	Wait  int  // index of the start wait, or NoWait
	Gates int  // number of waits before it
	Hands bool // whether it hands a descriptor over
	Hops  bool // whether the child has a sibling go on in its place
	N     int  // number of steps
	Files int
	Size  int // bytes of the encoding

	Steps, Data, Relocs Section // N times Size bytes, as the child's loop reads them; 8 bytes for each relocation

	names Section
	in    Source
}

// Section is a part of an encoding.
type Section struct{ At, Len int }

// Source is where an encoding lies. It does not change while it is used.
type Source interface {
	// Bytes returns n bytes from offset at, which are within the encoding. They are
	// good until the next call.
	Bytes(at, n int) ([]byte, error)
}

// memory is an encoding as it lies in memory.
type memory []byte

// Bytes implements Source.
func (m memory) Bytes(at, n int) ([]byte, error) { return m[at : at+n : at+n], nil }

// Parse checks b completely (frame, every step, every relocation) and returns
// the view of it. b must not change while the view is used.
func Parse(b []byte) (*View, error) { return Scan(memory(b), len(b)) }

// Scan is Parse for size bytes that are read piece by piece.
func Scan(in Source, size int) (*View, error) {
	if size < headerSize || size > MaxSize {
		return nil, fmt.Errorf("program header: %w", ErrFormat)
	}
	b, err := in.Bytes(0, headerSize)
	if err != nil {
		return nil, err
	}
	if order.Uint32(b) != magic || order.Uint16(b[4:]) != version || order.Uint16(b[6:]) != archID() {
		return nil, fmt.Errorf("program header %x: %w", b[:8], ErrFormat) // of another version, or for another machine
	}
	v := &View{Clone: order.Uint64(b[48:]), Wait: int(int32(order.Uint32(b[44:]))), N: field(b, 1), Files: field(b, 8), Size: size, in: in}
	if field(b, 0) != size || v.N == 0 || v.N > MaxSteps || v.Files > MaxFiles || v.Wait < NoWait || v.Wait >= v.N {
		return nil, fmt.Errorf("program frame: %w", ErrFormat)
	}
	if v.Clone&^cloneFlags != 0 {
		return nil, fmt.Errorf("clone flags %#x: %w", v.Clone, ErrFormat)
	}
	v.Steps, v.Data = Section{headerSize, v.N * Size}, Section{field(b, 2), field(b, 3)}
	v.Relocs, v.names = Section{field(b, 4), 8 * field(b, 5)}, Section{field(b, 6), field(b, 7)}
	// Whoever maps an encoding finds words of its data as the program names them.
	if !v.Steps.within(size) || !v.Data.within(size) || !v.Relocs.within(size) || !v.names.within(size) || v.Data.At%8 != 0 {
		return nil, fmt.Errorf("program sections: %w", ErrFormat)
	}
	if err := v.check(); err != nil {
		return nil, err
	}
	return v, nil
}

//go:noinline
func field(b []byte, i int) int { return int(order.Uint32(b[8+4*i:])) }

//go:noinline
func (s Section) within(size int) bool {
	return s.At >= headerSize && s.Len >= 0 && s.At <= size && s.Len <= size-s.At
}

// Bytes returns a section of an encoding in memory, in place.
func (v *View) Bytes(s Section) []byte {
	b, _ := v.in.Bytes(s.At, s.Len) // memory has no errors
	return b
}

// piece is how much is looked at in one go, of steps and of relocations: both fit
// into a page.
const piece = 46

// Piece is the most bytes that Scan asks its Source for.
const Piece = piece * Size

func (v *View) check() error {
	for i := 0; i < v.N; i += piece {
		n := min(piece, v.N-i)
		b, err := v.in.Bytes(headerSize+i*Size, n*Size)
		if err != nil {
			return err
		}
		if err := v.checkSteps(i, b); err != nil {
			return err
		}
	}
	for i := 0; i < v.Relocs.Len; i += Piece {
		b, err := v.in.Bytes(v.Relocs.At+i, min(Piece, v.Relocs.Len-i))
		if err != nil {
			return err
		}
		for ; len(b) >= 8; b = b[8:] {
			if err := (Reloc{At: order.Uint32(b), To: order.Uint32(b[4:])}).validate(v.Data.Len); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkSteps checks the steps from i on that b holds.
func (v *View) checkSteps(i int, b []byte) error {
	// One value for all steps: no allocation, the same rules as Encode.
	var s Step
	var br [MaxBranches]Branch
	for ; len(b) > 0; i, b = i+1, b[Size:] {
		if v.plain(b) {
			continue
		}
		if b[offBranches] > MaxBranches {
			return fmt.Errorf("step %d: branches: %w", i, ErrFormat)
		}
		v.fill(&s, br[:0], b)
		if err := s.validate(i, v.N, v.Data.Len); err != nil {
			return err
		}
		if s.Nr == unix.SYS_READ && s.Args[0] == (Arg{Kind: Const, Val: StartFD}) && i != v.Wait {
			v.Gates++
		}
		v.Hands = v.Hands || s.Nr == OpHand
		v.Hops = v.Hops || s.Nr == unix.SYS_CLONE3
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
			if order.Uint64(b[offArgs+8*i:]) >= uint64(v.Data.Len) {
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

// Relocations yields the pointers that are to be patched into Data, of an encoding in
// memory.
func (v *View) Relocations() func(yield func(Reloc) bool) {
	return func(yield func(Reloc) bool) {
		for b := v.Bytes(v.Relocs); len(b) >= 8; b = b[8:] {
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
	b, err := v.in.Bytes(headerSize+i*Size, Size)
	if err != nil {
		return ""
	}
	at, n := int(order.Uint32(b[offName:])), int(order.Uint16(b[offNameLen:]))
	if at > v.names.Len || n > v.names.Len-at {
		return ""
	}
	if b, err = v.in.Bytes(v.names.At+at, n); err != nil {
		return ""
	}
	return string(b)
}

// Decode returns the program that Encode made b from.
func Decode(b []byte) (*Program, error) {
	v, err := Parse(b)
	if err != nil {
		return nil, err
	}
	p := &Program{Clone: v.Clone, Wait: v.Wait, Data: append([]byte(nil), v.Bytes(v.Data)...), Steps: make([]Step, v.N)}
	steps, names, end := v.Bytes(v.Steps), v.Bytes(v.names), 0
	for i := range v.N {
		v.fill(&p.Steps[i], nil, steps[i*Size:(i+1)*Size])
		p.Steps[i].Name = v.Name(i)
		// Names that overlap would let a small file ask for gigabytes.
		if end += len(p.Steps[i].Name); end > len(names) {
			return nil, fmt.Errorf("step names: %w", ErrFormat)
		}
	}
	for r := range v.Relocations() {
		p.Relocs = append(p.Relocs, r)
	}
	// The file names stand behind the step names.
	rest := names[end:]
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
