package cni

import (
	"context"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// isNetNS reports whether path is a pinned namespace. Anything else (missing,
// unmounted, replaced by a plain file) is a namespace that is gone.
func isNetNS(path string) bool {
	var st unix.Statfs_t
	return path != "" && unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// loopbackUp sets lo up in a network namespace: a few system calls from a
// thread that visits it, where the loopback plugin is a process of 2 ms.
func loopbackUp(ctx context.Context, path string) error {
	defer note(ctx, "setting loopback up in %s", path)()
	if !isNetNS(path) { // and not a FIFO, which open would wait for
		return fmt.Errorf("%s is not a namespace", path)
	}
	return visit(path, func() error { return setUp("lo") })
}

// visit runs f on a thread in the network namespace at path. The thread comes
// home, since it may be the process's first one, which Go never ends: it would
// hold the pod's namespace for as long as the daemon lives, and be the one that
// /proc/<daemon>/ns/net shows. A thread that cannot come home ends.
func visit(path string, f func() error) error {
	done := make(chan error)
	go func() { done <- away(path, f) }() // ends with f, and its thread if that is still locked
	return <-done
}

func away(path string, f func() error) error {
	there, err := os.Open(path)
	if err != nil {
		return err
	}
	defer there.Close()
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer home.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("setns: %w", err)
	}
	err = f()
	if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
		runtime.UnlockOSThread()
	}
	return err
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
