package main

import (
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/early"
	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// seal executes this program again from a read-only copy of its mount that is
// attached nowhere. A container that executes /proc/self/exe, as its own program
// or as the interpreter of one, gets hold of our binary and waits until it may be
// written (CVE-2019-5736, rule R4); what it holds then is on a mount that nobody can make
// writable. A monitor runs from a sealed memfd for the same reason; here a copy of four
// megabytes would be most of what a container costs.
//
// It returns where that is so already. Who may not mount cannot make containers either,
// and hears of it there.
func seal() error {
	const self = "/proc/self/exe"
	var st unix.Statfs_t
	if err := unix.Statfs(self, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: self, Err: err}
	}
	if st.Flags&unix.ST_RDONLY != 0 {
		_ = os.WriteFile("/proc/self/comm", []byte("vitrine-oci"), 0) // for people: it is a number otherwise
		return nil
	}
	if os.Geteuid() != 0 {
		return nil
	}
	copied, err := sys.OpenTree(unix.AT_FDCWD, self, unix.OPEN_TREE_CLONE)
	if err != nil {
		return err
	}
	defer copied.Close()
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := sys.MountSetattr(copied.Int(), "", unix.AT_EMPTY_PATH, attr); err != nil {
		return err
	}
	// The Go runtime has raised this; what comes after us is to have what we had.
	soft, hard := early.FileLimit()
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: soft, Max: hard}, nil); err != nil {
		return os.NewSyscallError("prlimit", err)
	}
	return execFD(copied.Int(), os.Args, os.Environ())
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
