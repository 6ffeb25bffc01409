package server

import (
	"errors"
	"io"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/image"
)

// What passes through the server passes whole: docs/cri.md says so of these fields.

func TestEveryCredentialArrives(t *testing.T) {
	c, f := serve(t, nil)
	pull := func(a *runtimeapi.AuthConfig) *image.Auth {
		t.Helper()
		f.auth = nil
		if _, err := c.PullImage(t.Context(), with(validPull(), func(q *runtimeapi.PullImageRequest) { q.Auth = a })); err != nil {
			t.Fatal(err)
		}
		return f.auth
	}
	if got := pull(nil); got != nil {
		t.Error("credentials of nobody")
	}
	want := image.Auth{Username: "u", Password: "p", Auth: "dTpw", ServerAddress: "registry.test", IdentityToken: "i"}
	if got := pull(&runtimeapi.AuthConfig{Username: "u", Password: "p", Auth: "dTpw", ServerAddress: "registry.test", IdentityToken: "i"}); got == nil || *got != want {
		t.Error("not all of them arrived")
	}
	if got := pull(&runtimeapi.AuthConfig{RegistryToken: "r"}); got == nil || *got != (image.Auth{RegistryToken: "r"}) {
		t.Error("the registry's token did not arrive")
	}
}

func TestImageIsWhole(t *testing.T) {
	c, f := serve(t, nil)
	uid := int64(33)
	f.image = &image.Image{ID: imageID, RepoTags: []string{"registry.test/a:1", "registry.test/a:2"}, RepoDigests: []string{"registry.test/a@" + imageID},
		Size: 7, UID: &uid, Annotations: map[string]string{"a": "b"}, Pinned: true}
	want := &runtimeapi.Image{Id: imageID, RepoTags: f.image.RepoTags, RepoDigests: f.image.RepoDigests, Size: 7, Uid: &runtimeapi.Int64Value{Value: 33},
		Spec: &runtimeapi.ImageSpec{Image: imageID, Annotations: map[string]string{"a": "b"}}, Pinned: true}
	st, err := c.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: "a"}})
	if err != nil || !proto.Equal(st.GetImage(), want) {
		t.Errorf("status: %v, %v\nwant %v", st, err, want)
	}
	list, err := c.ListImages(t.Context(), &runtimeapi.ListImagesRequest{})
	if err != nil || len(list.GetImages()) != 1 || !proto.Equal(list.GetImages()[0], want) {
		t.Errorf("list: %v, %v\nwant %v", list, err, want)
	}
	fs, err := c.ImageFsInfo(t.Context(), &runtimeapi.ImageFsInfoRequest{})
	used := &runtimeapi.FilesystemUsage{Timestamp: 7e9, FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: "/i"},
		UsedBytes: &runtimeapi.UInt64Value{Value: 1}, InodesUsed: &runtimeapi.UInt64Value{Value: 2}}
	if err != nil || len(fs.GetImageFilesystems()) != 1 || !proto.Equal(fs.GetImageFilesystems()[0], used) {
		t.Errorf("file systems: %v, %v\nwant %v", fs, err, used)
	}
}

// TestFeaturesAreTold: each feature has its own place in a Status.
func TestFeaturesAreTold(t *testing.T) {
	for _, features := range []Features{{}, {UserNamespaces: true}, {MountOptions: true}, {RecursiveReadOnly: true}, {SupplementalGroupsPolicy: true}} {
		c, _ := serve(t, func(cfg *Config) { cfg.Features = features })
		st, err := c.RuntimeServiceClient.Status(t.Context(), &runtimeapi.StatusRequest{})
		if err != nil || len(st.GetRuntimeHandlers()) != 1 {
			t.Fatalf("%v, %v", st, err)
		}
		of, all := st.GetRuntimeHandlers()[0].GetFeatures(), st.GetFeatures()
		if of.GetUserNamespaces() != features.UserNamespaces || all.GetUserNamespacesHostNetwork() != features.UserNamespaces ||
			of.GetRecursiveReadOnlyMounts() != features.RecursiveReadOnly || all.GetMountOptions() != features.MountOptions ||
			all.GetSupplementalGroupsPolicy() != features.SupplementalGroupsPolicy {
			t.Errorf("%+v is told as %v and %v", features, of, all)
		}
	}
}

// TestStreamsTakeFilters: a list and its stream ask the same of the manager.
func TestStreamsTakeFilters(t *testing.T) {
	c, f := serve(t, nil)
	label := map[string]string{"a": "b"}
	pods := &runtimeapi.PodSandboxFilter{Id: "i", State: &runtimeapi.PodSandboxStateValue{State: 1}, LabelSelector: label}
	containers := &runtimeapi.ContainerFilter{Id: "i", PodSandboxId: "p", State: &runtimeapi.ContainerStateValue{State: 1}, LabelSelector: label}
	stats := &runtimeapi.ContainerStatsFilter{Id: "i", PodSandboxId: "p", LabelSelector: label}
	podStats := &runtimeapi.PodSandboxStatsFilter{Id: "i", LabelSelector: label}
	for want, calls := range map[proto.Message][2]func() error{
		pods: {
			func() error {
				return errorOf(c.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{Filter: pods}))
			},
			func() error {
				return drained(c.StreamPodSandboxes(t.Context(), &runtimeapi.StreamPodSandboxesRequest{Filter: pods}))
			},
		},
		containers: {
			func() error {
				return errorOf(c.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{Filter: containers}))
			},
			func() error {
				return drained(c.StreamContainers(t.Context(), &runtimeapi.StreamContainersRequest{Filter: containers}))
			},
		},
		stats: {
			func() error {
				return errorOf(c.ListContainerStats(t.Context(), &runtimeapi.ListContainerStatsRequest{Filter: stats}))
			},
			func() error {
				return drained(c.StreamContainerStats(t.Context(), &runtimeapi.StreamContainerStatsRequest{Filter: stats}))
			},
		},
		podStats: {
			func() error {
				return errorOf(c.ListPodSandboxStats(t.Context(), &runtimeapi.ListPodSandboxStatsRequest{Filter: podStats}))
			},
			func() error {
				return drained(c.StreamPodSandboxStats(t.Context(), &runtimeapi.StreamPodSandboxStatsRequest{Filter: podStats}))
			},
		},
	} {
		for i, call := range calls {
			f.filter = nil
			if err := call(); err != nil || !proto.Equal(f.filter, want) {
				t.Errorf("%T, %d: %v arrived, %v", want, i, f.filter, err)
			}
		}
	}
}

func errorOf(_ any, err error) error { return err }

// drained reads a stream to its end.
func drained[R any](st grpc.ServerStreamingClient[R], err error) error {
	for err == nil {
		_, err = st.Recv()
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
