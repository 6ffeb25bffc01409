package spec

import (
	"fmt"
	"os"
	"path"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// applyDevices gives the container its device nodes beside the standard ones, which the program makes
// itself, and the rules of the device cgroup.
func applyDevices(in *Input, s *specs.Spec) error {
	s.Linux.Resources = &specs.LinuxResources{Devices: standardDeviceRules()}
	if security(in.Container).GetPrivileged() && !in.Pod.NoHostDevices {
		s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
		for _, d := range in.Host.Devices {
			if in.Pod.UserNS != nil {
				break // whose root owns none of them; each would be a mount, to no use
			}
			s.Linux.Devices = append(s.Linux.Devices, deviceNode(d, d.Path))
		}
	}
	if len(in.Devices) != len(in.Container.GetDevices()) {
		return Invalid("devices", "", "%d devices were looked up for %d", len(in.Devices), len(in.Container.GetDevices()))
	}
	for i, d := range in.Container.GetDevices() {
		field := fmt.Sprintf("devices[%d]", i)
		dst := d.GetContainerPath()
		if dst == "" {
			dst = d.GetHostPath()
		}
		dst, err := containerPath(field+".container_path", dst)
		if err != nil {
			return err
		}
		if err := checkPermissions(field+".permissions", d.GetPermissions()); err != nil {
			return err
		}
		s.Linux.Devices = setDevice(s.Linux.Devices, deviceNode(in.Devices[i], dst))
		major, minor := in.Devices[i].Major, in.Devices[i].Minor
		s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{
			Allow: true, Type: in.Devices[i].Type, Major: &major, Minor: &minor, Access: d.GetPermissions()})
	}
	return nil
}

// setDevice replaces the node on the same path: the request's wins over the host's.
func setDevice(list []specs.LinuxDevice, d specs.LinuxDevice) []specs.LinuxDevice {
	for i := range list {
		if path.Clean(list[i].Path) == d.Path {
			list[i] = d
			return list
		}
	}
	return append(list, d)
}

func deviceNode(d HostDevice, at string) specs.LinuxDevice {
	mode, uid, gid := os.FileMode(d.Mode&0o777), d.UID, d.GID
	return specs.LinuxDevice{Path: at, Type: d.Type, Major: d.Major, Minor: d.Minor, FileMode: &mode, UID: &uid, GID: &gid}
}

func checkPermissions(field, p string) error {
	if p == "" || strings.Trim(p, "rwm") != "" {
		return Invalid(field, p, "not made of r, w and m")
	}
	for _, c := range "rwm" {
		if strings.Count(p, string(c)) > 1 {
			return Invalid(field, p, "%q twice", c)
		}
	}
	return nil
}

// standardDeviceRules denies all, lets any node be made (but not opened), and opens the standard ones, the
// terminals and the container's own pseudo terminals.
func standardDeviceRules() []specs.LinuxDeviceCgroup {
	rules := []specs.LinuxDeviceCgroup{
		{Allow: false, Access: "rwm"},
		{Allow: true, Type: "c", Access: "m"},
		{Allow: true, Type: "b", Access: "m"},
	}
	for _, d := range []struct{ major, minor int64 }{
		{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, // null, zero, full, random, urandom
		{5, 0}, {5, 2}, {136, -1}, // tty, ptmx, pts/*
	} {
		r := specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &d.major, Access: "rwm"}
		if d.minor >= 0 {
			r.Minor = &d.minor
		}
		rules = append(rules, r)
	}
	return rules
}
