package monitor

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/oci/executor"
	"github.com/vitrine-runtime/vitrine/oci/wire"
)

// family knows our children. Each has exactly one waiter.
type family struct {
	// birth is held while a child is made and registered, and while an orphan is
	// reaped: a child that dies at once must not be taken for an orphan. It also
	// keeps forks apart: a program lies readable in our memory during its own
	// fork only, and never in the image of another container's child.
	birth sync.Mutex

	mu    sync.Mutex
	known map[int]bool

	sigchld chan os.Signal // nil unless orphans are adopted
}

// process is a child of ours, from fork to reaping.
type process struct {
	*executor.Child
	family *family
	// verbs is held around Ready, Release and the reaping: the first two look at a child
	// that may be dead, and it must then still be a zombie.
	verbs   sync.Mutex
	reaped  bool   // guarded by verbs
	program []byte // mapped for the names of its steps, until settle; guarded by verbs

	gone  chan struct{} // closed when it was reaped
	watch *os.File      // its pidfd, in the poller
}

func (f *family) init() { f.known = map[int]bool{} }

// start forks a child that runs the program behind the memfd.
func (f *family) start(program int, a executor.Attr) (*process, error) {
	f.birth.Lock()
	defer f.birth.Unlock()
	b, err := mapProgram(program)
	if err != nil {
		return nil, err
	}
	a.Program = b
	c, err := executor.Start(a)
	if err != nil {
		_ = unix.Munmap(b)
		return nil, err
	}
	p := &process{Child: c, family: f, program: b, gone: make(chan struct{})}
	f.mu.Lock()
	f.known[c.Pid()] = true
	f.mu.Unlock()
	if p.watch, err = watchPidFD(c.PidFD().Int()); err != nil {
		// Nobody could wait for it in the poller: end it and wait here.
		p.kill()
		_, _ = unix.Wait4(c.Pid(), nil, 0, nil)
		f.forget(c.Pid())
		p.settle()
		c.Close()
		return nil, err
	}
	return p, nil
}

// mapProgram maps an encoded program for reading. It must be sealed: a file
// that shrinks under a mapping kills its reader.
func mapProgram(fd int) ([]byte, error) {
	const want = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil || seals&want != want {
		return nil, fmt.Errorf("map program: not a sealed memfd: %w", unix.EINVAL)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("stat program: %w", err)
	}
	if st.Size <= 0 || st.Size > wire.MaxProgram {
		return nil, fmt.Errorf("map program of %d bytes: %w", st.Size, unix.EINVAL)
	}
	b, err := unix.Mmap(fd, 0, int(st.Size), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("map program: %w", err)
	}
	// The child has the executor's copy; and a container that is still to be started
	// has its environment here, which no other container's init is to have.
	if err := unix.Madvise(b, unix.MADV_DONTFORK); err != nil {
		_ = unix.Munmap(b)
		return nil, fmt.Errorf("hide program from children: %w", err)
	}
	return b, nil
}

// watchPidFD returns a file of the process that the Go poller waits on, so that
// a running container costs no thread.
func watchPidFD(pidfd int) (*os.File, error) {
	n, err := unix.FcntlInt(uintptr(pidfd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate pidfd: %w", err)
	}
	if err := unix.SetNonblock(n, true); err != nil {
		unix.Close(n)
		return nil, fmt.Errorf("make pidfd non-blocking: %w", err)
	}
	return os.NewFile(uintptr(n), "pidfd"), nil
}

// wait blocks until the process is dead, reaps it and returns how it ended. It
// is called once, by the process's own goroutine.
func (p *process) wait() wire.Status {
	raw, err := p.watch.SyscallConn()
	if err == nil {
		err = raw.Read(func(fd uintptr) bool {
			var si siginfo
			err := waitid(unix.P_PIDFD, int(fd), &si, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT)
			return err != nil && !errors.Is(err, unix.EAGAIN) || si.pid != 0
		})
	}
	at := time.Now().UnixNano()
	p.verbs.Lock()
	defer p.verbs.Unlock()
	var si siginfo
	if err == nil {
		err = waitid(unix.P_PID, p.Pid(), &si, unix.WEXITED)
	}
	p.reaped = true
	p.settle()
	p.watch.Close()
	p.family.forget(p.Pid())
	close(p.gone)
	if err != nil {
		// Somebody else has reaped our child. Nobody does; but if, then the truth is
		// that we do not know how it ended.
		return wire.Status{Code: 255, At: at}
	}
	return si.result(at)
}

// settle gives the program back once no step of it can fail any more: after
// execve or death. Preconditions: p.verbs is held.
func (p *process) settle() {
	if p.program != nil {
		_ = unix.Munmap(p.program)
		p.program = nil
	}
}

// dead says whether the process has ended, reaped or not.
func dead(pidfd int) bool {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return n > 0 || err != nil
}

// kill ends the process. It is no error if it has ended by itself.
func (p *process) kill() { _ = unix.PidfdSendSignal(p.PidFD().Int(), unix.SIGKILL, nil, 0) }

func (f *family) forget(pid int) {
	f.mu.Lock()
	delete(f.known, pid)
	f.mu.Unlock()
	if f.sigchld != nil {
		select {
		case f.sigchld <- syscall.SIGCHLD: // a known zombie may have hidden an orphan behind it
		default:
		}
	}
}

// adoptOrphans reaps what containers leave behind where no init of a pid
// namespace does: in pods that use the host's. We are their subreaper.
func (f *family) adoptOrphans() {
	f.sigchld = make(chan os.Signal, 1)
	signal.Notify(f.sigchld, syscall.SIGCHLD)
	go func() { // for the life of the process
		for range f.sigchld {
			for f.reapOrphan() {
			}
		}
	}()
}

// reapOrphan looks at a zombie without taking it, and takes it only if it is
// nobody's. A known one is left to its waiter, whose forget calls us again.
func (f *family) reapOrphan() bool {
	f.birth.Lock()
	defer f.birth.Unlock()
	var si siginfo
	err := waitid(unix.P_ALL, 0, &si, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT)
	if err != nil || si.pid == 0 {
		return false
	}
	f.mu.Lock()
	known := f.known[int(si.pid)]
	f.mu.Unlock()
	if known {
		return false
	}
	return waitid(unix.P_PID, int(si.pid), &si, unix.WEXITED|unix.WNOHANG) == nil
}

// siginfo is the part of siginfo_t that waitid fills in.
type siginfo struct {
	signo, errno, code, _ int32
	pid                   int32
	uid                   uint32
	status                int32
	_                     [100]byte
}

func waitid(kind, id int, si *siginfo, options int) error {
	for {
		_, _, errno := unix.Syscall6(unix.SYS_WAITID, uintptr(kind), uintptr(id), uintptr(unsafe.Pointer(si)), uintptr(options), 0, 0)
		if errno == 0 {
			return nil
		}
		if errno != unix.EINTR {
			return errno
		}
	}
}

// result reads si_code and si_status: CLD_EXITED (1) comes with an exit code,
// CLD_KILLED (2) and CLD_DUMPED (3) with a signal.
func (si *siginfo) result(at int64) wire.Status {
	s := wire.Status{At: at}
	if si.code == 1 {
		s.Code = si.status
	} else {
		s.Signal = si.status
	}
	return s
}
