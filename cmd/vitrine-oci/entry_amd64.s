#include "textflag.h"

// Where the kernel begins, if the linker is told so (-E main.entry, see the Makefile). It
// does what seal does before there is a Go runtime, because a start of that is the
// dearest part of a container from the command line: it scans the verb, and for one that
// seal is for it executes the binary again from a read-only copy of its mount. Whatever
// goes wrong here is left to seal, which does it again and can say what it was; so is a
// binary that was linked without.
//
//	execve ──► entry ── is sealed, or a verb without ──► _rt0_amd64_linux, Go
//	             │ open_tree, mount_setattr
//	             └ execveat ──► entry, sealed ──► _rt0_amd64_linux, Go
//
// The stack is the kernel's: count, arguments, 0, environment, 0. Below it is scratch.
//
//	BX  the stack as it was    R13  descriptor of the copy    R12 environment

#define SYS_close 3
#define SYS_madvise 28
#define SYS_statfs 137
#define SYS_execveat 322
#define SYS_open_tree 428
#define SYS_mount_setattr 442
#define AT_FDCWD -100
#define AT_EMPTY_PATH 0x1000
#define OPEN_TREE_CLONE_CLOEXEC 0x80001
#define ST_RDONLY 1
#define STATFS_FLAGS 80
#define MADV_POPULATE_WRITE 23

DATA self<>+0(SB)/8, $"/proc/se"
DATA self<>+8(SB)/8, $"lf/exe\000\000"
GLOBL self<>(SB), RODATA, $16

// struct mount_attr: MOUNT_ATTR_RDONLY is to be set.
DATA attr<>+0(SB)/8, $1
DATA attr<>+8(SB)/8, $0
DATA attr<>+16(SB)/8, $0
DATA attr<>+24(SB)/8, $0
GLOBL attr<>(SB), RODATA, $32

TEXT ·entry(SB), NOSPLIT|NOFRAME, $0
	MOVQ	SP, BX
	MOVQ	0(BX), CX
	LEAQ	8(BX), SI	// arguments

	// The same verbs as in sealFor. A string of the stack has eight bytes to read: the last of
	// all is followed by as many zeros.
scan:
	CMPQ	CX, $1
	JLE	away
	DECQ	CX
	ADDQ	$8, SI
	MOVQ	(SI), DX
	MOVQ	(DX), AX
	CMPL	AX, $0x006e7572	// run
	JEQ	verb
	MOVQ	AX, DX
	SHLQ	$8, DX
	MOVQ	$0x0065746165726300, R8	// create
	CMPQ	DX, R8
	JEQ	verb
	SHLQ	$8, DX
	MOVQ	$0x0074726174730000, R8	// start
	CMPQ	DX, R8
	JEQ	verb
	SHLQ	$8, DX
	MOVQ	$0x0063657865000000, R8	// exec
	CMPQ	DX, R8
	JNE	scan

verb:
	SUBQ	$128, SP
	MOVQ	$SYS_statfs, AX
	LEAQ	self<>(SB), DI
	MOVQ	SP, SI
	SYSCALL
	TESTQ	AX, AX
	JNE	away
	TESTQ	$ST_RDONLY, STATFS_FLAGS(SP)
	JNE	sealed

	MOVQ	$SYS_open_tree, AX
	MOVQ	$AT_FDCWD, DI
	LEAQ	self<>(SB), SI
	MOVL	$OPEN_TREE_CLONE_CLOEXEC, DX
	SYSCALL
	TESTQ	AX, AX
	JLT	away
	MOVQ	AX, R13

	MOVQ	R13, DI
	LEAQ	self<>+14(SB), SI	// ""
	MOVL	$AT_EMPTY_PATH, DX
	LEAQ	attr<>(SB), R10
	MOVL	$32, R8
	MOVQ	$SYS_mount_setattr, AX
	SYSCALL
	TESTQ	AX, AX
	JNE	shut

	MOVQ	R13, DI
	LEAQ	self<>+14(SB), SI
	LEAQ	8(BX), DX
	MOVQ	0(BX), CX
	LEAQ	16(BX)(CX*8), R10
	MOVL	$AT_EMPTY_PATH, R8
	MOVQ	$SYS_execveat, AX
	SYSCALL

shut:
	MOVQ	R13, DI
	MOVQ	$SYS_close, AX
	SYSCALL

	// What Go writes to of its data, it writes to soon, with threads on all processors: to have the
	// pages now saves some fifty faults, each of which would interrupt those.
sealed:
	MOVL	$SYS_madvise, AX
	LEAQ	runtime·noptrdata(SB), DI
	ANDQ	$~4095, DI
	LEAQ	runtime·enoptrbss(SB), SI
	SUBQ	DI, SI
	MOVL	$MADV_POPULATE_WRITE, DX
	SYSCALL

away:
	MOVQ	BX, SP
	JMP	_rt0_amd64_linux(SB)
