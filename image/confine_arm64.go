package image

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_AARCH64

var (
	archRuntimeCalls = []uintptr{unix.SYS_PRLIMIT64}
	archFileCalls    = []uintptr{unix.SYS_FSTATAT}
)
