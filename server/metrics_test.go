package server

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (f *fake) ListMetricDescriptors() []*runtimeapi.MetricDescriptor {
	return []*runtimeapi.MetricDescriptor{{Name: "m", Help: "h", LabelKeys: []string{"id"}}}
}

// ListPodSandboxMetrics has pods of about a megabyte.
func (f *fake) ListPodSandboxMetrics(ctx context.Context) []*runtimeapi.PodSandboxMetrics {
	_ = f.call(ctx, "ListPodSandboxMetrics", "")
	out := make([]*runtimeapi.PodSandboxMetrics, max(f.entries, 1))
	for i := range out {
		out[i] = &runtimeapi.PodSandboxMetrics{Metrics: []*runtimeapi.Metric{{Name: strings.Repeat("m", 900<<10)}}}
	}
	return out
}

// A stream has every pod once, in messages of a bounded size.
func TestMetricsStream(t *testing.T) {
	c, f := serve(t, nil)
	ctx := context.Background()
	if d, err := c.ListMetricDescriptors(ctx, &runtimeapi.ListMetricDescriptorsRequest{}); err != nil || len(d.GetDescriptors()) != 1 {
		t.Errorf("%v, %v", d, err)
	}
	for _, n := range []int{1, 2, 7} {
		f.entries = n
		if l, err := c.ListPodSandboxMetrics(ctx, &runtimeapi.ListPodSandboxMetricsRequest{}); n < 4 && (err != nil || len(l.GetPodMetrics()) != n) {
			t.Errorf("%d pods: %d, %v", n, len(l.GetPodMetrics()), err)
		}
		stream, err := c.StreamPodSandboxMetrics(ctx, &runtimeapi.StreamPodSandboxMetricsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		pods := 0
		for {
			r, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if pods += len(r.GetPodSandboxMetrics()); len(r.GetPodSandboxMetrics()) == 0 || proto.Size(r) > metricsMessage+1024 {
				t.Errorf("%d pods in %d bytes", len(r.GetPodSandboxMetrics()), proto.Size(r))
			}
		}
		if pods != n {
			t.Errorf("%d pods, want %d", pods, n)
		}
	}
}
