package oci

import (
	"runtime"
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
