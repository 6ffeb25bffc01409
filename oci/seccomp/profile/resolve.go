package profile

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Version is the part of a kernel's version that conditions look at.
type Version struct{ Major, Minor uint64 }

// atLeast is >=.
func (v Version) atLeast(o Version) bool {
	return v.Major > o.Major || v.Major == o.Major && v.Minor >= o.Minor
}

// Kernel is the version of the running kernel.
func Kernel() (Version, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Version{}, fmt.Errorf("read kernel version: %w", err)
	}
	return parseVersion(unix.ByteSliceToString(u.Release[:]))
}

// parseVersion reads "6.18.44-fc" as 6.18.
func parseVersion(release string) (Version, error) {
	major, rest, _ := strings.Cut(release, ".")
	if end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' }); end >= 0 {
		rest = rest[:end]
	}
	a, err := strconv.ParseUint(major, 10, 32)
	if err != nil {
		return Version{}, fmt.Errorf("read kernel version %q: %w", release, err)
	}
	b, err := strconv.ParseUint(rest, 10, 32)
	if err != nil {
		return Version{}, fmt.Errorf("read kernel version %q: %w", release, err)
	}
	return Version{a, b}, nil
}

// platform is how the profile names an architecture: in its conditions and in its list of ABIs.
type platform struct {
	condition string
	arch      specs.Arch
}

// platforms maps GOARCH.
var platforms = map[string]platform{
	"386":      {"x86", specs.ArchX86},
	"amd64":    {"amd64", specs.ArchX86_64},
	"arm":      {"arm", specs.ArchARM},
	"arm64":    {"arm64", specs.ArchAARCH64},
	"loong64":  {"loongarch64", specs.ArchLOONGARCH64},
	"mips64le": {"mipsel64", specs.ArchMIPSEL64},
	"ppc64le":  {"ppc64le", specs.ArchPPC64LE},
	"riscv64":  {"riscv64", specs.ArchRISCV64},
	"s390x":    {"s390x", specs.ArchS390X},
}

// resolve decides all conditions of a profile.
func resolve(in *seccomp.Seccomp, h Host) (*specs.LinuxSeccomp, error) {
	pf, ok := platforms[h.Arch]
	if !ok {
		return nil, fmt.Errorf("resolve seccomp profile: architecture %q is unknown", h.Arch)
	}
	out := in.LinuxSeccomp
	out.Syscalls = nil
	for _, a := range in.ArchMap {
		if a.Arch == pf.arch {
			out.Architectures = append([]specs.Arch{a.Arch}, a.SubArches...)
		}
	}
	for _, s := range in.Syscalls {
		if excluded(s.Excludes, pf, h) || !included(s.Includes, pf, h) {
			continue
		}
		out.Syscalls = append(out.Syscalls, s.LinuxSyscall)
	}
	return &out, nil
}

// included: every condition must hold, and of the capabilities every one.
func included(f *seccomp.Filter, pf platform, h Host) bool {
	if f == nil {
		return true
	}
	if len(f.Arches) > 0 && !slices.Contains(f.Arches, pf.condition) {
		return false
	}
	for _, c := range f.Caps {
		if !slices.Contains(h.Bounding, c) {
			return false
		}
	}
	return f.MinKernel == nil || h.Kernel.atLeast(Version{f.MinKernel.Kernel, f.MinKernel.Major})
}

// excluded: one condition is enough, and of the capabilities one.
func excluded(f *seccomp.Filter, pf platform, h Host) bool {
	if f == nil {
		return false
	}
	if slices.Contains(f.Arches, pf.condition) {
		return true
	}
	if slices.ContainsFunc(f.Caps, func(c string) bool { return slices.Contains(h.Bounding, c) }) {
		return true
	}
	return f.MinKernel != nil && h.Kernel.atLeast(Version{f.MinKernel.Kernel, f.MinKernel.Major})
}
