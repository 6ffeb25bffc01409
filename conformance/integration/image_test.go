package integration

import (
	"archive/tar"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/conformance/stage"
)

// pullWith pulls busybox with another layer and another config, and removes it when the test ends.
func (s *scene) pullWith(name string, entries []tar.Header, edit func(*ocispec.Image)) string {
	s.Helper()
	base, err := stage.BusyboxImage("test/busybox:1")
	if err != nil {
		s.Fatal(err)
	}
	img, err := base.With(entries, edit)
	if err != nil {
		s.Fatal(err)
	}
	ref, err := s.Push(s.ctx, "test/"+name, "1", img)
	if err != nil {
		s.Fatal(err)
	}
	if _, err := s.cri.Pull(s.ctx, ref); err != nil {
		s.Fatal(err)
	}
	s.before.AllowPulled(len(img.Blobs) - 1)
	s.Cleanup(func() {
		if err := s.cri.Images.RemoveImage(s.ctx, &runtimeapi.ImageSpec{Image: ref}); err != nil {
			s.Error(err)
		}
	})
	return ref
}

func content(name, text string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, PAXRecords: map[string]string{"content": text}}
}

// TestIM18PolicyOfAPresentImage: policy.json counts when a container is created, too, under the name that the pod gives.
func TestIM18PolicyOfAPresentImage(t *testing.T) {
	s := open(t)
	p := s.runPod("policy")
	old, err := os.ReadFile(s.Policy)
	if err != nil {
		t.Fatal(err)
	}
	id, err := s.cri.Pull(s.ctx, busybox)
	if err != nil {
		t.Fatal(err)
	}
	defer os.WriteFile(s.Policy, old, 0o644)
	if err := os.WriteFile(s.Policy, []byte(`{"default":[{"type":"reject"}]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	for i, spec := range []*runtimeapi.ImageSpec{{Image: busybox}, {Image: id}, {Image: id, UserSpecifiedImage: busybox}} {
		cfg := stage.ContainerConfig(fmt.Sprintf("denied-%d", i), busybox, "/bin/true")
		cfg.Image = spec
		_, err := p.cri.CreateContainer(p.ctx, p.id, cfg, p.cfg)
		if code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "SignatureValidationFailed") {
			t.Errorf("create from %v: %v, want PermissionDenied", spec, err)
		}
	}
	if err := os.WriteFile(s.Policy, old, 0o644); err != nil {
		t.Fatal(err)
	}
	if st := s.exited(p.run("allowed", "exit 3")); st.ExitCode != 3 {
		t.Errorf("allowed: %v", st)
	}
}

// TestCD15AccountFiles, IM-12: what an image puts in the place of passwd and group holds nobody up and reads nothing
// of the host.
func TestCD15AccountFiles(t *testing.T) {
	s := open(t)
	p := s.runPod("accounts")
	for name, entry := range map[string]tar.Header{
		"fifo":   {Typeflag: tar.TypeFifo, Name: "etc/passwd", Mode: 0o644},
		"zero":   {Typeflag: tar.TypeChar, Name: "etc/passwd", Mode: 0o666, Devmajor: 1, Devminor: 5},
		"dir":    {Typeflag: tar.TypeDir, Name: "etc/passwd", Mode: 0o755},
		"large":  content("etc/passwd", strings.Repeat("x:x:1:1::/:/\n", 1<<20)),
		"line":   content("etc/passwd", strings.Repeat("x", 11<<20)),
		"tozero": {Typeflag: tar.TypeSymlink, Name: "etc/passwd", Linkname: "/dev/zero"},
		"kmsg":   {Typeflag: tar.TypeSymlink, Name: "etc/passwd", Linkname: "/proc/kmsg"},
		"host":   {Typeflag: tar.TypeSymlink, Name: "etc/passwd", Linkname: "../../../../../../etc/shadow"},
		"itself": {Typeflag: tar.TypeSymlink, Name: "etc/passwd", Linkname: "passwd"},
		"groups": {Typeflag: tar.TypeFifo, Name: "etc/group", Mode: 0o644},
	} {
		ref := s.pullWith("cd15-"+name, []tar.Header{entry}, nil)
		cfg := stage.ContainerConfig(name, ref, "/bin/true")
		cfg.Linux = &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{RunAsUsername: "nosuchuser"}}
		start := time.Now()
		_, err := p.cri.CreateContainer(p.ctx, p.id, cfg, p.cfg)
		if c := code(err); err == nil || c == codes.Unknown || c == codes.Internal {
			t.Errorf("%s: %v", name, err)
		}
		if d := time.Since(start); d > s.Scale(3*time.Second) {
			t.Errorf("%s: %v", name, d)
		}
	}
}

// TestCD06VolumePaths: what an image calls its volumes is not a path on the host, whatever it looks like.
func TestCD06VolumePaths(t *testing.T) {
	s := open(t)
	p := s.runPod("volumes")
	canary := filepath.Join(s.Scratch, "cd06")
	if err := os.WriteFile(canary, []byte("host"), 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(canary)
	ref := s.pullWith("cd06", []tar.Header{{Typeflag: tar.TypeSymlink, Name: "link", Linkname: s.Scratch}}, func(c *ocispec.Image) {
		c.Config.Volumes = map[string]struct{}{"/../../../etc": {}, "/a/../../b": {}, "link/x": {}, "/" + strings.Repeat("p/", 2000): {}, "": {}}
		for i := range 10000 {
			c.Config.Volumes[fmt.Sprintf("/volume-%d", i)] = struct{}{}
		}
	})
	id := p.run("volumes", "cat /link/cd06; mount | wc -l; sleep 1000", func(c *runtimeapi.ContainerConfig) { c.Image.Image = ref })
	if out := s.exec(id, "cat /link/cd06 2>/dev/null; ls / | grep -c volume- ; true"); strings.Contains(out, "host") || out != "0" {
		t.Errorf("inside: %q", out)
	}
	if text, err := os.ReadFile(canary); err != nil || string(text) != "host" {
		t.Errorf("canary: %q (%v)", text, err)
	}
}

// TestCD17CheckpointIsNoImage: a path is not a reference, and annotations of an image do not make it a checkpoint.
func TestCD17CheckpointIsNoImage(t *testing.T) {
	s := open(t)
	p := s.runPod("checkpoint")
	archive := filepath.Join(s.Scratch, "checkpoint.tar")
	if err := os.WriteFile(archive, make([]byte, 1024), 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(archive)
	for _, ref := range []string{archive, "/etc/passwd", "../checkpoint.tar", "oci-archive:" + archive, "dir:/etc", "containers-storage:" + busybox} {
		_, err := p.cri.CreateContainer(p.ctx, p.id, stage.ContainerConfig("c", ref, "/bin/true"), p.cfg)
		if c := code(err); c != codes.InvalidArgument && c != codes.NotFound {
			t.Errorf("%s: %v", ref, err)
		}
	}
	ref := s.pullWith("cd17", nil, func(c *ocispec.Image) {
		c.Config.Labels = map[string]string{"io.kubernetes.cri-o.annotations.checkpoint.name": "x", "org.criu.checkpoint.container.name": "x", "containerd.io/restart.status": "running"}
	})
	if st := s.exited(p.run("plain", "exit 4", func(c *runtimeapi.ContainerConfig) { c.Image.Image = ref })); st.ExitCode != 4 {
		t.Errorf("with labels: %v", st)
	}
}

// TestCD18ExecDrain: what a command leaves behind with its output open does not hold up the answer.
func TestCD18ExecDrain(t *testing.T) {
	s := open(t)
	p := s.runPod("drain")
	id := p.run("drain", "sleep 1000")
	for i := range 10 {
		start := time.Now()
		out, _, err := s.cri.ExecSync(s.ctx, id, []string{"/bin/sh", "-c", "sleep 3600 & echo said"}, s.Scale(20*time.Second))
		if err != nil || string(out) != "said\n" {
			t.Errorf("%d: %q, %v", i, out, err)
		}
		if d := time.Since(start); d > s.Scale(5*time.Second) {
			t.Errorf("%d: %v", i, d)
		}
	}
}

// TestIM20NothingToRun: an image without a command is one that cannot be run without one.
func TestIM20NothingToRun(t *testing.T) {
	s := open(t)
	p := s.runPod("nothing")
	for i, edit := range []func(*ocispec.Image){
		func(c *ocispec.Image) { c.Config = ocispec.ImageConfig{} },
		func(c *ocispec.Image) { c.Config = ocispec.ImageConfig{Cmd: []string{""}, Env: []string{"NOEQUALS"}} },
	} {
		ref := s.pullWith(fmt.Sprintf("im20-%d", i), nil, edit)
		cfg := stage.ContainerConfig(fmt.Sprintf("c%d", i), ref)
		cfg.Command, cfg.Args = nil, nil
		_, err := p.cri.CreateContainer(p.ctx, p.id, cfg, p.cfg)
		if c := code(err); c != codes.InvalidArgument && c != codes.FailedPrecondition {
			t.Errorf("%d: %v", i, err)
		}
	}
}

// TestImageStoreGone: B-121. Without its store's directory ImageFsInfo is Unavailable and nothing breaks; with it, it is as before.
func TestImageStoreGone(t *testing.T) {
	s := open(t)
	before, err := s.cri.Images.ImageFsInfo(s.ctx)
	if err != nil {
		t.Fatal(err)
	}
	store, away := filepath.Join(s.Root, "storage"), filepath.Join(s.Root, "storage-away")
	back := sync.OnceValue(func() error { return os.Rename(away, store) })
	if err := os.Rename(store, away); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = back() })
	pid, from := s.Daemon().Pid(), s.logSize()
	for range 3 {
		if _, err := s.cri.Images.ImageFsInfo(s.ctx); code(err) != codes.Unavailable || !strings.Contains(fmt.Sprint(err), store) {
			t.Errorf("without the store: %v", err)
		}
	}
	if err := back(); err != nil {
		t.Fatal(err)
	}
	after, err := s.cri.Images.ImageFsInfo(s.ctx)
	if err != nil || len(after.ImageFilesystems) != 1 || after.ImageFilesystems[0].UsedBytes.GetValue() != before.ImageFilesystems[0].UsedBytes.GetValue() {
		t.Errorf("with the store back: %v (%v), before %v", after, err, before)
	}
	p := s.runPod("store")
	if got := s.exec(p.run("c", "sleep 1000"), "echo alive"); got != "alive" {
		t.Errorf("a container of it says %q", got)
	}
	if s.Daemon().Pid() != pid || !isAlive(pid) {
		t.Error("the daemon is another")
	}
	s.nothingBroke(from)
}
