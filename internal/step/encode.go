package step

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
)

// The flat encoding, in native byte order; offsets are from the start.
//
//	header  magic u32  version u16  arch u16  size u32
//	        steps u32  data u32 (offset)  dataLen u32
//	        relocs u32 (offset)  nrelocs u32  names u32 (offset)  namesLen u32
//	        files u32  wait i32  clone u64                              56 bytes
//	steps   Size bytes each, in the layout that the child's loop reads
//	data    8-byte aligned
//	relocs  {at u32, to u32}
//	names   one after the other: step names by (offset, length) in the step,
//	        then the file names, each with a u16 length
const (
	magic      = 0x47525056 // "VPRG"
	version    = 1
	headerSize = 56
)

// Size is the encoded size of one step.
const Size = 88

// Offsets inside an encoded step. The child's assembly loop uses the same
// numbers; a test holds the two against each other.
const (
	offNr       = 0
	offResult   = 4
	offKinds    = 5
	offBranches = 11
	offThen     = 12
	offNameLen  = 14
	offArgs     = 16
	offOnErr    = 64
	offName     = 80
)

// ErrFormat is wrapped by every error of Decode and View.
var ErrFormat = errors.New("malformed program")

var order = binary.NativeEndian

func archID() uint16 {
	switch runtime.GOARCH {
	case "amd64":
		return 62 // EM_X86_64
	case "arm64":
		return 183 // EM_AARCH64
	}
	return 0
}

// Encode returns the flat form of p. It fails when p breaks one of the limits
// of this package; it does not judge what the calls do.
func (p *Program) Encode() ([]byte, error) { return p.Append(nil) }

// Append appends what Encode returns to b, which is given back also where it fails.
func (p *Program) Append(to []byte) ([]byte, error) {
	names, err := p.validate()
	if err != nil {
		return to, err
	}
	dataAt := headerSize + len(p.Steps)*Size
	relocAt := dataAt + (len(p.Data)+7)&^7
	nameAt := relocAt + 8*len(p.Relocs)
	for _, f := range p.Files {
		names += 2 + len(f)
	}
	size := nameAt + names
	if size > MaxSize {
		return to, fmt.Errorf("encode program of %d bytes: %w", size, ErrFormat)
	}
	old := len(to)
	to = slices.Grow(to, size)[:old+size]
	b := to[old:]
	clear(b)
	p.putHeader(b, dataAt, relocAt, nameAt, names)
	copy(b[dataAt:], p.Data)
	for i, r := range p.Relocs {
		order.PutUint32(b[relocAt+8*i:], r.At)
		order.PutUint32(b[relocAt+8*i+4:], r.To)
	}
	n := nameAt
	for i := range p.Steps {
		s := &p.Steps[i]
		PutStep(b[headerSize+i*Size:], s)
		order.PutUint16(b[headerSize+i*Size+offNameLen:], uint16(len(s.Name)))
		order.PutUint32(b[headerSize+i*Size+offName:], uint32(n-nameAt))
		n += copy(b[n:], s.Name)
	}
	for _, f := range p.Files {
		order.PutUint16(b[n:], uint16(len(f)))
		n += 2 + copy(b[n+2:], f)
	}
	return to, nil
}

func (p *Program) putHeader(b []byte, dataAt, relocAt, nameAt, names int) {
	order.PutUint32(b[0:], magic)
	order.PutUint16(b[4:], version)
	order.PutUint16(b[6:], archID())
	for i, v := range []int{len(b), len(p.Steps), dataAt, len(p.Data), relocAt, len(p.Relocs), nameAt, names, len(p.Files), p.Wait} {
		order.PutUint32(b[8+4*i:], uint32(int32(v)))
	}
	order.PutUint64(b[48:], p.Clone)
}

// PutStep writes the runnable part of s (all but its name) to the first Size
// bytes of b. It is not inlined: three times half a kilobyte, for a nanosecond of a step.
//
//go:noinline
func PutStep(b []byte, s *Step) {
	order.PutUint32(b[offNr:], s.Nr)
	b[offResult] = byte(s.Result)
	for i, a := range s.Args {
		b[offKinds+i] = byte(a.Kind)
		order.PutUint64(b[offArgs+8*i:], a.Val)
	}
	b[offBranches] = byte(len(s.OnErr))
	order.PutUint16(b[offThen:], s.Then)
	for i, br := range s.OnErr {
		order.PutUint16(b[offOnErr+4*i:], br.Errno)
		order.PutUint16(b[offOnErr+4*i+2:], br.Skip)
	}
}

// validate checks the limits and returns the bytes that the step names need.
func (p *Program) validate() (names int, err error) {
	switch {
	case p.Clone&^cloneFlags != 0:
		return 0, fmt.Errorf("clone flags %#x: %w", p.Clone, ErrFormat)
	case len(p.Steps) == 0 || len(p.Steps) > MaxSteps:
		return 0, fmt.Errorf("program of %d steps: %w", len(p.Steps), ErrFormat)
	case len(p.Files) > MaxFiles:
		return 0, fmt.Errorf("program with %d files: %w", len(p.Files), ErrFormat)
	case p.Wait != NoWait && (p.Wait < 0 || p.Wait >= len(p.Steps)):
		return 0, fmt.Errorf("program waits at step %d: %w", p.Wait, ErrFormat)
	case len(p.Data) > MaxSize:
		return 0, fmt.Errorf("program with %d bytes of data: %w", len(p.Data), ErrFormat)
	}
	for i := range p.Steps {
		if err := p.Steps[i].validate(i, len(p.Steps), len(p.Data)); err != nil {
			return 0, err
		}
		names += len(p.Steps[i].Name)
	}
	for _, r := range p.Relocs {
		if err := r.validate(len(p.Data)); err != nil {
			return 0, err
		}
	}
	for _, f := range p.Files {
		if len(f) > math.MaxUint16 {
			return 0, fmt.Errorf("file name of %d bytes: %w", len(f), ErrFormat)
		}
	}
	return names, nil
}

// validate demands whole words inside of the data.
func (r Reloc) validate(data int) error {
	if r.At%8 != 0 || uint64(r.At)+8 > uint64(data) || uint64(r.To) >= uint64(data) {
		return fmt.Errorf("relocation %d -> %d: %w", r.At, r.To, ErrFormat)
	}
	return nil
}

// validate holds one step against the limits: it may only name registers,
// data and steps that exist.
func (s *Step) validate(i, steps, data int) error {
	bad := func(what string) error { return fmt.Errorf("step %d: %s: %w", i, what, ErrFormat) }
	// Only a move may change where failures are reported to.
	if s.Result != NoResult && s.Result >= ReportRegister && (s.Nr != OpSet || s.Result != ReportRegister) {
		return bad("result register")
	}
	if err := s.known(uint64(data)); err != "" {
		return bad(err)
	}
	if len(s.OnErr) > MaxBranches || len(s.Name) > math.MaxUint16 {
		return bad("branches or name")
	}
	if i+1+int(s.Then) > steps {
		return bad("skip behind the end")
	}
	for _, b := range s.OnErr {
		if b.Errno == 0 || b.Errno > maxErrno || i+1+int(b.Skip) > steps {
			return bad("branch")
		}
	}
	for _, a := range s.Args {
		if !a.valid(data) {
			return bad("argument")
		}
	}
	return nil
}

// known refuses what the child's loop would take for a success: a pseudo call
// of a later version, and an expectation whose failure is no errno. It also
// keeps a store within the n bytes of the data.
func (s *Step) known(n uint64) (problem string) {
	if s.Nr > OpHand {
		return "unknown pseudo call"
	}
	if s.Nr == OpStore && !s.storable(n) {
		return "place of a store"
	}
	if e := s.Args[2]; s.Nr == OpExpect && (e.Kind != Const || e.Val == 0 || e.Val > maxErrno) {
		return "errno of an expectation"
	}
	return ""
}

func (s *Step) storable(n uint64) bool {
	at, size := s.Args[1], s.Args[2]
	return at.Kind == Addr && size.Kind == Const && (size.Val == 4 || size.Val == 8) && n >= size.Val && at.Val <= n-size.Val
}

func (a Arg) valid(data int) bool {
	n := uint64(data)
	switch a.Kind {
	case Const:
		return true
	case Addr:
		return a.Val < n
	case Reg:
		return a.Val < Registers
	case Mem8:
		return a.Val < n
	case Mem32:
		return n >= 4 && a.Val <= n-4
	case Mem64:
		return n >= 8 && a.Val <= n-8
	}
	return false
}
