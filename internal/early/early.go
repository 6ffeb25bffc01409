// Package early looks at the process before the Go runtime's packages change it. It
// imports nothing but syscall, and so is initialised before package os, which
// raises the soft limit on descriptors.
package early

import "syscall"

var fileLimit = func() (l syscall.Rlimit) {
	// Without an answer the limits are zero, which FileLimit mends.
	_ = syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l)
	return l
}()

// FileLimit returns the limits on descriptors (RLIMIT_NOFILE) that this process was
// started with.
func FileLimit() (soft, hard uint64) {
	if fileLimit.Max == 0 {
		return 1024, 4096 // the kernel's own
	}
	return fileLimit.Cur, fileLimit.Max
}
