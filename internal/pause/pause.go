// Package pause is the smallest program that does nothing: it holds something by being
// alive, such as a PID namespace or a unit of systemd.
package pause

import "encoding/binary"

// ELF returns the whole program, for amd64:
//
//	prctl(PR_SET_NAME, "pause")
//	for { pause() }
//
// An ELF header, one read-only executable segment, thirty bytes of code. It has
// no stack that can be executed, no libc, and nothing to overflow.
func ELF() []byte {
	code := []byte{
		0xb8, 157, 0, 0, 0, // mov eax, SYS_prctl
		0xbf, 15, 0, 0, 0, // mov edi, PR_SET_NAME
		0x48, 0x8d, 0x35, 11, 0, 0, 0, // lea rsi, [rip+11]: the name behind the code
		0x0f, 0x05, // syscall
		0xb8, 34, 0, 0, 0, // mov eax, SYS_pause
		0x0f, 0x05, // syscall
		0xeb, 0xf7, // jmp to the mov before
	}
	return program(append(code, "pause\x00"...))
}

// Unsharer returns a program that makes namespaces (flags of unshare(2), which are of one
// thread here, so that a user namespace may be among them) and lives until its standard input ends:
//
//	unshare(flags); write(1, the errno, 1); read(0); exit_group(0)
func Unsharer(flags uint32) []byte {
	code := []byte{0xb8, 0x10, 1, 0, 0, 0xbf} // mov eax, SYS_unshare; mov edi, flags
	code = binary.LittleEndian.AppendUint32(code, flags)
	return program(append(code,
		0x0f, 0x05, // syscall
		0xf7, 0xd8, // neg eax: 0, or the errno
		0x50,             // push rax
		0x48, 0x89, 0xe6, // mov rsi, rsp
		0xba, 1, 0, 0, 0, // mov edx, 1
		0xb8, 1, 0, 0, 0, // mov eax, SYS_write
		0xbf, 1, 0, 0, 0, // mov edi, 1
		0x0f, 0x05, // syscall
		0x31, 0xc0, // xor eax, eax: SYS_read
		0x31, 0xff, // xor edi, edi
		0x0f, 0x05, // syscall
		0xb8, 231, 0, 0, 0, // mov eax, SYS_exit_group
		0x31, 0xff, // xor edi, edi
		0x0f, 0x05, // syscall
	))
}

// program puts code into a file.
func program(code []byte) []byte {
	const base, headers = 0x400000, 64 + 2*56
	size := uint64(headers + len(code))
	le := binary.LittleEndian
	b := []byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	b = le.AppendUint16(le.AppendUint16(b, 2), 62)   // ET_EXEC, EM_X86_64
	b = le.AppendUint32(b, 1)                        // version
	b = le.AppendUint64(b, base+headers)             // entry
	b = le.AppendUint64(le.AppendUint64(b, 64), 0)   // program headers at 64, no sections
	b = le.AppendUint32(b, 0)                        // flags
	for _, v := range []uint16{64, 56, 2, 0, 0, 0} { // sizes and counts
		b = le.AppendUint16(b, v)
	}
	b = segment(b, 1, 4|1, base, size)    // PT_LOAD, readable and executable
	b = segment(b, 0x6474e551, 4|2, 0, 0) // PT_GNU_STACK, not executable
	return append(b, code...)
}

func segment(b []byte, kind, flags uint32, addr, size uint64) []byte {
	le := binary.LittleEndian
	b = le.AppendUint32(le.AppendUint32(b, kind), flags)
	for _, v := range []uint64{0, addr, addr, size, size, 0x1000} {
		b = le.AppendUint64(b, v)
	}
	return b
}
