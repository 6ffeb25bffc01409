package server

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ListMetricDescriptors tells which metrics there are, and their labels.
func (s *Server) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	return &runtimeapi.ListMetricDescriptorsResponse{Descriptors: s.cfg.Manager.ListMetricDescriptors()}, nil
}

// ListPodSandboxMetrics tells the metrics of all pods that are ready.
func (s *Server) ListPodSandboxMetrics(ctx context.Context, _ *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	return &runtimeapi.ListPodSandboxMetricsResponse{PodMetrics: s.cfg.Manager.ListPodSandboxMetrics(ctx)}, nil
}

// metricsMessage is how many bytes one message of metrics holds, unless one pod alone has more: there are some twenty
// kilobytes of a container, and a kubelet accepts 16 MiB.
const metricsMessage = 2 << 20

// StreamPodSandboxMetrics is ListPodSandboxMetrics in as many messages as it takes.
func (s *Server) StreamPodSandboxMetrics(_ *runtimeapi.StreamPodSandboxMetricsRequest, out grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxMetricsResponse]) error {
	var part []*runtimeapi.PodSandboxMetrics
	size := 0
	for _, pod := range s.cfg.Manager.ListPodSandboxMetrics(out.Context()) {
		n := proto.Size(pod)
		if size += n; size > metricsMessage && len(part) != 0 {
			if err := out.Send(&runtimeapi.StreamPodSandboxMetricsResponse{PodSandboxMetrics: part}); err != nil {
				return err
			}
			part, size = nil, n
		}
		part = append(part, pod)
	}
	if len(part) == 0 {
		return nil
	}
	return out.Send(&runtimeapi.StreamPodSandboxMetricsResponse{PodSandboxMetrics: part})
}
