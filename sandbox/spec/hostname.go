package spec

import (
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxHostname is the kernel's limit (__NEW_UTS_LEN).
const maxHostname = 64

// podHostname takes the hostname of the request, or the pod's name where there is none. In the host's
// network the pod lives in the host's UTS namespace, whose name is not touched.
func podHostname(p *Pod, cfg *runtimeapi.PodSandboxConfig, _ Host) error {
	h := cfg.GetHostname()
	if h != "" {
		if err := checkHostname("hostname", h); err != nil {
			return err
		}
	}
	if p.HostNetwork {
		return nil
	}
	if h == "" {
		h = fallbackHostname(cfg.GetMetadata().GetName())
	}
	p.Hostname = h
	return nil
}

// checkHostname allows dot-separated labels of letters, digits, - and _; none begins or ends with -. The
// underscore is no DNS, but it is in use.
func checkHostname(field, h string) error {
	if len(h) > maxHostname {
		return Invalid(field, h, "longer than the kernel's %d bytes", maxHostname)
	}
	for label := range strings.SplitSeq(h, ".") {
		if label == "" || strings.HasPrefix(label, "-") || strings.HasSuffix(label, "-") ||
			strings.ContainsFunc(label, func(r rune) bool { return !hostRune(r) }) {
			return Invalid(field, h, "not a hostname")
		}
	}
	return nil
}

func hostRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_'
}

// fallbackHostname makes a hostname of a pod's name, which may hold anything that a name may.
func fallbackHostname(name string) string {
	h := strings.Map(func(r rune) rune {
		if hostRune(r) {
			return r
		}
		return '-'
	}, name)
	if len(h) > 63 {
		h = h[:63]
	}
	if h = strings.Trim(h, "-"); h == "" {
		return "pod"
	}
	return h
}
