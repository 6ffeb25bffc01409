package server

import (
	"context"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A mutation changes one leaf of a valid request.
type mutation struct {
	field string // path as in errors, without indices: config.mounts.host_path
	kind  string // what was done: "nil", "NUL", "max", ...
	apply func(root protoreflect.Message)
}

// find leads from the root of a copy of a request to the message with the field.
type find func(root protoreflect.Message) protoreflect.Message

// mutations walks all fields of a valid request by its descriptor. What the request
// leaves unset is set to bad values as well.
func mutations(m protoreflect.Message, path string, here find) (all []mutation) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if fd.Name() == "windows" {
			continue
		}
		field := strings.TrimPrefix(path+"."+string(fd.Name()), ".")
		add := func(kind string, apply func(protoreflect.Message)) {
			all = append(all, mutation{field, kind, func(root protoreflect.Message) { apply(here(root)) }})
		}
		add("nil", func(p protoreflect.Message) { p.Clear(fd) })
		switch {
		case fd.IsMap():
			mutateMap(fd, add)
		case fd.IsList():
			mutateList(m, fd, add)
			if fd.Message() != nil && m.Get(fd).List().Len() > 0 {
				all = append(all, mutations(m.Get(fd).List().Get(0).Message(), field, func(root protoreflect.Message) protoreflect.Message {
					return here(root).Mutable(fd).List().Get(0).Message()
				})...)
			}
		case fd.Message() != nil:
			add("empty", func(p protoreflect.Message) { p.Set(fd, p.NewField(fd)) })
			if m.Has(fd) {
				all = append(all, mutations(m.Get(fd).Message(), field, func(root protoreflect.Message) protoreflect.Message {
					return here(root).Mutable(fd).Message()
				})...)
			}
		default:
			for kind, v := range badValues(fd) {
				add(kind, func(p protoreflect.Message) { p.Set(fd, v) })
			}
		}
	}
	return all
}

func mutateMap(fd protoreflect.FieldDescriptor, add func(string, func(protoreflect.Message))) {
	for kind, v := range badValues(fd.MapValue()) {
		add("value "+kind, func(p protoreflect.Message) {
			p.Mutable(fd).Map().Set(protoreflect.ValueOfString("net.core.x").MapKey(), v)
		})
	}
	for kind, v := range badValues(fd.MapKey()) {
		add("key "+kind, func(p protoreflect.Message) { p.Mutable(fd).Map().Set(v.MapKey(), protoreflect.ValueOfString("1")) })
	}
}

func mutateList(m protoreflect.Message, fd protoreflect.FieldDescriptor, add func(string, func(protoreflect.Message))) {
	add("many", func(p protoreflect.Message) {
		l := p.Mutable(fd).List()
		for range 100_000 {
			l.Append(l.NewElement())
		}
	})
	add("empty element", func(p protoreflect.Message) {
		l := p.Mutable(fd).List()
		l.Append(l.NewElement())
	})
	if fd.Message() != nil {
		return
	}
	for kind, v := range badValues(fd) {
		add(kind, func(p protoreflect.Message) { p.Mutable(fd).List().Append(v) })
	}
}

func badValues(fd protoreflect.FieldDescriptor) map[string]protoreflect.Value {
	switch fd.Kind() {
	case protoreflect.StringKind:
		return map[string]protoreflect.Value{
			"1 MiB":   protoreflect.ValueOfString(strings.Repeat("a", 1<<20)),
			"NUL":     protoreflect.ValueOfString("/a\x00b"),
			"parent":  protoreflect.ValueOfString("../../etc/shadow"),
			"format":  protoreflect.ValueOfString("%n%s"),
			"newline": protoreflect.ValueOfString("a\nb"),
		}
	case protoreflect.BytesKind:
		return map[string]protoreflect.Value{"NUL": protoreflect.ValueOfBytes([]byte("a\x00b")), "1 MiB": protoreflect.ValueOfBytes(make([]byte, 1<<20))}
	case protoreflect.EnumKind:
		return map[string]protoreflect.Value{"99": protoreflect.ValueOfEnum(99), "-1": protoreflect.ValueOfEnum(-1), "max": protoreflect.ValueOfEnum(math.MaxInt32)}
	case protoreflect.Int32Kind:
		return map[string]protoreflect.Value{"-1": protoreflect.ValueOfInt32(-1), "min": protoreflect.ValueOfInt32(math.MinInt32), "max": protoreflect.ValueOfInt32(math.MaxInt32)}
	case protoreflect.Int64Kind:
		return map[string]protoreflect.Value{"-1": protoreflect.ValueOfInt64(-1), "min": protoreflect.ValueOfInt64(math.MinInt64), "max": protoreflect.ValueOfInt64(math.MaxInt64)}
	case protoreflect.Uint32Kind:
		return map[string]protoreflect.Value{"max": protoreflect.ValueOfUint32(math.MaxUint32)}
	case protoreflect.Uint64Kind:
		return map[string]protoreflect.Value{"max": protoreflect.ValueOfUint64(math.MaxUint64)}
	case protoreflect.BoolKind:
		return map[string]protoreflect.Value{"true": protoreflect.ValueOfBool(true)}
	default:
		panic("no bad values for " + fd.Kind().String())
	}
}

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
		unary(validCreate(), func(x context.Context, q *runtimeapi.CreateContainerRequest) (any, error) {
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
	c, f := serve(t, nil)
	count := make(map[codes.Code]int)
	for _, target := range targets(c) {
		rpc := strings.TrimSuffix(string(target.valid.ProtoReflect().Descriptor().Name()), "Request")
		if err := target.call(context.Background(), target.valid); err != nil {
			t.Fatalf("%s, unchanged: %v", rpc, err)
		}
		root := func(m protoreflect.Message) protoreflect.Message { return m }
		for _, m := range mutations(target.valid.ProtoReflect(), "", root) {
			req := proto.Clone(target.valid)
			m.apply(req.ProtoReflect())
			f.took()
			start := time.Now()
			err := target.call(context.Background(), req)
			st, took := status.Convert(err), time.Since(start)
			count[st.Code()]++
			what := fmt.Sprintf("%s %s %s", rpc, m.field, m.kind)
			leaf := m.field[strings.LastIndexByte(m.field, '.')+1:]
			switch {
			case took > time.Second:
				t.Errorf("%s took %v", what, took)
			case err == nil && accepted(rpc, m) == "":
				t.Errorf("%s: accepted, and not on the list", what)
			case err == nil:
			case !refusals[st.Code()]:
				t.Errorf("%s: %v", what, err)
			case len(f.took()) != 0:
				t.Errorf("%s: refused, but after it had reached the manager", what)
			case !strings.Contains(st.Message(), leaf) && !related(m, st.Message()):
				t.Errorf("%s: %q does not name the field", what, st.Message())
			}
		}
	}
	t.Logf("%v", count)
}
