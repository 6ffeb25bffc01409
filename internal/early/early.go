// Package early looks at the process before the Go runtime's packages change it. It
// imports nothing, and so is initialised before package syscall, which raises the soft
// limit on descriptors when it is.
package early

// rlimit is the kernel's struct rlimit.
type rlimit struct{ soft, hard uint64 }

// resource is RLIMIT_NOFILE.
const resource = 7

// getrlimit is the system call, whose result is ignored: without an answer the limits are
// zero, which FileLimit mends.
//
//go:noescape
func getrlimit(resource uintptr, l *rlimit)

var fileLimit = func() (l rlimit) {
	getrlimit(resource, &l)
	return l
}()

// FileLimit returns the limits on descriptors (RLIMIT_NOFILE) that this process was
// started with.
func FileLimit() (soft, hard uint64) {
	if fileLimit.hard == 0 {
		return 1024, 4096 // the kernel's own
	}
	return fileLimit.soft, fileLimit.hard
}
