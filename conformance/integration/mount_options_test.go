package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// mountWith is a volume of a directory with options.
func mountWith(dir, at string, options ...string) func(*runtimeapi.ContainerConfig) {
	return func(c *runtimeapi.ContainerConfig) {
		c.Mounts = append(c.Mounts, &runtimeapi.Mount{HostPath: dir, ContainerPath: at, MountOptions: options})
	}
}

// TestMountOptions: the daemon says that it has them, and they hold for volumes with mapped ids and for images as well. What they
// mean for each other sort of mount is TestRealMountOptions.
func TestMountOptions(t *testing.T) {
	s := open(t)
	st, err := s.cri.Status(s.ctx, false)
	if err != nil || !st.GetFeatures().GetMountOptions() {
		t.Fatalf("features %v, %v", st.GetFeatures(), err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "run"), []byte("#!/bin/sh\necho ran\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	image := s.pullVolume("options")
	p, q := s.runPod("options"), s.runPod("options-mapped", mapped)
	volume := func(c *runtimeapi.ContainerConfig) {
		imageVolume(image, "")(c)
		c.Mounts[len(c.Mounts)-1].MountOptions = []string{"noexec", "nodev"}
	}
	const plain, restricted, img = "/plain", "/restricted", "/vol"
	both := func(c *runtimeapi.ContainerConfig) {
		mountWith(dir, plain)(c)
		mountWith(dir, restricted, "noexec", "nodev", "nosuid")(c)
		volume(c)
	}
	for name, id := range map[string]string{"own ids": p.run("c", "sleep 1000", both), "mapped ids": q.run("c", "sleep 1000", both, inMapped)} {
		for script, want := range map[string]string{
			plain + "/run":                "ran",
			restricted + "/run":           "Permission denied",
			img + "/bin/busybox echo ran": "Permission denied",
			"grep -c ' " + restricted + " .*nosuid,nodev,noexec' /proc/mounts": "1",
			"grep -c ' " + plain + " .*noexec' /proc/mounts":                   "0",
			"grep -c ' " + img + " .*[ ,]ro,nosuid,nodev,noexec' /proc/mounts": "1",
			"mount -o remount,bind,exec " + restricted + " 2>&1":               "mount: ",
		} {
			if got := s.exec(id, script+" 2>&1; true"); !strings.Contains(got, want) {
				t.Errorf("%s: %s: %q, want %q", name, script, got, want)
			}
		}
	}
	for _, options := range [][]string{{"exec", "noexec"}, {"suid"}} {
		cfg := volumeOf(image, "")
		cfg.Mounts = nil
		mountWith(dir, plain, options...)(cfg)
		_, err := p.cri.CreateContainer(p.ctx, p.id, cfg, p.cfg)
		if code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "config.mounts[0].mount_options[0]") {
			t.Errorf("%q: %v", options, err)
		}
	}
}
