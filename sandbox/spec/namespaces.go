package spec

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// applyNamespaces lists the namespaces that are the container's own. The pod's (network, ipc, uts) are not
// in the list: init is born in them, since the monitor lives there. An absent pid namespace means the
// host's in a HostPID pod and the pod's shared one otherwise; see [Pod.SharedPID]. That of another container
// ([Input.PIDTarget]) has a path, for whoever reads the spec: what is joined is that container's, whatever its pid has become.
//
// The cgroup namespace is private except for privileged containers, which are given the host's hierarchy
// to manage; but not in a user namespace, whose root the hierarchy does not belong to and could not mount.
func applyNamespaces(in *Input, s *specs.Spec) error {
	own, err := OwnPID(in.Container, in.Pod)
	if err != nil {
		return err
	}
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.MountNamespace})
	switch {
	case own:
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.PIDNamespace})
	case in.PIDTarget != "":
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.PIDNamespace, Path: in.PIDTarget})
	}
	if !security(in.Container).GetPrivileged() || in.Pod.UserNS != nil {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	if in.Pod.UserNS != nil {
		return in.Pod.UserNS.apply(s)
	}
	return nil
}

// OwnPID tells whether the container gets a pid namespace of its own. The container's mode must agree with
// the sandbox's, with liberties: CONTAINER may be asked for in any pod; POD, which is also what an
// unset field reads as, means whatever the pod does; and TARGET is another container's of the same pod, which is not looked
// for here. NODE in a pod that does not share the host's pid namespace is an escalation and refused.
func OwnPID(c *runtimeapi.ContainerConfig, p *Pod) (bool, error) {
	const field = "linux.security_context.namespace_options"
	ns := security(c).GetNamespaceOptions()
	if err := sameUserNS(field+".userns_options", c, p); err != nil {
		return false, err
	}
	if ns.GetNetwork() == runtimeapi.NamespaceMode_NODE && !p.HostNetwork {
		return false, Invalid(field+".network", "NODE", "the sandbox does not use the host's network")
	}
	if ns.GetIpc() == runtimeapi.NamespaceMode_NODE && !p.HostIPC {
		return false, Invalid(field+".ipc", "NODE", "the sandbox does not use the host's ipc namespace")
	}
	if err := checkMode(field+".network", ns.GetNetwork()); err != nil {
		return false, err
	}
	if err := checkMode(field+".ipc", ns.GetIpc()); err != nil {
		return false, err
	}
	switch mode := ns.GetPid(); mode {
	case runtimeapi.NamespaceMode_CONTAINER:
		return true, nil
	case runtimeapi.NamespaceMode_POD:
		return !p.SharedPID && !p.HostPID, nil
	case runtimeapi.NamespaceMode_NODE:
		if !p.HostPID {
			return false, Invalid(field+".pid", "NODE", "the sandbox does not use the host's pid namespace")
		}
		return false, nil
	case runtimeapi.NamespaceMode_TARGET:
		return false, nil
	default:
		return false, Invalid(field+".pid", itoa(int64(mode)), "unknown namespace mode")
	}
}

// checkMode accepts the two modes that network and ipc can have.
func checkMode(field string, m runtimeapi.NamespaceMode) error {
	switch m {
	case runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_NODE:
		return nil
	case runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_TARGET:
		return Invalid(field, m.String(), "only POD and NODE have a meaning here")
	}
	return Invalid(field, itoa(int64(m)), "unknown namespace mode")
}
