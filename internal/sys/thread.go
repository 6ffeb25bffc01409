package sys

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// OnLostThread runs f on a thread of its own that ends afterwards, and returns
// what f returns. It is for calls that change the thread for good: unshare and
// setns of mount or network namespaces.
//
// A goroutine that ends while it is locked takes its thread along. The main
// thread is the exception: it stays, and /proc/self would show its namespaces
// from then on. So if the goroutine happens to be there, it holds the place and
// another one does the work.
func OnLostThread(f func() error) error {
	done := make(chan error, 1)
	go lost(f, done)
	return <-done
}

// lost must be the last call of its goroutine.
func lost(f func() error, done chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		done <- f()
		return
	}
	defer runtime.UnlockOSThread()
	inner := make(chan error, 1)
	go lost(f, inner)
	done <- <-inner
}
