package monitor

import (
	"fmt"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// closeInherited marks our own descriptors close-on-exec and closes all that
// came along without being asked for: whatever lies open in a daemon (a
// library's socket, a lock) must not be held by a pod for weeks. What this
// process has opened by itself until now carries the mark already.
func closeInherited() error {
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("list descriptors: %w", err)
	}
	for _, e := range d {
		n, err := strconv.Atoi(e.Name())
		if err != nil || n <= 2 {
			continue
		}
		flags, err := unix.FcntlInt(uintptr(n), unix.F_GETFD, 0)
		if err != nil || flags&unix.FD_CLOEXEC != 0 {
			continue // the directory that was read, closed by now; or ours
		}
		if n <= CgroupFD {
			unix.CloseOnExec(n)
		} else {
			unix.Close(n)
		}
	}
	return nil
}

// sigaction is struct sigaction as rt_sigaction knows it on amd64 and arm64.
type sigaction struct {
	handler  uintptr
	flags    uint64
	restorer uintptr
	mask     uint64
}

const sigIgn = 1 // SIG_IGN

// resetIgnored gives every ignored signal its default again. A daemon that was
// started with nohup, or by a supervisor that ignores SIGPIPE, would pass that
// on to every container: unlike handlers, "ignored" survives execve.
func resetIgnored() error {
	for sig := uintptr(1); sig <= 64; sig++ {
		if sig == uintptr(unix.SIGKILL) || sig == uintptr(unix.SIGSTOP) {
			continue
		}
		var old, def sigaction
		if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, 0, uintptr(unsafe.Pointer(&old)), 8, 0, 0); errno != 0 {
			return fmt.Errorf("rt_sigaction %d: %w", sig, errno)
		}
		// SIGCHLD, too, is back to what it does by itself, which is nothing: the Go runtime would be
		// interrupted for each death, of which pidfds tell. Zombies stay, as they do not with SIG_IGN.
		if old.handler != sigIgn && sig != uintptr(unix.SIGCHLD) {
			continue
		}
		if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&def)), 0, 8, 0, 0); errno != 0 {
			return fmt.Errorf("rt_sigaction %d: %w", sig, errno)
		}
	}
	return nil
}
