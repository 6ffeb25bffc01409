package cni

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/atomicfile"
)

const atFDCWD = unix.AT_FDCWD

// disk is where intents are kept.
var disk = atomicfile.At(atFDCWD)

// isNetNS reports whether path is a pinned namespace. Anything else (missing,
// unmounted, replaced by a plain file) is a namespace that is gone.
func isNetNS(path string) bool {
	var st unix.Statfs_t
	return path != "" && unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// loopbackUp sets lo up in a network namespace: three system calls from a
// thread that visits it, where the loopback plugin is a process of 2 ms.
func loopbackUp(path string) error {
	ns, err := os.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	done := make(chan error)
	go func() {
		// Not unlocked: the thread has left the daemon's network and ends with the
		// goroutine, which is cheaper to be sure of than its return.
		runtime.LockOSThread()
		done <- func() error {
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("setns: %w", err)
			}
			return setUp("lo")
		}()
	}()
	return <-done
}

// setUp sets an interface of the current namespace up.
func setUp(name string) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(s)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(s, unix.SIOCGIFFLAGS, req); err != nil {
		return fmt.Errorf("get flags of %s: %w", name, err)
	}
	req.SetUint16(req.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("set flags of %s: %w", name, err)
	}
	return nil
}
