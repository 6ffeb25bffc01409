package spec

import (
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// applyPrivileges handles privileged, no_new_privs and the mandatory access control fields.
func applyPrivileges(in *Input, s *specs.Spec) error {
	sc := security(in.Container)
	if sc.GetPrivileged() && !in.Pod.Privileged {
		return Invalid("linux.security_context.privileged", "", "no privileged container in a sandbox that is not privileged")
	}
	s.Process.NoNewPrivileges = sc.GetNoNewPrivs()
	s.Process.ApparmorProfile = in.AppArmor
	s.Process.SelinuxLabel, s.Linux.MountLabel = in.Labels.Process, in.Labels.Mount
	return nil
}

func itoa(v int64) string { return strconv.FormatInt(v, 10) }
