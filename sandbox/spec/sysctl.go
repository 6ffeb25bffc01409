package spec

import (
	"regexp"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/internal/sysctl"
)

// sysctlName is the grammar of a sysctl in either notation. The name becomes a path below /proc/sys
// (CVE-2022-0811 came in through one with a +).
var sysctlName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_-]*([./][a-zA-Z0-9][a-zA-Z0-9_.-]*)+$`)

// sysctlValue allows what kernel parameters consist of.
var sysctlValue = regexp.MustCompile(`^[a-zA-Z0-9_./:, \t-]+$`)

// podSysctls judges the parameters. Only those of a namespace that the pod owns may be written; whether
// one of these is safe is decided in Kubernetes' admission, not here. Pods with a network of their own may
// also bind ports below 1024 without a capability, since nobody else lives behind their address.
// net.ipv4.ping_group_range is left at the kernel's default: ping needs NET_RAW.
func podSysctls(p *Pod, cfg *runtimeapi.PodSandboxConfig, _ Host) error {
	p.Sysctls = map[string]string{}
	if !p.HostNetwork {
		p.Sysctls["net.ipv4.ip_unprivileged_port_start"] = "0"
	}
	for k, v := range cfg.GetLinux().GetSysctls() {
		const field = "linux.sysctls"
		if len(k) > 256 || !sysctlName.MatchString(k) || strings.Contains(k, "..") {
			return Invalid(field, k, "not the name of a kernel parameter")
		}
		if len(v) > 1024 || !sysctlValue.MatchString(v) {
			return Invalid(field, k, "its value is empty, too long, or holds other than plain characters")
		}
		kind := sysctl.Of(sysctl.Path(k))
		switch {
		case kind != sysctl.Net && kind != sysctl.IPC:
			return Invalid(field, k, "belongs to the node, not to a namespace of the pod")
		case kind == sysctl.Net && p.HostNetwork:
			return Invalid(field, k, "would change the node: the pod uses the host's network")
		case kind == sysctl.IPC && p.HostIPC:
			return Invalid(field, k, "would change the node: the pod uses the host's ipc namespace")
		}
		p.Sysctls[k] = v
	}
	return nil
}
