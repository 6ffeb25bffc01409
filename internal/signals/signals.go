// Package signals takes signals past the Go runtime. os/signal has a thread of its own that
// is woken and waited for twice for each signal that is asked for: for all of
// them that is some hundred changes of context, a millisecond, at the start of a process that lives for
// five. Here a handler of a few instructions writes the signal's number into a pipe.
//
//	kernel ── signal ──► caught (signals_amd64.s) ── 1 byte ──► pipe ──► whoever polls it
package signals

import (
	"fmt"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// caughtFD is the end of the pipe that the handler writes to.
var caughtFD int32 //nolint:unused // signals_amd64.s reads it

// handlers returns the addresses of the handler and of what a handler returns to.
func handlers() (caught, restore uintptr)

var pipe = sync.OnceValues(func() (*sys.FD, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	caughtFD = int32(p[1]) // stays open: the handler may run at any time
	return sys.NewFD(p[0]), nil
})

// action is the kernel's struct sigaction.
type action struct {
	handler  uintptr
	flags    uint64
	restorer uintptr
	mask     uint64
}

// Flags of an action that package unix does not have.
const (
	saRestorer = 0x04000000
	saOnStack  = 0x08000000
	saRestart  = 0x10000000
)

// Catch has signals written into the pipe from now on and returns the end to read, which
// does not block and is the same for all calls: a byte for each signal, its number. More than fit
// into a pipe are lost. The descriptor stays the package's. Handlers do not survive execve, and are not
// inherited through CLONE_CLEAR_SIGHAND. Catch and GiveBack are called by one goroutine at a time.
func Catch(list ...unix.Signal) (*sys.FD, error) {
	r, err := pipe()
	if err != nil {
		return nil, err
	}
	a := action{flags: saRestorer | saOnStack | saRestart, mask: ^uint64(0)}
	a.handler, a.restorer = handlers()
	for _, s := range list {
		var old action
		if err := sigaction(s, &a, &old); err != nil {
			return nil, err
		}
		if before[s].restorer == 0 {
			before[s] = old
		}
	}
	return r, nil
}

// before are the actions that Catch has replaced.
var before [65]action

// GiveBack has the Go runtime see signals again that were caught: os/signal takes it for granted that it does.
func GiveBack(list ...unix.Signal) error {
	for _, s := range list {
		if before[s].restorer == 0 {
			continue
		}
		if err := sigaction(s, &before[s], nil); err != nil {
			return err
		}
		before[s] = action{}
	}
	return nil
}

func sigaction(s unix.Signal, a, old *action) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(s), uintptr(unsafe.Pointer(a)), uintptr(unsafe.Pointer(old)), unsafe.Sizeof(a.mask), 0, 0)
	if errno != 0 {
		return fmt.Errorf("catch %s: %w", unix.SignalName(s), errno)
	}
	return nil
}

// Read returns the signals that have come since the last call, at most some dozens, in buf, which
// it overwrites.
func Read(r *sys.FD, buf []byte) []byte {
	n, err := unix.Read(r.Int(), buf)
	if err != nil { // EAGAIN: none
		return nil
	}
	return buf[:n]
}

// ToPassOn returns all signals that somebody can send to a process in place of another one: but for
// those that cannot be caught, those that tell of a fault of the process itself, and SIGCHLD, SIGPIPE, SIGPROF and
// SIGURG, which are about the process that gets them (the last is the Go runtime's own).
func ToPassOn() []unix.Signal {
	list := []unix.Signal{
		unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGABRT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM, unix.SIGTERM, unix.SIGCONT, unix.SIGTSTP,
		unix.SIGTTIN, unix.SIGTTOU, unix.SIGXCPU, unix.SIGXFSZ, unix.SIGVTALRM, unix.SIGWINCH, unix.SIGIO, unix.SIGPWR,
	}
	for s := unix.Signal(35); s <= 64; s++ { // realtime; 32 to 34 are C libraries'
		list = append(list, s)
	}
	return list
}
