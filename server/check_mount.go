package server

import (
	"path"
	"strings"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/vitrine-runtime/vitrine/sandbox/spec"
)

// outsideProc: a mount in /proc would hide or fake what the kernel says there, and
// turns the writing of security labels into nothing (CVE-2019-16884).
func outsideProc(v string) string {
	if p := path.Clean(v); p == "/proc" || strings.HasPrefix(p, "/proc/") {
		return "must not be in /proc"
	}
	return ""
}

func (s *Server) checkMounts(mounts []*runtimeapi.Mount, ns *runtimeapi.NamespaceOption) error {
	seen := make(map[string]bool, len(mounts))
	for i, m := range mounts {
		err := first(
			text("container_path", m.GetContainerPath(), required, absolute, notRoot, noParent, pathMax, outsideProc),
			s.checkMountSource(m),
			s.checkMountFlags(m),
			checkMountMapping(m, ns),
		)
		dst := path.Clean(m.GetContainerPath())
		if err == nil && seen[dst] {
			err = bad("container_path", m.GetContainerPath(), "must not be given twice")
		}
		if err != nil {
			return atIndex("mounts", i, err)
		}
		seen[dst] = true
	}
	return nil
}

// checkMountSource: a path of the host, or an image, and not both.
func (s *Server) checkMountSource(m *runtimeapi.Mount) error {
	// The kubelet sends an empty image with mounts that have none.
	if m.GetImage().GetImage() == "" {
		if m.GetImageSubPath() != "" {
			return bad("image_sub_path", m.GetImageSubPath(), "must be empty without an image")
		}
		return text("host_path", m.GetHostPath(), required, absolute, noParent, pathMax)
	}
	var err error
	if m.GetHostPath() != "" {
		err = bad("host_path", m.GetHostPath(), "must be empty with an image")
	}
	err = first(
		err,
		at("image", s.checkImage(m.GetImage())),
		optional("image.image_ref", m.GetImage().GetImageRef(), reference),
		optional("image_sub_path", m.GetImageSubPath(), relative, noParent, pathMax),
	)
	if err == nil && !m.GetReadonly() {
		err = wrong("readonly", "must be true for an image")
	}
	if err == nil && m.GetPropagation() == runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL {
		err = bad("propagation", m.GetPropagation().String(), "must not be bidirectional for an image")
	}
	if err == nil && !s.cfg.Features.ImageVolumes {
		err = unsupported("image", "image volumes are")
	}
	return prefixed(crierrors.ErrImageVolumeMountFailed, err)
}

func (s *Server) checkMountFlags(m *runtimeapi.Mount) error {
	for i, o := range m.GetMountOptions() {
		if !spec.MountOption(o) {
			return atIndex("mount_options", i, bad("", o, "must be noexec, nodev or nosuid"))
		}
	}
	if len(m.GetMountOptions()) > 0 && !s.cfg.Features.MountOptions {
		return unsupported("mount_options", "mount options are")
	}
	if !m.GetRecursiveReadOnly() {
		return nil
	}
	switch {
	case !m.GetReadonly():
		return wrong("recursive_read_only", "must not be set without readonly")
	case m.GetPropagation() != runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		return bad("recursive_read_only", m.GetPropagation().String(), "must not be set with a propagation")
	case !s.cfg.Features.RecursiveReadOnly:
		return prefixed(crierrors.ErrRROUnsupported, &fault{field: "recursive_read_only",
			rule: "recursive read-only mounts are not supported by this kernel", code: codes.FailedPrecondition})
	}
	return nil
}

// checkMountMapping: ids can be mapped only where the pod maps some.
func checkMountMapping(m *runtimeapi.Mount, ns *runtimeapi.NamespaceOption) error {
	u := ns.GetUsernsOptions()
	mapped := len(m.GetUidMappings()) > 0 || len(m.GetGidMappings()) > 0
	if mapped && (u == nil || u.GetMode() == modeNode) {
		return wrong("uidMappings", "must not be set in a pod without a user namespace")
	}
	return nil
}
