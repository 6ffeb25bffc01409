// Package profile gives the seccomp profile that a container gets for RuntimeDefault, as data for the compiler in oci/seccomp.
//
//	github.com/moby/profiles/seccomp   the data: calls, with conditions on capabilities, architecture and kernel
//	          |
//	          |  Host: bounding set, GOARCH, kernel version
//	          v
//	resolve (resolve.go)               conditions decided
//	          |
//	          v
//	harden (harden.go)                 our changes
//	          |
//	          v
//	specs.LinuxSeccomp
//
// The conditions look at the bounding set and nothing else, since that is the most that a container can ever have.
//
// # Changes to the upstream data
//
//  1. socket(2) with AF_RXRPC is denied. The family is rarely used and was part of several local privilege escalations
//     (CVE-2026-43284, CVE-2026-43500). Needed by kernel AFS clients only.
//  2. socket(2) with AF_ALG and AF_VSOCK is denied. Upstream's allow-list has neither since v0.3.0; here it is a promise: Default
//     returns an error if the data should ever allow one of the three again in a form that is not a plain EQ.
//  3. On x86 socketcall(2) is answered with ENOSYS instead of allowed, unless Host.Socketcall is set. The family is behind a pointer there, so that allowing it undoes
//     every rule for socket(2): any 64-bit program may use it through int 0x80. musl and Go use the direct calls, present since Linux 4.3;
//     32-bit programs with a C library that has only socketcall (Debian's glibc for i386) lose their sockets.
//     On s390x, where the native C library uses it, it stays as upstream has it.
//
// The domain argument is compared as the 32 bits that the kernel looks at, by the compiler and not here, so that AF_ALG | 1<<32 is AF_ALG.
package profile

import (
	"runtime"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Host is what the conditions of a profile depend on.
type Host struct {
	Arch       string   // a GOARCH
	Kernel     Version  // of the running kernel; the zero value meets no minimum
	Bounding   []string // the container's bounding set, "CAP_..."
	Socketcall bool     // leave socketcall(2) allowed on x86, for 32-bit programs with an old C library
}

// Default is RuntimeDefault on this machine for a container with the bounding set caps ("CAP_..." names). arch is a GOARCH; "" is the one that we
// were built for. The result is the caller's.
func Default(caps []string, arch string) (*specs.LinuxSeccomp, error) {
	if arch == "" {
		arch = runtime.GOARCH
	}
	kernel, err := Kernel()
	if err != nil {
		return nil, err
	}
	return For(Host{Arch: arch, Kernel: kernel, Bounding: caps})
}

// For is RuntimeDefault under stated conditions.
func For(h Host) (*specs.LinuxSeccomp, error) {
	p, err := resolve(seccomp.DefaultProfile(), h)
	if err != nil {
		return nil, err
	}
	if err := harden(p, h); err != nil {
		return nil, err
	}
	return p, nil
}
