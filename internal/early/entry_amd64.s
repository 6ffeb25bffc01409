#include "textflag.h"

// Where the kernel begins, if the linker is told so (-E, see the Makefile). The registers that last:
//
//	BX  the stack as it was    R12 the binary in the copy of its mount    R13 that copy
//	R14 program headers        R15 how many are left
//
// The kernel keeps every register but AX, CX and R11 over a system call. The stack is the
// kernel's: count, arguments, 0, environment, 0, auxiliary vector. Below it is scratch.

#define SYS_open 2
#define SYS_close 3
#define SYS_mmap 9
#define SYS_brk 12
#define SYS_madvise 28
#define SYS_sysinfo 99
#define SYS_statfs 137
#define SYS_prctl 157
#define SYS_prlimit64 302
#define SYS_execveat 322
#define SYS_open_tree 428
#define SYS_mount_setattr 442
#define AT_FDCWD -100
#define AT_EMPTY_PATH 0x1000
#define AT_PHDR 3
#define AT_PHNUM 5
#define AT_EXECFN 31
#define OPEN_TREE_CLONE_CLOEXEC 0x80001
#define O_CLOEXEC 0x80000
#define ST_RDONLY 1
#define STATFS_FLAGS 80
#define SYSINFO_TOTAL 32
#define SYSINFO_FREE 40
#define MADV_HUGEPAGE 14
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#define MAP_FIXED 0x10
#define MAP_PRIVATE_FIXED 0x12
#define PR_SET_MM 35
#define PR_SET_MM_MAP 14
#define RLIMIT_NOFILE 7
#define PT_LOAD 1
#define PHDR_SIZE 56
#define HEAP_GROWTH 0x400000

// On the scratch, behind what calls write there.
#define SELF 240
#define EMPTY 254

DATA processors<>+0(SB)/8, $"GOMAXPRO"
DATA processors<>+8(SB)/8, $"CS=1\000\000\000\000"
GLOBL processors<>(SB), RODATA, $16

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

	// Of the binary nothing is read but this code before it is where it stays: a page that was used is one more to be
	// taken away.
verb:
	SUBQ	$256, SP
	MOVQ	$0x65732f636f72702f, AX	// /proc/se
	MOVQ	AX, SELF(SP)
	MOVQ	$0x00006578652f666c, AX	// lf/exe
	MOVQ	AX, (SELF+8)(SP)
	MOVL	$SYS_statfs, AX
	LEAQ	SELF(SP), DI
	MOVQ	SP, SI
	SYSCALL
	TESTQ	AX, AX
	JNE	away
	TESTQ	$ST_RDONLY, STATFS_FLAGS(SP)
	JNE	sealed

	MOVL	$SYS_open_tree, AX
	MOVQ	$AT_FDCWD, DI
	LEAQ	SELF(SP), SI
	MOVL	$OPEN_TREE_CLONE_CLOEXEC, DX
	SYSCALL
	TESTQ	AX, AX
	JLT	away
	MOVQ	AX, R13

	XORL	AX, AX	// struct mount_attr: MOUNT_ATTR_RDONLY is to be set
	MOVQ	AX, 8(SP)
	MOVQ	AX, 16(SP)
	MOVQ	AX, 24(SP)
	INCL	AX
	MOVQ	AX, 0(SP)
	MOVQ	R13, DI
	LEAQ	EMPTY(SP), SI
	MOVL	$AT_EMPTY_PATH, DX
	MOVQ	SP, R10
	MOVL	$32, R8
	MOVL	$SYS_mount_setattr, AX
	SYSCALL
	TESTQ	AX, AX
	JNE	shut

	// Where somebody has closed it, it would be the container's stdin: an execution closes it, and Go puts something
	// better there.
	CMPQ	R13, $2
	JLS	again

	// The copy is a path: "/proc/self/fd/<number>", written from its end, is the file.
	LEAQ	40(SP), SI
	MOVB	$0, (SI)
	MOVQ	R13, AX
	MOVL	$10, CX

digit:
	XORL	DX, DX
	DIVL	CX
	ADDL	$'0', DX
	DECQ	SI
	MOVB	DX, (SI)
	TESTL	AX, AX
	JNE	digit
	SUBQ	$14, SI
	MOVQ	SELF(SP), AX
	MOVQ	AX, (SI)
	MOVL	$0x662f666c, 8(SI)	// lf/f
	MOVW	$0x2f64, 12(SI)	// d/
	MOVQ	SI, DI
	MOVL	$O_CLOEXEC, SI
	XORL	DX, DX
	MOVL	$SYS_open, AX
	SYSCALL
	TESTQ	AX, AX
	JLT	again
	MOVQ	AX, R12

	// The auxiliary vector is behind the environment. The strings end with the name of the binary.
	MOVQ	0(BX), CX
	LEAQ	16(BX)(CX*8), DI	// environment

env:
	MOVQ	(DI), AX
	ADDQ	$8, DI
	TESTQ	AX, AX
	JNE	env
	XORL	R8, R8
	XORL	R14, R14
	XORL	R15, R15

aux:
	MOVQ	(DI), AX
	MOVQ	8(DI), DX
	ADDQ	$16, DI
	CMPQ	AX, $AT_PHDR
	JNE	2(PC)
	MOVQ	DX, R14
	CMPQ	AX, $AT_PHNUM
	JNE	2(PC)
	MOVQ	DX, R15
	CMPQ	AX, $AT_EXECFN
	JNE	2(PC)
	MOVQ	DX, R8
	TESTQ	AX, AX
	JNE	aux

	// struct prctl_mm_map. What it says of code and data is for who reads /proc; the heap of
	// brk is empty.
	LEAQ	runtime·text(SB), AX
	MOVQ	AX, 0(SP)
	LEAQ	runtime·etext(SB), AX
	MOVQ	AX, 8(SP)
	LEAQ	runtime·noptrdata(SB), AX
	MOVQ	AX, 16(SP)
	LEAQ	runtime·edata(SB), AX
	MOVQ	AX, 24(SP)
	MOVQ	BX, 48(SP)
	MOVQ	8(BX), AX
	MOVQ	AX, 56(SP)
	MOVQ	0(BX), CX
	MOVQ	16(BX)(CX*8), AX	// first of the environment
	TESTQ	AX, AX
	JNE	2(PC)
	MOVQ	R8, AX
	MOVQ	AX, 64(SP)
	MOVQ	AX, 72(SP)
	MOVQ	R8, 80(SP)
	XORL	AX, AX
	MOVQ	AX, 88(SP)
	MOVL	AX, 96(SP)
	MOVL	R12, 100(SP)
	XORL	DI, DI
	MOVL	$SYS_brk, AX
	SYSCALL
	MOVQ	AX, 32(SP)
	MOVQ	AX, 40(SP)

	// Each part of the binary is mapped anew, over itself: page by page it is what was there, and nothing of
	// it was written to yet.
part:
	TESTL	R15, R15
	JEQ	parted
	DECL	R15
	MOVL	0(R14), AX
	MOVL	4(R14), R8
	ADDQ	$PHDR_SIZE, R14
	CMPL	AX, $PT_LOAD
	JNE	part
	MOVL	R8, DX	// PF_R 4, PF_W 2, PF_X 1 are PROT_READ 1, PROT_WRITE 2, PROT_EXEC 4
	ANDL	$2, DX
	MOVL	R8, AX
	SHRL	$2, AX
	ANDL	$1, AX
	ORL	AX, DX
	ANDL	$1, R8
	SHLL	$2, R8
	ORL	R8, DX
	MOVQ	(16-PHDR_SIZE)(R14), DI
	MOVQ	DI, AX
	ANDL	$4095, AX
	SUBQ	AX, DI
	MOVQ	(32-PHDR_SIZE)(R14), SI
	ADDQ	AX, SI
	MOVQ	(8-PHDR_SIZE)(R14), R9
	SUBQ	AX, R9
	MOVQ	R12, R8
	MOVL	$MAP_PRIVATE_FIXED, R10
	MOVL	$SYS_mmap, AX
	SYSCALL
	CMPQ	AX, DI
	JNE	once
	TESTL	$2, DX
	JEQ	part
	ADDQ	SI, DI	// what follows on the last page is no data
	MOVQ	DI, CX
	NEGQ	CX
	ANDL	$4095, CX
	XORL	AX, AX
	CLD
	REP;	STOSB
	JMP	part

parted:
	MOVL	$PR_SET_MM, DI
	MOVL	$PR_SET_MM_MAP, SI
	MOVQ	SP, DX
	MOVL	$104, R10
	XORL	R8, R8
	MOVL	$SYS_prctl, AX
	SYSCALL
	TESTQ	AX, AX
	JNE	once
	MOVL	R13, ·mount(SB)
	MOVQ	R12, DI
	MOVL	$SYS_close, AX
	SYSCALL
	JMP	sealed

	// A kernel without that (CONFIG_CHECKPOINT_RESTORE): by execution. Nothing has been lost.
once:
	MOVQ	R12, DI
	MOVL	$SYS_close, AX
	SYSCALL

again:
	MOVQ	R13, DI
	LEAQ	EMPTY(SP), SI
	LEAQ	8(BX), DX
	MOVQ	0(BX), CX
	LEAQ	16(BX)(CX*8), R10
	MOVL	$AT_EMPTY_PATH, R8
	MOVL	$SYS_execveat, AX
	SYSCALL

shut:
	MOVQ	R13, DI
	MOVL	$SYS_close, AX
	SYSCALL

sealed:
	// What Go writes to of its data, it writes to soon, and of what it reads and executes there is hardly a page
	// that is not needed: a hundred page faults.
	MOVL	$SYS_madvise, AX
	LEAQ	runtime·text(SB), DI
	ANDQ	$~4095, DI
	LEAQ	runtime·noptrdata(SB), SI
	ANDQ	$~4095, SI
	SUBQ	DI, SI
	MOVL	$MADV_POPULATE_READ, DX
	SYSCALL
	MOVL	$SYS_madvise, AX
	LEAQ	runtime·noptrdata(SB), DI
	ANDQ	$~4095, DI
	LEAQ	runtime·enoptrbss(SB), SI
	SUBQ	DI, SI
	MOVL	$MADV_POPULATE_WRITE, DX
	SYSCALL

	// Descriptors: see FileLimit.
	XORL	DI, DI
	MOVL	$RLIMIT_NOFILE, SI
	XORL	DX, DX
	LEAQ	·limit(SB), R10
	MOVL	$SYS_prlimit64, AX
	SYSCALL
	TESTQ	AX, AX
	JNE	heap
	MOVQ	·limit+0(SB), AX
	CMPQ	AX, $3
	JLS	heap
	MOVQ	$3, AX
	MOVQ	AX, 0(SP)
	MOVQ	·limit+8(SB), AX
	MOVQ	AX, 8(SP)
	XORL	DI, DI
	MOVL	$RLIMIT_NOFILE, SI
	MOVQ	SP, DX
	XORL	R10, R10
	MOVL	$SYS_prlimit64, AX
	SYSCALL

heap:
	// Go spreads its first megabyte over some two hundred and fifty pages. Where a quarter of the memory is free, a huge page is
	// there; elsewhere the kernel would look for one first.
	MOVL	$SYS_sysinfo, AX
	MOVQ	SP, DI
	SYSCALL
	TESTQ	AX, AX
	JNE	one
	MOVQ	SYSINFO_FREE(SP), AX
	SHLQ	$2, AX
	CMPQ	AX, SYSINFO_TOTAL(SP)
	JCS	one
	LEAQ	mapped<>(SB), AX
	MOVQ	AX, _cgo_mmap(SB)

	// One processor for the Go scheduler: what the kernel has put on the stack, with one variable more in front of the
	// environment, again below. /proc/self/environ stays as it was.
one:
	MOVQ	0(BX), CX
	LEAQ	16(BX)(CX*8), SI	// environment

vars:
	MOVQ	(SI), AX
	ADDQ	$8, SI
	TESTQ	AX, AX
	JNE	vars

pairs:
	MOVQ	(SI), AX
	ADDQ	$16, SI
	TESTQ	AX, AX
	JNE	pairs
	MOVQ	SI, CX	// behind all
	SUBQ	BX, CX
	LEAQ	-8(BX), DI
	SUBQ	CX, DI
	ANDQ	$~15, DI
	MOVQ	DI, SP
	MOVQ	BX, SI
	MOVQ	0(BX), CX
	ADDQ	$2, CX
	CLD
	REP;	MOVSQ	// count, arguments, 0
	LEAQ	processors<>(SB), AX
	STOSQ

rest:
	MOVSQ
	CMPQ	-8(DI), $0
	JNE	rest

tail:
	MOVSQ
	MOVSQ
	CMPQ	-16(DI), $0
	JNE	tail
	JMP	_rt0_amd64_linux(SB)

away:
	MOVQ	BX, SP
	JMP	_rt0_amd64_linux(SB)

// mapped is mmap(2) with the calling convention of C, for the Go runtime. It returns the number of an error.
// The heap, which grows by so much, may have huge pages.
TEXT mapped<>(SB), NOSPLIT|NOFRAME, $0
	MOVL	CX, R10
	MOVL	$SYS_mmap, AX
	SYSCALL
	CMPQ	AX, $-4095
	JCC	refused
	CMPQ	SI, $HEAP_GROWTH
	JNE	done
	TESTL	$MAP_FIXED, R10
	JEQ	done
	PUSHQ	AX
	MOVQ	AX, DI
	MOVL	$MADV_HUGEPAGE, DX
	MOVL	$SYS_madvise, AX
	SYSCALL
	POPQ	AX

done:
	RET

refused:
	NEGQ	AX
	RET

// func prlimit(new, old *[2]uint64)
TEXT ·prlimit(SB), NOSPLIT, $0-16
	XORL	DI, DI
	MOVL	$RLIMIT_NOFILE, SI
	MOVQ	new+0(FP), DX
	MOVQ	old+8(FP), R10
	MOVL	$SYS_prlimit64, AX
	SYSCALL
	RET
