#include "textflag.h"

#define SYS_write 1
#define SYS_rt_sigreturn 15

// The handler. It runs on the alternate stack of whichever thread the kernel picks, where Go code
// cannot: it has neither g nor a place to grow. What it changes is put back by restore.
TEXT caught<>(SB), NOSPLIT|NOFRAME, $0
	SUBQ	$16, SP
	MOVQ	DI, 0(SP)	// the number
	MOVL	·caughtFD(SB), DI
	MOVQ	SP, SI
	MOVL	$1, DX
	MOVL	$SYS_write, AX
	SYSCALL			// a full pipe loses it
	ADDQ	$16, SP
	RET

TEXT restore<>(SB), NOSPLIT|NOFRAME, $0
	MOVL	$SYS_rt_sigreturn, AX
	SYSCALL
	INT	$3

// func handlers() (caught, restore uintptr)
TEXT ·handlers(SB), NOSPLIT, $0-16
	LEAQ	caught<>(SB), AX
	MOVQ	AX, caught+0(FP)
	LEAQ	restore<>(SB), AX
	MOVQ	AX, restore+8(FP)
	RET
