package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/sandbox/cdi"
)

// withCDI gives the node a directory of device specs.
func (n *node) withCDI() (dir string) {
	n.t.Helper()
	dir = filepath.Join(n.dir, "cdi")
	if err := os.Mkdir(dir, 0o755); err != nil {
		n.t.Fatal(err)
	}
	n.cfg.CDI = cdi.New([]string{dir})
	n.restart()
	return dir
}

// spec writes a device spec with one device, whose edits are JSON.
func (n *node) cdiSpec(dir, device, edits string) {
	n.t.Helper()
	text := fmt.Sprintf(`{"cdiVersion": "1.1.0", "kind": "test.com/thing", "devices": [{"name": %q, "containerEdits": %s}]}`, device, edits)
	if err := os.WriteFile(filepath.Join(dir, device+".json"), []byte(text), 0o644); err != nil {
		n.t.Fatal(err)
	}
}

// with asks for devices.
func with(devices ...string) func(*runtimeapi.ContainerConfig) {
	return func(c *runtimeapi.ContainerConfig) {
		for _, d := range devices {
			c.CDIDevices = append(c.CDIDevices, &runtimeapi.CDIDevice{Name: "test.com/thing=" + d})
		}
	}
}

// script writes a program of the host's for /bin/sh.
func (n *node) script(name, text string) string {
	n.t.Helper()
	path := filepath.Join(n.dir, name)
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		n.t.Fatal(err)
	}
	return path
}

// hookText is a hook that writes into the container's root what it sees: the state, its arguments and environment, the spec
// of the bundle, and whether the root is mounted where the spec says.
const hookText = `set -e
state=$(cat)
bundle=${state#*\"bundle\":\"}; bundle=${bundle%%\"*}
echo "$state" > hook-state; echo "$0 $* $GADGET" > hook-args
test -f $bundle/config.json; test -x $bundle/rootfs/bin/helper-cat; test -r $bundle/rootfs/proc/self/status
echo seen > $bundle/rootfs/hook-bundle
`

// TestRealCDI: a device brings its node with the right to use it, its mounts, variables and groups, and its hooks have run before the
// container's program does.
func TestRealCDI(t *testing.T) {
	for name, shared := range map[string]bool{"own pid": false, "shared pid": true} {
		t.Run(name, func(t *testing.T) {
			n := newRealNode(t)
			dir := n.withCDI()
			lib, made := filepath.Join(n.dir, "lib"), filepath.Join(n.dir, "made")
			if err := errors.Join(os.Mkdir(lib, 0o755), os.WriteFile(lib+"/f", []byte("library"), 0o644)); err != nil {
				t.Fatal(err)
			}
			inside, outside := n.script("inside", hookText), n.script("outside", "cat > "+made+"\n")
			n.cdiSpec(dir, "all", fmt.Sprintf(`{"env": ["GADGET=1"], "additionalGids": [4711],
				"deviceNodes": [{"path": "/dev/gadget", "hostPath": "/dev/loop-control"}, {"path": "/dev/shut", "hostPath": "/dev/loop-control", "permissions": "none"}],
				"mounts": [{"hostPath": %q, "containerPath": "/lib/gadget", "options": ["ro", "nosuid", "nodev", "bind"]}],
				"hooks": [{"hookName": "createContainer", "path": %q, "args": ["hook", "it"], "env": ["GADGET=2"], "timeout": 9}, {"hookName": "createRuntime", "path": %q}]}`,
				lib, inside, outside))
			cfg := podRequest("devices")
			if shared {
				cfg.Linux.SecurityContext.NamespaceOptions = nil
			}
			pod := n.run(cfg)
			c := n.running(pod, "c", with("all"))
			if got := n.must(c, "env"); !strings.Contains(got, "GADGET=1\n") {
				t.Errorf("environment %q", got)
			}
			if got := n.must(c, "ids"); got != "0 0 [0 4711]\n" {
				t.Errorf("groups %q", got)
			}
			if got := n.must(c, "cat", "/lib/gadget/f"); got != "library" {
				t.Errorf("mount: %q", got)
			}
			if r := n.exec(c, "write", "/lib/gadget/f", "x"); !strings.Contains(string(r.Stderr), "read-only file system") {
				t.Errorf("mount: %s", r.Stderr)
			}
			// It has no read: who gets as far as that has opened it.
			if r := n.exec(c, "cat", "/dev/gadget"); !strings.Contains(string(r.Stderr), "read /dev/gadget: invalid argument") {
				t.Errorf("device: %s", r.Stderr)
			}
			n.hookRan(c, pod, made)
			// Another container of the pod has nothing of it.
			plain := n.running(pod, "plain", nil)
			if r := n.exec(plain, "cat", "/dev/gadget"); !strings.Contains(string(r.Stderr), "no such file") {
				t.Errorf("device in another container: %s", r.Stderr)
			}
			// The daemon's restart and the spec's end change nothing for a container that there is.
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			n.restart()
			if got := n.must(c, "env"); !strings.Contains(got, "GADGET=1\n") {
				t.Errorf("environment after a restart: %q", got)
			}
		})
	}
}

// hookRan looks at what the hooks have left.
func (n *node) hookRan(c, pod, made string) {
	n.t.Helper()
	var in, out struct {
		ID, Status, Bundle string
		Pid                int
	}
	text, err := os.ReadFile(made)
	if err == nil {
		err = errors.Join(json.Unmarshal(text, &out), json.Unmarshal([]byte(n.must(c, "cat", "/hook-state")), &in))
	}
	dir := filepath.Join(n.m.podDir(pod), c)
	if err != nil || in.ID != c || in.Status != "creating" || in.Bundle != dir || out.ID != c || out.Pid != n.pid(c) {
		n.t.Errorf("states %+v and %+v, %v", in, out, err)
	}
	if got := n.must(c, "cat", "/hook-args", "/hook-bundle"); !strings.HasSuffix(got, "inside it 2\nseen\n") {
		n.t.Errorf("hook: %q", got)
	}
	if b, err := os.ReadDir(filepath.Join(dir, "rootfs")); err != nil || len(b) != 0 {
		n.t.Errorf("on the host the root is to be seen: %v, %v", b, err)
	}
}

// TestRealCDIRights: without permissions there is a node and no right to use it. The request's own rules still hold.
func TestRealCDIRights(t *testing.T) {
	n := newRealNode(t)
	dir := n.withCDI()
	n.cdiSpec(dir, "shut", `{"deviceNodes": [{"path": "/dev/gadget", "hostPath": "/dev/loop-control", "permissions": "none"}]}`)
	n.cdiSpec(dir, "open", `{"deviceNodes": [{"path": "/dev/opened", "hostPath": "/dev/loop-control", "permissions": "rw"}]}`)
	pod := n.run(podRequest("rights"))
	c := n.running(pod, "c", with("shut"))
	if r := n.exec(c, "cat", "/dev/gadget"); !strings.Contains(string(r.Stderr), "open /dev/gadget: operation not permitted") {
		t.Errorf("without permissions: %s", r.Stderr)
	}
	c = n.running(pod, "both", with("shut", "open"))
	if r := n.exec(c, "cat", "/dev/opened"); !strings.Contains(string(r.Stderr), "invalid argument") {
		t.Errorf("with permissions: %s", r.Stderr)
	}
	c = n.running(pod, "annotated", func(c *runtimeapi.ContainerConfig) {
		c.Annotations = map[string]string{"cdi.k8s.io/plugin_0": "test.com/thing=open"}
	})
	if r := n.exec(c, "cat", "/dev/opened"); !strings.Contains(string(r.Stderr), "invalid argument") {
		t.Errorf("by annotation: %s", r.Stderr)
	}
	cfg := podRequest("author") // whose annotation it is here
	cfg.Annotations = map[string]string{"cdi.k8s.io/plugin_0": "test.com/thing=open"}
	c = n.running(n.run(cfg), "c", nil)
	if r := n.exec(c, "cat", "/dev/opened"); !strings.Contains(string(r.Stderr), "no such file") {
		t.Errorf("by annotation of the pod: %s", r.Stderr)
	}
}

// TestWhoseCDIDevice: the missing node of a device of the request has the request's path; that of one that a plugin gives has the plugin's.
func TestWhoseCDIDevice(t *testing.T) {
	dir := t.TempDir()
	n := &node{t: t, dir: dir}
	n.cdiSpec(dir, "missing", `{"deviceNodes": [{"path": "/dev/not-here"}]}`)
	c := &Container{pod: &Sandbox{m: &Manager{cfg: Config{CDI: cdi.New([]string{dir})}}}, config: &runtimeapi.ContainerConfig{}}
	const field = "CDI_devices.containerEdits.deviceNodes[0]: "
	adjust := &api.ContainerAdjustment{}
	adjust.AddCDIDevice(&api.CDIDevice{Name: "test.com/thing=missing"})
	if err := c.adjust(nil, adjust); !errors.Is(err, ErrState) || !strings.HasPrefix(err.Error(), field) {
		t.Errorf("a plugin's: %v", err)
	}
	with("missing")(c.config)
	if err := c.resolveCDI(); !errors.Is(err, ErrState) || !strings.HasPrefix(err.Error(), "config."+field) {
		t.Errorf("the request's: %v", err)
	}
}

// TestRealCDIRefused: each refusal names what it is about and leaves nothing; the files that are bad are bad for those who ask.
func TestRealCDIRefused(t *testing.T) {
	n := newRealNode(t)
	dir := n.withCDI()
	if err := os.WriteFile(dir+"/bad.json", []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	hook := func(phase, text string) string {
		return fmt.Sprintf(`{"hooks": [{"hookName": %q, "path": %q, "timeout": 1}]}`, phase, n.script(phase+text[:4], text))
	}
	n.cdiSpec(dir, "missing-source", `{"mounts": [{"hostPath": "`+n.dir+`/nothing", "containerPath": "/x"}]}`)
	n.cdiSpec(dir, "missing-node", `{"deviceNodes": [{"path": "/dev/not-here"}]}`)
	n.cdiSpec(dir, "no-node", `{"deviceNodes": [{"path": "/dev/x", "hostPath": "`+n.dir+`"}]}`)
	n.cdiSpec(dir, "proc", `{"mounts": [{"hostPath": "`+n.dir+`", "containerPath": "/proc/self"}]}`)
	n.cdiSpec(dir, "filesystem", `{"mounts": [{"hostPath": "/dev/loop0", "containerPath": "/x", "type": "ext4"}]}`)
	n.cdiSpec(dir, "net", `{"netDevices": [{"hostInterfaceName": "eth9", "name": "eth9"}]}`)
	n.cdiSpec(dir, "rdt", `{"intelRdt": {"closID": "x"}}`)
	n.cdiSpec(dir, "poststop", hook("poststop", "true\n"))
	n.cdiSpec(dir, "fails", hook("createContainer", "echo the gadget is gone >&2; exit 3\n"))
	n.cdiSpec(dir, "hangs", hook("createContainer", "sleep 1000\n"))
	n.cdiSpec(dir, "outside", hook("createRuntime", "exit 4\n"))
	n.cdiSpec(dir, "no-hook", `{"hooks": [{"hookName": "createContainer", "path": "`+n.dir+`/nothing"}]}`)
	pod := n.run(podRequest("refused"))
	c := n.running(pod, "lives", nil)
	for device, want := range map[string]struct {
		kind error
		text string
	}{
		"unknown":        {ErrInvalid, `CDI_devices[0].name "test.com/thing=unknown": no such device in ` + dir + "; " + dir + "/bad.json cannot be used"},
		"missing-source": {ErrState, n.dir + "/nothing"}, "missing-node": {ErrState, "/dev/not-here: no such file"}, "no-node": {ErrState, "not a device"},
		"proc": {ErrInvalid, "mounts[0].containerPath"}, "filesystem": {ErrUnimplemented, `"ext4"`},
		"net": {ErrUnimplemented, "netDevices[0]"}, "rdt": {ErrUnimplemented, "intelRdt"}, "poststop": {ErrUnimplemented, `hooks[0].hookName "poststop"`},
		"fails": {ErrState, "exit code 3: the gadget is gone"}, "hangs": {ErrState, "killed after its time-out of 1s"},
		"outside": {ErrState, "hooks.createRuntime[0]"}, "no-hook": {ErrState, "hooks.createContainer[0]"},
	} {
		cfg := containerRequest(device, "sleep")
		with(device)(cfg)
		begin := time.Now()
		_, err := n.m.CreateContainer(bg, pod, cfg, nil)
		if !errors.Is(err, want.kind) || !strings.Contains(err.Error(), want.text) {
			t.Errorf("%s after %v: %v, want %v: %q", device, time.Since(begin), err, want.kind, want.text)
		}
	}
	if _, err := os.Stat(n.dir + "/nothing"); err == nil {
		t.Error("the missing source of a mount was made")
	}
	if got := len(n.m.ListContainers(nil)); got != 1 || n.status(c).State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("%d containers", got)
	}
}
