package spec

import (
	"fmt"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxMounts bounds the volumes of one container: the kernel's own limit is fs.mount-max, 100,000 for a
// whole namespace.
const maxMounts = 4096

// MountOption says whether o is one of those that a volume may be mounted with. All of them take something away: what
// the request asks for beside (read-only, propagation, ids) has fields of its own, and an option that gave
// something back would undo what the node's mount forbids. It is the list of the CRI, and package server asks here.
func MountOption(o string) bool { return o == "noexec" || o == "nodev" || o == "nosuid" }

// applyMountOptions appends the options of a request, each as it is written there. They hold for the volume itself and
// not for what the host has mounted below it: that is how the runtime spec means them, and recursive_read_only
// is the one way of the CRI to ask for more.
func applyMountOptions(field string, m *runtimeapi.Mount, opts []string) ([]string, error) {
	for j, o := range m.GetMountOptions() {
		if !MountOption(o) {
			return nil, Invalid(fmt.Sprintf("%s.mount_options[%d]", field, j), o, "must be noexec, nodev or nosuid")
		}
		if !slices.Contains(opts, o) {
			opts = append(opts, o)
		}
	}
	return opts, nil
}

// applyVolumes appends the volumes of the request and sorts all mounts so that a place comes before the
// places below it.
func applyVolumes(in *Input, s *specs.Spec) error {
	mounts := in.Container.GetMounts()
	if len(mounts) > maxMounts {
		return Invalid("mounts", "", "%d mounts are more than %d", len(mounts), maxMounts)
	}
	seen := map[string]bool{}
	for i, m := range mounts {
		field := fmt.Sprintf("mounts[%d]", i)
		v, err := volume(field, m, in.Volumes[i], in.Pod.UserNS)
		if err != nil && IsImageVolume(m) {
			return fmt.Errorf("%w: %w", ErrImageVolume, InConfig(err)) // now: the text is made here
		}
		if err != nil {
			return err
		}
		if seen[v.Destination] {
			return Invalid(field+".container_path", m.GetContainerPath(), "named twice")
		}
		seen[v.Destination] = true
		setMount(s, v)
	}
	byDepth(s.Mounts)
	return nil
}

// setMount adds a mount, in place of one that there is at the same place.
func setMount(s *specs.Spec, m specs.Mount) {
	s.Mounts = slices.DeleteFunc(s.Mounts, func(d specs.Mount) bool { return d.Destination == m.Destination })
	s.Mounts = append(s.Mounts, m)
}

// byDepth sorts mounts so that a place comes before the places below it.
func byDepth(mounts []specs.Mount) {
	slices.SortStableFunc(mounts, func(a, b specs.Mount) int {
		return strings.Count(a.Destination, "/") - strings.Count(b.Destination, "/")
	})
}

// IsImageVolume says whether a mount of a request is of an image and not of the host.
func IsImageVolume(m *runtimeapi.Mount) bool {
	return m.GetImage().GetImage() != "" || m.GetImageSubPath() != ""
}

// checkImageVolume judges a mount of an image. Whether the image is there, and the sub path in
// it, is for the caller to see.
//
// Read-only is the only way, so recursively so is the same. Nothing of the host is below an
// image, so there is nothing that could propagate into a container; what would propagate out is refused. With
// selinux_relabel the kubelet asks for a label that containers may read; labels are those of the container's root,
// which has its layers from the same place.
func checkImageVolume(field string, m *runtimeapi.Mount) error {
	switch {
	case m.GetHostPath() != "":
		return Invalid(field+".host_path", m.GetHostPath(), "both host_path and image are set")
	case m.GetImage().GetImage() == "":
		return Invalid(field+".image_sub_path", m.GetImageSubPath(), "set without image")
	case !m.GetReadonly():
		return Invalid(field+".readonly", "", "an image is mounted read-only or not at all")
	case m.GetPropagation() == runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		return Invalid(field+".propagation", m.GetPropagation().String(), "nothing propagates from an image")
	}
	return nil
}

// imageVolumeSource begins the source of a mount that is no path of the host: the image, and the sub path.
const imageVolumeSource = "image:"

// ImageVolumeSource is what stands as the source of an image volume in a spec.
func ImageVolumeSource(id, sub string) string {
	return imageVolumeSource + strings.TrimSuffix(id+"/"+sub, "/")
}

// OnHost says whether the source of a bind mount is a path of the host.
func OnHost(m specs.Mount) bool { return !strings.HasPrefix(m.Source, imageVolumeSource) }

// volume judges one mount. Whether the host path exists and may propagate is for the caller to see. id is
// that of the image, if it is a mount of one.
func volume(field string, m *runtimeapi.Mount, id string, u *UserNS) (specs.Mount, error) {
	none := specs.Mount{}
	if IsImageVolume(m) {
		return imageVolume(field, m, id, u)
	}
	lines, err := u.mapped(field, m)
	if err != nil {
		return none, err
	}
	if err := checkAbsolute(field+".host_path", m.GetHostPath()); err != nil {
		return none, err
	}
	dst, err := containerPath(field+".container_path", m.GetContainerPath())
	if err != nil {
		return none, err
	}
	opts, err := volumeOptions(field, m)
	if err != nil {
		return none, err
	}
	return bind(dst, path.Clean(m.GetHostPath()), opts, lines), nil
}

// imageVolume is volume for an image: no devices and no set-uid programs; programs may run, unless the request says noexec.
func imageVolume(field string, m *runtimeapi.Mount, id string, u *UserNS) (specs.Mount, error) {
	none := specs.Mount{}
	if err := checkImageVolume(field, m); err != nil {
		return none, err
	}
	lines, err := u.mapped(field, m)
	if err != nil {
		return none, err
	}
	dst, err := containerPath(field+".container_path", m.GetContainerPath())
	if err != nil {
		return none, err
	}
	opts, err := applyMountOptions(field, m, []string{"rbind", "rprivate", "ro", "nosuid", "nodev"})
	if err != nil {
		return none, err
	}
	return bind(dst, ImageVolumeSource(id, m.GetImageSubPath()), opts, lines), nil
}

// bind is a bind mount, with the ids of its files mapped by lines, if there are any.
func bind(dst, source string, opts []string, lines []specs.LinuxIDMapping) specs.Mount {
	return specs.Mount{Destination: dst, Type: "bind", Source: source, Options: opts, UIDMappings: lines, GIDMappings: slices.Clone(lines)}
}

func volumeOptions(field string, m *runtimeapi.Mount) ([]string, error) {
	opts := []string{"rbind"}
	switch p := m.GetPropagation(); p {
	case runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		opts = append(opts, "rprivate")
	case runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		opts = append(opts, "rslave")
	case runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		opts = append(opts, "rshared")
	default:
		return nil, Invalid(field+".propagation", itoa(int64(p)), "unknown propagation")
	}
	switch {
	case m.GetRecursiveReadOnly() && !m.GetReadonly():
		return nil, Invalid(field+".recursive_read_only", "", "set without readonly")
	case m.GetRecursiveReadOnly() && m.GetPropagation() != runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		return nil, Invalid(field+".recursive_read_only", m.GetPropagation().String(), "needs private propagation")
	case m.GetRecursiveReadOnly():
		opts = append(opts, "rro")
	case m.GetReadonly():
		opts = append(opts, "ro")
	default:
		opts = append(opts, "rw")
	}
	return applyMountOptions(field, m, opts)
}

// containerPath judges a place inside the container. It is cleaned here and resolved below the root by the
// program, so that neither .. nor a symbolic link leads out.
func containerPath(field, p string) (string, error) {
	if err := checkAbsolute(field, p); err != nil {
		return "", err
	}
	c := path.Clean(p)
	if c == "/" {
		return "", Invalid(field, p, "the root itself cannot be mounted over")
	}
	// A mount over procfs hides or fakes what the runtime and LSMs write to (CVE-2019-19921).
	if c == "/proc" || strings.HasPrefix(c, "/proc/") {
		return "", Invalid(field, p, "nothing is mounted over /proc")
	}
	return c, nil
}
