package oci

import (
	"os/signal"
	"runtime"
	"syscall"
	"testing"
	"unsafe"
)

// lockForever gives the goroutine a thread that the runtime throws away.
func lockForever() { runtime.LockOSThread() }

var (
	capHeader = struct{ version, pid uint32 }{0x20080522, 0}
	capNone   [6]uint32
)

func header() uintptr { return uintptr(unsafe.Pointer(&capHeader)) }
func none() uintptr   { return uintptr(unsafe.Pointer(&capNone)) }

// signalIgnored makes this process ignore SIGUSR2 and SIGHUP as nohup does, until the
// test ends.
func signalIgnored(t *testing.T) {
	signal.Ignore(syscall.SIGUSR2, syscall.SIGHUP)
	t.Cleanup(func() { signal.Reset(syscall.SIGUSR2, syscall.SIGHUP) })
}
