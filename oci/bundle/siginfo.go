package bundle

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// cldExited is CLD_EXITED of siginfo.h: the process ended by itself.
const cldExited = 1

// exitCode is what a shell would make of a child's end.
func exitCode(si *unix.Siginfo) int {
	// The kernel's siginfo of a child, which unix.Siginfo leaves opaque.
	c := (*struct {
		signo, errno, code, _ int32
		pid                   int32
		uid                   uint32
		status                int32
	})(unsafe.Pointer(si))
	if c.code == cldExited {
		return int(c.status)
	}
	return 128 + int(c.status)
}
