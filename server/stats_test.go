package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (f *fake) ContainerStats(ctx context.Context, id string) (*runtimeapi.ContainerStats, error) {
	return &runtimeapi.ContainerStats{Attributes: &runtimeapi.ContainerAttributes{Id: containerID}}, f.call(ctx, "ContainerStats", id)
}
func (f *fake) ListContainerStats(ctx context.Context, filter *runtimeapi.ContainerStatsFilter) []*runtimeapi.ContainerStats {
	f.filter = filter
	_ = f.call(ctx, "ListContainerStats", filter.GetId())
	out := make([]*runtimeapi.ContainerStats, max(f.entries, 1))
	for i := range out {
		out[i] = &runtimeapi.ContainerStats{Attributes: &runtimeapi.ContainerAttributes{Id: fmt.Sprint(i)}}
	}
	return out
}
func (f *fake) PodSandboxStats(ctx context.Context, id string) (*runtimeapi.PodSandboxStats, error) {
	return &runtimeapi.PodSandboxStats{Attributes: &runtimeapi.PodSandboxAttributes{Id: podID}}, f.call(ctx, "PodSandboxStats", id)
}
func (f *fake) ListPodSandboxStats(ctx context.Context, filter *runtimeapi.PodSandboxStatsFilter) []*runtimeapi.PodSandboxStats {
	f.filter = filter
	_ = f.call(ctx, "ListPodSandboxStats", filter.GetId())
	out := make([]*runtimeapi.PodSandboxStats, max(f.entries, 1))
	for i := range out {
		out[i] = &runtimeapi.PodSandboxStats{Attributes: &runtimeapi.PodSandboxAttributes{Id: fmt.Sprint(i)}}
	}
	return out
}

func TestStatsAnswers(t *testing.T) {
	c, f := serve(t, nil)
	ctx := context.Background()
	ctr, err := c.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: "abc"})
	if err != nil || ctr.GetStats().GetAttributes().GetId() != containerID {
		t.Errorf("container: %v, %v", ctr, err)
	}
	pod, err := c.PodSandboxStats(ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: "abc"})
	if err != nil || pod.GetStats().GetAttributes().GetId() != podID {
		t.Errorf("pod: %v, %v", pod, err)
	}
	f.took()
	for _, filter := range []*runtimeapi.ContainerStatsFilter{nil, {}, {Id: "a\x00\n"}, {PodSandboxId: "../"}, {LabelSelector: map[string]string{"": ""}}} {
		if r, err := c.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{Filter: filter}); err != nil || len(r.GetStats()) != 1 {
			t.Errorf("%v: %v, %v", filter, r, err)
		}
	}
	for _, filter := range []*runtimeapi.PodSandboxStatsFilter{nil, {}, {Id: "a\x00\n"}, {LabelSelector: map[string]string{"": ""}}} {
		if r, err := c.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{Filter: filter}); err != nil || len(r.GetStats()) != 1 {
			t.Errorf("%v: %v, %v", filter, r, err)
		}
	}
	if got := f.took(); len(got) != 9 || got[2] != "ListContainerStats a\x00" {
		t.Errorf("calls %q", got)
	}
	// The kubelet's question whether this is served at all.
	_, err = c.PodSandboxStats(ctx, &runtimeapi.PodSandboxStatsRequest{})
	if code := status.Code(err); code != codes.InvalidArgument {
		t.Errorf("the kubelet's probe: %v", code)
	}
}

// Streams bring everything once and in order.
func TestStatsStreams(t *testing.T) {
	c, f := serve(t, nil)
	ctx := context.Background()
	for _, n := range []int{1, perMessage, perMessage + 1, 3*perMessage - 1} {
		f.entries = n
		ctrs, err := c.StreamContainerStats(ctx, &runtimeapi.StreamContainerStatsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for {
			r, err := ctrs.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range r.GetContainerStats() {
				got = append(got, s.GetAttributes().GetId())
			}
		}
		pods, err := c.StreamPodSandboxStats(ctx, &runtimeapi.StreamPodSandboxStatsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for {
			r, err := pods.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range r.GetPodSandboxStats() {
				got = append(got, s.GetAttributes().GetId())
			}
		}
		if len(got) != 2*n {
			t.Fatalf("%d entries, want %d twice", len(got), n)
		}
		for i, id := range got {
			if id != fmt.Sprint(i%n) {
				t.Fatalf("entry %d is %s", i, id)
			}
		}
	}
}
