package spec

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// UserNS is the user namespace of a pod: Length ids, which are 0 and up inside and HostID and up on the host, of users
// and of groups. The kubelet gives each pod 65536 that no other pod has.
type UserNS struct {
	HostID, Length uint32
}

// Maps are what the kernel is told.
func (u *UserNS) Maps() sys.IDMaps {
	line := []sys.IDMap{{Inside: 0, Outside: u.HostID, Count: u.Length}}
	return sys.IDMaps{UIDs: line, GIDs: line}
}

// Outside is who an id of the container is on the host; without a user namespace the same.
func (u *UserNS) Outside(id uint32) uint32 {
	if u == nil {
		return id
	}
	return u.HostID + id
}

func (u *UserNS) lines() []specs.LinuxIDMapping {
	return []specs.LinuxIDMapping{{ContainerID: 0, HostID: u.HostID, Size: u.Length}}
}

// podUserNS judges the user namespace of a sandbox.
func podUserNS(p *Pod, cfg *runtimeapi.PodSandboxConfig, _ Host) error {
	const field = "linux.security_context.namespace_options.userns_options"
	u := cfg.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions()
	switch mode := u.GetMode(); {
	case u == nil:
		return nil
	case mode == runtimeapi.NamespaceMode_NODE:
		if len(u.GetUids()) != 0 || len(u.GetGids()) != 0 {
			return Invalid(field, "NODE", "mappings without a user namespace")
		}
		return nil
	case mode == runtimeapi.NamespaceMode_CONTAINER || mode == runtimeapi.NamespaceMode_TARGET:
		return Invalid(field+".mode", mode.String(), "only POD and NODE have a meaning here")
	case mode != runtimeapi.NamespaceMode_POD:
		return Invalid(field+".mode", itoa(int64(mode)), "unknown namespace mode")
	case p.HostPID || p.HostIPC:
		// Whose root would be the host's there: the namespaces are not the user namespace's.
		return Invalid(field+".mode", "POD", "with the host's pid or ipc namespace")
	case len(u.GetUids()) != 1:
		return Invalid(field+".uids", itoa(int64(len(u.GetUids()))), "not exactly one mapping")
	case len(u.GetGids()) != 1 || !proto.Equal(u.GetUids()[0], u.GetGids()[0]):
		return Invalid(field+".gids", itoa(int64(len(u.GetGids()))), "not the mapping of uids")
	}
	m := u.GetUids()[0]
	switch {
	case m.GetContainerId() != 0:
		return Invalid(field+".uids[0].container_id", itoa(int64(m.GetContainerId())), "not 0: root has to be mapped")
	case m.GetLength() == 0 || uint64(m.GetHostId())+uint64(m.GetLength()) > maxID+1:
		return Invalid(field+".uids[0].length", itoa(int64(m.GetLength())), "0, or beyond the last id")
	}
	p.UserNS = &UserNS{HostID: m.GetHostId(), Length: m.GetLength()}
	return nil
}

// sameUserNS demands that a container which says anything about user namespaces says what its sandbox said: it joins
// that one.
func sameUserNS(field string, c *runtimeapi.ContainerConfig, p *Pod) error {
	ns := security(c).GetNamespaceOptions()
	if ns == nil {
		return nil
	}
	q := &Pod{HostPID: p.HostPID, HostIPC: p.HostIPC}
	cfg := &runtimeapi.PodSandboxConfig{Linux: &runtimeapi.LinuxPodSandboxConfig{
		SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: ns}}}
	if err := podUserNS(q, cfg, Host{}); err != nil {
		return err
	}
	if (q.UserNS == nil) != (p.UserNS == nil) || q.UserNS != nil && *q.UserNS != *p.UserNS {
		return Invalid(field, ns.GetUsernsOptions().GetMode().String(), "not the user namespace of the sandbox")
	}
	return nil
}

// apply names the namespace and the ids, all of which must exist there. The path is for readers: the namespace is handed
// over as a descriptor.
func (u *UserNS) apply(s *specs.Spec) error {
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace, Path: "the pod's"})
	s.Linux.UIDMappings, s.Linux.GIDMappings = u.lines(), u.lines()
	const field = "linux.security_context."
	if id := s.Process.User.UID; id >= u.Length {
		return Invalid(field+"run_as_user", itoa(int64(id)), "not among the %d users of the sandbox", u.Length)
	}
	if id := s.Process.User.GID; id >= u.Length {
		return Invalid(field+"run_as_group", itoa(int64(id)), "not among the %d groups of the sandbox", u.Length)
	}
	for _, id := range s.Process.User.AdditionalGids {
		if id >= u.Length {
			return Invalid(field+"supplemental_groups", itoa(int64(id)), "not among the %d groups of the sandbox", u.Length)
		}
	}
	return nil
}

// is says whether a request has the mapping of the sandbox, and no other.
func (u *UserNS) is(lines []*runtimeapi.IDMapping) bool {
	return u != nil && len(lines) == 1 && lines[0].GetContainerId() == 0 && lines[0].GetHostId() == u.HostID && lines[0].GetLength() == u.Length
}

// mapped judges the mappings of a mount: none, or the sandbox's. What the kubelet sends for a volume is always that.
func (u *UserNS) mapped(field string, m *runtimeapi.Mount) ([]specs.LinuxIDMapping, error) {
	if len(m.GetUidMappings()) == 0 && len(m.GetGidMappings()) == 0 {
		return nil, nil
	}
	for _, k := range []struct {
		field string
		lines []*runtimeapi.IDMapping
	}{{".uidMappings", m.GetUidMappings()}, {".gidMappings", m.GetGidMappings()}} {
		if !u.is(k.lines) {
			return nil, Invalid(field+k.field, itoa(int64(len(k.lines))), "not the mapping of the sandbox")
		}
	}
	return u.lines(), nil
}
