package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/vitrine-runtime/vitrine/image"
	"github.com/vitrine-runtime/vitrine/sandbox"
)

func TestVersion(t *testing.T) {
	c, _ := serve(t, nil)
	for _, asked := range []string{"", "0.1.0", "v999", strings.Repeat("v", 1<<20)} { // B-122
		v, err := c.Version(context.Background(), &runtimeapi.VersionRequest{Version: asked})
		if err != nil || v.GetRuntimeName() != "vitrine" || v.GetRuntimeApiVersion() != "v1" || v.GetRuntimeVersion() != "0.0.0-test" {
			t.Errorf("%v, %v", v, err)
		}
	}
}

func TestStatus(t *testing.T) {
	c, f := serve(t, func(cfg *Config) {
		cfg.Features.UserNamespaces, cfg.Handlers = true, []Handler{{Name: "a"}, {Name: "b", NoUserNamespaces: true}}
		cfg.Info = func() map[string]any { return map[string]any{"cgroup": map[string]any{"unenforced": []string{"cpu"}}} }
	})
	st, err := c.RuntimeServiceClient.Status(context.Background(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"RuntimeReady", "NetworkReady"} {
		if got := st.GetStatus().GetConditions()[i]; got.GetType() != want || !got.GetStatus() || got.GetReason() != "" {
			t.Errorf("condition %v, want a true %s", got, want)
		}
	}
	h := st.GetRuntimeHandlers()
	for i, want := range []Handler{{}, {Name: "a"}, {Name: "b", NoUserNamespaces: true}} {
		if f := h[i].GetFeatures(); len(h) != 3 || h[i].GetName() != want.Name || !f.GetRecursiveReadOnlyMounts() || f.GetUserNamespaces() == want.NoUserNamespaces {
			t.Errorf("handler %d: %v, want %+v", i, h[i], want)
		}
	}
	if !st.GetFeatures().GetSupplementalGroupsPolicy() || st.GetFeatures().GetMountOptions() || len(st.GetInfo()) != 0 {
		t.Errorf("features %v, info %v", st.GetFeatures(), st.GetInfo())
	}

	f.do = func(_ context.Context, call string) error {
		if call == "NetworkStatus" {
			return errors.New("no conf list in /etc/cni/net.d")
		}
		return nil
	}
	st, err = c.RuntimeServiceClient.Status(context.Background(), &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	net := st.GetStatus().GetConditions()[1]
	if net.GetStatus() || net.GetReason() != "NetworkPluginNotReady" || !strings.Contains(net.GetMessage(), "/etc/cni/net.d") {
		t.Errorf("network condition %v", net)
	}
	var cgroup struct{ Unenforced []string }
	if err := json.Unmarshal([]byte(st.GetInfo()["cgroup"]), &cgroup); err != nil || !slices.Equal(cgroup.Unenforced, []string{"cpu"}) {
		t.Errorf("info %v: %v", st.GetInfo(), err)
	}
}

// A plugin that does not answer must not hold the kubelet's main loop.
func TestStatusOfHangingNetwork(t *testing.T) {
	c, f := serve(t, nil)
	f.do = func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() }
	start := time.Now()
	st, err := c.RuntimeServiceClient.Status(context.Background(), &runtimeapi.StatusRequest{})
	if err != nil || st.GetStatus().GetConditions()[1].GetStatus() {
		t.Errorf("%v, %v", st, err)
	}
	if d := time.Since(start); d > 3*time.Second {
		t.Errorf("took %v", d)
	}
}

func TestRuntimeConfig(t *testing.T) {
	for _, driver := range []runtimeapi.CgroupDriver{runtimeapi.CgroupDriver_SYSTEMD, runtimeapi.CgroupDriver_CGROUPFS} {
		c, _ := serve(t, func(cfg *Config) { cfg.CgroupDriver = driver })
		r, err := c.RuntimeConfig(context.Background(), &runtimeapi.RuntimeConfigRequest{})
		if err != nil || r.GetLinux().GetCgroupDriver() != driver {
			t.Errorf("%v, %v", r, err)
		}
	}
}

// Every RPC of both services either works with an empty request or says in its own
// words why it is refused; the table of RPCs to come holds exactly those that the
// Server does not have.
func TestEveryRPCAnswers(t *testing.T) {
	c, _ := serve(t, nil)
	left := make(map[string]bool)
	for rpc := range later {
		left[rpc] = true
	}
	services := []grpc.ServiceDesc{runtimeapi.RuntimeService_ServiceDesc, runtimeapi.ImageService_ServiceDesc}
	for _, d := range services {
		for _, m := range d.Methods {
			err := c.conn.Invoke(context.Background(), "/"+d.ServiceName+"/"+m.MethodName, &[]byte{}, &[]byte{}, grpc.ForceCodec(bytesCodec{}))
			checkAnswer(t, m.MethodName, err, left)
		}
		for i, st := range d.Streams {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			if st.StreamName == "GetContainerEvents" { // its answer has no end
				ctx, cancel = context.WithCancel(context.Background())
				time.AfterFunc(100*time.Millisecond, cancel)
			}
			s, err := c.conn.NewStream(ctx, &d.Streams[i], "/"+d.ServiceName+"/"+st.StreamName, grpc.ForceCodec(bytesCodec{}))
			if err == nil {
				_ = s.SendMsg(&[]byte{})
				_ = s.CloseSend()
				err = s.RecvMsg(&[]byte{})
			}
			checkAnswer(t, st.StreamName, err, left)
		}
	}
	for rpc := range left {
		t.Errorf("%s is in the table and is no RPC", rpc)
	}
}

func checkAnswer(t *testing.T, rpc string, err error, left map[string]bool) {
	t.Helper()
	code := status.Code(err)
	switch {
	case later[rpc] != "":
		delete(left, rpc)
		if code != codes.Unimplemented || !strings.HasPrefix(status.Convert(err).Message(), rpc+" is not served by this version") {
			t.Errorf("%s: %v", rpc, err)
		}
	case rpc == "GetContainerEvents" && code == codes.Canceled:
	case code != codes.OK && code != codes.InvalidArgument:
		t.Errorf("%s with an empty request: %v", rpc, err)
	}
}

// B-123.
func TestUnknownRPCs(t *testing.T) {
	c, _ := serve(t, nil)
	for _, m := range []string{"/runtime.v1.RuntimeService/Nope", "/runtime.v1alpha2.RuntimeService/Version"} {
		err := c.conn.Invoke(context.Background(), m, &runtimeapi.VersionRequest{}, &runtimeapi.VersionResponse{})
		if status.Code(err) != codes.Unimplemented {
			t.Errorf("%s: %v", m, err)
		}
	}
}

// bytesCodec sends bytes as they are, under the name of the real codec.
type bytesCodec struct{}

func (bytesCodec) Marshal(v any) ([]byte, error)   { return *v.(*[]byte), nil }
func (bytesCodec) Unmarshal(b []byte, v any) error { *v.(*[]byte) = b; return nil }
func (bytesCodec) Name() string                    { return "proto" }

// B-124: what is no message, and what is too large for one. grpc answers for us
// there, with Internal for the first, and nothing breaks.
func TestMalformedMessages(t *testing.T) {
	c, f := serve(t, nil)
	send := func(b []byte) error {
		var out []byte
		return c.conn.Invoke(context.Background(), runtimeapi.RuntimeService_StartContainer_FullMethodName, &b, &out, grpc.ForceCodec(bytesCodec{}))
	}
	wantError(t, send([]byte("\x0a\xffgarbage")), codes.Internal, "unmarshal")
	wantError(t, send([]byte("\x0a\x02\xff\xfe")), codes.Internal, "UTF-8")
	wantError(t, send(bytes.Repeat([]byte{0x0b}, 20000)), codes.Internal, "unmarshal") // groups in groups
	wantError(t, send(make([]byte, maxRecv+1)), codes.ResourceExhausted, "larger than max")
	if got := f.took(); len(got) != 0 {
		t.Errorf("reached the manager: %q", got)
	}
	unknown := append([]byte("\x0a\x01a"), bytes.Repeat([]byte{0x78, 1}, 1e6)...) // a million unknown fields
	if err := send(unknown); err != nil {
		t.Errorf("unknown fields: %v", err)
	}
}

// Both outputs of an ExecSync at their full length fit into an answer.
func TestLargeAnswer(t *testing.T) {
	c, f := serve(t, nil)
	f.out = make([]byte, 16<<20)
	r, err := c.ExecSync(context.Background(), &runtimeapi.ExecSyncRequest{ContainerId: "a", Cmd: []string{"yes"}})
	if err != nil || len(r.GetStdout()) != 16<<20 || len(r.GetStderr()) != 16<<20 {
		t.Errorf("%d and %d bytes, %v", len(r.GetStdout()), len(r.GetStderr()), err)
	}
}

// A panic costs one request and says nothing to the client; the log has the stack.
func TestPanic(t *testing.T) {
	logged := captureLog(t, 0)
	c, f := serve(t, nil)
	f.do = func(context.Context, string) error { panic("glass broke") }
	_, err := c.StartContainer(context.Background(), &runtimeapi.StartContainerRequest{ContainerId: "a"})
	wantError(t, err, codes.Internal, "StartContainer: internal error")
	if strings.Contains(err.Error(), "glass") || strings.Contains(err.Error(), "goroutine") {
		t.Errorf("the answer shows the inside: %v", err)
	}
	f.do = nil
	if _, err := c.StartContainer(context.Background(), &runtimeapi.StartContainerRequest{ContainerId: "a"}); err != nil {
		t.Errorf("after the panic: %v", err)
	}
	if log := logged(); !strings.Contains(log, "panic: glass broke") || !strings.Contains(log, "server_test.go") {
		t.Errorf("log without the panic: %s", log)
	}
}

// captureLog returns what is logged at a level from now on. The log is the whole
// process's, so such tests do not run in parallel.
func captureLog(t *testing.T, level int) func() string {
	t.Helper()
	var fs flag.FlagSet
	klog.InitFlags(&fs)
	if err := fs.Set("v", strconv.Itoa(level)); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	klog.SetOutput(&b)
	t.Cleanup(func() {
		klog.SetOutput(io.Discard)
		_ = fs.Set("v", "0")
	})
	return func() string {
		klog.Flush()
		return b.String()
	}
}

func TestRequestLog(t *testing.T) {
	logged := captureLog(t, 5)
	c, _ := serve(t, nil)
	if _, err := c.PullImage(context.Background(), validPull()); err != nil {
		t.Fatal(err)
	}
	_, _ = c.CreateContainer(context.Background(), validCreate())
	_, _ = c.StopPodSandbox(context.Background(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: "a\nb"})
	log := logged()
	for _, want := range []string{`rpc="PullImage"`, `took="`, `id="` + imageID, `name="app"`, `container="` + containerID, `pod="\"a\\nb\""`} {
		if !strings.Contains(log, want) {
			t.Errorf("log lacks %s", want)
		}
	}
	for _, secret := range []string{"p w", "HOME", "a\nb"} {
		if strings.Contains(log, secret) {
			t.Errorf("log holds %q:\n%s", secret, log)
		}
	}
}

func TestErrorCodes(t *testing.T) {
	rows := []struct {
		err  error
		code codes.Code
		text string
	}{
		{sandbox.ErrInvalid, codes.InvalidArgument, ""},
		{sandbox.ErrExists, codes.AlreadyExists, ""},
		{fmt.Errorf("start container %s: %w", containerID, sandbox.ErrState), codes.FailedPrecondition, containerID},
		{sandbox.ErrExhausted, codes.ResourceExhausted, ""},
		{sandbox.ErrUnavailable, codes.Unavailable, ""},
		{sandbox.ErrUnimplemented, codes.Unimplemented, ""},
		{image.ErrInvalidReference, codes.InvalidArgument, ""},
		{image.ErrNotFound, codes.NotFound, ""},
		{fmt.Errorf("measure a: %w", image.ErrUnmeasured), codes.Unavailable, "measure a"},
		{fmt.Errorf("pull a: %w", image.ErrUnavailable), codes.Unavailable, "RegistryUnavailable: pull a"},
		{image.ErrDenied, codes.PermissionDenied, ""},
		{fmt.Errorf("pull a: %w", image.ErrSignature), codes.PermissionDenied, "SignatureValidationFailed: pull a"},
		{fmt.Errorf("fork: %w", syscall.EAGAIN), codes.ResourceExhausted, "fork"},
		{fmt.Errorf("write record: %w", syscall.ENOSPC), codes.ResourceExhausted, ""},
		{errors.New("something else"), codes.Internal, "something else"},
		{errors.New("not \xff UTF-8"), codes.Internal, "not ? UTF-8"},
		{errors.New(strings.Repeat("x", 1<<20)), codes.Internal, "xxx..."},
		{errors.Join(sandbox.ErrUnavailable, context.Canceled), codes.Canceled, ""},
		{status.Error(codes.Unknown, "from below"), codes.Internal, "from below"},
		{image.ErrUnsupported, codes.FailedPrecondition, ""},
		{image.ErrInvalidAuth, codes.InvalidArgument, ""},
		{status.Error(codes.DataLoss, "kept"), codes.DataLoss, "kept"},
	}
	c, f := serve(t, nil)
	for _, r := range rows {
		f.do = func(context.Context, string) error { return r.err }
		_, err := c.StartContainer(context.Background(), &runtimeapi.StartContainerRequest{ContainerId: "a"})
		st := status.Convert(err)
		if st.Code() != r.code || !strings.Contains(st.Message(), r.text) || len(st.Message()) > maxMessage+3 {
			t.Errorf("%.80v: got %v %.80q, want %v", r.err, st.Code(), st.Message(), r.code)
		}
	}
}

// B-125: nothing is begun for a request that is over, and an error that comes from
// the end of a request is not called a bug.
func TestEndedContext(t *testing.T) {
	c, f := serve(t, nil)
	ctx, cancel := context.WithDeadline(context.Background(), time.Now().Add(-time.Second))
	defer cancel()
	_, err := c.RunPodSandbox(ctx, validRun())
	wantError(t, err, codes.DeadlineExceeded, "")
	if got := f.took(); len(got) != 0 {
		t.Errorf("reached the manager: %q", got)
	}
	ended, cancel2 := context.WithCancel(context.Background())
	cancel2()
	called := false
	_, err = translateUnary(ended, nil, nil, func(context.Context, any) (any, error) { called = true; return nil, nil })
	if called || status.Code(err) != codes.Canceled {
		t.Errorf("called %v, %v", called, err)
	}
	if err = toStatus(ended, errors.New("dial plugin: operation was canceled")); status.Code(err) != codes.Canceled {
		t.Errorf("end of request: %v", err)
	}
}

// Shutdown waits for what runs, but not for ever.
func TestShutdown(t *testing.T) {
	for _, hangs := range []bool{false, true} {
		s, c, release := serveOne(t)
		call := func() error {
			_, err := c.StartContainer(context.Background(), &runtimeapi.StartContainerRequest{ContainerId: "a"})
			return err
		}
		result := make(chan error, 1)
		go func() { result <- call() }()
		<-release.entered
		ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		defer cancel()
		if !hangs {
			time.AfterFunc(50*time.Millisecond, func() { close(release.leave) })
		}
		start := time.Now()
		s.Shutdown(ctx)
		took := time.Since(start)
		if hangs {
			time.AfterFunc(3*time.Second, func() { close(release.leave) })
		}
		err := <-result
		if hangs {
			if took < 250*time.Millisecond || took > 2*time.Second || err == nil {
				t.Errorf("hanging request: %v, %v", took, err)
			}
			<-release.leave // the handler must not outlive the test
		} else if took > 250*time.Millisecond || err != nil {
			t.Errorf("short request: %v, %v", took, err)
		}
	}
}
