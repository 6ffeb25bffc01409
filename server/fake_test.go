package server

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/image"
)

// fake stands in for the manager, the images and the network. Each call is noted
// by its name and then answered by do, where that is set.
type fake struct {
	mu      sync.Mutex
	calls   []string
	do      func(ctx context.Context, call string) error
	info    map[string]string
	image   *image.Image
	out     []byte // of ExecSync
	entries int    // of lists, numbered; 0 is one, with an id
	queue   chan *runtimeapi.ContainerEventResponse
	pulls   []image.PullProgress
	auth    *image.Auth   // of the last pull
	filter  proto.Message // of the last list
}

func (f *fake) call(ctx context.Context, name string, args ...any) error {
	f.mu.Lock()
	f.calls = append(f.calls, strings.TrimSpace(name+" "+fmt.Sprintln(args...)))
	do := f.do
	f.mu.Unlock()
	if do != nil {
		return do(ctx, name)
	}
	return nil
}

// took returns the calls since the last took.
func (f *fake) took() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	calls := f.calls
	f.calls = nil
	return calls
}

const (
	podID       = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	containerID = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
	imageID     = "sha256:cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc"
)

func (f *fake) RunPodSandbox(ctx context.Context, _ *runtimeapi.PodSandboxConfig, handler string) (string, error) {
	return podID, f.call(ctx, "RunPodSandbox", handler)
}
func (f *fake) Subscribe() (<-chan *runtimeapi.ContainerEventResponse, func(), error) {
	return f.queue, func() { _ = f.call(context.Background(), "Unsubscribe") }, f.call(context.Background(), "Subscribe")
}
func (f *fake) StopPodSandbox(ctx context.Context, id string) error {
	return f.call(ctx, "StopPodSandbox", id)
}
func (f *fake) RemovePodSandbox(ctx context.Context, id string) error {
	return f.call(ctx, "RemovePodSandbox", id)
}
func (f *fake) PodSandboxStatus(id string) (*runtimeapi.PodSandboxStatus, map[string]string, error) {
	return &runtimeapi.PodSandboxStatus{Id: podID}, f.info, f.call(context.Background(), "PodSandboxStatus", id)
}
func (f *fake) UpdateContainerResources(ctx context.Context, id string, change *runtimeapi.LinuxContainerResources) error {
	return f.call(ctx, "UpdateContainerResources", id, change.GetCpuShares(), change.GetMemoryLimitInBytes())
}
func (f *fake) UpdatePodSandboxResources(ctx context.Context, id string, overhead, resources *runtimeapi.LinuxContainerResources) error {
	return f.call(ctx, "UpdatePodSandboxResources", id, overhead.GetMemoryLimitInBytes(), resources.GetMemoryLimitInBytes())
}
func (f *fake) ListPodSandbox(filter *runtimeapi.PodSandboxFilter) []*runtimeapi.PodSandbox {
	f.filter = filter
	_ = f.call(context.Background(), "ListPodSandbox")
	return many(f, podID, func(id string) *runtimeapi.PodSandbox { return &runtimeapi.PodSandbox{Id: id} })
}
func (f *fake) CreateContainer(ctx context.Context, pod string, _ *runtimeapi.ContainerConfig, _ *runtimeapi.PodSandboxConfig) (string, error) {
	return containerID, f.call(ctx, "CreateContainer", pod)
}
func (f *fake) StartContainer(ctx context.Context, id string) error {
	return f.call(ctx, "StartContainer", id)
}
func (f *fake) StopContainer(ctx context.Context, id string, timeout int64) error {
	return f.call(ctx, "StopContainer", id, timeout)
}
func (f *fake) RemoveContainer(ctx context.Context, id string) error {
	return f.call(ctx, "RemoveContainer", id)
}
func (f *fake) ContainerStatus(id string, _ bool) (*runtimeapi.ContainerStatus, map[string]string, error) {
	return &runtimeapi.ContainerStatus{Id: containerID}, f.info, f.call(context.Background(), "ContainerStatus", id)
}
func (f *fake) ListContainers(filter *runtimeapi.ContainerFilter) []*runtimeapi.Container {
	f.filter = filter
	_ = f.call(context.Background(), "ListContainers")
	return many(f, containerID, func(id string) *runtimeapi.Container { return &runtimeapi.Container{Id: id} })
}
func (f *fake) ExecSync(ctx context.Context, id string, cmd []string, limit time.Duration) (*runtimeapi.ExecSyncResponse, error) {
	return &runtimeapi.ExecSyncResponse{Stdout: f.out, Stderr: f.out, ExitCode: 3}, f.call(ctx, "ExecSync", id, limit, len(cmd))
}
func (f *fake) ReopenContainerLog(ctx context.Context, id string) error {
	return f.call(ctx, "ReopenContainerLog", id)
}

func (f *fake) CheckStream(id string) (string, error) {
	return containerID, f.call(context.Background(), "CheckStream", id)
}
func (f *fake) CheckForward(id string) (string, error) {
	return podID, f.call(context.Background(), "CheckForward", id)
}
func (f *fake) Add(q proto.Message) (string, error) {
	return "http://127.0.0.1:1/x/token", f.call(context.Background(), "Add", prototext.MarshalOptions{}.Format(q))
}

// many makes as many entries as a list of f is to have.
func many[T any](f *fake, only string, entry func(id string) T) (out []T) {
	if f.entries == 0 {
		return []T{entry(only)}
	}
	for i := range f.entries {
		out = append(out, entry(fmt.Sprint(i)))
	}
	return out
}

// fakeImages is apart because its verbs have the same names.
type fakeImages struct{ *fake }

func (f fakeImages) PullFor(ctx context.Context, namespace, ref string, auth *image.Auth) (string, error) {
	f.auth = auth
	return imageID, f.call(ctx, "Pull", namespace, ref)
}
func (f fakeImages) List(ctx context.Context, ref string) ([]image.Image, error) {
	return many(f.fake, imageID, func(id string) image.Image {
		if f.entries == 0 {
			return *f.image
		}
		return image.Image{ID: id}
	}), f.call(ctx, "List", ref)
}
func (f fakeImages) Status(ctx context.Context, ref string) (*image.Image, error) {
	return f.image, f.call(ctx, "Status", ref)
}
func (f fakeImages) Remove(ctx context.Context, ref string) error { return f.call(ctx, "Remove", ref) }
func (f fakeImages) Pulls() []image.PullProgress {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.pulls
}
func (f fakeImages) FsInfo(ctx context.Context) (image.Measured, image.Measured, error) {
	return image.Measured{FsUsage: image.FsUsage{Mountpoint: "/i", UsedBytes: 1, Inodes: 2}, At: time.Unix(7, 0)},
		image.Measured{FsUsage: image.FsUsage{Mountpoint: "/c"}, At: time.Unix(8, 0)}, f.call(ctx, "FsInfo")
}

type fakeNetwork struct{ *fake }

func (f fakeNetwork) Status(ctx context.Context) error { return f.call(ctx, "NetworkStatus") }

// client is both services over one connection to a server on a unix socket.
type client struct {
	runtimeapi.RuntimeServiceClient
	runtimeapi.ImageServiceClient
	conn *grpc.ClientConn
}

// serve starts a Server as the daemon does and connects to it. Both end with the
// test.
func serve(t *testing.T, edit func(*Config)) (*client, *fake) {
	t.Helper()
	f := &fake{
		info:  map[string]string{"info": "{}"},
		image: &image.Image{ID: imageID, RepoTags: []string{"registry.test/a:1"}, Size: 7, Username: "web"},
		out:   []byte("out"),
		queue: make(chan *runtimeapi.ContainerEventResponse, 8),
	}
	cfg := Config{
		Manager: f, Images: fakeImages{f}, Network: fakeNetwork{f}, Streams: f,
		Version: "0.0.0-test", CgroupDriver: runtimeapi.CgroupDriver_CGROUPFS,
		Features: Features{RecursiveReadOnly: true, SupplementalGroupsPolicy: true},
	}
	if edit != nil {
		edit(&cfg)
	}
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := New(cfg)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxSend), grpc.MaxCallSendMsgSize(maxSend)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		s.Shutdown(ended)
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return &client{runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn), conn}, f
}

// wantError checks the code, that the text names the field, and that it is short.
func wantError(t *testing.T, err error, code codes.Code, field string) {
	t.Helper()
	st := status.Convert(err)
	if st.Code() != code {
		t.Fatalf("got %v %q, want %v", st.Code(), st.Message(), code)
	}
	if !strings.Contains(st.Message(), field) {
		t.Errorf("text %q does not name %q", st.Message(), field)
	}
	if len(st.Message()) > 4*maxQuoted+300 {
		t.Errorf("text has %d bytes", len(st.Message()))
	}
}
