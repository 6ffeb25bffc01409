package integration

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/conformance/stage"
)

func containerThatTalks() *runtimeapi.ContainerConfig {
	return stage.ContainerConfig("c", busybox, "/bin/sh", "-c", "echo words; sleep 1000")
}

// code returns the gRPC code of an error, also where the client library wrapped it.
func code(err error) codes.Code { return status.Code(err) }

// TestUnknownIDs: Stop and Remove of what is not there succeed; asking for it is NotFound (api.proto).
func TestUnknownIDs(t *testing.T) {
	s := open(t)
	id := strings.Repeat("0123456789abcdef", 4)
	for what, f := range map[string]func() error{
		"StopPodSandbox":   func() error { return s.cri.StopPodSandbox(s.ctx, id) },
		"RemovePodSandbox": func() error { return s.cri.RemovePodSandbox(s.ctx, id) },
		"StopContainer":    func() error { return s.cri.StopContainer(s.ctx, id, 1) },
		"RemoveContainer":  func() error { return s.cri.RemoveContainer(s.ctx, id) },
		"RemoveImage": func() error {
			return s.cri.Images.RemoveImage(s.ctx, &runtimeapi.ImageSpec{Image: stage.Host + "/no/such:1"})
		},
	} {
		if err := f(); err != nil {
			t.Errorf("%s of an unknown id: %v", what, err)
		}
	}
	for what, f := range map[string]func() error{
		"PodSandboxStatus": func() error { _, err := s.cri.PodSandboxStatus(s.ctx, id, false); return err },
		"ContainerStatus":  func() error { _, err := s.cri.ContainerStatus(s.ctx, id, false); return err },
		"StartContainer":   func() error { return s.cri.StartContainer(s.ctx, id) },
		"ExecSync":         func() error { _, _, err := s.cri.ExecSync(s.ctx, id, []string{"true"}, time.Second); return err },
		"CreateContainer": func() error {
			_, err := s.cri.CreateContainer(s.ctx, id, containerThatTalks(), &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "n", Namespace: "n", Uid: "u"}})
			return err
		},
	} {
		if err := f(); code(err) != codes.NotFound {
			t.Errorf("%s of an unknown id: %v, want NotFound", what, err)
		}
	}
}

// TestTwice: Stop and Remove a second time succeed.
func TestTwice(t *testing.T) {
	s := open(t)
	p := s.runPod("twice")
	id := p.run("c", "sleep 1000")
	for range 2 {
		if err := s.cri.StopContainer(s.ctx, id, 0); err != nil {
			t.Errorf("stop container: %v", err)
		}
	}
	for range 2 {
		if err := s.cri.RemoveContainer(s.ctx, id); err != nil {
			t.Errorf("remove container: %v", err)
		}
	}
	for range 2 {
		if err := s.cri.StopPodSandbox(s.ctx, p.id); err != nil {
			t.Errorf("stop pod: %v", err)
		}
	}
	for range 2 {
		if err := s.cri.RemovePodSandbox(s.ctx, p.id); err != nil {
			t.Errorf("remove pod: %v", err)
		}
	}
}

// TestRemoveRunning: RemovePodSandbox takes a running container and the pod with it.
func TestRemoveRunning(t *testing.T) {
	s := open(t)
	p := s.runPod("running")
	p.run("c", "sleep 1000")
	other := p.run("d", "sleep 1000")
	if err := s.cri.RemoveContainer(s.ctx, other); err != nil {
		t.Errorf("remove a running container: %v", err)
	}
	if err := s.cri.RemovePodSandbox(s.ctx, p.id); err != nil {
		t.Errorf("remove a running pod: %v", err)
	}
}

// TestAbandonedRequest: a client that gives up, as the kubelet does after its time-out, finds its pod when it asks
// again; the name was never "reserved" for somebody who is gone.
func TestAbandonedRequest(t *testing.T) {
	s := open(t)
	cfg, err := s.PodConfig("abandoned")
	if err != nil {
		t.Fatal(err)
	}
	p := &pod{scene: s, cfg: cfg}
	s.Cleanup(p.end)
	for range 3 {
		ctx, cancel := context.WithTimeout(s.ctx, 5*time.Millisecond)
		id, err := s.cri.RunPodSandbox(ctx, cfg, "")
		cancel()
		if err == nil {
			p.id = id // faster than our patience
			break
		}
		if c := code(err); c != codes.DeadlineExceeded {
			t.Errorf("abandoned: %v, want DeadlineExceeded", err)
		}
	}
	if p.id == "" {
		if p.id, err = s.cri.RunPodSandbox(s.ctx, cfg, ""); err != nil {
			t.Fatalf("asked again: %v", err)
		}
	}
	list, err := s.cri.ListPodSandbox(s.ctx, nil)
	if err != nil || len(list) != 1 || list[0].Id != p.id {
		t.Errorf("pods: %v (%v), want %s alone", list, err, p.id)
	}
	// Whoever was told the id and asks again is told so, and where the pod is.
	if _, err := s.cri.RunPodSandbox(s.ctx, cfg, ""); code(err) != codes.AlreadyExists || !strings.Contains(err.Error(), p.id) {
		t.Errorf("a third time: %v, want AlreadyExists with the id", err)
	}
}

// TestSameAttemptSameContainer: the same (pod, name, attempt) is the same container, also when the requests run at
// the same time; another attempt is another one.
func TestSameAttemptSameContainer(t *testing.T) {
	s := open(t)
	p := s.runPod("retried")
	cfg := stage.ContainerConfig("c", busybox, "sleep", "1000")
	ids, late := make([]string, 8), make([]string, 8)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			id, err := s.cri.CreateContainer(s.ctx, p.id, cfg, p.cfg)
			switch {
			case code(err) == codes.AlreadyExists: // it came when the others had their answer
				late[i] = err.Error()
			case err != nil:
				t.Errorf("create: %v", err)
			}
			ids[i] = id
		})
	}
	wg.Wait()
	told := slices.IndexFunc(ids, func(id string) bool { return id != "" })
	if told < 0 {
		t.Fatalf("no request got a container: %q", late)
	}
	first := ids[told]
	for i, id := range ids {
		if id != first && !strings.Contains(late[i], "is container "+first) {
			t.Errorf("one attempt, two containers: %q (%s), %s", id, late[i], first)
		}
	}
	cfg.Metadata.Attempt = 1
	if id := p.create(cfg); id == first {
		t.Error("another attempt is the same container")
	}
	if list, err := s.cri.ListContainers(s.ctx, &runtimeapi.ContainerFilter{PodSandboxId: p.id}); err != nil || len(list) != 2 {
		t.Errorf("%d containers (%v), want 2", len(list), err)
	}
}

// TestBadProgram: what cannot be executed is an error of StartContainer, and the container says so for ever.
func TestBadProgram(t *testing.T) {
	s := open(t)
	p := s.runPod("bad")
	for name, c := range map[string]struct {
		command string
		code    int32 // as a shell has it
	}{
		"missing":     {"/no/such/program", 127},
		"not-in-path": {"no-such-program", 127},
		"not-a-file":  {"/etc", 126},
		"no-format":   {"/etc/passwd", 126},
	} {
		cfg := stage.ContainerConfig(name, busybox, c.command)
		id, err := s.cri.CreateContainer(s.ctx, p.id, cfg, p.cfg)
		if err == nil {
			err = s.cri.StartContainer(s.ctx, id)
			if st := s.status(id); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.Reason != "StartError" || st.ExitCode != c.code || st.Message == "" {
				t.Errorf("%s: %v", name, st)
			}
		}
		if err == nil {
			t.Errorf("%s was started", name)
		}
		if c := code(err); c == codes.Unknown || c == codes.Internal {
			t.Errorf("%s: code %v (%v)", name, c, err)
		}
		if err != nil && !strings.Contains(err.Error(), c.command) {
			t.Errorf("%s: the error does not name %s: %v", name, c.command, err)
		}
	}
	// The pod is still of use.
	if st := s.exited(p.run("good", "exit 0")); st.ExitCode != 0 {
		t.Errorf("after that: %v", st)
	}
}

// TestImages: pull, list, status and remove by the kubelet's client.
func TestImages(t *testing.T) {
	s := open(t)
	ref, img, err := s.SeedBusybox(s.ctx, "test/images", "7")
	if err != nil {
		t.Fatal(err)
	}
	id, err := s.cri.Pull(s.ctx, ref)
	if err != nil {
		t.Fatal(err)
	}
	s.before.AllowPulled(len(img.Blobs) - 1)
	if again, err := s.cri.Pull(s.ctx, ref); err != nil || again != id {
		t.Errorf("pull again: %s (%v), want %s", again, err, id)
	}
	for _, name := range []string{ref, id, stage.Host + "/test/images@" + img.Digest()} {
		st, err := s.cri.Images.ImageStatus(s.ctx, &runtimeapi.ImageSpec{Image: name}, false)
		if err != nil || st.Image.GetId() != id || len(st.Image.RepoTags) != 1 || st.Image.RepoTags[0] != ref || st.Image.Size == 0 {
			t.Errorf("status of %s: %v (%v)", name, st, err)
		}
	}
	if _, err := s.cri.Pull(s.ctx, stage.Host+"/test/images:none"); code(err) != codes.NotFound {
		t.Errorf("pull of an unknown tag: %v, want NotFound", err)
	}
	if err := s.cri.Images.RemoveImage(s.ctx, &runtimeapi.ImageSpec{Image: id}); err != nil {
		t.Fatal(err)
	}
	if st, err := s.cri.Images.ImageStatus(s.ctx, &runtimeapi.ImageSpec{Image: ref}, false); err != nil || st.Image != nil {
		t.Errorf("status after remove: %v (%v), want none", st, err)
	}
	fs, err := s.cri.Images.ImageFsInfo(s.ctx)
	if err != nil || len(fs.ImageFilesystems) == 0 || fs.ImageFilesystems[0].GetFsId().GetMountpoint() == "" {
		t.Errorf("ImageFsInfo: %v (%v)", fs, err)
	}
}

// TestStatusSaysWhatIsMissing: runtime and network are ready, and where controllers are missing Status names them.
func TestStatusSaysWhatIsMissing(t *testing.T) {
	s := open(t)
	st, err := s.cri.Status(s.ctx, true)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"RuntimeReady", "NetworkReady"} {
		ok := false
		for _, c := range st.Status.Conditions {
			ok = ok || c.Type == want && c.Status
		}
		if !ok {
			t.Errorf("%s is not true: %v", want, st.Status.Conditions)
		}
	}
	for _, c := range stage.MissingControllers() {
		if !strings.Contains(st.String(), c) {
			t.Errorf("Status does not say that %s is not enforced: %v", c, st)
		}
	}
	rc, err := s.cri.RuntimeConfig(s.ctx)
	if err != nil || strings.ToLower(rc.Linux.GetCgroupDriver().String()) != s.Driver {
		t.Errorf("RuntimeConfig: %v (%v)", rc, err)
	}
}
