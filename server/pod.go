package server

import (
	"context"
	"slices"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// RunPodSandbox makes a pod: namespaces, network, cgroup. A second request with the
// same uid, name and attempt joins the first and gets its answer.
func (s *Server) RunPodSandbox(ctx context.Context, r *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	if err := s.checkRunPodSandbox(r); err != nil {
		return nil, err
	}
	id, err := s.cfg.Manager.RunPodSandbox(ctx, r.GetConfig(), r.GetRuntimeHandler())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: id}, nil
}

// StopPodSandbox kills what runs in a pod and gives its network back. An unknown
// pod is a stopped one.
func (s *Server) StopPodSandbox(ctx context.Context, r *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	if err := first(checkObjectID("pod_sandbox_id", r.GetPodSandboxId()), shape(r)); err != nil {
		return nil, err
	}
	if err := gone(s.cfg.Manager.StopPodSandbox(ctx, r.GetPodSandboxId())); err != nil {
		return nil, err
	}
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

// RemovePodSandbox removes a pod with all its containers, running or not. An
// unknown pod is a removed one.
func (s *Server) RemovePodSandbox(ctx context.Context, r *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	if err := first(checkObjectID("pod_sandbox_id", r.GetPodSandboxId()), shape(r)); err != nil {
		return nil, err
	}
	if err := gone(s.cfg.Manager.RemovePodSandbox(ctx, r.GetPodSandboxId())); err != nil {
		return nil, err
	}
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

// PodSandboxStatus describes one pod.
//
// containers_statuses and timestamp stay empty on purpose: they belong to evented
// PLEG, and a timestamp without the statuses would make the kubelet believe that
// the pod has no containers.
func (s *Server) PodSandboxStatus(_ context.Context, r *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	if err := first(checkObjectID("pod_sandbox_id", r.GetPodSandboxId()), shape(r)); err != nil {
		return nil, err
	}
	st, info, err := s.cfg.Manager.PodSandboxStatus(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PodSandboxStatusResponse{Status: st, Info: verbose(r.GetVerbose(), info)}, nil
}

// ListPodSandbox lists the pods that the filter lets through. No filter is wrong;
// one that nothing fits gives an empty list.
func (s *Server) ListPodSandbox(_ context.Context, r *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{Items: s.cfg.Manager.ListPodSandbox(r.GetFilter())}, nil
}

// StreamPodSandboxes is ListPodSandbox in as many messages as it takes.
func (s *Server) StreamPodSandboxes(r *runtimeapi.StreamPodSandboxesRequest, out grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxesResponse]) error {
	for part := range slices.Chunk(s.cfg.Manager.ListPodSandbox(r.GetFilter()), perMessage) {
		if err := out.Send(&runtimeapi.StreamPodSandboxesResponse{PodSandboxes: part}); err != nil {
			return err
		}
	}
	return nil
}

// verbose drops what only a verbose request may get.
func verbose(wanted bool, info map[string]string) map[string]string {
	if !wanted {
		return nil
	}
	return info
}
