package server

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// UpdateContainerResources changes limits of a created or running container, all of
// them or none. Annotations are passed over: those that have a meaning (CDI devices) have it
// when a container is made, and a pod must not set limits by one (CVE-2023-6476).
func (s *Server) UpdateContainerResources(ctx context.Context, r *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	if err := first(
		checkObjectID("container_id", r.GetContainerId()), shape(r),
		at("linux", checkUpdate(r.GetLinux())),
	); err != nil {
		return nil, err
	}
	if err := s.cfg.Manager.UpdateContainerResources(ctx, r.GetContainerId(), r.GetLinux()); err != nil {
		return nil, err
	}
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

// UpdatePodSandboxResources changes the limits of a pod as a whole.
func (s *Server) UpdatePodSandboxResources(ctx context.Context, r *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	var none error
	if r.GetOverhead() == nil && r.GetResources() == nil {
		none = wrong("resources", "must be set, or overhead")
	}
	if err := first(
		checkObjectID("pod_sandbox_id", r.GetPodSandboxId()), shape(r), none,
		at("overhead", checkResources(r.GetOverhead())),
		at("resources", checkResources(r.GetResources())),
	); err != nil {
		return nil, err
	}
	if err := s.cfg.Manager.UpdatePodSandboxResources(ctx, r.GetPodSandboxId(), r.GetOverhead(), r.GetResources()); err != nil {
		return nil, err
	}
	return &runtimeapi.UpdatePodSandboxResourcesResponse{}, nil
}
