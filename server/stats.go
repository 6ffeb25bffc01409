package server

import (
	"context"
	"slices"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ContainerStats tells what one container uses. One that has exited has a writable
// layer and attributes only.
func (s *Server) ContainerStats(ctx context.Context, r *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	if err := first(checkObjectID("container_id", r.GetContainerId()), shape(r)); err != nil {
		return nil, err
	}
	st, err := s.cfg.Manager.ContainerStats(ctx, r.GetContainerId())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ContainerStatsResponse{Stats: st}, nil
}

// ListContainerStats tells what the containers use that the filter lets through. As
// with ListContainers, no filter is wrong.
func (s *Server) ListContainerStats(ctx context.Context, r *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	return &runtimeapi.ListContainerStatsResponse{Stats: s.cfg.Manager.ListContainerStats(ctx, r.GetFilter())}, nil
}

// PodSandboxStats tells what one pod uses and what each of its containers does. A
// kubelet asks with an empty id, once, whether this RPC is served; any answer but
// Unimplemented is a yes, and InvalidArgument is one.
func (s *Server) PodSandboxStats(ctx context.Context, r *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	if err := first(checkObjectID("pod_sandbox_id", r.GetPodSandboxId()), shape(r)); err != nil {
		return nil, err
	}
	st, err := s.cfg.Manager.PodSandboxStats(ctx, r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PodSandboxStatsResponse{Stats: st}, nil
}

// ListPodSandboxStats is PodSandboxStats for the pods that the filter lets through.
func (s *Server) ListPodSandboxStats(ctx context.Context, r *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	return &runtimeapi.ListPodSandboxStatsResponse{Stats: s.cfg.Manager.ListPodSandboxStats(ctx, r.GetFilter())}, nil
}

// perMessage is how many entries one message of a stream holds: of pods, each with
// its containers, that is well below what a kubelet accepts.
const perMessage = 200

// StreamContainerStats is ListContainerStats for nodes with more containers than
// fit a message.
func (s *Server) StreamContainerStats(r *runtimeapi.StreamContainerStatsRequest, out grpc.ServerStreamingServer[runtimeapi.StreamContainerStatsResponse]) error {
	for part := range slices.Chunk(s.cfg.Manager.ListContainerStats(out.Context(), r.GetFilter()), perMessage) {
		if err := out.Send(&runtimeapi.StreamContainerStatsResponse{ContainerStats: part}); err != nil {
			return err
		}
	}
	return nil
}

// StreamPodSandboxStats is ListPodSandboxStats in as many messages as it takes.
func (s *Server) StreamPodSandboxStats(r *runtimeapi.StreamPodSandboxStatsRequest, out grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxStatsResponse]) error {
	for part := range slices.Chunk(s.cfg.Manager.ListPodSandboxStats(out.Context(), r.GetFilter()), perMessage) {
		if err := out.Send(&runtimeapi.StreamPodSandboxStatsResponse{PodSandboxStats: part}); err != nil {
			return err
		}
	}
	return nil
}
