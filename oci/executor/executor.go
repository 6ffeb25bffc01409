package executor

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"unsafe"

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
	// Sealed, in the place of Program, is a sealed memfd with the encoding. The child maps
	// it, and the names of steps are read from it: it stays open until then.
	Sealed *sys.FD
	// CgroupFD is the cgroup that the child is born in (CLONE_INTO_CGROUP), or -1
	// for the caller's own.
	CgroupFD int
	// PIDNS is the pid namespace that the child is born in (or a pidfd of somebody
	// in it), or -1 for the caller's (or a new one, if the program's clone flags say
	// so). Only with -1 is the calling thread the one that forks.
	PIDNS int
	// ProcFD is a directory of a procfs that shows the child, or -1 for /proc. It
	// tells a child that died from one that executed and closed its pipe.
	ProcFD int
	// Stdio become descriptors 0, 1 and 2. None may be negative.
	Stdio [3]int
	// IDMaps are written to the user namespace of the child at step.GateMaps, as part
	// of Ready. With nil the caller sees that gate himself.
	IDMaps *sys.IDMaps
	// Files become descriptors step.FirstFD and up, in the order of the program's
	// own table.
	Files []int
	// Pipes are what the child reports and is started through, where its parent may
	// end before it (FIFOs, see Attach), or nil for pipes of Start's own. They move to
	// the Child, or are closed where Start fails. A Report that is open with O_NONBLOCK is
	// waited for in the poller, which is the cheaper way.
	Pipes *Pipes
	// Wait blocks until a descriptor can be read, as by package ready. With it the
	// Child's own report pipe is waited for so, and not in the Go poller.
	Wait func(fd int) error
}

// Pipes are both ends of the two ways between a child and whoever starts it.
// Report and ChildStart are for reading. A ChildStart that is open for writing as
// well never ends: the child then waits also after its parent has died.
type Pipes struct {
	Report, Start           *sys.FD // ours
	ChildReport, ChildStart *sys.FD // the child's; closed here after the fork
}

// Close closes all that are open, where Start does not come to it.
func (p *Pipes) Close() {
	if p == nil {
		return
	}
	for _, f := range []*sys.FD{p.Report, p.Start, p.ChildReport, p.ChildStart} {
		f.Close()
	}
}

// Start forks a child and lets it run. It does not wait for anything but the birth
// of a sibling where the program goes on in one: the Child is that. Ready
// tells when the program got to its start wait or failed.
func Start(a Attr) (*Child, error) {
	v, err := a.check()
	if err != nil {
		a.Pipes.Close()
		return nil, err
	}
	c, err := newChild(v, a)
	if err != nil {
		return nil, err
	}
	defer c.closeChildEnds()
	if err := c.fork(v, a); err != nil {
		c.Close()
		return nil, err
	}
	if v.Hops {
		c.closeChildEnds() // else the pipe never ends
		if err := c.follow(); err != nil {
			c.Close()
			return nil, err
		}
	}
	return c, nil
}

// check returns the program, which must have the descriptors that it names.
func (a *Attr) check() (*step.View, error) {
	v, err := a.view()
	if err != nil {
		return nil, err
	}
	if v.Files != len(a.Files) {
		return nil, fmt.Errorf("start program with %d files of %d: %w", len(a.Files), v.Files, unix.EINVAL)
	}
	if min(a.Stdio[0], a.Stdio[1], a.Stdio[2]) < 0 || slices.ContainsFunc(a.Files, func(fd int) bool { return fd < 0 }) {
		return nil, fmt.Errorf("start program with a closed descriptor: %w", unix.EBADF)
	}
	if v.Hops && a.PIDNS >= 0 {
		return nil, fmt.Errorf("start program that forks in a foreign pid namespace: %w", unix.EINVAL)
	}
	return v, nil
}

func (a *Attr) view() (*step.View, error) {
	if a.Sealed != nil {
		return scan(a.Sealed)
	}
	return step.Parse(a.Program)
}

func newChild(v *step.View, a Attr) (*Child, error) {
	c := &Child{wait: v.Wait, ready: a.Wait, gates: v.Gates, hands: v.Hands, maps: a.IDMaps, proc: a.ProcFD, names: v.Name}
	if p := a.Pipes; p != nil {
		c.hear(p.Report)
		c.start, c.childReport, c.childStart = p.Start, p.ChildReport, p.ChildStart
		return c, nil
	}
	var p [2]int
	// The child's end does not block either, until its execve closes it: no matter, since
	// all that it ever writes fits into a pipe.
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	if c.heard = p[0]; a.Wait != nil {
		c.pipe = sys.NewFD(p[0])
	} else {
		c.hear(sys.NewFD(p[0]))
	}
	c.childReport = sys.NewFD(p[1])
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		c.Close()
		c.closeChildEnds()
		return nil, os.NewSyscallError("pipe2", err)
	}
	c.childStart, c.start = sys.NewFD(p[0]), sys.NewFD(p[1])
	return c, nil
}

// loading keeps the room for a prologue, which is several kilobytes for a moment.
var loading struct {
	sync.Mutex
	room []step.Step
}

// fork runs the program in a new process. Being born in another pid namespace
// is a property of the thread that forks, so that thread goes there and comes
// back.
func (c *Child) fork(v *step.View, a Attr) (err error) {
	if err := hideMemory(); err != nil {
		return err
	}
	loading.Lock()
	defer loading.Unlock()
	loading.room = loading.room[:0]
	if a.Sealed != nil {
		loading.room = append(loading.room, step.Step{}) // maps the program
	}
	loading.room = prologue(loading.room, a.Stdio, c.childReport.Int(), c.childStart.Int(), a.Files)
	birth := func() error { return c.forkSealed(v, loading.room, a.Sealed.Int(), a.CgroupFD) }
	if a.Sealed == nil {
		img, err := load(v, loading.room, c.childReport.Int())
		if err != nil {
			return err
		}
		defer img.free()
		if v.Hands {
			c.handsAt = uint64(uintptr(unsafe.Pointer(&img.ctl.shown)))
		}
		birth = func() (err error) {
			c.pid, c.pidfd, err = img.fork(v.Clone, a.CgroupFD)
			return err
		}
	}
	if a.PIDNS < 0 {
		err = birth()
	} else {
		err = forkInto(a.PIDNS, birth)
	}
	runtime.KeepAlive(c)
	return err
}

// forkInto forks in the pid namespace behind ns, from a goroutine that owns its
// thread: if that cannot come back, it ends with the goroutine, and nobody's
// next child is born among strangers.
func forkInto(ns int, fork func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		leave, err := enterPIDNS(ns)
		if err != nil {
			runtime.UnlockOSThread() // it never went there
			done <- err
			return
		}
		err = fork()
		if leave() == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// enterPIDNS makes the children of this thread be born in the pid namespace
// behind ns (its descriptor, or a pidfd of somebody in it), until the returned function is called.
func enterPIDNS(ns int) (leave func() error, err error) {
	own, err := ownPIDNS()
	if err != nil {
		return nil, err
	}
	if err := setPIDNS(ns); err != nil {
		return nil, fmt.Errorf("setns to pid namespace: %w", err)
	}
	return func() error { return setPIDNS(own) }, nil
}

// setPIDNS is brief (see package sys): nobody is waited for.
func setPIDNS(ns int) error {
	if _, _, errno := unix.RawSyscall(unix.SYS_SETNS, uintptr(ns), unix.CLONE_NEWPID, 0); errno != 0 {
		return errno
	}
	return nil
}
