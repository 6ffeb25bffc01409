package spec

import (
	"fmt"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// DefaultCapabilities are what a container has when its request adds and drops nothing: CRI-O's nine.
// Without NET_RAW (a pod cannot forge packets in the cluster's network), MKNOD, SYS_CHROOT, AUDIT_WRITE and
// SETFCAP, which containerd still grants. All of critest passes with them.
var DefaultCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL",
	"CAP_NET_BIND_SERVICE", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID",
}

// applyCapabilities computes the sets. Privileged wins over the lists; ALL is taken first, so that an
// explicit add beats drop ALL and an explicit drop beats add ALL. Inheritable and ambient stay empty but
// for add_ambient_capabilities.
func applyCapabilities(in *Input, s *specs.Spec) error {
	sc := security(in.Container)
	set, err := boundingSet(sc, in.Host)
	if err != nil {
		return err
	}
	ambient := map[string]bool{}
	for i, name := range sc.GetCapabilities().GetAddAmbientCapabilities() {
		c, all, err := capability(fmt.Sprintf("capabilities.add_ambient_capabilities[%d]", i), name, in.Host)
		switch {
		case err != nil:
			return err
		case all:
			for _, c := range in.Host.Capabilities {
				ambient[c], set[c] = true, true
			}
		default:
			ambient[c], set[c] = true, true
		}
	}
	list := ordered(set, in.Host.Capabilities)
	s.Process.Capabilities = &specs.LinuxCapabilities{
		Bounding: list, Effective: list, Permitted: list,
		// A capability can be ambient only while it is inheritable.
		Inheritable: ordered(ambient, in.Host.Capabilities),
		Ambient:     ordered(ambient, in.Host.Capabilities),
	}
	return nil
}

func boundingSet(sc *runtimeapi.LinuxContainerSecurityContext, h Host) (map[string]bool, error) {
	set, known := map[string]bool{}, h.Capabilities
	if sc.GetPrivileged() {
		fill(set, known)
		return set, nil
	}
	// A default that this kernel does not have is left out; asking for one is an error.
	for _, c := range DefaultCapabilities {
		if slices.Contains(known, c) {
			set[c] = true
		}
	}
	add, addAll, err := capabilityList("capabilities.add_capabilities", sc.GetCapabilities().GetAddCapabilities(), h)
	if err != nil {
		return nil, err
	}
	drop, dropAll, err := capabilityList("capabilities.drop_capabilities", sc.GetCapabilities().GetDropCapabilities(), h)
	if err != nil {
		return nil, err
	}
	if addAll {
		fill(set, known)
	}
	if dropAll {
		clear(set)
	}
	for _, c := range drop {
		delete(set, c)
	}
	fill(set, add)
	return set, nil
}

func capabilityList(field string, names []string, h Host) (list []string, all bool, err error) {
	for i, name := range names {
		c, isAll, err := capability(fmt.Sprintf("%s[%d]", field, i), name, h)
		if err != nil {
			return nil, false, err
		}
		if isAll {
			all = true
			continue
		}
		list = append(list, c)
	}
	return list, all, nil
}

// capability returns the kernel's name for what a request calls KILL, kill or CAP_KILL. An unknown name is
// an error in drop as well: a typing mistake there would leave a privilege that somebody wanted gone.
func capability(field, name string, h Host) (c string, all bool, err error) {
	up := strings.ToUpper(name)
	if up == "ALL" {
		return "", true, nil
	}
	if !strings.HasPrefix(up, "CAP_") {
		up = "CAP_" + up
	}
	if slices.Contains(h.Withheld, up) {
		if strings.Contains(field, ".drop_") {
			return up, false, nil // nobody has it
		}
		return "", false, Invalid(field, name, "the runtime does not have this capability itself and cannot grant it")
	}
	if !slices.Contains(h.Capabilities, up) {
		return "", false, Invalid(field, name, "unknown capability")
	}
	return up, false, nil
}

func fill(set map[string]bool, names []string) {
	for _, c := range names {
		set[c] = true
	}
}

// ordered returns the members of set in the kernel's order. It is nil for an empty set.
func ordered(set map[string]bool, known []string) []string {
	var out []string
	for _, c := range known {
		if set[c] {
			out = append(out, c)
		}
	}
	return out
}
