package server

import (
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// checkRunPodSandbox is all that can be said about a RunPodSandboxRequest
// without looking at the node.
func (s *Server) checkRunPodSandbox(r *runtimeapi.RunPodSandboxRequest) error {
	if r.GetConfig() == nil {
		return missing("config")
	}
	return first(
		shape(r),
		s.checkHandler("runtime_handler", r.GetRuntimeHandler()),
		at("config", s.checkPodConfig(r.GetConfig())),
	)
}

// checkHandler accepts the names in Status.runtime_handlers, of which "" is one.
func (s *Server) checkHandler(field, name string) error {
	if name != "" && !slices.ContainsFunc(s.cfg.Handlers, func(h Handler) bool { return h.Name == name }) {
		return bad(field, name, "must be a runtime handler of this node")
	}
	return nil
}

// checkPodConfig checks a whole sandbox config. The caller has run shape.
func (s *Server) checkPodConfig(c *runtimeapi.PodSandboxConfig) error {
	return first(
		at("metadata", checkPodMetadata(c.GetMetadata())),
		checkHostname(c.GetHostname()),
		optional("log_directory", c.GetLogDirectory(), absolute, noParent, singleLine, pathMax),
		at("dns_config", checkDNS(c.GetDnsConfig())),
		checkPorts(c.GetPortMappings()),
		checkLabels("labels", c.GetLabels()),
		checkLabels("annotations", c.GetAnnotations()),
		at("linux", s.checkPodLinux(c.GetLinux())),
	)
}

// name is a part of a directory, cgroup and unit name and of what an operator
// types, so it is made of harmless characters only. Kubernetes' own names are.
func name(v string) string {
	for _, r := range []rule{required, atMost(253), chars("-_.:")} {
		if must := r(v); must != "" {
			return must
		}
	}
	if !alnum(v[0]) {
		return "must begin with a letter or a digit"
	}
	return ""
}

func checkPodMetadata(m *runtimeapi.PodSandboxMetadata) error {
	if m == nil {
		return wrong("", "must be set")
	}
	return first(
		text("name", m.GetName(), name),
		text("namespace", m.GetNamespace(), name),
		text("uid", m.GetUid(), name),
	)
}

// checkHostname: 64 bytes is the kernel's limit. An empty one is the node's.
func checkHostname(h string) error {
	return optional("hostname", h, atMost(64), chars("-."), edges, func(v string) string {
		if strings.Contains(v, "..") {
			return "must not hold empty labels"
		}
		return ""
	})
}

// maxResolv limits each list of dns_config: resolvers read 3 servers and
// Kubernetes allows 32 search domains.
const maxResolv = 64

func checkDNS(d *runtimeapi.DNSConfig) error {
	lists := []struct {
		field string
		items []string
		rules []rule
	}{
		{"servers", d.GetServers(), []rule{address}},
		{"searches", d.GetSearches(), []rule{required, atMost(255), chars("-_.")}},
		{"options", d.GetOptions(), []rule{required, atMost(255), chars("-_.:")}},
	}
	for _, l := range lists {
		if len(l.items) > maxResolv {
			return badInt(l.field, int64(len(l.items)), "must have at most "+strconv.Itoa(maxResolv)+" entries")
		}
		for i, v := range l.items {
			if err := text("", v, l.rules...); err != nil {
				return atIndex(l.field, i, err)
			}
		}
	}
	return nil
}

// address: an IP address; a zone, which names an interface, only in resolv.conf's
// harmless characters.
func address(v string) string {
	a, err := netip.ParseAddr(v)
	if err != nil {
		return "must be an IP address"
	}
	return chars("-_.")(a.Zone())
}

// hostAddress: what a port can be bound to, so without a zone.
func hostAddress(v string) string {
	if a, err := netip.ParseAddr(v); err != nil || a.Zone() != "" {
		return "must be an IP address without a zone"
	}
	return ""
}

// checkPorts also runs for pods in the host's network, where mappings have no
// meaning and are ignored: the kubelet sends them there too.
func checkPorts(ports []*runtimeapi.PortMapping) error {
	type end struct {
		ip    string
		port  int32
		proto runtimeapi.Protocol
	}
	seen := make(map[end]bool, len(ports))
	for i, p := range ports {
		err := first(
			port("container_port", p.GetContainerPort(), 1),
			port("host_port", p.GetHostPort(), 0),
			optional("host_ip", p.GetHostIp(), hostAddress),
		)
		e := end{p.GetHostIp(), p.GetHostPort(), p.GetProtocol()}
		if err == nil && seen[e] {
			err = badInt("host_port", int64(e.port), "must not be mapped twice")
		}
		if err != nil {
			return atIndex("port_mappings", i, err)
		}
		seen[e] = e.port != 0
	}
	return nil
}

func port(field string, v, lowest int32) error {
	if v < lowest || v > 65535 {
		return badInt(field, int64(v), "must be between "+strconv.Itoa(int(lowest))+" and 65535")
	}
	return nil
}

// maxLabels is Kubernetes' own limit for all annotations of an object together.
const maxLabels = 256 << 10

func checkLabels(field string, labels map[string]string) error {
	size := 0
	for k, v := range labels {
		if k == "" {
			return wrong(field, "must not have an empty key")
		}
		if size += len(k) + len(v); size > maxLabels {
			return wrong(field, "must be at most "+strconv.Itoa(maxLabels)+" bytes together")
		}
	}
	return nil
}

func (s *Server) checkPodLinux(l *runtimeapi.LinuxPodSandboxConfig) error {
	sc := l.GetSecurityContext()
	return first(
		s.checkCgroupParent(l.GetCgroupParent()),
		at("security_context", s.checkPodSecurity(sc)),
		checkSysctls(l.GetSysctls(), sc.GetNamespaceOptions()),
		at("overhead", checkResources(l.GetOverhead())),
		at("resources", checkResources(l.GetResources())),
	)
}

// checkCgroupParent wants a path that stays below the cgroup root, and for the
// systemd driver one whose last element is a slice.
func (s *Server) checkCgroupParent(p string) error {
	const field = "cgroup_parent"
	err := optional(field, p, singleLine, noParent, pathMax)
	if err != nil || p == "" || s.cfg.CgroupDriver != runtimeapi.CgroupDriver_SYSTEMD {
		return err
	}
	base := path.Base(p)
	slice, ok := strings.CutSuffix(base, ".slice")
	if !ok || slice == "" || slice[0] == '-' || chars(`-_.:\@`)(slice) != "" {
		return bad(field, p, "must end in the name of a systemd slice")
	}
	return nil
}
