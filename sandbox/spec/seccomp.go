package spec

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// SeccompKind is the sort of filter that a container gets.
type SeccompKind int

// The sorts of filters.
const (
	SeccompNone      SeccompKind = iota // unconfined: asked for, unset, or privileged
	SeccompDefault                      // this runtime's default profile
	SeccompLocalhost                    // a profile from a file on the node
)

// SeccompOf chooses the profile of a container; ref is the absolute path of a Localhost one. Unset means what
// the pod's handler says: unconfined, as critest requires, or the default. Privileged wins over everything.
func SeccompOf(c *runtimeapi.ContainerConfig, p *Pod) (kind SeccompKind, ref string, err error) {
	sc := security(c)
	want := sc.GetSeccomp()
	if want == nil {
		//nolint:staticcheck // deprecated, but kubelets still send it
		if want, err = seccompString(sc.GetSeccompProfilePath()); err != nil {
			return SeccompNone, "", err
		}
	}
	if want == nil && p.DefaultSeccomp {
		want = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
	}
	kind, ref, err = seccompProfile("linux.security_context.seccomp", want)
	if err != nil || sc.GetPrivileged() {
		return SeccompNone, "", err
	}
	return kind, ref, nil
}

func seccompProfile(field string, p *runtimeapi.SecurityProfile) (SeccompKind, string, error) {
	if p == nil {
		return SeccompNone, "", nil
	}
	ref := p.GetLocalhostRef()
	switch p.GetProfileType() {
	case runtimeapi.SecurityProfile_Unconfined, runtimeapi.SecurityProfile_RuntimeDefault:
		if ref != "" {
			return SeccompNone, "", Invalid(field+".localhost_ref", ref, "set for a profile that is not Localhost")
		}
		if p.GetProfileType() == runtimeapi.SecurityProfile_RuntimeDefault {
			return SeccompDefault, "", nil
		}
		return SeccompNone, "", nil
	case runtimeapi.SecurityProfile_Localhost:
		if err := checkAbsolute(field+".localhost_ref", ref); err != nil {
			return SeccompNone, "", err
		}
		return SeccompLocalhost, path.Clean(ref), nil
	}
	return SeccompNone, "", Invalid(field+".profile_type", itoa(int64(p.GetProfileType())), "unknown profile type")
}

// seccompString reads the deprecated string form.
func seccompString(v string) (*runtimeapi.SecurityProfile, error) {
	name, local := strings.CutPrefix(v, "localhost/")
	switch {
	case v == "":
		return nil, nil
	case v == "unconfined":
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}, nil
	case v == "runtime/default", v == "docker/default":
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}, nil
	case local:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: name}, nil
	}
	return nil, Invalid("linux.security_context.seccomp_profile_path", v, "neither unconfined nor runtime/default nor localhost/<path>")
}

var seccompActions = []specs.LinuxSeccompAction{
	specs.ActKill, specs.ActKillProcess, specs.ActKillThread, specs.ActTrap, specs.ActErrno,
	specs.ActTrace, specs.ActAllow, specs.ActLog,
}

// ParseSeccomp reads a Localhost profile in the runtime-spec's form. The caller bounds data. What the
// compiler cannot know to be a mistake (unknown system calls) passes; a file that is no profile, or one
// that needs a listener nobody serves, is refused.
func ParseSeccomp(data []byte) (*specs.LinuxSeccomp, error) {
	const field = "linux.security_context.seccomp.localhost_ref"
	p := &specs.LinuxSeccomp{}
	dec := json.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(p); err != nil {
		return nil, Invalid(field, "", "the profile is not JSON of the runtime-spec's form: %v", err)
	}
	if dec.More() {
		return nil, Invalid(field, "", "the profile is followed by more data")
	}
	if err := checkSeccomp(field, p); err != nil {
		return nil, err
	}
	return p, nil
}

// checkSeccomp judges a profile, wherever it came from.
func checkSeccomp(field string, p *specs.LinuxSeccomp) error {
	if p.ListenerPath != "" {
		return Unimplemented(field, p.ListenerPath, "user notification comes later")
	}
	if err := checkAction(field, "defaultAction", p.DefaultAction, p.DefaultErrnoRet); err != nil {
		return err
	}
	for i, sc := range p.Syscalls {
		at := fmt.Sprintf("syscalls[%d]", i)
		if err := checkAction(field, at, sc.Action, sc.ErrnoRet); err != nil {
			return err
		}
		if len(sc.Names) == 0 {
			return Invalid(field, at, "no names")
		}
		for _, a := range sc.Args {
			if a.Index > 5 {
				return Invalid(field, at, "argument index %d: system calls have six", a.Index)
			}
		}
	}
	return nil
}

func checkAction(field, at string, a specs.LinuxSeccompAction, errno *uint) error {
	switch {
	case a == specs.ActNotify:
		return Unimplemented(field, at, "user notification comes later")
	case !slices.Contains(seccompActions, a):
		return Invalid(field, at, "unknown action %q", cut(string(a)))
	case errno != nil && a != specs.ActErrno && a != specs.ActTrace:
		return Invalid(field, at, "an errno makes no sense with %s", a)
	}
	return nil
}

// applySeccomp writes the chosen profile.
func applySeccomp(in *Input, s *specs.Spec) error {
	s.Linux.Seccomp = in.Seccomp
	return nil
}
