package spec

import (
	"path"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// podCgroup judges the parent cgroup that the kubelet made for the pod. It is relative to the root of the
// hierarchy, with or without a leading slash.
func podCgroup(p *Pod, cfg *runtimeapi.PodSandboxConfig, _ Host) error {
	const field = "linux.cgroup_parent"
	parent := cfg.GetLinux().GetCgroupParent()
	if parent == "" {
		return nil
	}
	if len(parent) >= pathMax {
		return Invalid(field, parent, "longer than %d bytes", pathMax-1)
	}
	for part := range strings.SplitSeq(parent, "/") {
		if part == ".." || len(part) > 255 ||
			strings.ContainsFunc(part, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
			return Invalid(field, parent, "not a path of cgroups")
		}
	}
	if p.CgroupParent = strings.TrimPrefix(path.Clean("/"+parent), "/"); p.CgroupParent == "" {
		return Invalid(field, parent, "the root of the hierarchy cannot hold a pod")
	}
	return nil
}
