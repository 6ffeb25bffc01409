package spec

import (
	"fmt"
	"net/netip"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// podPorts collects the mappings that need work. In the host's network a mapping has no effect: the port
// is the host's already; the kubelet sends equal numbers there.
func podPorts(p *Pod, cfg *runtimeapi.PodSandboxConfig, _ Host) error {
	seen := map[Port]bool{}
	for i, m := range cfg.GetPortMappings() {
		field := fmt.Sprintf("port_mappings[%d]", i)
		port, err := onePort(field, m)
		if err != nil {
			return err
		}
		if p.HostNetwork || m.GetHostPort() == 0 {
			continue
		}
		key := port
		key.ContainerPort = 0
		if seen[key] {
			return Invalid(field+".host_port", itoa(int64(m.GetHostPort())), "mapped twice for %s", port.Protocol)
		}
		seen[key] = true
		p.Ports = append(p.Ports, port)
	}
	return nil
}

func onePort(field string, m *runtimeapi.PortMapping) (Port, error) {
	out := Port{HostIP: m.GetHostIp(), HostPort: m.GetHostPort(), ContainerPort: m.GetContainerPort()}
	switch m.GetProtocol() {
	case runtimeapi.Protocol_TCP:
		out.Protocol = "tcp"
	case runtimeapi.Protocol_UDP:
		out.Protocol = "udp"
	case runtimeapi.Protocol_SCTP:
		out.Protocol = "sctp"
	default:
		return out, Invalid(field+".protocol", itoa(int64(m.GetProtocol())), "unknown protocol")
	}
	if out.ContainerPort < 1 || out.ContainerPort > 65535 {
		return out, Invalid(field+".container_port", itoa(int64(out.ContainerPort)), "outside 1..65535")
	}
	if out.HostPort < 0 || out.HostPort > 65535 {
		return out, Invalid(field+".host_port", itoa(int64(out.HostPort)), "outside 0..65535")
	}
	if out.HostIP != "" {
		ip, err := netip.ParseAddr(out.HostIP)
		if err != nil || ip.Zone() != "" {
			return out, Invalid(field+".host_ip", out.HostIP, "not an IP address")
		}
	}
	return out, nil
}
