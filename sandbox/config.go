package sandbox

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/vitrine-runtime/vitrine/cni"
	"github.com/vitrine-runtime/vitrine/image"
	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/nri"
	"github.com/vitrine-runtime/vitrine/oci"
	"github.com/vitrine-runtime/vitrine/oci/cgroup"
	"github.com/vitrine-runtime/vitrine/sandbox/cdi"
	"github.com/vitrine-runtime/vitrine/sandbox/spec"
)

// Config says where a Manager keeps things and whom it asks. The Manager closes none of what it is given.
type Config struct {
	// RunDir holds what lives until the next boot, such as /run/vitrine. The pods are in RunDir/pods.
	RunDir string
	// NetNSDir is where network namespaces are pinned; "" means /run/netns. It is made a shared mount, so
	// that network plugins which live in a mount namespace of their own see the pins.
	NetNSDir string
	// CgroupParent is the cgroup, relative to the root of the hierarchy, for pods whose request names none;
	// "" means vitrine. With the systemd driver it is the name of a slice, and such a pod has one below it.
	CgroupParent string
	// Handlers are the rules of the runtime handlers by their names. "" is the default one, and need not be there.
	Handlers map[string]spec.Handler

	// SELinux gives pods and containers labels where the kernel has SELinux and its policy knows containers.
	SELinux bool

	// CDI knows the devices of the Container Device Interface; nil knows none.
	CDI *cdi.Registry

	Images  ImageStore
	Network Network
	Cgroups CgroupTree
	Runtime *oci.Runtime

	// Plugins are asked and told what becomes of pods and containers; nil means that there are none. Whoever opens the
	// Manager starts them with ForPlugins before the first request, and closes them after it.
	Plugins *nri.Plugins

	// OperationTimeout bounds RunPodSandbox and CreateContainer, which go on when their caller gives up;
	// 0 means 4 minutes. The kubelet waits two.
	OperationTimeout time.Duration
	// StopTimeout bounds what follows after the last signal: the waiting for processes that were killed,
	// for network plugins, for the monitor's end; 0 means 1 minute.
	StopTimeout time.Duration
	// VolumeTimeout bounds the opening of one volume, which hangs when its server is dead; 0 means 30 s.
	VolumeTimeout time.Duration

	monitors monitors      // a test's; nil means Runtime
	bootID   string        // a test's; "" means the kernel's
	sweep    time.Duration // a test's; 0 means 30 s
}

// ImageStore is what sandboxes need of package image.
type ImageStore interface {
	Resolve(ctx context.Context, ref string) (*image.Image, error)
	Permit(ctx context.Context, namespace, imageID, asked string) error
	NewRootfs(ctx context.Context, containerID, imageID string, volumes ...string) error
	MountVolume(ctx context.Context, containerID, imageID, subPath string, v image.View) (*sys.FD, error)
	Mount(ctx context.Context, containerID string, v image.View) (*sys.FD, error)
	IDMaps() bool
	RemoveRootfs(ctx context.Context, containerID string) error
	Rootfses() ([]string, error)
	RootfsUsage(ctx context.Context, containerID string, pace func() error) (image.FsUsage, error)
}

// Network is what sandboxes need of package cni.
type Network interface {
	Add(ctx context.Context, p cni.Pod) (*cni.Result, error)
	Del(ctx context.Context, podID string) error
	Pending() ([]string, error)
}

// CgroupTree is what sandboxes need of package oci/cgroup.
type CgroupTree interface {
	Create(parent, id string, r *specs.LinuxResources) (*cgroup.Scope, error)
	Load(path string) *cgroup.Scope
	Slice(path string) (*sys.FD, error)
	Parent(parent string) (string, error)
	PodParent(base, id string) (string, error)
	ScopePath(parent, id string) (string, error)
}

func (c *Config) setDefaults() error {
	if !filepath.IsAbs(c.RunDir) {
		return errors.New("open sandboxes: the run directory is not an absolute path")
	}
	if c.Images == nil || c.Network == nil || c.Cgroups == nil {
		return errors.New("open sandboxes: images, network and cgroups must be given")
	}
	if c.monitors == nil {
		if c.Runtime == nil {
			return errors.New("open sandboxes: the runtime must be given")
		}
		c.monitors = ociMonitors{c.Runtime}
	}
	if c.NetNSDir == "" {
		c.NetNSDir = "/run/netns"
	}
	if c.CgroupParent == "" {
		c.CgroupParent = "vitrine"
	}
	for _, d := range []struct {
		v   *time.Duration
		def time.Duration
	}{
		{&c.OperationTimeout, 4 * time.Minute}, {&c.StopTimeout, time.Minute},
		{&c.VolumeTimeout, 30 * time.Second}, {&c.sweep, 30 * time.Second},
	} {
		if *d.v == 0 {
			*d.v = d.def
		}
	}
	return nil
}
