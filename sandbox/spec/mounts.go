package spec

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// ttyGroup is the group of terminals.
const ttyGroup = 5

// applyDefaultMounts lists what every container has. A volume of the request on the same place takes the
// entry's place, see applyVolumes.
func applyDefaultMounts(in *Input, s *specs.Spec) error {
	sysfs := []string{"nosuid", "noexec", "nodev"}
	cgroup := []string{"nosuid", "noexec", "nodev", "relatime"}
	if !security(in.Container).GetPrivileged() {
		sysfs = append(sysfs, "ro")
		if !in.Pod.DelegatesCgroup(in.Container.GetMetadata().GetName()) {
			cgroup = append(cgroup, "ro")
		}
	}
	pts := []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}
	if u := in.Pod.UserNS; u == nil || u.Length > ttyGroup {
		pts = append(pts, "gid=5")
	}
	sys := specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: sysfs}
	if in.Pod.UserNS != nil && in.Pod.HostNetwork {
		// It shows a network namespace, and only who owns that may mount one.
		sys = specs.Mount{Destination: "/sys", Type: "bind", Source: "/sys", Options: append([]string{"bind", "rprivate"}, sysfs...)}
	}
	s.Mounts = []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: pts},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		sys,
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: cgroup},
	}
	if in.Files.Shm != "" {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/dev/shm", Type: "bind", Source: in.Files.Shm,
			Options: []string{"rbind", "rprivate", "nosuid", "noexec", "nodev"}})
	}
	for _, f := range []struct{ dst, src string }{
		{"/etc/resolv.conf", in.Files.ResolvConf},
		{"/etc/hostname", in.Files.Hostname},
		{"/etc/hosts", in.Files.Hosts},
	} {
		if f.src == "" {
			continue
		}
		opts := []string{"rbind", "rprivate", "nosuid", "noexec", "nodev"}
		if s.Root.Readonly {
			opts = append(opts, "ro")
		}
		s.Mounts = append(s.Mounts, specs.Mount{Destination: f.dst, Type: "bind", Source: f.src, Options: opts})
	}
	return nil
}
