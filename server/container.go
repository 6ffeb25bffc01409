package server

import (
	"context"
	"slices"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CreateContainer prepares a container up to the point where only its program has
// to begin.
func (s *Server) CreateContainer(ctx context.Context, r *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	if err := s.checkCreateContainer(r); err != nil {
		return nil, err
	}
	id, err := s.cfg.Manager.CreateContainer(ctx, r.GetPodSandboxId(), r.GetConfig(), r.GetSandboxConfig())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.CreateContainerResponse{ContainerId: id}, nil
}

// StartContainer lets the program of a created container begin. It returns when
// the program runs or could not.
func (s *Server) StartContainer(ctx context.Context, r *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	if err := first(checkObjectID("container_id", r.GetContainerId()), shape(r)); err != nil {
		return nil, err
	}
	if err := s.cfg.Manager.StartContainer(ctx, r.GetContainerId()); err != nil {
		return nil, err
	}
	return &runtimeapi.StartContainerResponse{}, nil
}

// StopContainer asks a container to end and kills it after timeout seconds, at
// once with 0. An unknown container is a stopped one.
func (s *Server) StopContainer(ctx context.Context, r *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	timeout, err := seconds("timeout", r.GetTimeout())
	if err := first(checkObjectID("container_id", r.GetContainerId()), shape(r), err); err != nil {
		return nil, err
	}
	if err := gone(s.cfg.Manager.StopContainer(ctx, r.GetContainerId(), timeout)); err != nil {
		return nil, err
	}
	return &runtimeapi.StopContainerResponse{}, nil
}

// RemoveContainer removes a container, and kills it first if it runs. An unknown
// container is a removed one.
func (s *Server) RemoveContainer(ctx context.Context, r *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	if err := first(checkObjectID("container_id", r.GetContainerId()), shape(r)); err != nil {
		return nil, err
	}
	if err := gone(s.cfg.Manager.RemoveContainer(ctx, r.GetContainerId())); err != nil {
		return nil, err
	}
	return &runtimeapi.RemoveContainerResponse{}, nil
}

// ContainerStatus describes one container.
func (s *Server) ContainerStatus(_ context.Context, r *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	if err := first(checkObjectID("container_id", r.GetContainerId()), shape(r)); err != nil {
		return nil, err
	}
	st, info, err := s.cfg.Manager.ContainerStatus(r.GetContainerId(), r.GetVerbose())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ContainerStatusResponse{Status: st, Info: verbose(r.GetVerbose(), info)}, nil
}

// ListContainers lists the containers that the filter lets through. No filter is
// wrong; one that nothing fits gives an empty list.
func (s *Server) ListContainers(_ context.Context, r *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{Containers: s.cfg.Manager.ListContainers(r.GetFilter())}, nil
}

// StreamContainers is ListContainers in as many messages as it takes.
func (s *Server) StreamContainers(r *runtimeapi.StreamContainersRequest, out grpc.ServerStreamingServer[runtimeapi.StreamContainersResponse]) error {
	for part := range slices.Chunk(s.cfg.Manager.ListContainers(r.GetFilter()), perMessage) {
		if err := out.Send(&runtimeapi.StreamContainersResponse{Containers: part}); err != nil {
			return err
		}
	}
	return nil
}

// ExecSync runs a command in a container and waits for it, timeout seconds at the
// most. A time-out is DeadlineExceeded, which the kubelet counts as a failed probe,
// and the command is dead then with all that it started.
func (s *Server) ExecSync(ctx context.Context, r *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	timeout, err := seconds("timeout", r.GetTimeout())
	if len(r.GetCmd()) == 0 {
		err = missing("cmd")
	}
	if err := first(checkObjectID("container_id", r.GetContainerId()), err, shape(r), checkCommand("cmd", r.GetCmd())); err != nil {
		return nil, err
	}
	return s.cfg.Manager.ExecSync(ctx, r.GetContainerId(), r.GetCmd(), time.Duration(timeout)*time.Second)
}

// ReopenContainerLog lets a running container's log go on in a new file, after the
// kubelet has renamed the old one.
func (s *Server) ReopenContainerLog(ctx context.Context, r *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	if err := first(checkObjectID("container_id", r.GetContainerId()), shape(r)); err != nil {
		return nil, err
	}
	if err := s.cfg.Manager.ReopenContainerLog(ctx, r.GetContainerId()); err != nil {
		return nil, err
	}
	return &runtimeapi.ReopenContainerLogResponse{}, nil
}
