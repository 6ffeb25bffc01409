package executor

import (
	"fmt"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// control is the child's only writable state. Its layout is known to the
// assembly loop.
type control struct {
	regs   [step.Registers]uint64
	args   [step.MaxArgs]uint64
	record step.Record
	cur    uintptr // first step
	end    uintptr // behind the last step
	data   uintptr // Data of the program
	index  int64   // number of the first step: minus the prologue's length
	pidfd  int32   // written by clone3, in the parent
	shown  uint64  // by the child: the descriptor that it hands over plus one
	taken  uint64  // by whoever took it: not zero
	limit  int64   // cycles of the processor's clock that the child waits for that
	// Where to go on behind the last step, once, and the pointers to be patched into the data
	// before. Not there, next is 0.
	next, nextEnd     uintptr
	relocs, relocsEnd uintptr
}

// cloneArgs is struct clone_args of linux/sched.h, as of CLONE_INTO_CGROUP.
type cloneArgs struct {
	flags      uint64
	pidfd      uint64
	_          uint64 // child_tid
	_          uint64 // parent_tid
	exitSignal uint64
	_          [5]uint64 // stack, stack_size, tls, set_tid, set_tid_size
	cgroup     uint64
}

// forkRun calls clone3 and returns its result in the parent; the child does
// not return. Implemented in assembly.
//
//go:noescape
func forkRun(args *cloneArgs, size, ctl uintptr) int

// oneFork keeps forks apart: an image may be copied during its own fork only.
var oneFork sync.Mutex

// image is a program ready to run, in a mapping of its own.
type image struct {
	mem []byte
	ctl *control
}

// load maps a private copy of the program behind the prologue and patches its
// pointers. fork frees it, whether it succeeds or not; the child keeps its copy
// until execve.
func load(v *step.View, prologue []step.Step, reportFD int) (*image, error) {
	stepsAt := int(unsafe.Sizeof(control{})+7) &^ 7
	dataAt := stepsAt + (len(prologue)+v.N)*step.Size
	mem, err := sys.BriefMap(-1, dataAt+v.Data.Len+8, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	// Before anything is in it: a child of another thread may be born at any time,
	// and is not to have the environment of this one.
	if err := sys.BriefAdvise(mem, unix.MADV_DONTFORK); err != nil {
		_ = sys.BriefUnmap(mem)
		return nil, os.NewSyscallError("madvise MADV_DONTFORK", err)
	}
	base := uintptr(unsafe.Pointer(&mem[0]))
	for i := range prologue {
		step.PutStep(mem[stepsAt+i*step.Size:], &prologue[i])
	}
	copy(mem[stepsAt+len(prologue)*step.Size:], v.Bytes(v.Steps))
	copy(mem[dataAt:], v.Bytes(v.Data))
	for r := range v.Relocations() {
		*(*uintptr)(unsafe.Pointer(&mem[dataAt+int(r.At)])) = base + uintptr(dataAt) + uintptr(r.To)
	}
	ctl := (*control)(unsafe.Pointer(&mem[0]))
	ctl.cur, ctl.end, ctl.data = base+uintptr(stepsAt), base+uintptr(dataAt), base+uintptr(dataAt)
	ctl.index = -int64(len(prologue))
	ctl.limit = patience
	ctl.regs[step.ReportRegister] = uint64(reportFD)
	return &image{mem: mem, ctl: ctl}, nil
}

// free gives the mapping back; a second call does nothing.
func (m *image) free() {
	// It fails for arguments that are no mapping only, and these were one.
	if m.mem != nil {
		_ = sys.BriefUnmap(m.mem)
	}
	m.mem, m.ctl = nil, nil
}

// fork makes the child, in the cgroup behind cgroupFD if that is not negative.
func (m *image) fork(flags uint64, cgroupFD int) (pid int, pidfd *sys.FD, err error) {
	oneFork.Lock()
	defer oneFork.Unlock()
	defer m.free() // within the lock: the next child is not to find it
	if err := sys.BriefAdvise(m.mem, unix.MADV_DOFORK); err != nil {
		return 0, nil, os.NewSyscallError("madvise MADV_DOFORK", err)
	}
	return m.ctl.fork(flags, cgroupFD)
}

// fork calls clone3. Preconditions: oneFork is held.
func (c *control) fork(flags uint64, cgroupFD int) (pid int, pidfd *sys.FD, err error) {
	// The pidfd's place is in the mapping, not on a stack that Go may move.
	args := &cloneArgs{
		flags:      flags | unix.CLONE_PIDFD | unix.CLONE_CLEAR_SIGHAND,
		pidfd:      uint64(uintptr(unsafe.Pointer(&c.pidfd))),
		exitSignal: uint64(unix.SIGCHLD),
	}
	if cgroupFD >= 0 {
		args.flags |= unix.CLONE_INTO_CGROUP
		args.cgroup = uint64(cgroupFD)
	}
	if pid = forkRun(args, unsafe.Sizeof(*args), uintptr(unsafe.Pointer(c))); pid < 0 {
		return 0, nil, fmt.Errorf("clone3: %w", unix.Errno(-pid))
	}
	return pid, sys.NewFD(int(c.pidfd)), nil
}
