package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/conformance/stage"
)

// describe writes the spec of a device; the scene's end takes it away.
func (s *scene) describe(device, edits string) {
	s.Helper()
	if err := os.MkdirAll(s.CDIDir, 0o755); err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { _ = os.RemoveAll(s.CDIDir) })
	text := fmt.Sprintf(`{"cdiVersion": "0.7.0", "kind": "test.com/thing", "devices": [{"name": %q, "containerEdits": %s}]}`, device, edits)
	if err := os.WriteFile(filepath.Join(s.CDIDir, device+".json"), []byte(text), 0o644); err != nil {
		s.Fatal(err)
	}
}

func device(name string) func(*runtimeapi.ContainerConfig) {
	return func(c *runtimeapi.ContainerConfig) {
		c.CDIDevices = append(c.CDIDevices, &runtimeapi.CDIDevice{Name: "test.com/thing=" + name})
	}
}

// TestCDI: through the daemon, in pods with and without a user namespace. In one the hook is root there, the device is the
// host's node, and its mount has the pod's ids.
func TestCDI(t *testing.T) {
	s := open(t)
	dir := filepath.Join(s.mappable(), "cdi")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	hook := filepath.Join(dir, "hook")
	for _, err := range []error{
		os.WriteFile(hook, []byte("#!/bin/sh\nset -e\nstate=$(cat)\nid -u > made\ncat proc/self/uid_map >> made\ntest -e dev/gadget\nb=${state#*\\\"bundle\\\":\\\"}; b=${b%%\\\"*}\ngrep -q GADGET $b/config.json; test -e $b/rootfs/made\n"), 0o755),
		os.WriteFile(filepath.Join(dir, "lib"), []byte("library\n"), 0o644), os.Chmod(dir, 0o755),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	s.describe("gadget", fmt.Sprintf(`{"env": ["GADGET=1"], "additionalGids": [4711], "deviceNodes": [{"path": "/dev/gadget", "hostPath": "/dev/full"}],
		"mounts": [{"hostPath": %q, "containerPath": "/lib/gadget", "options": ["ro"]}], "hooks": [{"hookName": "createContainer", "path": %q}]}`, dir, hook))
	s.describe("broken", `{"hooks": [{"hookName": "createContainer", "path": "/bin/false"}]}`)
	for name, c := range map[string]struct {
		pod *pod
		in  func(*runtimeapi.ContainerConfig)
		ids string
	}{
		"own ids":    {s.runPod("cdi"), func(*runtimeapi.ContainerConfig) {}, "0 0 4294967295"},
		"mapped ids": {s.runPod("cdi-mapped", mapped), inMapped, "0 200000 65536"},
		"shared pid": {s.runPod("cdi-shared", mapped, func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
		}), func(c *runtimeapi.ContainerConfig) {
			inMapped(c)
			c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
		}, "0 200000 65536"},
	} {
		id := c.pod.run("c", "sleep 1000", device("gadget"), c.in)
		for script, want := range map[string]string{
			"echo $GADGET; id -G":                             "1\n0 4711",
			"cat /lib/gadget/lib; stat -c %u /lib/gadget/lib": "library\n0",
			"tr -s ' ' </made | sed 's/^ //'":                 "0\n" + c.ids,
			"echo x 2>&1 >/dev/gadget":                        "sh: write error: No space left on device",
			"touch /lib/gadget/x 2>&1 || true":                "touch: /lib/gadget/x: Read-only file system",
		} {
			if got := s.exec(id, script+"; true"); got != want {
				t.Errorf("%s: %s: %q, want %q", name, script, got, want)
			}
		}
		for what, want := range map[string]codes.Code{"broken": codes.FailedPrecondition, "unknown": codes.InvalidArgument} {
			cfg := stage.ContainerConfig(what, busybox, "/bin/true")
			device(what)(cfg)
			c.in(cfg)
			if _, err := s.cri.CreateContainer(s.ctx, c.pod.id, cfg, c.pod.cfg); code(err) != want || !strings.Contains(err.Error(), what) && !strings.Contains(err.Error(), "hooks.createContainer[0] (/bin/false): exit code 1") {
				t.Errorf("%s: %s: %v", name, what, err)
			}
		}
	}
}
