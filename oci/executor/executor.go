package executor

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// Attr says what a child is made from. Descriptors stay the caller's.
type Attr struct {
	// Program is the encoding of a step.Program. What runs is a copy; the
	// names of steps are looked up in Program itself, which therefore has to stay
	// readable until Ready, or Release where there is one, has returned.
	Program []byte
	// CgroupFD is the cgroup that the child is born in (CLONE_INTO_CGROUP), or -1
	// for the caller's own.
	CgroupFD int
	// PIDNS is the pid namespace that the child is born in, or -1 for the caller's
	// (or a new one, if the program's clone flags say so).
	PIDNS int
	// ProcFD is a directory of a procfs that shows the child, or -1 for /proc. It
	// tells a child that died from one that executed and closed its pipe.
	ProcFD int
	// Stdio become descriptors 0, 1 and 2. None may be negative.
	Stdio [3]int
	// Files become descriptors step.FirstFD and up, in the order of the program's
	// own table.
	Files []int
}

// Start forks a child and lets it run. It does not wait for anything: Ready
// tells when the program got to its start wait or failed.
func Start(a Attr) (*Child, error) {
	v, err := step.Parse(a.Program)
	if err != nil {
		return nil, err
	}
	if v.Files != len(a.Files) {
		return nil, fmt.Errorf("start program with %d files of %d: %w", len(a.Files), v.Files, unix.EINVAL)
	}
	c, err := newChild(v, a.ProcFD)
	if err != nil {
		return nil, err
	}
	defer c.closeChildEnds()
	if err := c.fork(v, a); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func newChild(v *step.View, proc int) (*Child, error) {
	c := &Child{wait: v.Wait, proc: proc, names: v.Name}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	c.report, c.childReport = sys.NewFD(p[0]), sys.NewFD(p[1])
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		c.Close()
		c.closeChildEnds()
		return nil, os.NewSyscallError("pipe2", err)
	}
	c.childStart, c.start = sys.NewFD(p[0]), sys.NewFD(p[1])
	return c, nil
}

// fork runs the program in a new process. Being born in another pid namespace
// is a property of the thread that forks, so that thread goes there and comes
// back; if it cannot come back it is thrown away.
func (c *Child) fork(v *step.View, a Attr) error {
	if err := hideMemory(); err != nil {
		return err
	}
	pro := prologue(a.Stdio, c.childReport.Int(), c.childStart.Int(), a.Files)
	img, err := load(v, pro, c.childReport.Int())
	if err != nil {
		return err
	}
	defer img.free()
	runtime.LockOSThread()
	leave, err := enterPIDNS(a.PIDNS)
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	c.pid, c.pidfd, err = img.fork(v.Clone, a.CgroupFD)
	if leave() == nil {
		runtime.UnlockOSThread()
	}
	runtime.KeepAlive(c)
	return err
}

// enterPIDNS makes the children of this thread be born in the pid namespace
// behind ns, until the returned function is called.
func enterPIDNS(ns int) (leave func() error, err error) {
	if ns < 0 {
		return func() error { return nil }, nil
	}
	own, err := ownPIDNS()
	if err != nil {
		return nil, err
	}
	if err := unix.Setns(ns, unix.CLONE_NEWPID); err != nil {
		return nil, fmt.Errorf("setns to pid namespace: %w", err)
	}
	return func() error { return unix.Setns(own, unix.CLONE_NEWPID) }, nil
}

// prologue moves the descriptors in use to the numbers that programs know,
// first out of the way and then down, so that no move overwrites a source, and
// closes everything else. It stands before every program: a child that blocks
// for hours must not hold the pipes of its neighbours open.
func prologue(stdio [3]int, report, start int, files []int) []step.Step {
	src := append([]int{stdio[0], stdio[1], stdio[2], report, start}, files...)
	park := len(src) + 64
	var p []step.Step
	// Registers are few; a parked descriptor is known by its number instead. The
	// range above park may hold descriptors, so each is forced with dup3, which
	// could overwrite a source that is still to be moved: park above all of them.
	for _, fd := range src {
		park = max(park, fd+1)
	}
	for i, fd := range src {
		p = append(p, call(unix.SYS_DUP3, c64(fd), c64(park+i), c64(unix.O_CLOEXEC)))
	}
	for i := range src {
		flags := unix.O_CLOEXEC
		if i <= 2 {
			flags = 0
		}
		p = append(p, call(unix.SYS_DUP3, c64(park+i), c64(i), c64(flags)))
	}
	set := call(step.OpSet, c64(step.ReportFD))
	set.Result = step.ReportRegister
	return append(p, set, call(unix.SYS_CLOSE_RANGE, c64(len(src)), c64(0xffffffff), c64(0)))
}

func c64(v int) step.Arg { return step.Arg{Kind: step.Const, Val: uint64(v)} }

func call(nr uint32, args ...step.Arg) step.Step {
	s := step.Step{Nr: nr, Result: step.NoResult}
	copy(s.Args[:], args)
	return s
}
