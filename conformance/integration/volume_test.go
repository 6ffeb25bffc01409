package integration

import (
	"archive/tar"
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/conformance/stage"
)

// imageVolume mounts an image at /vol.
func imageVolume(id, sub string) func(*runtimeapi.ContainerConfig) {
	return func(c *runtimeapi.ContainerConfig) {
		c.Mounts = append(c.Mounts, &runtimeapi.Mount{ContainerPath: "/vol", Readonly: true, Image: &runtimeapi.ImageSpec{Image: id}, ImageSubPath: sub,
			SelinuxRelabel: true}) // as the kubelet sends it
	}
}

// pullVolume pulls an image with files and with all that should not work in a volume.
func (s *scene) pullVolume(name string) string {
	return s.pullWith(name, []tar.Header{
		{Typeflag: tar.TypeDir, Name: "data", Mode: 0o755}, content("data/f", "volume "+name),
		{Typeflag: tar.TypeSymlink, Name: "abs", Linkname: "/data"}, {Typeflag: tar.TypeSymlink, Name: "out", Linkname: "../../../../etc/passwd"},
		{Typeflag: tar.TypeChar, Name: "null", Mode: 0o666, Devmajor: 1, Devminor: 3}, {Typeflag: tar.TypeFifo, Name: "fifo", Mode: 0o666},
	}, nil)
}

func TestImageVolumes(t *testing.T) {
	s := open(t)
	p := s.runPod("volumes")
	ref := s.pullVolume("shown")
	img, err := s.cri.Images.ImageStatus(s.ctx, &runtimeapi.ImageSpec{Image: ref}, false)
	if err != nil {
		t.Fatal(err)
	}
	id := img.Image.Id
	all := p.run("all", "sleep 1000", imageVolume(id, ""))
	again := p.run("again", "sleep 1000", imageVolume(id, "abs"))
	file := p.run("file", "sleep 1000", imageVolume(id, "data/f"))
	for _, c := range []struct{ id, script, want string }{
		{all, "cat /vol/data/f", "volume shown"},
		{all, "/vol/bin/busybox echo runs", "runs"},
		{all, "touch /vol/x 2>&1", "touch: /vol/x: Read-only file system"},
		{all, "mount -o remount,rw /vol 2>/dev/null || echo refused", "refused"},
		{all, "cat /vol/null >/dev/null 2>&1 || echo refused", "refused"},
		{all, "grep ' /vol ' /proc/mounts | cut -d' ' -f4 | cut -d, -f1-3", "ro,nosuid,nodev"},
		{again, "ls /vol; cat /vol/f", "f\nvolume shown"},
		{file, "cat /vol", "volume shown"},
	} {
		if out := s.exec(c.id, c.script+" ; true"); out != c.want {
			t.Errorf("%s: %q, want %q", c.script, out, c.want)
		}
	}
	st := s.status(all)
	i := len(st.Mounts) - 1
	if m := st.Mounts[i]; m.Image.GetImageRef() != id || m.Image.Image != id || m.ContainerPath != "/vol" {
		t.Errorf("mount in the status: %v, want the image %s", m, id)
	}

	// Neither the image's removal nor the daemon's end takes anything away.
	if err := s.cri.Images.RemoveImage(s.ctx, &runtimeapi.ImageSpec{Image: ref}); err != nil {
		t.Fatal(err)
	}
	s.killDaemon()
	s.restart()
	for id, script := range map[string]string{all: "cat /vol/data/f", again: "cat /vol/f", file: "cat /vol"} {
		if out := s.exec(id, script); out != "volume shown" {
			t.Errorf("%s after a restart: %q", script, out)
		}
	}
	if m := s.status(all).Mounts[i]; m.Image.GetImageRef() != id {
		t.Errorf("mount in the status after a restart: %v", m)
	}
	if _, err := p.cri.CreateContainer(p.ctx, p.id, volumeOf(id, ""), p.cfg); code(err) != codes.NotFound || !strings.Contains(err.Error(), "ImageVolumeMountFailed: ") {
		t.Errorf("of a removed image: %v", err)
	}
}

// TestArtifactVolumes: an OCI artifact is pulled, listed and mounted like an image; as the root of a container it has nothing to run.
func TestArtifactVolumes(t *testing.T) {
	s := open(t)
	p := s.runPod("artifacts")
	artifact, err := stage.ArtifactImage(map[string][]byte{"model/weights": []byte("heavy"), "LICENSE": []byte("free")})
	if err != nil {
		t.Fatal(err)
	}
	ref, err := s.Push(s.ctx, "test/artifact", "1", artifact)
	if err != nil {
		t.Fatal(err)
	}
	id, err := s.cri.Pull(s.ctx, ref)
	if err != nil {
		t.Fatal(err)
	}
	s.before.AllowPulled(1)
	s.Cleanup(func() {
		if err := s.cri.Images.RemoveImage(s.ctx, &runtimeapi.ImageSpec{Image: ref}); err != nil {
			s.Error(err)
		}
	})
	if st, err := s.cri.Images.ImageStatus(s.ctx, &runtimeapi.ImageSpec{Image: ref}, false); err != nil || st.Image.GetId() != id || len(st.Image.GetRepoDigests()) != 1 {
		t.Errorf("status: %v (%v)", st, err)
	}
	all, file := p.run("all", "sleep 1000", imageVolume(id, "")), p.run("file", "sleep 1000", imageVolume(ref, "model/weights"))
	for _, c := range []struct{ id, script, want string }{
		{all, "cat /vol/LICENSE /vol/model/weights", "freeheavy"},
		{all, "touch /vol/x 2>&1; true", "touch: /vol/x: Read-only file system"},
		{file, "cat /vol", "heavy"},
	} {
		if out := s.exec(c.id, c.script); out != c.want {
			t.Errorf("%s: %q, want %q", c.script, out, c.want)
		}
	}
	run := stage.ContainerConfig("run", ref)
	if _, err := p.cri.CreateContainer(p.ctx, p.id, run, p.cfg); code(err) != codes.InvalidArgument {
		t.Errorf("a container of an artifact: %v", err)
	}
}

// volumeOf is a container that mounts an image.
func volumeOf(id, sub string) *runtimeapi.ContainerConfig {
	cfg := stage.ContainerConfig("refused", busybox, "/bin/true")
	imageVolume(id, sub)(cfg)
	return cfg
}

// TestImageVolumesRefused: B-65, IM-18. Each refusal has the word that the kubelet looks for, and leaves nothing.
func TestImageVolumesRefused(t *testing.T) {
	s := open(t)
	p := s.runPod("refused")
	ref := s.pullVolume("refused")
	type mount = runtimeapi.Mount
	for _, c := range []struct {
		name string
		edit func(*mount)
		code codes.Code
	}{
		{"unknown image", func(m *mount) { m.Image.Image = "test/unknown:1" }, codes.NotFound},
		{"writable", func(m *mount) { m.Readonly = false }, codes.InvalidArgument},
		{"host path as well", func(m *mount) { m.HostPath = "/etc" }, codes.InvalidArgument},
		{"another image's digest", func(m *mount) { m.Image.ImageRef = "sha256:" + strings.Repeat("a", 64) }, codes.InvalidArgument},
		{"propagates", func(m *mount) { m.Propagation = runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL }, codes.InvalidArgument},
		{"missing sub path", func(m *mount) { m.ImageSubPath = "data/missing" }, codes.InvalidArgument},
		{"parent", func(m *mount) { m.ImageSubPath = "../data" }, codes.InvalidArgument},
		{"absolute", func(m *mount) { m.ImageSubPath = "/data" }, codes.InvalidArgument},
		{"below a file", func(m *mount) { m.ImageSubPath = "data/f/x" }, codes.InvalidArgument},
		{"a device", func(m *mount) { m.ImageSubPath = "null" }, codes.InvalidArgument},
		{"a FIFO", func(m *mount) { m.ImageSubPath = "fifo" }, codes.InvalidArgument},
		{"long", func(m *mount) { m.ImageSubPath = strings.Repeat("x", 4000) }, codes.InvalidArgument},
	} {
		cfg := volumeOf(ref, "")
		c.edit(cfg.Mounts[len(cfg.Mounts)-1])
		_, err := p.cri.CreateContainer(p.ctx, p.id, cfg, p.cfg)
		if code(err) != c.code || !strings.Contains(err.Error(), "ImageVolumeMountFailed: ") {
			t.Errorf("%s: %v, want %v", c.name, err, c.code)
		}
	}
	old, err := os.ReadFile(s.Policy)
	if err != nil {
		t.Fatal(err)
	}
	defer os.WriteFile(s.Policy, old, 0o644)
	name, _, _ := strings.Cut(ref, ":1")
	policy := `{"default":[{"type":"insecureAcceptAnything"}],"transports":{"docker":{"` + name + `":[{"type":"reject"}]}}}`
	if err := os.WriteFile(s.Policy, []byte(policy), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = p.cri.CreateContainer(p.ctx, p.id, volumeOf(ref, ""), p.cfg)
	if code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "ImageVolumeMountFailed: SignatureValidationFailed: ") {
		t.Errorf("against the policy: %v", err)
	}
	// What leads out of the image ends in it.
	if err := os.WriteFile(s.Policy, old, 0o644); err != nil {
		t.Fatal(err)
	}
	inside := p.run("inside", "cat /vol; sleep 1000", imageVolume(ref, "out"))
	if out := s.exec(inside, "head -1 /vol"); !strings.HasPrefix(out, "root:x:0:0:root:/root:/bin/sh") {
		t.Errorf("a link out of the image: %q", out)
	}
}
