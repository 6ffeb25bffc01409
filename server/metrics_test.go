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

// ListPodSandboxMetrics has pods of about a megabyte; three are one that is larger than a message, and two others.
func (f *fake) ListPodSandboxMetrics(ctx context.Context) []*runtimeapi.PodSandboxMetrics {
	_ = f.call(ctx, "ListPodSandboxMetrics", "")
	out := make([]*runtimeapi.PodSandboxMetrics, max(f.entries, 1))
	for i := range out {
		size := 900 << 10
		if f.entries == 3 && i == 0 {
			size = metricsMessage + 1000
		}
		out[i] = &runtimeapi.PodSandboxMetrics{Metrics: []*runtimeapi.Metric{{Name: strings.Repeat("m", size)}}}
	}
	return out
}

// A stream has every pod once, in as few messages as their size allows; one that is larger is alone.
func TestMetricsStream(t *testing.T) {
	c, f := serve(t, nil)
	ctx := context.Background()
	if d, err := c.ListMetricDescriptors(ctx, &runtimeapi.ListMetricDescriptorsRequest{}); err != nil || len(d.GetDescriptors()) != 1 {
		t.Errorf("%v, %v", d, err)
	}
	for n, want := range map[int]int{1: 1, 2: 1, 3: 2, 7: 4} {
		f.entries = n
		if l, err := c.ListPodSandboxMetrics(ctx, &runtimeapi.ListPodSandboxMetricsRequest{}); n < 4 && (err != nil || len(l.GetPodMetrics()) != n) {
			t.Errorf("%d pods: %d, %v", n, len(l.GetPodMetrics()), err)
		}
		stream, err := c.StreamPodSandboxMetrics(ctx, &runtimeapi.StreamPodSandboxMetricsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		pods, messages := 0, 0
		for {
			r, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			messages++
			if pods += len(r.GetPodSandboxMetrics()); len(r.GetPodSandboxMetrics()) == 0 || proto.Size(r) > metricsMessage+1024 {
				t.Errorf("%d pods in %d bytes", len(r.GetPodSandboxMetrics()), proto.Size(r))
			}
		}
		if pods != n || messages != want {
			t.Errorf("%d pods in %d messages, want %d in %d", pods, messages, n, want)
		}
	}
}
