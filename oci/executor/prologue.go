package executor

import (
	"math"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
)

// prologue moves the descriptors in use to the numbers that programs know and
// closes everything else. It stands before every program: a child that blocks
// for hours must not hold the pipes of its neighbours open.
//
// Sources and places overlap, so the order matters: a place is filled when
// nobody needs any more what lies there. What remains are rings (1 to 2, 2 to
// 1), opened by taking one out into a register. No number is used but the
// places and the lowest free ones: RLIMIT_NOFILE may leave little room. The steps are
// appended to room.
func prologue(room []step.Step, stdio [3]int, report, start int, files []int) []step.Step {
	src := append([]int{stdio[0], stdio[1], stdio[2], report, start}, files...)
	places := len(src)
	m := moves{src: make([]step.Arg, places), users: make([]int, places), steps: room}
	for i, fd := range src {
		m.src[i] = c64(fd)
		if fd < places && fd != i {
			m.users[fd]++
		}
	}
	m.keep(report)
	m.set(step.ReportRegister, step.Arg{Kind: step.Reg, Val: uint64(aside)}) // failures are told through the copy meanwhile
	for i := range src {
		m.chain(i)
	}
	for i := range src {
		m.ring(i)
	}
	m.set(step.ReportRegister, c64(step.ReportFD))
	return append(m.steps, call(unix.SYS_CLOSE_RANGE, c64(places), c64(math.MaxUint32), c64(0)))
}

// moves is the state of the descriptors' rearrangement.
type moves struct {
	src   []step.Arg // what is to come to place i; done once Kind is moved
	users []int      // how many other places still want what lies in place i
	steps []step.Step
}

// moved marks a place that has what it is to have; it is no kind of step.
const moved step.Kind = 0xff

// aside is the register of the descriptor that was last put out of the way.
const aside step.Register = 0

// keep copies a descriptor to a number above the places.
func (m *moves) keep(fd int) {
	s := call(unix.SYS_FCNTL, c64(fd), c64(unix.F_DUPFD_CLOEXEC), c64(len(m.src)))
	s.Result = aside
	m.steps = append(m.steps, s)
}

func (m *moves) set(r step.Register, v step.Arg) {
	s := call(step.OpSet, v)
	s.Result = r
	m.steps = append(m.steps, s)
}

// chain fills place i if nobody needs its content, and then the place that
// became free by that, and so on.
func (m *moves) chain(i int) {
	for i >= 0 && m.src[i].Kind != moved && m.users[i] == 0 {
		from := m.fill(i)
		if from < 0 || from >= len(m.src) || from == i {
			return
		}
		m.users[from]--
		i = from
	}
}

// fill adds the step that fills place i and returns the number of its source,
// or -1 for the register.
func (m *moves) fill(i int) int {
	src := m.src[i]
	m.src[i].Kind = moved
	dup, fd := unix.O_CLOEXEC, unix.FD_CLOEXEC
	if i <= 2 {
		dup, fd = 0, 0
	}
	if src == c64(i) { // dup3 refuses equal numbers
		m.steps = append(m.steps, call(unix.SYS_FCNTL, src, c64(unix.F_SETFD), c64(fd)))
		return i
	}
	m.steps = append(m.steps, call(unix.SYS_DUP3, src, c64(i), c64(dup)))
	if src.Kind == step.Reg {
		return -1
	}
	return int(src.Val)
}

// ring opens the ring that place i is in, if it is in one: only rings are left.
// Each of their members has one user, who takes the copy in the register.
func (m *moves) ring(i int) {
	if m.src[i].Kind == moved {
		return
	}
	m.keep(i)
	for j := range m.src {
		if m.src[j] == c64(i) {
			m.src[j] = step.Arg{Kind: step.Reg, Val: uint64(aside)}
		}
	}
	m.users[i] = 0
	m.chain(i)
}

func c64(v int) step.Arg { return step.Arg{Kind: step.Const, Val: uint64(v)} }

func call(nr uint32, args ...step.Arg) step.Step {
	s := step.Step{Nr: nr, Result: step.NoResult}
	copy(s.Args[:], args)
	return s
}
