package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/oci/seccomp/profile"
	"github.com/vitrine-runtime/vitrine/sandbox/spec"
)

// maxProfile bounds a Localhost profile. The largest in use have some 50 KiB.
const maxProfile = 4 << 20

// seccompProfile returns the profile of a container; nil means unconfined. caps is its bounding set, which
// decides what the default profile lets through.
func seccompProfile(c *runtimeapi.ContainerConfig, pod *spec.Pod, caps []string) (*specs.LinuxSeccomp, error) {
	kind, ref, err := spec.SeccompOf(c, pod)
	if err != nil {
		return nil, err
	}
	switch kind {
	case spec.SeccompDefault:
		return profile.Default(caps, runtime.GOARCH)
	case spec.SeccompLocalhost:
		data, err := readProfile(ref)
		if err != nil {
			return nil, spec.Invalid("linux.security_context.seccomp.localhost_ref", ref, "%v", err)
		}
		return spec.ParseSeccomp(data)
	}
	return nil, nil
}

// readProfile reads a regular file of the host, bounded, without waiting on what is none.
func readProfile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return nil, err
	} else if !st.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	data, err := io.ReadAll(io.LimitReader(f, maxProfile+1))
	if err == nil && len(data) > maxProfile {
		err = fmt.Errorf("more than %d bytes", maxProfile)
	}
	return data, err
}
