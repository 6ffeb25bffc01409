#include "textflag.h"

#define SYS_getrlimit 97

TEXT ·getrlimit(SB), NOSPLIT, $0-16
	MOVQ	resource+0(FP), DI
	MOVQ	l+8(FP), SI
	MOVQ	$SYS_getrlimit, AX
	SYSCALL
	RET
