package spec

import (
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// WritableCgroup is the annotation of a pod that gives containers their own cgroup
// to write to, so that an init system, a build or another runtime in the container can divide what the
// container has. Its value is a list of container names, or * for all. The node must allow it.
const WritableCgroup = "vitrine.dev/writable-cgroup"

// podDelegation judges the annotation. It is refused where the node does not allow it: a pod that was
// promised a writable cgroup fails later and less clearly without.
func podDelegation(p *Pod, cfg *runtimeapi.PodSandboxConfig, h Host) error {
	value, asked := cfg.GetAnnotations()[WritableCgroup]
	if !asked {
		return nil
	}
	const field = "annotations[" + WritableCgroup + "]"
	if !h.Handler.WritableCgroup {
		return Invalid(field, value, "not allowed by this node or runtime handler, see cgroup.allow_writable")
	}
	for name := range strings.SplitSeq(value, ",") {
		if name = strings.TrimSpace(name); name == "" {
			return Invalid(field, value, "want names of containers, or *")
		}
		p.WritableCgroups = append(p.WritableCgroups, name)
	}
	return nil
}

// DelegatesCgroup says whether the container of that name is to own its cgroup.
func (p *Pod) DelegatesCgroup(name string) bool {
	for _, n := range p.WritableCgroups {
		if n == "*" || n == name {
			return true
		}
	}
	return false
}
