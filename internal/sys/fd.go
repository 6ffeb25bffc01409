package sys

import (
	"os"
	"runtime"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// FD owns one file descriptor. Exactly one FD owns a descriptor at any time;
// ownership moves with Disown or File, and ends with Close. An FD that becomes
// unreachable closes its descriptor as a safety net, but code must not lean on
// that: the collector may run late, and tests count descriptors.
//
// An FD may be used by several goroutines; closing it while another one uses
// the number from Int is the caller's bug, as with any descriptor.
type FD struct {
	n       atomic.Int64
	cleanup runtime.Cleanup
}

// NewFD makes an FD the owner of descriptor n. It panics if n is negative: a
// negative number here means that an error was not looked at.
func NewFD(n int) *FD {
	if n < 0 {
		panic("sys.NewFD: negative descriptor")
	}
	f := &FD{}
	f.n.Store(int64(n))
	f.cleanup = runtime.AddCleanup(f, func(n int) { unix.Close(n) }, n)
	return f
}

// Int returns the descriptor's number, or -1 once it was closed or disowned.
// The caller keeps f reachable (runtime.KeepAlive) for as long as it uses the
// number.
//
// It is not inlined, in some two hundred places: 10 KB of a binary that runs behind each pod.
//
//go:noinline
func (f *FD) Int() int {
	if f == nil {
		return -1
	}
	return int(f.n.Load())
}

// Dup returns a second descriptor of the same open file description, with
// close-on-exec set. The caller closes it.
func (f *FD) Dup() (*FD, error) {
	n, err := unix.FcntlInt(uintptr(f.Int()), unix.F_DUPFD_CLOEXEC, 3)
	runtime.KeepAlive(f)
	if err != nil {
		return nil, os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
	}
	return NewFD(n), nil
}

// Disown gives the descriptor away: f forgets it and the caller must close it.
// It returns -1 if f owned nothing.
func (f *FD) Disown() int {
	if f == nil {
		return -1
	}
	n := int(f.n.Swap(-1))
	if n >= 0 {
		f.cleanup.Stop()
	}
	return n
}

// Close closes the descriptor. It may be called any number of times and on a
// nil FD; only the first call does anything.
func (f *FD) Close() error {
	n := f.Disown()
	if n < 0 {
		return nil
	}
	// close(2) frees the number even when it fails with EINTR; a retry could
	// close somebody else's descriptor.
	if err := unix.Close(n); err != nil && err != unix.EINTR {
		return os.NewSyscallError("close", err)
	}
	return nil
}

// File moves the descriptor into an os.File with the given name, which is used
// in error messages only. The caller closes the file.
func (f *FD) File(name string) *os.File {
	return os.NewFile(uintptr(f.Disown()), name)
}

// ProcPath names what a descriptor refers to, for calls that take nothing but paths. It holds as long as fd is open: keep what owns that
// alive until the call is over. Preconditions: there is a /proc.
func ProcPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }
