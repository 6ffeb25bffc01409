package stage

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	criclient "k8s.io/cri-client/pkg"
)

// callTimeout bounds one CRI call, as the kubelet's runtimeRequestTimeout does.
const callTimeout = 60 * time.Second

// Client speaks CRI with the kubelet's own client library.
type Client struct {
	internalapi.RuntimeService
	Images internalapi.ImageManagerService
}

// Connect dials the daemon's socket; it fails if nobody answers Version there.
func (s *Stage) Connect(ctx context.Context) (*Client, error) {
	endpoint := "unix://" + s.Socket
	rs, err := criclient.NewRemoteRuntimeServiceBuilder().WithEndpoint(endpoint).WithConnectionTimeout(s.Scale(callTimeout)).Build(ctx)
	if err != nil {
		return nil, err
	}
	is, err := criclient.NewRemoteImageServiceBuilder().WithEndpoint(endpoint).WithConnectionTimeout(s.Scale(callTimeout)).Build(ctx)
	if err != nil {
		return nil, errors.Join(err, rs.Close(ctx))
	}
	return &Client{RuntimeService: rs, Images: is}, nil
}

// Close drops both connections.
func (c *Client) Close(ctx context.Context) error {
	return errors.Join(c.RuntimeService.Close(ctx), c.Images.Close(ctx))
}

// Pull pulls an image and returns its id.
func (c *Client) Pull(ctx context.Context, ref string) (string, error) {
	return c.Images.PullImage(ctx, &runtimeapi.ImageSpec{Image: ref}, nil, nil)
}

// PodConfig returns a sandbox as the kubelet would ask for it, with a log directory of its own. The pod's cgroup is
// made here, since the kubelet makes it; Forget removes it.
func (s *Stage) PodConfig(name string) (*runtimeapi.PodSandboxConfig, error) {
	uid := unique("pod", name)
	cfg := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "vitrine", Uid: uid},
		Hostname:     name,
		LogDirectory: filepath.Join(s.LogDir, "vitrine_"+name+"_"+uid),
		DnsConfig:    &runtimeapi.DNSConfig{Servers: []string{Gateway}, Searches: []string{"vitrine.test"}},
		Labels:       map[string]string{"io.kubernetes.pod.name": name, "io.kubernetes.pod.uid": uid},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: s.podCgroup(uid),
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{
					Network: runtimeapi.NamespaceMode_POD, Ipc: runtimeapi.NamespaceMode_POD, Pid: runtimeapi.NamespaceMode_CONTAINER,
				},
				Seccomp: &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
			},
		},
	}
	return cfg, errors.Join(os.MkdirAll(cfg.LogDirectory, 0o755), s.makePodCgroup(cfg.Linux.CgroupParent))
}

// podCgroup names a pod's cgroup as the kubelet does for the driver: systemd's names hold the whole path.
func (s *Stage) podCgroup(uid string) string {
	if s.Driver != "systemd" {
		return s.pods + "/pod" + uid
	}
	return s.pods + "/" + strings.TrimSuffix(filepath.Base(s.pods), ".slice") + "-pod" + uid + ".slice"
}

// MoveToClass gives a pod of PodConfig that has not run yet the cgroup that the kubelet gives pods of a QoS class: "burstable",
// "besteffort", or "" for Guaranteed. Forget removes it, and those above it with the last pod.
func (s *Stage) MoveToClass(cfg *runtimeapi.PodSandboxConfig, class string) error {
	if err := s.removePodCgroup(cfg.Linux.CgroupParent); err != nil {
		return err
	}
	pod := "pod" + cfg.Metadata.Uid
	switch {
	case s.Driver != "systemd":
		cfg.Linux.CgroupParent = path.Join(classRoot, class, pod)
	case class == "":
		cfg.Linux.CgroupParent = classRoot + ".slice" + classRoot + "-" + pod + ".slice"
	default:
		of := classRoot + "-" + class
		cfg.Linux.CgroupParent = classRoot + ".slice" + of + ".slice" + of + "-" + pod + ".slice"
	}
	return s.makePodCgroup(cfg.Linux.CgroupParent)
}

// classRoot is what the kubelet calls the cgroup of all pods.
const classRoot = "/kubepods"

// removeClasses removes the cgroups above a pod's that have no pod any more.
func (s *Stage) removeClasses(parent string) error {
	var err error
	for dir := path.Dir(parent); strings.HasPrefix(parent, classRoot) && dir != "/" && err == nil; dir = path.Dir(dir) {
		entries, _ := os.ReadDir("/sys/fs/cgroup" + dir)
		if slices.ContainsFunc(entries, fs.DirEntry.IsDir) {
			break
		}
		err = s.removePodCgroup(dir)
	}
	return err
}

// Forget removes what PodConfig made, as the kubelet does after a pod is gone. A cgroup of the pod that is not empty
// is an error: the runtime left something in it. One that the runtime chose is the runtime's.
func (s *Stage) Forget(cfg *runtimeapi.PodSandboxConfig) error {
	if cfg.Linux.CgroupParent == "" {
		return os.RemoveAll(cfg.LogDirectory)
	}
	err := s.removePodCgroup(cfg.Linux.CgroupParent)
	if err == nil && cfg.Linux.CgroupParent != "" {
		err = s.removeClasses(cfg.Linux.CgroupParent)
	}
	return errors.Join(err, os.RemoveAll(cfg.LogDirectory))
}

// ContainerConfig returns a container that runs command with RuntimeDefault seccomp; it logs to <name>.log.
func ContainerConfig(name, image string, command ...string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: image},
		Command:  command,
		LogPath:  name + ".log",
		Labels:   map[string]string{"io.kubernetes.container.name": name},
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources: &runtimeapi.LinuxContainerResources{},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{
					Network: runtimeapi.NamespaceMode_POD, Ipc: runtimeapi.NamespaceMode_POD, Pid: runtimeapi.NamespaceMode_CONTAINER,
				},
				Seccomp:     &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
				MaskedPaths: []string{"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"},
				ReadonlyPaths: []string{
					"/proc/asound", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
				},
			},
		},
	}
}
