package spec

import (
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Pod is a sandbox request, judged and reduced to what has to be done.
type Pod struct {
	Hostname                      string // "" in the host's network
	HostNetwork, HostIPC, HostPID bool
	UserNS                        *UserNS `json:",omitempty"` // nil for the host's
	SharedPID                     bool    // the containers share a pid namespace with a pause as pid 1
	Privileged                    bool    // may hold privileged containers
	Sysctls                       map[string]string
	ResolvConf                    []byte // nil: the host's
	Ports                         []Port
	CgroupParent                  string   // relative to the root of the hierarchy, cleaned; "" for ours
	LogDirectory                  string   // absolute and clean; "" for no logs
	WritableCgroups               []string // names of containers, or *, see WritableCgroup
	DefaultSeccomp                bool     `json:",omitempty"` // containers that name no profile have the default one
	NoHostDevices                 bool     `json:",omitempty"` // privileged containers have the devices that others have

	Bandwidth *Bandwidth `json:",omitempty"` // nil for no limit; from BandwidthOf, of a new pod only
}

// Port is a port of the host that leads to a port of the pod. Mappings without a host port are not listed:
// they only document.
type Port struct {
	Protocol      string // tcp, udp, sctp
	HostIP        string // "" for all
	HostPort      int32
	ContainerPort int32
}

// PodOf judges a sandbox request. The namespace modes default as proto3 makes them: nil options mean POD,
// also for pid, so that containers share a pid namespace unless the caller says CONTAINER (the kubelet
// always says).
func PodOf(cfg *runtimeapi.PodSandboxConfig, h Host) (*Pod, error) {
	if err := checkPodMetadata(cfg.GetMetadata()); err != nil {
		return nil, err
	}
	p := &Pod{Privileged: cfg.GetLinux().GetSecurityContext().GetPrivileged()}
	for _, f := range []func(*Pod, *runtimeapi.PodSandboxConfig, Host) error{
		podNamespaces, podUserNS, podHostname, podSysctls, podDNS, podPorts, podCgroup, podDelegation, podLogs, podSecurity, podHandler,
	} {
		if err := f(p, cfg, h); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func podNamespaces(p *Pod, cfg *runtimeapi.PodSandboxConfig, _ Host) error {
	const field = "linux.security_context.namespace_options"
	ns := cfg.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if err := checkMode(field+".network", ns.GetNetwork()); err != nil {
		return err
	}
	if err := checkMode(field+".ipc", ns.GetIpc()); err != nil {
		return err
	}
	p.HostNetwork = ns.GetNetwork() == runtimeapi.NamespaceMode_NODE
	p.HostIPC = ns.GetIpc() == runtimeapi.NamespaceMode_NODE
	switch mode := ns.GetPid(); mode {
	case runtimeapi.NamespaceMode_POD:
		p.SharedPID = true
	case runtimeapi.NamespaceMode_CONTAINER:
	case runtimeapi.NamespaceMode_NODE:
		p.HostPID = true
	case runtimeapi.NamespaceMode_TARGET:
		return Invalid(field+".pid", "TARGET", "a sandbox has no container to join")
	default:
		return Invalid(field+".pid", itoa(int64(mode)), "unknown namespace mode")
	}
	return nil
}

// podSecurity judges what is left of the sandbox's security context. No process of ours runs the tenant's
// code in the sandbox itself, so its user and seccomp profile only have to be sound.
func podSecurity(_ *Pod, cfg *runtimeapi.PodSandboxConfig, h Host) error {
	const field = "linux.security_context."
	sc := cfg.GetLinux().GetSecurityContext()
	if sc.GetRunAsGroup() != nil && sc.GetRunAsUser() == nil {
		return Invalid(field+"run_as_group", itoa(sc.GetRunAsGroup().GetValue()), "set without run_as_user")
	}
	for _, id := range []struct {
		field string
		v     *runtimeapi.Int64Value
	}{{"run_as_user", sc.GetRunAsUser()}, {"run_as_group", sc.GetRunAsGroup()}} {
		if id.v != nil && (id.v.GetValue() < 0 || id.v.GetValue() > maxID) {
			return Invalid(field+id.field, itoa(id.v.GetValue()), "outside 0..%d", int64(maxID))
		}
	}
	if _, _, err := seccompProfile(field+"seccomp", sc.GetSeccomp()); err != nil {
		return err
	}
	return checkAppArmor(field+"apparmor", sc.GetApparmor(), h.AppArmor)
}
