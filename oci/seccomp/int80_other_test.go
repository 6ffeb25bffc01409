//go:build !amd64

package seccomp

import "syscall"

// int80 is x86's.
func int80(kernelCall) syscall.Errno { return syscall.ENOSYS }
