package sandbox

import (
	"encoding/json"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// PodSandboxStatus returns what is known of a pod, and for verbose callers a map with one key, info, whose
// value is JSON. It reads memory only.
func (m *Manager) PodSandboxStatus(id string) (*runtimeapi.PodSandboxStatus, map[string]string, error) {
	sb, err := m.pod(id)
	if err != nil {
		return nil, nil, err
	}
	return sb.message(), sb.info(sb.facts.Load()), nil
}

// message is the pod as the CRI describes it. It reads memory only.
func (sb *Sandbox) message() *runtimeapi.PodSandboxStatus {
	f := sb.facts.Load()
	st := &runtimeapi.PodSandboxStatus{
		Id: sb.id, Metadata: sb.config.GetMetadata(), State: f.state(), CreatedAt: f.Created,
		Network: &runtimeapi.PodSandboxNetworkStatus{},
		Linux: &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{
			Options: sb.namespaces()}},
		Labels: sb.config.GetLabels(), Annotations: sb.config.GetAnnotations(), RuntimeHandler: sb.record.Handler,
	}
	for i, ip := range f.IPs {
		if i == 0 {
			st.Network.Ip = ip
			continue
		}
		st.Network.AdditionalIps = append(st.Network.AdditionalIps, &runtimeapi.PodIP{Ip: ip})
	}
	return st
}

// namespaces tells the modes that are in force, also where the request left them unset.
func (sb *Sandbox) namespaces() *runtimeapi.NamespaceOption {
	o := &runtimeapi.NamespaceOption{UsernsOptions: sb.config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions()}
	if sb.plan.HostNetwork {
		o.Network = runtimeapi.NamespaceMode_NODE
	}
	if sb.plan.HostIPC {
		o.Ipc = runtimeapi.NamespaceMode_NODE
	}
	switch {
	case sb.plan.HostPID:
		o.Pid = runtimeapi.NamespaceMode_NODE
	case !sb.plan.SharedPID:
		o.Pid = runtimeapi.NamespaceMode_CONTAINER
	}
	return o
}

// info renders what the CRI has no field for.
func (sb *Sandbox) info(f *podFacts) map[string]string {
	v := struct {
		Monitor  int    `json:"monitorPid,omitempty"`
		Pid      int    `json:"pid,omitempty"` // crictl and others look for it
		Dir      string `json:"directory"`
		NetNS    string `json:"networkNamespace,omitempty"`
		Cgroup   string `json:"cgroup"`
		Hostname string `json:"hostname,omitempty"`
		Reason   string `json:"reason,omitempty"`
		*podLimits
		LimitsOf string `json:"limitsOf,omitempty"` // whose the pod's cgroup is
	}{Dir: sb.dir, Cgroup: sb.record.Cgroup, Hostname: sb.plan.Hostname, Reason: f.Reason, podLimits: sb.limits.Load()}
	if v.given() {
		v.LimitsOf = sb.limitsOf()
	}
	if !sb.plan.HostNetwork && f.Stopped == 0 {
		v.NetNS = sb.netns()
	}
	if mon := sb.monitor(); mon != nil {
		v.Monitor, v.Pid = mon.pid(), mon.pid()
	}
	b, err := json.Marshal(v)
	if err != nil { // cannot be: strings and numbers
		return nil
	}
	return map[string]string{"info": string(b)}
}

// ListPodSandbox returns the pods that match a filter, newest first; nil means all. A filter that matches
// nothing, or makes no sense, gives an empty list. It reads memory only.
func (m *Manager) ListPodSandbox(filter *runtimeapi.PodSandboxFilter) []*runtimeapi.PodSandbox {
	var out []*runtimeapi.PodSandbox
	for _, sb := range m.index.Load().pods {
		f := sb.facts.Load()
		if !strings.HasPrefix(sb.id, filter.GetId()) ||
			filter.GetState() != nil && filter.GetState().GetState() != f.state() ||
			!selected(filter.GetLabelSelector(), sb.config.GetLabels()) {
			continue
		}
		out = append(out, &runtimeapi.PodSandbox{
			Id: sb.id, Metadata: sb.config.GetMetadata(), State: f.state(), CreatedAt: f.Created,
			Labels: sb.config.GetLabels(), Annotations: sb.config.GetAnnotations(), RuntimeHandler: sb.record.Handler,
		})
	}
	slices.SortFunc(out, func(a, b *runtimeapi.PodSandbox) int {
		return newestFirst(a.CreatedAt, b.CreatedAt, a.Id, b.Id)
	})
	return out
}

func newestFirst(a, b int64, ida, idb string) int {
	switch {
	case a > b:
		return -1
	case a < b:
		return 1
	}
	return strings.Compare(ida, idb)
}

// selected tells whether labels hold all that the selector asks for.
func selected(selector, labels map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}
