// Package ready lets goroutines wait until descriptors can be read, for a process that does
// that often and shortly.
//
//	pipe, pidfd, ... ── EPOLLIN, once ──► epoll instance ──► Go poller ──► one goroutine ──► who waits
//
// The Go poller can do it, too: by an os.File around the descriptor. That asks to be told of
// room to write as well, costs half a dozen calls for each descriptor, and the Go
// scheduler hears of some of them, which has it look after the process for a while (see
// sys.BriefRead). Here a wait is one brief call.
package ready

import (
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// Set is what is waited for at present.
type Set struct {
	fd  *os.File // the epoll instance
	raw syscall.RawConn

	mu      sync.Mutex
	waiting map[int32]chan struct{}
	ended   bool
}

// New returns an empty set.
func New() (*Set, error) {
	fd, err := sys.Epoll()
	if err != nil {
		return nil, err
	}
	s := &Set{fd: fd.File("ready set"), waiting: map[int32]chan struct{}{}}
	if s.raw, err = s.fd.SyscallConn(); err != nil {
		s.fd.Close()
		return nil, err
	}
	go s.watch() // ends with Close
	return s, nil
}

// Close ends the set and everybody's Wait.
func (s *Set) Close() { s.fd.Close() }

// Wait blocks until the descriptor can be read, or its other side is gone. It may
// return too early, as every wait may: who finds nothing to read waits again. Only one
// goroutine may wait for a descriptor, and nobody closes it meanwhile.
func (s *Set) Wait(fd int) error {
	done := make(chan struct{})
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return os.ErrClosed
	}
	s.waiting[int32(fd)] = done
	s.mu.Unlock()
	if errno := s.arm(fd); errno != 0 {
		s.mu.Lock()
		delete(s.waiting, int32(fd))
		s.mu.Unlock()
		return os.NewSyscallError("epoll_ctl", errno)
	}
	<-done
	return nil
}

// arm asks for one event. A descriptor that was waited for before is still there,
// without wishes; closed, it goes by itself.
func (s *Set) arm(fd int) (errno unix.Errno) {
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLONESHOT, Fd: int32(fd)}
	err := s.raw.Control(func(set uintptr) {
		for _, op := range []uintptr{unix.EPOLL_CTL_ADD, unix.EPOLL_CTL_MOD} {
			_, _, errno = unix.RawSyscall6(unix.SYS_EPOLL_CTL, set, op, uintptr(fd), uintptr(unsafe.Pointer(&ev)), 0, 0)
			if errno != unix.EEXIST {
				return
			}
		}
	})
	if err != nil {
		return unix.EBADF
	}
	return errno
}

// watch wakes whoever waits for what has come.
func (s *Set) watch() {
	var ev [16]unix.EpollEvent
	_ = s.raw.Read(func(set uintptr) bool {
		for {
			n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, set, uintptr(unsafe.Pointer(&ev[0])), uintptr(len(ev)), 0, 0, 0)
			if errno == unix.EINTR {
				continue
			}
			if errno != 0 {
				return true // cannot be
			}
			s.wake(ev[:n])
			if int(n) < len(ev) {
				return false
			}
		}
	})
	s.mu.Lock()
	s.ended = true
	for fd, done := range s.waiting {
		delete(s.waiting, fd)
		close(done)
	}
	s.mu.Unlock()
}

func (s *Set) wake(ev []unix.EpollEvent) {
	s.mu.Lock()
	for i := range ev {
		if done := s.waiting[ev[i].Fd]; done != nil {
			delete(s.waiting, ev[i].Fd)
			close(done)
		}
	}
	s.mu.Unlock()
}
