package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Brief calls are made without telling the Go scheduler. A process that was idle
// wakes the scheduler's watchman (sysmon) with the first call that the scheduler is told of, and
// he looks around every 20 us from then on, until all is idle again: for one who does a
// few short calls and waits, as a monitor does, that is a futex call, a change of
// threads or three, and an interrupt of another processor, each time. A brief call must be one
// that the kernel ends by itself, within microseconds: nobody takes
// its place on the processor meanwhile. Their errors are bare errnos, and they
// retry EINTR.

// BriefRead reads from a descriptor that does not block, or has something to say.
func BriefRead(fd int, b []byte) (int, error) { return brief(unix.SYS_READ, fd, b) }

// BriefWrite writes to a descriptor that does not block.
func BriefWrite(fd int, b []byte) (int, error) { return brief(unix.SYS_WRITE, fd, b) }

func brief(nr uintptr, fd int, b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	for {
		n, _, errno := unix.RawSyscall(nr, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
			continue
		}
		return 0, errno
	}
}

// BriefPread reads from a place in a file of memory, or of the kernel's own making.
func BriefPread(fd int, b []byte, at int) (int, error) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_PREAD64, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), uintptr(at), 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
			continue
		}
		return 0, errno
	}
}

// BriefOpen opens a file of the kernel's own making (procfs, cgroupfs, tmpfs),
// close-on-exec. The caller closes it, by BriefClose.
func BriefOpen(dir int, path string, flags int, mode uint32) (int, error) {
	name, err := unix.BytePtrFromString(path)
	if err != nil {
		return -1, err
	}
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_OPENAT, uintptr(dir), uintptr(unsafe.Pointer(name)), uintptr(flags|unix.O_CLOEXEC), uintptr(mode), 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
			continue
		}
		return -1, errno
	}
}

// BriefRename renames a file of a directory of such a kind.
func BriefRename(dir int, from, to string) error {
	a, err := unix.BytePtrFromString(from)
	if err != nil {
		return err
	}
	b, err := unix.BytePtrFromString(to)
	if err != nil {
		return err
	}
	_, _, errno := unix.RawSyscall6(unix.SYS_RENAMEAT, uintptr(dir), uintptr(unsafe.Pointer(a)), uintptr(dir), uintptr(unsafe.Pointer(b)), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// BriefUnlink removes a file of such a directory.
func BriefUnlink(dir int, path string) error { return atPath(unix.SYS_UNLINKAT, dir, path, 0) }

// BriefExists says whether there is such a file, or why that is not known.
func BriefExists(dir int, path string) error { return atPath(unix.SYS_FACCESSAT, dir, path, unix.F_OK) }

//go:noinline
func atPath(nr uintptr, dir int, path string, v uintptr) error {
	name, err := unix.BytePtrFromString(path)
	if err != nil {
		return err
	}
	_, _, errno := unix.RawSyscall(nr, uintptr(dir), uintptr(unsafe.Pointer(name)), v)
	if errno != 0 {
		return errno
	}
	return nil
}

// BriefMap is mmap(2) at a place of the kernel's choice. BriefUnmap gives it back.
func BriefMap(fd, size, prot, flags int) ([]byte, error) {
	p, _, errno := unix.RawSyscall6(unix.SYS_MMAP, 0, uintptr(size), uintptr(prot), uintptr(flags), uintptr(fd), 0)
	if errno != 0 {
		return nil, errno
	}
	return unsafe.Slice(*(**byte)(unsafe.Pointer(&p)), size), nil
}

// BriefUnmap gives a mapping of BriefMap back.
func BriefUnmap(b []byte) error { return onMapping(unix.SYS_MUNMAP, b, 0) }

// BriefAdvise is madvise(2) for a mapping of BriefMap.
func BriefAdvise(b []byte, advice int) error { return onMapping(unix.SYS_MADVISE, b, advice) }

func onMapping(nr uintptr, b []byte, v int) error {
	_, _, errno := unix.RawSyscall(nr, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), uintptr(v))
	if errno != 0 {
		return errno
	}
	return nil
}

// BriefClose closes what nothing has to be waited for with: a pipe, a pidfd, a
// directory.
//
//go:noinline
func BriefClose(fd int) { _, _, _ = unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

// BriefClose is FD.Close for such a descriptor.
//
//go:noinline
func (f *FD) BriefClose() {
	if n := f.Disown(); n >= 0 {
		BriefClose(n)
	}
}
