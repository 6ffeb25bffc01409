package spec

import (
	"fmt"
	"path"
	"slices"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// adjustDevices gives device nodes with full access, or takes nodes away. The right to open what is taken away goes
// with it, unless it is one of the standard ones.
func adjustDevices(s *specs.Spec, a *api.ContainerAdjustment) error {
	for i, d := range a.GetLinux().GetDevices() {
		field := fmt.Sprintf("linux.devices[%d]", i)
		if at, gone := d.IsMarkedForRemoval(); gone {
			removeDevice(s, path.Clean(at))
			continue
		}
		dst, err := containerPath(field+".path", d.GetPath())
		if err != nil {
			return err
		}
		if t := d.GetType(); t != "c" && t != "b" {
			return Invalid(field+".type", t, "neither c nor b")
		}
		if d.GetMajor() < 0 || d.GetMinor() < 0 {
			return Invalid(field, d.GetPath(), "a negative number")
		}
		node := d.ToOCI()
		node.Path = dst
		if node.FileMode != nil {
			mode := node.FileMode.Perm()
			node.FileMode = &mode
		}
		s.Linux.Devices = setDevice(s.Linux.Devices, node)
		s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{
			Allow: true, Type: node.Type, Major: &node.Major, Minor: &node.Minor, Access: "rwm"})
	}
	return nil
}

// removeDevice takes a node away, with the rule that was made for it.
func removeDevice(s *specs.Spec, at string) {
	i := slices.IndexFunc(s.Linux.Devices, func(d specs.LinuxDevice) bool { return path.Clean(d.Path) == at })
	if i < 0 {
		return
	}
	d := s.Linux.Devices[i]
	s.Linux.Devices = slices.Delete(s.Linux.Devices, i, i+1)
	std := len(standardDeviceRules())
	rules := s.Linux.Resources.Devices
	if len(rules) <= std {
		return // a privileged container: all is allowed by one rule
	}
	s.Linux.Resources.Devices = append(slices.Clone(rules[:std]), slices.DeleteFunc(slices.Clone(rules[std:]), func(r specs.LinuxDeviceCgroup) bool {
		return r.Type == d.Type && r.Major != nil && *r.Major == d.Major && r.Minor != nil && *r.Minor == d.Minor
	})...)
}

func adjustScore(s *specs.Spec, a *api.ContainerAdjustment) error {
	v := a.GetLinux().GetOomScoreAdj()
	if v == nil {
		return nil
	}
	if v.GetValue() < -1000 || v.GetValue() > 1000 {
		return Invalid("linux.oom_score_adj", itoa(v.GetValue()), "outside -1000..1000")
	}
	n := int(v.GetValue())
	s.Process.OOMScoreAdj = &n
	return nil
}

// adjustSchedule changes what a program sets for itself before it begins. The compiler judges the values.
func adjustSchedule(s *specs.Spec, a *api.ContainerAdjustment) error {
	l := a.GetLinux()
	if p := l.GetIoPriority(); p != nil {
		s.Process.IOPriority = p.ToOCI()
	}
	if p := l.GetScheduler(); p != nil {
		s.Process.Scheduler = p.ToOCI()
	}
	if p := l.GetMemoryPolicy(); p != nil {
		s.Linux.MemoryPolicy = p.ToOCI()
	}
	return nil
}

// adjustSeccomp replaces the profile, by the rules of a Localhost profile. A listener is refused as there.
func adjustSeccomp(s *specs.Spec, a *api.ContainerAdjustment) error {
	p := a.GetLinux().GetSeccompPolicy()
	if p == nil {
		return nil
	}
	profile := &specs.LinuxSeccomp{
		DefaultAction: specs.LinuxSeccompAction(p.GetDefaultAction()), ListenerPath: p.GetListenerPath(), ListenerMetadata: p.GetListenerMetadata(),
		Syscalls: api.ToOCILinuxSyscalls(p.GetSyscalls()),
	}
	if e := p.GetDefaultErrno(); e != nil {
		n := uint(e.GetValue())
		profile.DefaultErrnoRet = &n
	}
	for _, arch := range p.GetArchitectures() {
		profile.Architectures = append(profile.Architectures, specs.Arch(arch))
	}
	for _, flag := range p.GetFlags() {
		profile.Flags = append(profile.Flags, specs.LinuxSeccompFlag(flag))
	}
	if err := checkSeccomp("linux.seccomp_policy", profile); err != nil {
		return err
	}
	s.Linux.Seccomp = profile
	return nil
}
