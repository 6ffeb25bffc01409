package monitor

import (
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/ready"
	"github.com/vitrine-runtime/vitrine/internal/signals"
	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/executor"
	"github.com/vitrine-runtime/vitrine/oci/wire"
)

// family knows our children. Each has exactly one waiter.
type family struct {
	// birth is held while a child is made and registered, and while an orphan is
	// reaped: a child that dies at once must not be taken for an orphan.
	birth sync.Mutex

	mu    sync.Mutex
	known map[int]bool

	ready *ready.Set // for reports and deaths

	sigchld chan struct{} // a child may have died; nil unless orphans are adopted
}

// process is a child of ours, from fork to reaping.
type process struct {
	*executor.Child
	family *family
	// verbs is held around Ready, Release and the reaping: the first two look at a child
	// that may be dead, and it must then still be a zombie.
	verbs   sync.Mutex
	reaped  bool    // guarded by verbs
	program *sys.FD // for the names of its steps, until settle; guarded by verbs

	gone chan struct{} // closed when it was reaped

	closing sync.Mutex // held around Close, and by others as long as they use the number of its pidfd, which may be another's then
}

// withPidFD calls f with the process's pidfd, or with -1 where it is closed.
func (p *process) withPidFD(f func(pidfd int) error) error {
	p.closing.Lock()
	defer p.closing.Unlock()
	return f(p.PidFD().Int())
}

// close gives back what is held of the process. What is under way in verbs ends before.
func (p *process) close() {
	p.verbs.Lock()
	defer p.verbs.Unlock()
	p.closing.Lock()
	defer p.closing.Unlock()
	p.Close()
}

func (f *family) init() (err error) {
	f.known = map[int]bool{}
	f.ready, err = ready.New()
	return err
}

// start forks a child that runs the program behind the memfd, which moves into the
// process. It is not in our memory: what a container that is still to be started has in its
// environment is nothing that another container's init could have a copy of.
func (f *family) start(program *sys.FD, a executor.Attr) (*process, error) {
	f.birth.Lock()
	defer f.birth.Unlock()
	a.Sealed, a.Wait = program, f.ready.Wait
	c, err := executor.Start(a)
	if err != nil {
		program.BriefClose()
		return nil, err
	}
	p := &process{Child: c, family: f, program: program, gone: make(chan struct{})}
	f.mu.Lock()
	f.known[c.Pid()] = true
	f.mu.Unlock()
	return p, nil
}

// wait blocks until the process is dead, reaps it and returns how it ended. It
// is called once, by the process's own goroutine.
//
// A death that cannot be reaped yet, because a debugger that holds the process has not looked, is asked for again now and then.
func (p *process) wait() wire.Status {
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		err := p.family.ready.Wait(p.PidFD().Int())
		at := time.Now().UnixNano()
		if err != nil { // that cannot be; then a thread waits
			_ = waitid(unix.P_PID, p.Pid(), &siginfo{}, unix.WEXITED|unix.WNOWAIT)
		}
		if status, ok := p.reap(at); ok {
			return status
		}
		time.Sleep(pause)
	}
}

// reap takes a process that is dead, if it is.
func (p *process) reap(at int64) (status wire.Status, ok bool) {
	p.verbs.Lock()
	defer p.verbs.Unlock()
	var si siginfo
	err := waitid(unix.P_PID, p.Pid(), &si, unix.WEXITED|unix.WNOHANG)
	if err == nil && si.pid == 0 {
		return status, false
	}
	p.reaped = true
	p.settle()
	p.family.forget(p.Pid())
	close(p.gone)
	if err != nil {
		// Somebody else has reaped our child. Nobody does; but if, then the truth is
		// that we do not know how it ended.
		return wire.Status{Code: 255, At: at}, true
	}
	return si.result(at), true
}

// settle gives the program back once no step of it can fail any more: after
// execve or death. Preconditions: p.verbs is held.
//
//go:noinline
func (p *process) settle() {
	p.program.BriefClose()
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
		f.poke() // a known zombie may have hidden an orphan behind it
	}
}

func (f *family) poke() {
	select {
	case f.sigchld <- struct{}{}:
	default:
	}
}

// adoptOrphans reaps what containers leave behind where no init of a pid
// namespace does: in pods that use the host's. We are their subreaper.
func (f *family) adoptOrphans() error {
	caught, err := signals.Catch(unix.SIGCHLD)
	if err != nil {
		return err
	}
	f.sigchld = make(chan struct{}, 1)
	go func() { // for the life of the process
		for buf := make([]byte, 64); f.ready.Wait(caught.Int()) == nil; f.poke() {
			signals.Read(caught, buf)
		}
	}()
	go func() { // for the life of the process
		for range f.sigchld {
			for f.reapOrphan() {
			}
		}
	}()
	return nil
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

// waitid is a brief call with WNOHANG.
func waitid(kind, id int, si *siginfo, options int) error {
	for {
		var errno unix.Errno
		if options&unix.WNOHANG != 0 {
			_, _, errno = unix.RawSyscall6(unix.SYS_WAITID, uintptr(kind), uintptr(id), uintptr(unsafe.Pointer(si)), uintptr(options), 0, 0)
		} else {
			_, _, errno = unix.Syscall6(unix.SYS_WAITID, uintptr(kind), uintptr(id), uintptr(unsafe.Pointer(si)), uintptr(options), 0, 0)
		}
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
