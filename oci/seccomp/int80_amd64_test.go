package seccomp

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// int80 makes a 32-bit call from a 64-bit process. Go's assembler cannot be used in test files, so the code is put into a page by hand. It
// is called as a func value: RDX then points to the closure, in which the registers are.
func int80(c kernelCall) syscall.Errno {
	code := []byte{
		0x52,             // push rdx
		0x49, 0x89, 0xd3, // mov r11, rdx
		0x41, 0x8b, 0x43, 0x08, // mov eax, [r11+8]
		0x41, 0x8b, 0x5b, 0x10, // mov ebx, [r11+16]
		0x41, 0x8b, 0x4b, 0x18, // mov ecx, [r11+24]
		0x41, 0x8b, 0x53, 0x20, // mov edx, [r11+32]
		0x41, 0x8b, 0x73, 0x28, // mov esi, [r11+40]
		0x41, 0x8b, 0x7b, 0x30, // mov edi, [r11+48]
		0xcd, 0x80, // int 0x80
		0x5a,             // pop rdx
		0x89, 0x42, 0x38, // mov [rdx+56], eax
		0xc3, // ret
	}
	page := int80Page
	copy(page, code)
	closure := &struct{ fn, nr, a, b, c, d, e, result uint64 }{
		uint64(uintptr(unsafe.Pointer(&page[0]))), c.Number, c.Args[0], c.Args[1], c.Args[2], c.Args[3], c.Args[4], 0,
	}
	f := *(*func())(unsafe.Pointer(&closure))
	f()
	if r := int32(closure.result); r < 0 && r > -4096 {
		return syscall.Errno(-r)
	}
	return 0
}

// int80Page is mapped before any filter is loaded.
var int80Page = func() []byte {
	p, err := syscall.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		panic(err)
	}
	return p
}()
