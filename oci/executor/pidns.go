package executor

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// ownPIDNS returns a descriptor of the process's own pid namespace. It is
// opened once, by pidfd ioctl where /proc may be out of sight, and kept for
// the life of the process.
var ownPIDNS = sync.OnceValues(openOwnPIDNS)

// pidfdGetPIDNS is PIDFD_GET_PID_NAMESPACE of linux/pidfd.h (since 6.11).
const pidfdGetPIDNS = 0xff05

func openOwnPIDNS() (int, error) {
	fd, err := unix.Open("/proc/self/ns/pid", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		return fd, nil
	}
	pidfd, perr := unix.PidfdOpen(unix.Getpid(), 0)
	if perr != nil {
		return -1, fmt.Errorf("open own pid namespace: %w", err)
	}
	defer unix.Close(pidfd)
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(pidfd), pidfdGetPIDNS, 0)
	if errno != 0 {
		return -1, fmt.Errorf("open own pid namespace: %w", err)
	}
	return int(n), nil
}

// HoldPIDNS opens the process's own pid namespace while /proc is in sight. A
// process that leaves the host's mount namespace calls it before; Start with a
// PIDNS needs it to find the way back.
func HoldPIDNS() error {
	_, err := ownPIDNS()
	return err
}
