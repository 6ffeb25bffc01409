// Package early is what happens before the Go runtime has started, and while it does. A start of that is the dearest part of a
// container from the command line, so what can be done before it is, by a hundred instructions:
//
//	execve ──► entry ── a verb that makes no container ──────────────► _rt0_amd64_linux, Go
//	             │
//	             ├ is the binary where it cannot be written? else a read-only copy of its mount (R4):
//	             │    mmap each part over itself, from there ── prctl PR_SET_MM_MAP: /proc/self/exe is there, too
//	             │    refused: execveat ──► entry
//	             ├ pages of text and data at once, huge pages for the heap
//	             └ GOMAXPROCS=1, hardly any descriptors ── _rt0_amd64_linux, Go ── package early: as many as before
//
// What goes wrong in entry is left to cmd/vitrine-oci's seal, which does it again and can say what it was. So is a binary
// that was linked without it (-E, see the Makefile).
//
// Nobody needs more than three descriptors while Go starts but the runtime, which looks for the limits of its cgroup then: for that it reads
// all of /proc/self/mountinfo, some thousand lines on a node with many pods, and no setting turns that off. We work on one
// processor, or two where a container is made, for some milliseconds, whatever it would find. To start with one spares two threads that have nothing to do yet, and
// on a machine with many processors as many schedulers of ten kilobytes.
//
// The package imports nothing, and so its variables are initialised before those of package syscall, which raises the soft
// limit on descriptors.
package early

// limit is the soft and the hard limit on descriptors; zeros are none.
var limit [2]uint64

// prlimit sets and reads RLIMIT_NOFILE.
//
//go:noescape
func prlimit(new, old *[2]uint64)

var _ = func() bool {
	if limit[1] == 0 {
		prlimit(nil, &limit)
	} else {
		prlimit(&limit, nil) // entry has lowered it
	}
	return true
}()

// FileLimit returns the limits on descriptors (RLIMIT_NOFILE) that this process was
// started with.
func FileLimit() (soft, hard uint64) {
	if limit[1] == 0 {
		return 1024, 4096 // the kernel's own
	}
	return limit[0], limit[1]
}

// mount is the descriptor of the mount that the binary is executed from, if entry has left one; 0 is none.
var mount int32

// Mount returns the number of a descriptor that is ours although nobody has opened it: of the copy of the mount that
// the binary runs from, or -1. To close it takes a fifth of a millisecond, and many where the machine is busy: the kernel waits
// for all others who may look at the mount. So that is done at a time when nobody waits for us, or by the end of the process.
func Mount() int {
	if mount == 0 {
		return -1
	}
	return int(mount)
}

// Unmounted tells that the descriptor was closed.
func Unmounted() { mount = 0 }
