package main

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/early"
	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/bundle"
)

// seal is for what package early has left undone: it executes this program again from a read-only copy of its mount that is
// attached nowhere. A container that executes /proc/self/exe, as its own program
// or as the interpreter of one, gets hold of our binary and waits until it may be
// written (CVE-2019-5736, rule R4); what it holds then is on a mount that nobody can make
// writable. A monitor runs from a sealed memfd for the same reason; here a copy of four
// megabytes would be most of what a container costs.
//
// It returns where that is so already, and for who may not mount: he runs the binary
// again as somebody who may (bundle.EnterBundle).
func seal() error {
	if early.Mount() >= 0 {
		return nil // in place
	}
	done, err := sealed()
	if err != nil {
		return err
	}
	if done {
		// For people: it is a number otherwise. Not by package os, which would set up a poller for it.
		if n, err := unix.Open("/proc/self/comm", unix.O_WRONLY|unix.O_CLOEXEC, 0); err == nil {
			_, _ = unix.Write(n, []byte("vitrine-oci"))
			unix.Close(n)
		}
		return nil
	}
	if bundle.Stand() == bundle.Outside {
		return nil
	}
	copied, err := readOnly()
	if errors.Is(err, unix.EINVAL) { // started by a descriptor, or before its caller's mount namespace was made
		copied, err = copySelf()
	}
	if err != nil {
		return err
	}
	defer copied.Close()
	// The Go runtime has raised this; what comes after us is to have what we had.
	soft, hard := early.FileLimit()
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: soft, Max: hard}, nil); err != nil {
		return os.NewSyscallError("prlimit", err)
	}
	return execFD(copied.Int(), os.Args, os.Environ())
}

// self is the binary that runs.
const self = "/proc/self/exe"

// sealed says whether the binary that runs can be written by nobody: by its mount, or because
// it is a sealed memfd.
func sealed() (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(self, &st); err != nil {
		return false, &os.PathError{Op: "statfs", Path: self, Err: err}
	}
	if st.Flags&unix.ST_RDONLY != 0 {
		return true, nil
	}
	f, err := os.Open(self)
	if err != nil {
		return false, err
	}
	defer f.Close()
	seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0) // EINVAL: no memfd
	return err == nil && seals&unix.F_SEAL_WRITE != 0, nil
}

// readOnly makes a read-only copy of the binary's mount, which must be one of our namespace.
func readOnly() (*sys.FD, error) {
	copied, err := sys.OpenTree(unix.AT_FDCWD, self, unix.OPEN_TREE_CLONE)
	if err != nil {
		return nil, err
	}
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := sys.MountSetattr(copied.Int(), "", unix.AT_EMPTY_PATH, attr); err != nil {
		copied.Close()
		return nil, err
	}
	return copied, nil
}

// copySelf copies the binary into a sealed memfd.
func copySelf() (*sys.FD, error) {
	b, err := os.ReadFile(self)
	if err != nil {
		return nil, err
	}
	return sys.SealedMemfd("vitrine-oci", b, true)
}

// execFD is execveat with an empty path; it returns only if it fails.
func execFD(fd int, args, env []string) error {
	argv, err := syscall.SlicePtrFromStrings(args)
	if err != nil {
		return err
	}
	envp, err := syscall.SlicePtrFromStrings(env)
	if err != nil {
		return err
	}
	empty := []byte{0}
	_, _, errno := unix.Syscall6(unix.SYS_EXECVEAT, uintptr(fd), uintptr(unsafe.Pointer(&empty[0])),
		uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&envp[0])), unix.AT_EMPTY_PATH, 0)
	return fmt.Errorf("execute ourselves from a read-only mount: %w", errno)
}
