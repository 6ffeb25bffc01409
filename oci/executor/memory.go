package executor

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// The Go heap grows upward from a base that the runtime draws at start, in
// arenas of 64 MiB, and each growth is a new mapping. Hiding a generous range
// around it again before each fork is one system call and catches a heap that
// has grown since; what the runtime maps elsewhere is made at start and rarely
// grows.
const (
	arena      = 64 << 20
	rangeBelow = 1 << 30
	rangeAbove = 4 << 30
)

var hideOnce struct {
	sync.Mutex
	base uintptr // an arena of the heap; 0 until everything was hidden once
}

// One kind of memory must not be missing: the restartable-sequence area that
// glibc registers for each thread. The kernel writes to it when the child is
// preempted, and a child without it meets SIGSEGV at every step, for ever if it is
// an init that somebody traces. Go registers none, and our binaries have no libc; a
// test binary built with cgo (the race detector's) is run with
// GLIBC_TUNABLES=glibc.pthread.rseq=0, and refused without.

// errSequences is what Start returns in such a process.
var errSequences = fmt.Errorf("fork with a libc's restartable sequences (build with CGO_ENABLED=0, or set GLIBC_TUNABLES=glibc.pthread.rseq=0): %w", unix.ENOTSUP)

// sequencesRoom holds an area wherever it begins.
var sequencesRoom [64]byte

// sequences returns errSequences if the thread has registered an area, which
// the kernel says only to who registers another: that one is taken back at once.
func sequences() error {
	const (
		size       = 32 // of struct rseq as of Linux 4.18, and its alignment
		unregister = 1
		signature  = 0x53053053
	)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	area := (uintptr(unsafe.Pointer(&sequencesRoom)) + size - 1) &^ (size - 1)
	_, _, errno := unix.RawSyscall6(unix.SYS_RSEQ, area, size, 0, signature, 0, 0)
	switch errno {
	case 0:
		_, _, _ = unix.RawSyscall6(unix.SYS_RSEQ, area, size, unregister, signature, 0, 0)
		return nil
	case unix.ENOSYS, unix.EPERM: // nobody has one
		return nil
	}
	return errSequences
}

// onHeap is allocated by its initialisation, so its address is in an arena.
var onHeap = new([64 << 10]byte)

// hideMemory keeps the process's private writable memory out of its children:
// they get neither the pages nor the page tables. A page that another thread
// maps at this very moment may still be copied; that costs a little time and
// shows the child nothing that it can name.
func hideMemory() error {
	hideOnce.Lock()
	defer hideOnce.Unlock()
	if hideOnce.base == 0 {
		if err := errors.Join(sequences(), hideAll()); err != nil {
			return err
		}
		hideOnce.base = uintptr(unsafe.Pointer(onHeap)) &^ (arena - 1)
	}
	return dontFork(around(hideOnce.base))
}

// around is the range about a base, which the runtime may draw anywhere: one time in 65536 there is
// less below it. It does not reach down to the program's own code, which the child runs; the data behind that
// have been hidden with everything else.
func around(base uintptr) (start, size uintptr) {
	below := uintptr(rangeBelow)
	if data := uintptr(unsafe.Pointer(&hideOnce)); data < base {
		below = min(below, base-(data|(arena-1))-1)
	}
	return base - below, below + rangeAbove
}

// hideAll marks every private writable mapping that exists now.
func hideAll() error {
	maps, err := sys.ReadFile("/proc/self/maps")
	if errors.Is(err, os.ErrNotExist) {
		// A monitor has no /proc in its mount namespace; it calls HideMemory before
		// it enters that.
		return nil
	}
	if err != nil {
		return err
	}
	for line := range bytes.Lines(maps) {
		start, size, ok := writable(line)
		if !ok {
			continue
		}
		if err := dontFork(start, size); err != nil {
			return err
		}
	}
	return nil
}

// writable parses a line of /proc/self/maps: "start-end rw-p offset dev inode
// path". Only private writable mappings count; a shared mapping is not copied
// by a fork, and the kernel's own (vvar, vsyscall) are not writable.
func writable(line []byte) (start, size uintptr, ok bool) {
	f := bytes.Fields(line)
	if len(f) < 2 || len(f[1]) < 4 || f[1][1] != 'w' || f[1][3] != 'p' {
		return 0, 0, false
	}
	lo, hi, found := bytes.Cut(f[0], []byte("-"))
	a, err1 := strconv.ParseUint(string(lo), 16, 64)
	b, err2 := strconv.ParseUint(string(hi), 16, 64)
	if !found || err1 != nil || err2 != nil || b <= a {
		return 0, 0, false
	}
	return uintptr(a), uintptr(b - a), true
}

func dontFork(start, size uintptr) error {
	_, _, errno := unix.RawSyscall(unix.SYS_MADVISE, start, size, unix.MADV_DONTFORK)
	// ENOMEM: the range has holes; what is mapped was marked all the same.
	if errno != 0 && errno != unix.ENOMEM {
		return os.NewSyscallError("madvise MADV_DONTFORK", errno)
	}
	return nil
}

// HideMemory marks the process's memory as not to be copied into children. A
// process that leaves the host's mount namespace calls it before, while
// /proc/self/maps can be read; otherwise the first Start does.
func HideMemory() error { return hideMemory() }
