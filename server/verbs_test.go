package server

import (
	"context"
	"encoding/base64"
	"math"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/sandbox"
)

// idVerbs are the RPCs that take only an id, with the fields that they name.
func idVerbs(c *client) map[string]func(context.Context, string) error {
	return map[string]func(context.Context, string) error{
		"StopPodSandbox": func(ctx context.Context, id string) error {
			_, err := c.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
			return err
		},
		"RemovePodSandbox": func(ctx context.Context, id string) error {
			_, err := c.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
			return err
		},
		"PodSandboxStatus": func(ctx context.Context, id string) error {
			_, err := c.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
			return err
		},
		"StartContainer": func(ctx context.Context, id string) error {
			_, err := c.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
			return err
		},
		"StopContainer": func(ctx context.Context, id string) error {
			_, err := c.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id})
			return err
		},
		"RemoveContainer": func(ctx context.Context, id string) error {
			_, err := c.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id})
			return err
		},
		"ContainerStatus": func(ctx context.Context, id string) error {
			_, err := c.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
			return err
		},
		"ReopenContainerLog": func(ctx context.Context, id string) error {
			_, err := c.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: id})
			return err
		},
		"UpdateContainerResources": func(ctx context.Context, id string) error {
			_, err := c.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{}})
			return err
		},
		"UpdatePodSandboxResources": func(ctx context.Context, id string) error {
			_, err := c.UpdatePodSandboxResources(ctx, &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: id, Resources: &runtimeapi.LinuxContainerResources{}})
			return err
		},
		"ContainerStats": func(ctx context.Context, id string) error {
			_, err := c.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: id})
			return err
		},
		"PodSandboxStats": func(ctx context.Context, id string) error {
			_, err := c.PodSandboxStats(ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: id})
			return err
		},
		"ExecSync": func(ctx context.Context, id string) error {
			_, err := c.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})
			return err
		},
	}
}

// B-35, B-36, B-90, B-91, B-98: an id has to be there; an unknown one is NotFound,
// and nothing to do for Stop and Remove.
func TestIDs(t *testing.T) {
	c, f := serve(t, nil)
	for verb, call := range idVerbs(c) {
		t.Run(verb, func(t *testing.T) {
			f.do = nil
			f.took()
			if err := call(context.Background(), "abc"); err != nil {
				t.Fatalf("legal case: %v", err)
			}
			if got := f.took(); len(got) != 1 || !strings.HasPrefix(got[0], verb+" abc") {
				t.Errorf("calls %q", got)
			}
			wantError(t, call(context.Background(), ""), codes.InvalidArgument, "_id: must be set")
			wantError(t, call(context.Background(), "a\x00"), codes.InvalidArgument, "_id")
			wantError(t, call(context.Background(), strings.Repeat("a", 1<<20)), codes.InvalidArgument, "_id")
			if got := f.took(); len(got) != 0 {
				t.Errorf("reached the manager: %q", got)
			}
			f.do = func(context.Context, string) error { return sandbox.ErrNotFound }
			want := codes.NotFound
			if strings.HasPrefix(verb, "Stop") || strings.HasPrefix(verb, "Remove") {
				want = codes.OK
			}
			if got := status.Code(call(context.Background(), "abc")); got != want {
				t.Errorf("unknown id: %v, want %v", got, want)
			}
		})
	}
}

// B-89, B-97, B-100.
func TestTimeoutsAndCommands(t *testing.T) {
	c, f := serve(t, nil)
	ctx := context.Background()
	_, err := c.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: "a", Timeout: -1})
	wantError(t, err, codes.InvalidArgument, "timeout")
	if _, err = c.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: "a", Timeout: math.MaxInt64}); err != nil {
		t.Fatal(err)
	}
	if got := f.took(); !slices.Equal(got, []string{"StopContainer a 315360000"}) {
		t.Errorf("calls %q", got)
	}
	exec := func(timeout int64, cmd ...string) (*runtimeapi.ExecSyncResponse, error) {
		return c.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: "a", Cmd: cmd, Timeout: timeout})
	}
	_, err = exec(0)
	wantError(t, err, codes.InvalidArgument, "cmd")
	_, err = exec(0, "")
	wantError(t, err, codes.InvalidArgument, "cmd[0]")
	_, err = exec(0, "a", "\x00")
	wantError(t, err, codes.InvalidArgument, "cmd[1]")
	_, err = exec(-1, "a")
	wantError(t, err, codes.InvalidArgument, "timeout")
	resp, err := exec(1<<62, "a", "")
	if err != nil || resp.GetExitCode() != 3 || string(resp.GetStdout()) != "out" {
		t.Errorf("exec: %v, %v", resp, err)
	}
	if got := f.took(); !slices.Equal(got, []string{"ExecSync a 87600h0m0s 2"}) {
		t.Errorf("calls %q", got)
	}
	f.do = func(context.Context, string) error { return context.DeadlineExceeded }
	_, err = exec(1, "sleep")
	wantError(t, err, codes.DeadlineExceeded, "")
}

// B-38, B-92, B-120: no filter is an error.
func TestListsTakeAnyFilter(t *testing.T) {
	c, _ := serve(t, nil)
	ctx := context.Background()
	for _, f := range []*runtimeapi.PodSandboxFilter{nil, {State: &runtimeapi.PodSandboxStateValue{State: 99}},
		{Id: "a\x00\n"}, {LabelSelector: map[string]string{"": ""}}} {
		if r, err := c.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: f}); err != nil || len(r.GetItems()) != 1 {
			t.Errorf("%v: %v", f, err)
		}
	}
	for _, f := range []*runtimeapi.ContainerFilter{nil, {State: &runtimeapi.ContainerStateValue{State: 99}}, {PodSandboxId: "../"}} {
		if r, err := c.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: f}); err != nil || len(r.GetContainers()) != 1 {
			t.Errorf("%v: %v", f, err)
		}
	}
	for name, want := range map[string]int{"": 1, "a": 1, "a b\n": 0, "docker://a": 0} {
		r, err := c.ListImages(ctx, &runtimeapi.ListImagesRequest{Filter: &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: name}}})
		if err != nil || len(r.GetImages()) != want {
			t.Errorf("%q: %v, %v", name, r, err)
		}
	}
}

func TestVerboseInfo(t *testing.T) {
	c, _ := serve(t, nil)
	for _, verbose := range []bool{false, true} {
		pod, err := c.PodSandboxStatus(context.Background(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: "a", Verbose: verbose})
		if err != nil || (len(pod.GetInfo()) > 0) != verbose || pod.GetTimestamp() != 0 {
			t.Errorf("pod, verbose %v: %v, %v", verbose, pod, err)
		}
		ctr, err := c.ContainerStatus(context.Background(), &runtimeapi.ContainerStatusRequest{ContainerId: "a", Verbose: verbose})
		if err != nil || (len(ctr.GetInfo()) > 0) != verbose {
			t.Errorf("container, verbose %v: %v, %v", verbose, ctr, err)
		}
	}
}

// B-113, B-118, B-119: the same names are wrong for all verbs of images.
func TestImageNames(t *testing.T) {
	c, f := serve(t, nil)
	ctx := context.Background()
	hex := strings.Repeat("a", 64)
	verbs := map[string]func(*runtimeapi.ImageSpec) error{
		"PullImage": func(s *runtimeapi.ImageSpec) error {
			_, err := c.PullImage(ctx, &runtimeapi.PullImageRequest{Image: s})
			return err
		},
		"ImageStatus": func(s *runtimeapi.ImageSpec) error {
			_, err := c.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: s})
			return err
		},
		"RemoveImage": func(s *runtimeapi.ImageSpec) error {
			_, err := c.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: s})
			return err
		},
	}
	bad := []string{"", "a b", "a\n", "http://x/y", "docker://x", "a@sha256:" + hex[1:], "a@sha256:" + strings.ToUpper(hex), "-x", "../x", "/x", strings.Repeat("a", 5<<10), "bücher"}
	good := []string{"a", "a:tag", "reg.test:5000/a/b__c:1.2-x", "a@sha256:" + hex, "sha256:" + hex, hex, "[::1]:5000/a", "x@sha512:" + hex + hex}
	for verb, call := range verbs {
		wantError(t, call(nil), codes.InvalidArgument, "image.image")
		for _, n := range bad {
			wantError(t, call(&runtimeapi.ImageSpec{Image: n}), codes.InvalidArgument, "image.image")
		}
		if got := f.took(); len(got) != 0 {
			t.Errorf("%s reached the store: %q", verb, got)
		}
		for _, n := range good {
			if err := call(&runtimeapi.ImageSpec{Image: n}); err != nil {
				t.Errorf("%s %q: %v", verb, n, err)
			}
		}
		f.took()
		wantError(t, call(&runtimeapi.ImageSpec{Image: "a", RuntimeHandler: "x"}), codes.InvalidArgument, "image.runtime_handler")
	}
}

// B-114, B-115: credentials are checked and never repeated.
func TestPullRequest(t *testing.T) {
	c, _ := serve(t, nil)
	const canary = "S3cret"
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	type a = runtimeapi.AuthConfig
	rows := []struct {
		id, field string
		auth      *a
	}{
		{"none", "", nil},
		{"basic", "", &a{Auth: b64("u:" + canary)}},
		{"user", "", &a{Username: "u", Password: canary + "\t\x7f", IdentityToken: "t"}},
		{"long token", "", &a{RegistryToken: strings.Repeat("t", 20<<10)}},
		{"bad base64", "auth.auth", &a{Auth: canary + "!"}},
		{"no colon", "auth.auth", &a{Auth: b64(canary)}},
		{"newline inside", "auth.auth", &a{Auth: b64("u\n:" + canary)}},
		{"auth and token", "auth.registry_token", &a{Auth: b64("u:p"), RegistryToken: canary}},
		{"two tokens", "auth.registry_token", &a{IdentityToken: canary, RegistryToken: canary}},
		{"1 MiB", "auth.password", &a{Username: "u", Password: canary + strings.Repeat("p", 1<<20)}},
		{"newline in user", "auth.username", &a{Username: canary + "\n"}},
		{"NUL in token", "auth.identity_token", &a{IdentityToken: canary + "\x00"}},
		{"server", "auth.server_address", &a{ServerAddress: "a\nb"}},
	}
	for _, r := range rows {
		t.Run("B-114 "+r.id, func(t *testing.T) {
			_, err := c.PullImage(context.Background(), with(validPull(), func(q *runtimeapi.PullImageRequest) { q.Auth = r.auth }))
			if r.field == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			wantError(t, err, codes.InvalidArgument, r.field)
			if strings.Contains(err.Error(), canary) {
				t.Errorf("the error repeats a credential: %v", err)
			}
		})
	}
	_, err := c.PullImage(context.Background(), with(validPull(), func(q *runtimeapi.PullImageRequest) { q.SandboxConfig.Metadata.Namespace = "../x" }))
	wantError(t, err, codes.InvalidArgument, "sandbox_config.metadata.namespace")
	if _, err = c.PullImage(context.Background(), with(validPull(), func(q *runtimeapi.PullImageRequest) { q.SandboxConfig = nil })); err != nil {
		t.Errorf("without a sandbox config: %v", err)
	}
}

func TestImageAnswers(t *testing.T) {
	c, f := serve(t, nil)
	ctx := context.Background()
	st, err := c.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: "a"}, Verbose: true})
	if err != nil || st.GetImage().GetId() != imageID || st.GetImage().GetUsername() != "web" || st.GetImage().GetUid() != nil || len(st.GetInfo()) != 1 || !strings.Contains(st.GetInfo()["info"], `"imageSpec":{"config":{`) {
		t.Errorf("status: %v, %v", st, err)
	}
	pulled, err := c.PullImage(ctx, validPull())
	if err != nil || pulled.GetImageRef() != st.GetImage().GetId() {
		t.Errorf("pull: %v, %v", pulled, err)
	}
	f.image = nil
	if st, err = c.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: "a"}}); err != nil || st.GetImage() != nil {
		t.Errorf("unknown image: %v, %v", st, err)
	}
	fs, err := c.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
	if err != nil || len(fs.GetImageFilesystems()) != 1 || fs.GetImageFilesystems()[0].GetTimestamp() == 0 ||
		fs.GetImageFilesystems()[0].GetInodesUsed().GetValue() != 2 || fs.GetContainerFilesystems()[0].GetFsId().GetMountpoint() != "/c" {
		t.Errorf("fs info: %v, %v", fs, err)
	}
}
