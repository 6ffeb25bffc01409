#include "textflag.h"

// The child's whole life before execve. It runs in a copy of the monitor's
// address space from which the Go heap, the stacks and the runtime's data are
// missing (MADV_DONTFORK): it must not touch a stack, call a Go function or
// use the TLS register. It reads its steps from the control block in R12, a
// mapping of its own, and leaves through execve or exit_group.
//
//	R12 control block    R13 data         R15 number of the step (for reports)
//	BX  the step         BP  end of steps  R14 repetitions of the step
//
// The kernel keeps every register but AX, CX and R11 over a system call. R14 is
// g in Go, but nothing here returns to Go.
//
// Offsets in the control block are those of type control in fork.go, offsets
// in a step those of package step; a test holds the numbers together.

#define REGS      0
#define ARGS      512
#define RECORD    560
#define CUR       568
#define END       576
#define DATA      584
#define INDEX     592
#define REPORTFD  504
#define SHOWN     608
#define TAKEN     616
#define PATIENCE  624
#define NEXT      632
#define NEXTEND   640
#define RELOCS    648
#define RELOCSEND 656

#define STEPSIZE  88
#define SYS_write 1
#define SYS_clone3 435
#define SYS_exit_group 231
#define SYS_openat2 437
#define ENOEXEC 8
#define EAGAIN 11
#define REPEATS 10000

// func forkRun(args *cloneArgs, size, ctl uintptr) int
TEXT ·forkRun(SB), NOSPLIT|NOFRAME, $0-32
	MOVQ	args+0(FP), DI
	MOVQ	size+8(FP), SI
	MOVQ	ctl+16(FP), R12
	MOVL	$SYS_clone3, AX
	SYSCALL
	TESTQ	AX, AX
	JEQ	child
	MOVQ	AX, ret+24(FP)
	RET

child:
	MOVQ	CUR(R12), BX
	MOVQ	END(R12), BP
	MOVQ	DATA(R12), R13
	MOVQ	INDEX(R12), R15

next:
	CMPQ	BX, BP
	JCC	over
	XORL	CX, CX
	XORL	R14, R14

resolve:
	MOVBLZX	5(BX)(CX*1), DX
	MOVQ	16(BX)(CX*8), AX
	TESTL	DX, DX		// Const
	JEQ	store
	CMPL	DX, $2
	JEQ	reg
	ADDQ	R13, AX		// Addr and the three Mem kinds
	CMPL	DX, $1
	JEQ	store
	CMPL	DX, $3
	JEQ	mem8
	CMPL	DX, $4
	JEQ	mem32
	MOVQ	(AX), AX
	JMP	store

mem8:
	MOVBLZX	(AX), AX
	JMP	store

mem32:
	MOVL	(AX), AX
	JMP	store

reg:
	MOVQ	REGS(R12)(AX*8), AX

store:
	MOVQ	AX, ARGS(R12)(CX*8)
	INCL	CX
	CMPL	CX, $6
	JLT	resolve

again:
	MOVL	(BX), AX
	MOVQ	(ARGS+0)(R12), DI
	MOVQ	(ARGS+8)(R12), SI
	MOVQ	(ARGS+16)(R12), DX
	MOVQ	(ARGS+24)(R12), R10
	MOVQ	(ARGS+32)(R12), R8
	MOVQ	(ARGS+40)(R12), R9
	CMPL	AX, $0x10000
	JCC	pseudo
	SYSCALL
	JMP	done

pseudo:
	JNE	other		// flags are those of the compare above
	ANDQ	R10, DI		// OpExpect
	CMPQ	DI, SI
	JEQ	held
	MOVQ	DX, AX
	NEGQ	AX
	JMP	done

held:
	XORL	AX, AX
	JMP	done

other:
	CMPL	AX, $0x10001
	JNE	save
	MOVQ	DI, AX		// OpSet
	JMP	done

save:
	CMPL	AX, $0x10002
	JNE	hand
	XORL	AX, AX		// OpStore
	CMPL	DX, $8
	JEQ	save64
	MOVL	DI, (SI)
	JMP	done

save64:
	MOVQ	DI, (SI)
	JMP	done

	// OpHand: from here to the end of the wait nothing is asked of the kernel. The
	// clock is the processor's own, so that the wait ends although the parent may be
	// gone or stopped; it may differ a little between processors, hence the signed
	// comparison. Descriptor 0 is shown as 1.
hand:
	INCQ	DI
	MOVQ	DI, SHOWN(R12)
	RDTSC
	SHLQ	$32, DX
	ORQ	DX, AX
	MOVQ	AX, R14

unseen:
	CMPQ	TAKEN(R12), $0
	JNE	held
	PAUSE
	RDTSC
	SHLQ	$32, DX
	ORQ	DX, AX
	SUBQ	R14, AX
	CMPQ	AX, PATIENCE(R12)
	JLT	unseen
	CMPQ	TAKEN(R12), $0	// a frozen child finds at last what came meanwhile
	JNE	held
	UD2

done:
	MOVBLZX	4(BX), CX
	CMPL	CX, $255
	JEQ	judge
	MOVQ	AX, REGS(R12)(CX*8)

judge:
	CMPQ	AX, $-4095
	JCC	failed
	MOVWLZX	12(BX), CX
	JMP	advance

	// openat2 confined to the root gives up with EAGAIN if anybody on the machine
	// renamed or mounted something while it passed a "..". It is repeated, but not
	// for ever: a neighbour may do nothing but rename.
failed:
	NEGQ	AX
	CMPL	AX, $EAGAIN
	JNE	look
	MOVL	(BX), DX
	CMPL	DX, $SYS_openat2
	JNE	look
	INCL	R14
	CMPL	R14, $REPEATS
	JLT	again

look:
	MOVBLZX	11(BX), DX
	LEAQ	64(BX), SI

branch:
	TESTL	DX, DX
	JEQ	fatal
	MOVWLZX	(SI), CX
	CMPL	CX, AX
	JEQ	taken
	ADDQ	$4, SI
	DECL	DX
	JMP	branch

taken:
	MOVWLZX	2(SI), CX

advance:
	INCL	CX
	ADDQ	CX, R15
	IMULQ	$STEPSIZE, CX
	ADDQ	CX, BX
	JMP	next

	// The steps in the control block's mapping are done. What they have mapped follows: its
	// pointers are put in, and its steps begin.
over:
	MOVQ	NEXT(R12), BX
	TESTQ	BX, BX
	JEQ	fell
	MOVQ	$0, NEXT(R12)
	MOVQ	NEXTEND(R12), BP
	MOVQ	RELOCS(R12), SI
	MOVQ	RELOCSEND(R12), DI

point:
	CMPQ	SI, DI
	JCC	next
	MOVL	(SI), AX
	MOVL	4(SI), CX
	ADDQ	R13, CX
	MOVQ	CX, (R13)(AX*1)
	ADDQ	$8, SI
	JMP	point

fell:
	MOVL	$ENOEXEC, AX

fatal:
	MOVL	R15, RECORD(R12)
	MOVL	AX, (RECORD+4)(R12)
	MOVQ	REPORTFD(R12), DI
	LEAQ	RECORD(R12), SI
	MOVL	$8, DX
	MOVL	$SYS_write, AX
	SYSCALL
	MOVL	$127, DI
	MOVL	$SYS_exit_group, AX
	SYSCALL
	INT	$3
