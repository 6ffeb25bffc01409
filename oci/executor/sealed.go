package executor

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// A sealed program is never in the memory of who forks: that reads it piece by piece
// to check it, and the child maps the file.
//
//	parent   control ─ mmap ─ dup3 … close_range        one page, kept for the next
//	               │                │
//	child          │       ┌────────┘ next
//	         place ▼       ▼
//	         [ header | steps … | data | relocations | names ]   the file, private
//
// To map it here, too, and give it back would cost more than everything else that a parent does
// before it forks: where another thread has run meanwhile, each of its processors is
// interrupted for the pages that go. And what is not here cannot be
// found in the child of another thread.

// sealed is a program in a memfd that nobody can change any more.
type sealed struct {
	fd   *sys.FD
	room []byte // for what Bytes returns; what does not fit is allocated
}

// Bytes implements step.Source.
func (s *sealed) Bytes(at, n int) ([]byte, error) {
	b := s.room
	if n > len(b) {
		b = make([]byte, n)
	}
	b = b[:n]
	for done := 0; done < n; {
		k, err := sys.BriefPread(s.fd.Int(), b[done:], at+done)
		if err == nil && k == 0 {
			err = unix.ENODATA
		}
		if err != nil {
			return nil, os.NewSyscallError("read program", err)
		}
		done += k
	}
	return b, nil
}

// scan checks a sealed program. What can still change, or shrink under a child that has
// it mapped, is none.
func scan(f *sys.FD) (*step.View, error) {
	fd := f.Int()
	const want = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK
	seals, _, errno := unix.RawSyscall(unix.SYS_FCNTL, uintptr(fd), unix.F_GET_SEALS, 0)
	var st unix.Stat_t
	if errno == 0 && seals&want == want {
		_, _, errno = unix.RawSyscall(unix.SYS_FSTAT, uintptr(fd), uintptr(unsafe.Pointer(&st)), 0)
	} else {
		errno = unix.EINVAL
	}
	if errno != 0 {
		return nil, fmt.Errorf("read program, a sealed memfd: %w", errno)
	}
	oneFork.Lock()
	defer oneFork.Unlock()
	if err := roomFor(step.Piece); err != nil {
		return nil, err
	}
	s := &sealed{fd: f, room: stage} // nobody forks meanwhile
	v, err := step.Scan(s, int(min(st.Size, step.MaxSize+1)))
	s.room = nil // from here on it is asked for names, at any time
	return v, err
}

// place is where a child maps its program: a range of addresses that nothing else
// can have. The parent's own is not copied, so the child finds it free. Guarded by oneFork.
var place uintptr

func findPlace() error {
	const align = 64 << 10 // what the kernel maps at once around a page that is looked at
	mem, err := sys.BriefMap(-1, step.MaxSize+align, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err == nil {
		err = sys.BriefAdvise(mem, unix.MADV_DONTFORK)
	}
	if err != nil {
		return os.NewSyscallError("mmap", err)
	}
	place = (uintptr(unsafe.Pointer(unsafe.SliceData(mem))) + align - 1) &^ (align - 1)
	return nil
}

// stage is the first part of a sealed program's image: control and the steps that lead
// to the program. It holds nothing but numbers of descriptors then, and is used again by
// the next fork. Before, a piece of the program lies in it that is looked at; what the steps do
// not write over is cleared. Guarded by oneFork.
var stage []byte

// roomFor makes the stage as large as that.
func roomFor(size int) error {
	if size <= len(stage) {
		return nil
	}
	if err := hideMemory(); err != nil { // all that is there; not this
		return err
	}
	mem, err := sys.BriefMap(-1, (size+4095)&^4095, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return os.NewSyscallError("mmap", err)
	}
	if stage != nil {
		_ = sys.BriefUnmap(stage)
	}
	stage = mem
	return nil
}

// setStage fills the stage for a program. Preconditions: oneFork is held.
func setStage(v *step.View, prologue []step.Step, at uintptr, reportFD int) (*control, error) {
	stepsAt := int(unsafe.Sizeof(control{})+7) &^ 7
	size := stepsAt + len(prologue)*step.Size
	if err := roomFor(size); err != nil {
		return nil, err
	}
	for i := range prologue {
		step.PutStep(stage[stepsAt+i*step.Size:], &prologue[i])
	}
	clear(stage[size:])
	base := uintptr(unsafe.Pointer(&stage[0]))
	ctl := (*control)(unsafe.Pointer(&stage[0]))
	*ctl = control{
		cur: base + uintptr(stepsAt), end: base + uintptr(size), index: -int64(len(prologue)), limit: patience,
		data: at + uintptr(v.Data.At),
		next: at + uintptr(v.Steps.At), nextEnd: at + uintptr(v.Steps.At+v.Steps.Len),
		relocs: at + uintptr(v.Relocs.At), relocsEnd: at + uintptr(v.Relocs.At+v.Relocs.Len),
	}
	ctl.regs[step.ReportRegister] = uint64(reportFD)
	return ctl, nil
}

// forkSealed makes a child that maps the program behind fd and runs it. The first step of
// the prologue is kept free for that.
func (c *Child) forkSealed(v *step.View, prologue []step.Step, fd, cgroupFD int) (err error) {
	oneFork.Lock()
	defer oneFork.Unlock()
	if place == 0 {
		if err := findPlace(); err != nil {
			return err
		}
	}
	prologue[0] = step.Step{Nr: unix.SYS_MMAP, Result: step.NoResult} // whose arguments are all constants
	for i, a := range [...]uintptr{place, uintptr(v.Size), unix.PROT_READ | unix.PROT_WRITE, unix.MAP_PRIVATE | unix.MAP_FIXED, uintptr(fd), 0} {
		prologue[0].Args[i].Val = uint64(a)
	}
	ctl, err := setStage(v, prologue, place, c.childReport.Int())
	if err != nil {
		return err
	}
	if v.Hands {
		c.handsAt = uint64(uintptr(unsafe.Pointer(&ctl.shown)))
	}
	c.pid, c.pidfd, err = ctl.fork(v.Clone, cgroupFD)
	return err
}
