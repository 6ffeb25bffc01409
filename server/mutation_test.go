package server

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/conformance/matrix"
)

// A target is an RPC in scope with a valid request.
type target struct {
	valid proto.Message
	call  func(context.Context, proto.Message) error
}

// unary makes a target of a client's method.
func unary[Q proto.Message, A any](valid Q, method func(context.Context, Q) (A, error)) target {
	return target{valid, func(ctx context.Context, m proto.Message) error {
		_, err := method(ctx, m.(Q))
		return err
	}}
}

func targets(c *client) []target {
	spec := func() *runtimeapi.ImageSpec {
		return &runtimeapi.ImageSpec{Image: "a", Annotations: map[string]string{"a": "b"}}
	}
	selector := map[string]string{"a": "b"}
	return []target{
		unary(validRun(), func(x context.Context, q *runtimeapi.RunPodSandboxRequest) (any, error) { return c.RunPodSandbox(x, q) }),
		unary(&runtimeapi.StopPodSandboxRequest{PodSandboxId: podID}, func(x context.Context, q *runtimeapi.StopPodSandboxRequest) (any, error) {
			return c.StopPodSandbox(x, q)
		}),
		unary(&runtimeapi.RemovePodSandboxRequest{PodSandboxId: podID}, func(x context.Context, q *runtimeapi.RemovePodSandboxRequest) (any, error) {
			return c.RemovePodSandbox(x, q)
		}),
		unary(&runtimeapi.PodSandboxStatusRequest{PodSandboxId: podID}, func(x context.Context, q *runtimeapi.PodSandboxStatusRequest) (any, error) {
			return c.PodSandboxStatus(x, q)
		}),
		unary(&runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{Id: podID, State: &runtimeapi.PodSandboxStateValue{}, LabelSelector: selector}},
			func(x context.Context, q *runtimeapi.ListPodSandboxRequest) (any, error) {
				return c.ListPodSandbox(x, q)
			}),
		unary(with(validCreate(), func(q *runtimeapi.CreateContainerRequest) { q.Config.Mounts[0].Image = nil }), func(x context.Context, q *runtimeapi.CreateContainerRequest) (any, error) {
			return c.CreateContainer(x, q)
		}),
		unary(with(validCreate(), func(q *runtimeapi.CreateContainerRequest) {
			q.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/image", Readonly: true, Image: spec(), ImageSubPath: "etc"}}
		}), func(x context.Context, q *runtimeapi.CreateContainerRequest) (any, error) {
			return c.CreateContainer(x, q)
		}),
		unary(&runtimeapi.StartContainerRequest{ContainerId: containerID}, func(x context.Context, q *runtimeapi.StartContainerRequest) (any, error) {
			return c.StartContainer(x, q)
		}),
		unary(&runtimeapi.StopContainerRequest{ContainerId: containerID, Timeout: 1}, func(x context.Context, q *runtimeapi.StopContainerRequest) (any, error) {
			return c.StopContainer(x, q)
		}),
		unary(&runtimeapi.RemoveContainerRequest{ContainerId: containerID}, func(x context.Context, q *runtimeapi.RemoveContainerRequest) (any, error) {
			return c.RemoveContainer(x, q)
		}),
		unary(&runtimeapi.ContainerStatusRequest{ContainerId: containerID}, func(x context.Context, q *runtimeapi.ContainerStatusRequest) (any, error) {
			return c.ContainerStatus(x, q)
		}),
		unary(&runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{Id: containerID, State: &runtimeapi.ContainerStateValue{}, LabelSelector: selector}},
			func(x context.Context, q *runtimeapi.ListContainersRequest) (any, error) {
				return c.ListContainers(x, q)
			}),
		unary(&runtimeapi.ExecSyncRequest{ContainerId: containerID, Cmd: []string{"a"}, Timeout: 1}, func(x context.Context, q *runtimeapi.ExecSyncRequest) (any, error) { return c.ExecSync(x, q) }),
		unary(&runtimeapi.ExecRequest{ContainerId: containerID, Cmd: []string{"a"}, Stdin: true, Stdout: true}, func(x context.Context, q *runtimeapi.ExecRequest) (any, error) { return c.Exec(x, q) }),
		unary(&runtimeapi.AttachRequest{ContainerId: containerID, Stdout: true, Stderr: true}, func(x context.Context, q *runtimeapi.AttachRequest) (any, error) { return c.Attach(x, q) }),
		unary(&runtimeapi.PortForwardRequest{PodSandboxId: podID, Port: []int32{80}}, func(x context.Context, q *runtimeapi.PortForwardRequest) (any, error) { return c.PortForward(x, q) }),
		unary(&runtimeapi.ReopenContainerLogRequest{ContainerId: containerID}, func(x context.Context, q *runtimeapi.ReopenContainerLogRequest) (any, error) {
			return c.ReopenContainerLog(x, q)
		}),
		unary(&runtimeapi.UpdateContainerResourcesRequest{ContainerId: containerID, Linux: validResources()}, func(x context.Context, q *runtimeapi.UpdateContainerResourcesRequest) (any, error) {
			return c.UpdateContainerResources(x, q)
		}),
		unary(&runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: podID, Overhead: validResources(), Resources: validResources()},
			func(x context.Context, q *runtimeapi.UpdatePodSandboxResourcesRequest) (any, error) {
				return c.UpdatePodSandboxResources(x, q)
			}),
		unary(&runtimeapi.VersionRequest{}, func(x context.Context, q *runtimeapi.VersionRequest) (any, error) { return c.Version(x, q) }),
		unary(&runtimeapi.StatusRequest{}, func(x context.Context, q *runtimeapi.StatusRequest) (any, error) {
			return c.RuntimeServiceClient.Status(x, q)
		}),
		unary(validPull(), func(x context.Context, q *runtimeapi.PullImageRequest) (any, error) { return c.PullImage(x, q) }),
		unary(&runtimeapi.ImageStatusRequest{Image: spec()}, func(x context.Context, q *runtimeapi.ImageStatusRequest) (any, error) { return c.ImageStatus(x, q) }),
		unary(&runtimeapi.RemoveImageRequest{Image: spec()}, func(x context.Context, q *runtimeapi.RemoveImageRequest) (any, error) { return c.RemoveImage(x, q) }),
		unary(&runtimeapi.ListImagesRequest{Filter: &runtimeapi.ImageFilter{Image: spec()}}, func(x context.Context, q *runtimeapi.ListImagesRequest) (any, error) { return c.ListImages(x, q) }),
	}
}

// refusals are the codes that a bad request may get before anything happens.
var refusals = map[codes.Code]bool{codes.InvalidArgument: true, codes.FailedPrecondition: true, codes.Unimplemented: true}

// B-126: every field of every request in scope, one at a time. Each gets one of the
// documented codes within a second and a text that names the field, or stands on the
// list of what is accepted.
func TestMutations(t *testing.T) {
	c, f := serve(t, func(cfg *Config) { cfg.Features.ImageVolumes = true })
	count := make(map[codes.Code]int)
	for _, target := range targets(c) {
		rpc := strings.TrimSuffix(string(target.valid.ProtoReflect().Descriptor().Name()), "Request")
		if err := target.call(context.Background(), target.valid); err != nil {
			t.Fatalf("%s, unchanged: %v", rpc, err)
		}
		for _, m := range matrix.Mutations(target.valid) {
			req := m.Of(target.valid)
			f.took()
			start := time.Now()
			err := target.call(context.Background(), req)
			st, took := status.Convert(err), time.Since(start)
			for try := 0; took > time.Second && try < 2; try++ { // a busy machine is slow now and then, a slow check each time
				start = time.Now()
				_ = target.call(context.Background(), req)
				took = min(took, time.Since(start))
			}
			count[st.Code()]++
			what := fmt.Sprintf("%s %s %s", rpc, m.Field, m.Kind)
			switch {
			case took > time.Second:
				t.Errorf("%s took %v", what, took)
			case err == nil && matrix.Reason(rpc, m) == "":
				t.Errorf("%s: accepted, and not on the list", what)
			case err == nil:
			case !refusals[st.Code()]:
				t.Errorf("%s: %v", what, err)
			case len(f.took()) != 0:
				t.Errorf("%s: refused, but after it had reached the manager", what)
			case !matrix.NamedBy(m, st.Message()):
				t.Errorf("%s: %q does not name the field", what, st.Message())
			}
		}
	}
	t.Logf("%v", count)
}
