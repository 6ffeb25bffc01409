package program

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
)

// Registers of compiled programs. They are scratch within a section unless said.
const (
	rAny      step.Register = iota // result that one following step looks at
	rTarget                        // where a mount goes
	rContext                       // fsopen context
	rMount                         // detached mount
	rParent                        // directory that something is made in
	rWalk                          // next directory on a walk
	rCwd                           // result of the first chdir; lives until the second
	rExec                          // whether an execve met EACCES
	rProc                          // detached procfs of our own; lives until everything is closed
	rProcRoot                      // what was mounted on /proc; as long
	rSysRoot                       // what was mounted on /sys; as long
)

// builder collects steps and data.
type builder struct {
	p      step.Program
	intern map[string]uint64 // content of Data -> offset
	branch []step.Branch     // room for branches, a step's behind another's
	skips  int               // skips that wait for their label
	far    bool              // whether one is too long for a step
	proc   bool              // whether rProc is there
}

// ordinary is more steps than an ordinary container has; growing to that by halves
// costs a tenth of a millisecond.
const ordinary = 640

func newBuilder() *builder {
	p := step.Program{Wait: step.NoWait, Steps: make([]step.Step, 0, ordinary), Data: make([]byte, 0, 16<<10)}
	return &builder{p: p, intern: make(map[string]uint64, 256), branch: make([]step.Branch, 0, ordinary)}
}

// builders are two at most whose programs nobody needs any more: a tenth of a megabyte
// each, which takes longer to find and to clear than a program to compile. A
// sync.Pool would keep one for each processor, and have it where the next
// caller is not.
var builders struct {
	sync.Mutex
	free []*builder
}

// usedBuilder returns a builder, if possible one that has its room already.
func usedBuilder() *builder {
	builders.Lock()
	defer builders.Unlock()
	n := len(builders.free)
	if n == 0 {
		return newBuilder()
	}
	b := builders.free[n-1]
	builders.free = builders.free[:n-1]
	return b
}

// recycle gives the builder, and with it its program, back. It keeps nothing that a
// spec has said.
func (b *builder) recycle() {
	if cap(b.p.Steps) > 4*ordinary {
		return // too large to lie around
	}
	clear(b.p.Steps)
	clear(b.p.Data)
	clear(b.intern)
	*b = builder{intern: b.intern, branch: b.branch[:0],
		p: step.Program{Wait: step.NoWait, Steps: b.p.Steps[:0], Data: b.p.Data[:0], Relocs: b.p.Relocs[:0]}}
	builders.Lock()
	defer builders.Unlock()
	if len(builders.free) < 2 {
		builders.free = append(builders.free, b)
	}
}

// label is a place further on that steps may skip to.
type label struct {
	uses []use
}

// use is a skip that waits for its label: branch is an index in OnErr, or -1
// for Then.
type use struct{ step, branch int }

// op is the step just added, for what follows its call.
type op struct {
	b *builder
	i int
}

// call adds a system call. name is what it is for. It is used some hundred times:
// inlined it and its neighbours cost a tenth of a megabyte.
//
//go:noinline
func (b *builder) call(name string, nr uint32, args ...step.Arg) op {
	n := len(b.p.Steps)
	if n == cap(b.p.Steps) {
		b.p.Steps = slices.Grow(b.p.Steps, n)
	}
	b.p.Steps = b.p.Steps[:n+1]
	s := &b.p.Steps[n]
	*s = step.Step{Nr: nr, Result: step.NoResult, Name: name}
	copy(s.Args[:], args)
	return op{b, n}
}

// to keeps the result in a register.
//
//go:noinline
func (o op) to(r step.Register) op {
	o.b.p.Steps[o.i].Result = r
	return o
}

// ok goes on with the next step when the call fails with errno.
//
//go:noinline
func (o op) ok(errno unix.Errno) op {
	o.fails(errno)
	return o
}

// fails adds a branch and returns its index in OnErr.
func (o op) fails(errno unix.Errno) int {
	s, b := &o.b.p.Steps[o.i], o.b
	if s.OnErr == nil { // all that a step may have, so that the next one's come behind them
		if cap(b.branch)-len(b.branch) < step.MaxBranches {
			b.branch = make([]step.Branch, 0, ordinary)
		}
		n := len(b.branch)
		s.OnErr = b.branch[n : n : n+step.MaxBranches]
		b.branch = b.branch[:n+step.MaxBranches]
	}
	s.OnErr = append(s.OnErr, step.Branch{Errno: uint16(errno)})
	return len(s.OnErr) - 1
}

// on goes on at l when the call fails with errno.
//
//go:noinline
func (o op) on(errno unix.Errno, l *label) op {
	l.uses = append(l.uses, use{o.i, o.fails(errno)})
	o.b.skips++
	return o
}

// then goes on at l when the call succeeds.
//
//go:noinline
func (o op) then(l *label) op {
	l.uses = append(l.uses, use{o.i, -1})
	o.b.skips++
	return o
}

// here puts the label before the next step that is added.
//
//go:noinline
func (b *builder) here(l *label) {
	for _, u := range l.uses {
		n := len(b.p.Steps) - u.step - 1
		b.far = b.far || n > math.MaxUint16
		skip := uint16(min(n, math.MaxUint16))
		if s := &b.p.Steps[u.step]; u.branch < 0 {
			s.Then = skip
		} else {
			s.OnErr[u.branch].Skip = skip
		}
	}
	b.skips -= len(l.uses)
	l.uses = nil
}

// finish returns the program if it is whole, within the limits of an encoding,
// and keeps the rules.
func (b *builder) finish() (*step.Program, error) {
	if b.skips != 0 {
		return nil, fmt.Errorf("compile: %d skips lead nowhere", b.skips) // a mistake in this package
	}
	size := len(b.p.Steps)*step.Size + len(b.p.Data) + 8*len(b.p.Relocs)
	for i := range b.p.Steps {
		size += len(b.p.Steps[i].Name)
	}
	if b.far || len(b.p.Steps) > step.MaxSteps || size > step.MaxSize-64<<10 {
		return nil, fmt.Errorf("spec makes a program of %d steps and %d bytes: too large: %w", len(b.p.Steps), size, ErrInvalid)
	}
	if len(b.p.Files) > step.MaxFiles {
		return nil, fmt.Errorf("spec with %d sources of mounts: %w", len(b.p.Files)-1, ErrInvalid)
	}
	return &b.p, Check(&b.p)
}

// expect fails with errno unless got&mask == want.
//
//go:noinline
func (b *builder) expect(name string, got step.Arg, want uint64, mask uint64, errno unix.Errno) op {
	return b.call(name, step.OpExpect, got, val(want), val(uint64(errno)), val(mask))
}

// same fails with errno unless got is want.
func (b *builder) same(name string, got, want step.Arg, errno unix.Errno) {
	b.call(name, step.OpExpect, got, want, val(uint64(errno)), val(^uint64(0)))
}

// never fails with errno, whoever comes there.
func (b *builder) never(name string, errno unix.Errno) { b.expect(name, val(0), 1, ^uint64(0), errno) }

// gate adds a wait before the start wait: the parent does meanwhile what the
// gate's name (step.GateMaps, ...) says. It has to stand before descriptors are
// closed for the start wait.
func (b *builder) gate(name string) { b.milestone("report that it is time", name) }

// milestone reports that its own step is reached and blocks until the parent
// writes one byte. End of file means that the parent has died.
func (b *builder) milestone(report, wait string) int {
	rec := make([]byte, step.RecordSize)
	i := len(b.p.Steps) + 1
	binary.NativeEndian.PutUint32(rec, uint32(i))
	b.call(report, unix.SYS_WRITE, val(step.ReportFD), b.bytes(rec), val(step.RecordSize))
	b.call(wait, unix.SYS_READ, val(step.StartFD), b.room(8), val(1)).to(rAny)
	b.expect("go on, not abandoned", reg(rAny), 1, ^uint64(0), unix.EPIPE)
	return i
}

// closeReg closes the descriptor in a register.
//
//go:noinline
func (b *builder) closeReg(r step.Register) { b.call("close it", unix.SYS_CLOSE, reg(r)) }

func val[T ~int | ~uint64 | ~uint32 | ~uint | ~int64](v T) step.Arg {
	return step.Arg{Kind: step.Const, Val: uint64(v)}
}

func reg(r step.Register) step.Arg { return step.Arg{Kind: step.Reg, Val: uint64(r)} }

func mem8(a step.Arg) step.Arg { return step.Arg{Kind: step.Mem8, Val: a.Val} }

// mem32 and mem64 are what a call has written behind an address.
func mem32(a step.Arg, off uintptr) step.Arg {
	return step.Arg{Kind: step.Mem32, Val: a.Val + uint64(off)}
}

func mem64(a step.Arg, off uintptr) step.Arg {
	return step.Arg{Kind: step.Mem64, Val: a.Val + uint64(off)}
}

// file is the descriptor that Files[i] has in the child.
func file(i int) step.Arg { return val(step.FirstFD + i) }

var rootFD = file(0)

// str puts a NUL-terminated string into the data.
//
//go:noinline
func (b *builder) str(s string) step.Arg { return b.bytes(append([]byte(s), 0)) }

// bytes puts constant bytes into the data, 8-byte aligned and shared with equal
// ones: nothing may write to them.
func (b *builder) bytes(c []byte) step.Arg {
	at, ok := b.intern[string(c)]
	if !ok {
		at = b.grow(len(c))
		copy(b.p.Data[at:], c)
		b.intern[string(c)] = at
	}
	return step.Arg{Kind: step.Addr, Val: at}
}

// words puts 64-bit words into the data.
//
//go:noinline
func (b *builder) words(w ...uint64) step.Arg {
	c := make([]byte, 0, 8*len(w))
	for _, v := range w {
		c = binary.NativeEndian.AppendUint64(c, v)
	}
	return b.bytes(c)
}

// room makes space that a call may write to.
func (b *builder) room(n int) step.Arg {
	return step.Arg{Kind: step.Addr, Val: b.grow(n)}
}

func (b *builder) grow(n int) uint64 {
	at := (len(b.p.Data) + 7) &^ 7
	b.p.Data = append(b.p.Data, make([]byte, at+n-len(b.p.Data))...)
	return uint64(at)
}

// vector puts a NULL-terminated array of string pointers into the data.
func (b *builder) vector(ss []string) step.Arg {
	at := b.grow(8 * (len(ss) + 1))
	for i, s := range ss {
		b.point(at+uint64(8*i), b.str(s))
	}
	return step.Arg{Kind: step.Addr, Val: at}
}

// iovec puts a struct iovec of a string, without its NUL, into the data.
func (b *builder) iovec(s string) step.Arg {
	text := b.str(s)
	iov := b.room(16) // pointer, length
	b.point(iov.Val, text)
	binary.NativeEndian.PutUint64(b.p.Data[iov.Val+8:], uint64(len(s)))
	return iov
}

// point makes the word at an offset of the data a pointer.
func (b *builder) point(at uint64, to step.Arg) {
	b.p.Relocs = append(b.p.Relocs, step.Reloc{At: uint32(at), To: uint32(to.Val)})
}
