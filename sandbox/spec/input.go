package spec

import (
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	cdi "tags.cncf.io/container-device-interface/specs-go"
)

// Input is everything that [Build] may look at.
type Input struct {
	ID        string                      // container id, 64 hex digits
	Container *runtimeapi.ContainerConfig // the request
	Pod       *Pod                        // the sandbox, already judged by PodOf
	Image     ocispec.ImageConfig         // defaults that the image brings
	User      User                        // from ResolveUser
	Files     Files                       // the pod's own files on the host
	Host      Host                        // facts about the node
	Devices   []HostDevice                // one for each entry of Container.Devices, in its order
	Volumes   map[int]string              // ids of the images of Container.Mounts, by their index
	CDI       *cdi.ContainerEdits         // what the CDI devices of the request bring; nil without
	CDINodes  []HostDevice                // one for each entry of CDI.DeviceNodes, in its order
	Seccomp   *specs.LinuxSeccomp         // the profile that SeccompOf chose; nil means unconfined

	// PIDTarget is the path of the pid namespace of the container that the request names as its target, "" without one. It is only
	// told, like CgroupsPath.
	PIDTarget string

	Labels   Labels // SELinux's, from ContainerLabels
	AppArmor string // the profile to run under, chosen by AppArmorOf; "" for none

	// CgroupsPath is the container's cgroup relative to the root of the hierarchy. It is only told to
	// whoever reads the spec: the daemon makes the cgroup and hands it over as a descriptor.
	CgroupsPath string
}

// Files are the pod's files on the host which every container of the pod sees, unless its request mounts
// something else at the same place. An empty path leaves the mount out.
type Files struct {
	ResolvConf string // bound on /etc/resolv.conf
	Hostname   string // bound on /etc/hostname
	Hosts      string // bound on /etc/hosts; the kubelet's own takes its place
	Shm        string // directory of the pod's tmpfs, or the host's /dev/shm; bound on /dev/shm
}

// Host holds what the rules need to know about the node. It is gathered once by package sandbox.
type Host struct {
	// Capabilities are the names (CAP_CHOWN, ...) that the running kernel knows and the runtime has itself,
	// in numerical order. They are what ALL and privileged stand for.
	Capabilities []string

	// Withheld are those that the kernel knows and the runtime does not have, so that it cannot grant them:
	// it runs in a container or under a unit that drops them.
	Withheld []string

	// MaxOpenFiles is the hard limit that this node can give, 0 when any can be given. Without
	// CAP_SYS_RESOURCE a limit above our own cannot be set.
	MaxOpenFiles uint64

	// InheritedOpenFiles is the hard limit that a process has which raises nothing, 0 for any.
	InheritedOpenFiles uint64

	// AppArmor and SELinux tell whether the kernel has them on.
	AppArmor, SELinux bool

	// PrivilegedLabel tells whether the policy has a type for privileged containers.
	PrivilegedLabel bool

	// Devices are the host's device nodes: what a privileged container gets.
	Devices []HostDevice

	// Handler are the rules of the pod's runtime handler.
	Handler Handler

	// HugePageSizes are the sizes that the kernel has, such as 2MB.
	HugePageSizes []string
}

// HostDevice is a device node of the host.
type HostDevice struct {
	Path         string // absolute, on the host
	Type         string // b, c; of CDI also u, which is c, and p
	Major, Minor int64
	Mode         uint32 // permission bits
	UID, GID     uint32
}

// security returns the security context, an empty one where the request has none.
func security(c *runtimeapi.ContainerConfig) *runtimeapi.LinuxContainerSecurityContext {
	if s := c.GetLinux().GetSecurityContext(); s != nil {
		return s
	}
	return &runtimeapi.LinuxContainerSecurityContext{}
}
