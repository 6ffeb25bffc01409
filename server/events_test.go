package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/sandbox"
)

// TestEvents: what is queued comes in order, and the three ways in which a stream ends.
func TestEvents(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(f *fake, cancel func())
		code codes.Code
	}{
		{"too slow", func(f *fake, _ func()) { close(f.queue) }, codes.ResourceExhausted},
		{"client", func(_ *fake, cancel func()) { cancel() }, codes.Canceled},
	} {
		c, f := serve(t, nil)
		ctx, cancel := context.WithCancel(t.Context())
		st, err := c.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := st.Header(); err != nil {
			t.Fatal(err)
		}
		if got := f.took(); !slices.Equal(got, []string{"Subscribe"}) {
			t.Errorf("%s: after the header: %q", tt.name, got)
		}
		for i := range 3 {
			f.queue <- &runtimeapi.ContainerEventResponse{ContainerId: fmt.Sprint(i), CreatedAt: int64(i)}
		}
		for i := range 3 {
			if e, err := st.Recv(); err != nil || e.ContainerId != fmt.Sprint(i) || e.CreatedAt != int64(i) {
				t.Errorf("%s: event %d: %v, %v", tt.name, i, e, err)
			}
		}
		tt.end(f, cancel)
		if e, err := st.Recv(); status.Code(err) != tt.code {
			t.Errorf("%s: %v, %v", tt.name, e, err)
		}
		for end := time.Now().Add(10 * time.Second); !slices.Equal(f.took(), []string{"Unsubscribe"}); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: the subscription stays", tt.name)
			}
		}
		cancel()
	}
}

// TestEventsRefused: there may be too many subscribers.
func TestEventsRefused(t *testing.T) {
	c, f := serve(t, nil)
	f.do = func(context.Context, string) error { return fmt.Errorf("subscribe: %w", sandbox.ErrExhausted) }
	st, err := c.GetContainerEvents(t.Context(), &runtimeapi.GetEventsRequest{})
	if err == nil {
		_, err = st.Recv()
	}
	wantError(t, err, codes.ResourceExhausted, "subscribe")
}

// TestShutdownEndsEvents: a stream that has no end of its own does not hold up the daemon's.
func TestShutdownEndsEvents(t *testing.T) {
	s, c, _ := serveOne(t)
	s.cfg.Manager.(*fake).do = nil
	st, err := c.GetContainerEvents(t.Context(), &runtimeapi.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Header(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	s.Shutdown(ctx)
	if ctx.Err() != nil {
		t.Error("the shutdown waited for the stream")
	}
	if _, err := st.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the stream ended with %v", err)
	}
}

// TestListStreams bring everything once and in order.
func TestListStreams(t *testing.T) {
	c, f := serve(t, nil)
	for _, n := range []int{1, perMessage, perMessage + 1, 3*perMessage - 1} {
		f.entries = n
		for what, list := range map[string]func() ([]string, error){
			"pods": func() ([]string, error) {
				st, err := c.StreamPodSandboxes(t.Context(), &runtimeapi.StreamPodSandboxesRequest{})
				return idsOf(st, err, (*runtimeapi.StreamPodSandboxesResponse).GetPodSandboxes)
			},
			"containers": func() ([]string, error) {
				st, err := c.StreamContainers(t.Context(), &runtimeapi.StreamContainersRequest{})
				return idsOf(st, err, (*runtimeapi.StreamContainersResponse).GetContainers)
			},
			"images": func() ([]string, error) {
				st, err := c.StreamImages(t.Context(), &runtimeapi.StreamImagesRequest{})
				return idsOf(st, err, (*runtimeapi.StreamImagesResponse).GetImages)
			},
		} {
			ids, err := list()
			if err != nil || len(ids) != n {
				t.Fatalf("%d %s: %d, %v", n, what, len(ids), err)
			}
			for i, id := range ids {
				if id != fmt.Sprint(i) {
					t.Fatalf("%s: entry %d is %s", what, i, id)
				}
			}
		}
	}
	st, err := c.StreamImages(t.Context(), &runtimeapi.StreamImagesRequest{Filter: &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: "No Name"}}})
	if ids, err := idsOf(st, err, (*runtimeapi.StreamImagesResponse).GetImages); err != nil || len(ids) != 0 {
		t.Errorf("a name that nothing can have: %q, %v", ids, err)
	}
}

// idsOf reads a stream to its end.
func idsOf[R any, E interface{ GetId() string }](st grpc.ServerStreamingClient[R], err error, entries func(*R) []E) (ids []string, _ error) {
	for err == nil {
		var r *R
		if r, err = st.Recv(); err == nil {
			if len(entries(r)) > perMessage {
				err = fmt.Errorf("%d entries in one message", len(entries(r)))
			}
			for _, e := range entries(r) {
				ids = append(ids, e.GetId())
			}
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return ids, err
}

// B-40: what is no prefix is refused, and the one before is kept.
func TestUpdateRuntimeConfig(t *testing.T) {
	c, _ := serve(t, func(cfg *Config) { cfg.Info = func() map[string]any { return map[string]any{} } })
	tell := func(cidr string) error {
		_, err := c.UpdateRuntimeConfig(t.Context(), &runtimeapi.UpdateRuntimeConfigRequest{
			RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: cidr}}})
		return err
	}
	shown := func() string {
		r, err := c.RuntimeServiceClient.Status(t.Context(), &runtimeapi.StatusRequest{Verbose: true})
		if err != nil {
			t.Fatal(err)
		}
		return strings.Trim(r.GetInfo()["podCIDR"], `"`)
	}
	for _, good := range []string{"", "10.1.0.0/16", "10.2.0.0/24,fd00::/64", "fd00:1::/64, 10.3.0.0/24"} {
		if err := tell(good); err != nil || shown() != good {
			t.Errorf("%q: %v, shown %q", good, err, shown())
		}
	}
	const field = "runtime_config.network_config.pod_cidr"
	for _, poor := range []string{"x", "10.0.0.0/33", "10.0.0.0", "10.1.0.0/16,10.2.0.0/16", "fd00::/64,fd01::/64", "10.1.0.0/16,fd00::/64,10.2.0.0/16", ",", strings.Repeat("1", 5000)} {
		wantError(t, tell(poor), codes.InvalidArgument, field)
	}
	if shown() != "fd00:1::/64, 10.3.0.0/24" {
		t.Errorf("after refusals %q is shown", shown())
	}
	_, err := c.UpdateRuntimeConfig(t.Context(), &runtimeapi.UpdateRuntimeConfigRequest{})
	wantError(t, err, codes.InvalidArgument, "runtime_config")
	_, err = c.UpdateRuntimeConfig(t.Context(), &runtimeapi.UpdateRuntimeConfigRequest{RuntimeConfig: &runtimeapi.RuntimeConfig{}})
	wantError(t, err, codes.InvalidArgument, "runtime_config.network_config")
}
