package oci

import (
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/vitrine-runtime/vitrine/oci/seccomp"
)

// filters holds what was compiled last: a node has a handful of profiles, and a
// default one takes longer to compile than its container to start.
var filters = seccomp.NewCache(8)

// compileSeccomp returns the filter as the kernel takes it, and the flags to
// load it with; nothing for no profile.
func compileSeccomp(s *specs.LinuxSeccomp) (filter []byte, flags uint64, err error) {
	if s == nil {
		return nil, 0, nil
	}
	f, err := filters.Compile(s)
	if err != nil {
		return nil, 0, fmt.Errorf("compile seccomp profile: %w", err)
	}
	return f.Bytes(), f.Flags, nil
}
