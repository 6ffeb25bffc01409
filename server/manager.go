package server

import (
	"context"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/image"
)

// Manager is what the Server needs of sandbox.Manager, whose documentation holds
// here: verbs are idempotent, ids may be unique prefixes, reads come from a
// snapshot and never wait, those of statistics only for a bounded time; errors are of the kinds in package sandbox.
type Manager interface {
	RunPodSandbox(ctx context.Context, cfg *runtimeapi.PodSandboxConfig, handler string) (id string, err error)
	StopPodSandbox(ctx context.Context, id string) error
	RemovePodSandbox(ctx context.Context, id string) error
	PodSandboxStatus(id string) (*runtimeapi.PodSandboxStatus, map[string]string, error)
	ListPodSandbox(filter *runtimeapi.PodSandboxFilter) []*runtimeapi.PodSandbox

	CreateContainer(ctx context.Context, podID string, cfg *runtimeapi.ContainerConfig, pod *runtimeapi.PodSandboxConfig) (id string, err error)
	StartContainer(ctx context.Context, id string) error
	StopContainer(ctx context.Context, id string, timeoutSeconds int64) error
	RemoveContainer(ctx context.Context, id string) error
	ContainerStatus(id string, verbose bool) (*runtimeapi.ContainerStatus, map[string]string, error)
	ListContainers(filter *runtimeapi.ContainerFilter) []*runtimeapi.Container
	ExecSync(ctx context.Context, id string, cmd []string, limit time.Duration) (*runtimeapi.ExecSyncResponse, error)
	ReopenContainerLog(ctx context.Context, id string) error
	CheckStream(id string) (whole string, err error)
	CheckForward(id string) (whole string, err error)

	Subscribe() (queue <-chan *runtimeapi.ContainerEventResponse, cancel func(), err error)

	UpdateContainerResources(ctx context.Context, id string, change *runtimeapi.LinuxContainerResources) error
	UpdatePodSandboxResources(ctx context.Context, id string, overhead, resources *runtimeapi.LinuxContainerResources) error

	ContainerStats(ctx context.Context, id string) (*runtimeapi.ContainerStats, error)
	ListContainerStats(ctx context.Context, filter *runtimeapi.ContainerStatsFilter) []*runtimeapi.ContainerStats
	PodSandboxStats(ctx context.Context, id string) (*runtimeapi.PodSandboxStats, error)
	ListPodSandboxStats(ctx context.Context, filter *runtimeapi.PodSandboxStatsFilter) []*runtimeapi.PodSandboxStats

	ListMetricDescriptors() []*runtimeapi.MetricDescriptor
	ListPodSandboxMetrics(ctx context.Context) []*runtimeapi.PodSandboxMetrics
}

// Images is what the Server needs of image.Store.
type Images interface {
	PullFor(ctx context.Context, namespace, ref string, auth *image.Auth) (id string, err error)
	List(ctx context.Context, ref string) ([]image.Image, error)
	Status(ctx context.Context, ref string) (*image.Image, error)
	Remove(ctx context.Context, ref string) error
	Pulls() []image.PullProgress
	FsInfo(ctx context.Context) (images, containers image.Measured, err error)
}

// Network is what the Server needs of cni.Network.
type Network interface {
	// Status is nil when pods can get a network now, and says else why not.
	Status(ctx context.Context) error
}
