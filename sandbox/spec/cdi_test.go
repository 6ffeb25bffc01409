package spec

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	cdi "tags.cncf.io/container-device-interface/specs-go"
)

// TestCDI: all kinds of edits that there are here, over a request that speaks of the same things.
func TestCDI(t *testing.T) {
	in := plain()
	in.User = User{UID: 1000, GID: 1001, Home: "/", Groups: []uint32{1001}}
	in.Container.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("request")}, {Key: "B", Value: []byte("request")}}
	in.Container.Mounts = []*runtimeapi.Mount{{HostPath: "/srv", ContainerPath: "/opt/lib"}}
	mode, timeout := os.FileMode(0o640), 5
	five := uint32(5)
	in.CDI = &cdi.ContainerEdits{
		Env: []string{"A=device", "C=device"},
		DeviceNodes: []*cdi.DeviceNode{{Path: "/dev/one", FileMode: &mode}, {Path: "/dev/two", Permissions: "r", UID: &five, GID: &five},
			{Path: "/dev/three", Permissions: "none"}, {Path: "/dev/pipe", Type: "p"}},
		Mounts: []*cdi.Mount{{HostPath: "/host/lib/", ContainerPath: "/opt/lib", Options: []string{"ro", "nosuid", "bind"}},
			{HostPath: "/run/x", ContainerPath: "/run", Options: []string{"shared"}}, {HostPath: "tmpfs", ContainerPath: "/t", Type: "tmpfs", Options: []string{"size=1k"}}},
		Hooks: []*cdi.Hook{{HookName: "createContainer", Path: "/bin/h", Args: []string{"h", "x"}, Env: []string{"E=1"}, Timeout: &timeout},
			{HookName: "createRuntime", Path: "/bin/r"}, {HookName: "prestart", Path: "/bin/p"}},
		AdditionalGIDs: []uint32{0, 1001, 44, 44},
	}
	in.CDINodes = []HostDevice{{Type: "c", Major: 10, Minor: 1, Mode: 0o640}, {Type: "u", Major: 10, Minor: 2}, {Type: "b", Major: 10, Minor: 3}, {Type: "p"}}
	s, err := Build(in)
	if err != nil {
		t.Fatal(err)
	}
	if env := strings.Join(s.Process.Env, " "); !strings.HasSuffix(env, " A=device B=request C=device") {
		t.Errorf("environment %s", env)
	}
	var nodes []string
	for _, d := range s.Linux.Devices {
		nodes = append(nodes, fmt.Sprintf("%s %s %d:%d %d:%d %o", d.Path, d.Type, d.Major, d.Minor, *d.UID, *d.GID, *d.FileMode))
	}
	if got, want := strings.Join(nodes, ", "), "/dev/one c 10:1 1000:1001 640, /dev/two u 10:2 5:5 0, /dev/three b 10:3 1000:1001 0, /dev/pipe p 0:0 1000:1001 0"; got != want {
		t.Errorf("nodes %s, want %s", got, want)
	}
	var rules []string
	for _, r := range s.Linux.Resources.Devices[len(standardDeviceRules()):] {
		rules = append(rules, fmt.Sprintf("%v %s %d:%d %s", r.Allow, r.Type, *r.Major, *r.Minor, r.Access))
	}
	if got := strings.Join(rules, ", "); got != "true c 10:1 rwm, true c 10:2 r" {
		t.Errorf("rules %s", got)
	}
	for dst, want := range map[string]string{"/opt/lib": "bind /host/lib [ro nosuid bind rprivate]", "/run": "bind /run/x [rshared rbind]", "/t": "tmpfs tmpfs [size=1k]"} {
		var got []string
		for _, m := range s.Mounts {
			if m.Destination == dst {
				got = append(got, fmt.Sprintf("%s %s %v", m.Type, m.Source, m.Options))
			}
		}
		if len(got) != 1 || got[0] != want {
			t.Errorf("%s: %q, want %q", dst, got, want)
		}
	}
	if h := s.Hooks; h == nil || fmt.Sprint(h.CreateContainer[0].Args, h.CreateContainer[0].Env, *h.CreateContainer[0].Timeout) != "[h x] [E=1] 5" ||
		h.CreateRuntime[0].Path != "/bin/r" || *h.CreateRuntime[0].Timeout != hookSeconds || h.Prestart[0].Path != "/bin/p" { //nolint:staticcheck // deprecated, and in use
		t.Errorf("hooks %+v", h)
	}
	if got := s.Process.User.AdditionalGids; !slices.Equal(got, []uint32{1001, 44}) {
		t.Errorf("groups %d", got)
	}
	// In a user namespace the files are the pod's, and a group has to be one of them.
	in.Pod.UserNS = &UserNS{HostID: 100000, Length: 65536}
	if s, err = Build(in); err != nil {
		t.Fatal(err)
	}
	if i := slices.IndexFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == "/opt/lib" }); len(s.Mounts[i].UIDMappings) != 1 || len(s.Mounts[i].GIDMappings) != 1 {
		t.Errorf("%+v", s.Mounts[i])
	}
	in.CDI.AdditionalGIDs = []uint32{65536}
	if _, err := Build(in); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "additionalGids[0]") {
		t.Errorf("a group that is none of the pod's: %v", err)
	}
}

// TestCDIRefused: what a request may not ask for, a device's spec may not either, and what is not honoured has a name.
func TestCDIRefused(t *testing.T) {
	edits := func(e cdi.ContainerEdits, nodes ...HostDevice) func(*Input) {
		return func(in *Input) { in.CDI, in.CDINodes = &e, nodes }
	}
	mount := func(m cdi.Mount) func(*Input) {
		if m.HostPath == "" {
			m.HostPath = "/a"
		}
		if m.ContainerPath == "" {
			m.ContainerPath = "/b"
		}
		return edits(cdi.ContainerEdits{Mounts: []*cdi.Mount{&m}})
	}
	hook := func(h cdi.Hook) func(*Input) { return edits(cdi.ContainerEdits{Hooks: []*cdi.Hook{&h}}) }
	zero, long := 0, 121
	const at = "CDI_devices.containerEdits."
	tryRefusals(t, []refusal{
		{at + "netDevices[0]", edits(cdi.ContainerEdits{NetDevices: []*cdi.LinuxNetDevice{{HostInterfaceName: "eth1", Name: "eth1"}}}), ErrUnimplemented},
		{at + "intelRdt", edits(cdi.ContainerEdits{IntelRdt: &cdi.IntelRdt{ClosID: "x"}}), ErrUnimplemented},
		{at + "env[0].value", edits(cdi.ContainerEdits{Env: []string{"HOME=/:x"}}), ErrInvalid},
		{at + "env[0].value", edits(cdi.ContainerEdits{Env: []string{"A=\x00"}}), ErrInvalid},
		{at + "deviceNodes[0].path", edits(cdi.ContainerEdits{DeviceNodes: []*cdi.DeviceNode{{Path: "/proc/kcore"}}}, HostDevice{Type: "c"}), ErrInvalid},
		{at + "deviceNodes[0].permissions", edits(cdi.ContainerEdits{DeviceNodes: []*cdi.DeviceNode{{Path: "/dev/x", Permissions: "rr"}}}, HostDevice{Type: "c"}), ErrInvalid},
		{at + "deviceNodes", edits(cdi.ContainerEdits{DeviceNodes: []*cdi.DeviceNode{{Path: "/dev/x"}}}), ErrInvalid},
		{at + "mounts[0].containerPath", mount(cdi.Mount{ContainerPath: "/x/../proc/self"}), ErrInvalid},
		{at + "mounts[0].containerPath", mount(cdi.Mount{ContainerPath: "/"}), ErrInvalid},
		{at + "mounts[0].hostPath", mount(cdi.Mount{HostPath: "a"}), ErrInvalid},
		{at + "mounts[0].options[1]", mount(cdi.Mount{Options: []string{"ro", "remount"}}), ErrInvalid},
		{at + "mounts[0].options[0]", mount(cdi.Mount{Options: []string{"ro,remount"}}), ErrInvalid},
		{at + "additionalGids[0]", edits(cdi.ContainerEdits{AdditionalGIDs: []uint32{1<<32 - 1}}), ErrInvalid},
		{at + "hooks[0].path", hook(cdi.Hook{HookName: "createContainer", Path: "sh"}), ErrInvalid},
		{at + "hooks[0].args", hook(cdi.Hook{HookName: "createContainer", Path: "/h", Args: []string{"\x00"}}), ErrInvalid},
		{at + "hooks[0].timeout", hook(cdi.Hook{HookName: "createContainer", Path: "/h", Timeout: &zero}), ErrInvalid},
		{at + "hooks[0].timeout", hook(cdi.Hook{HookName: "createContainer", Path: "/h", Timeout: &long}), ErrInvalid},
		{at + "hooks[0].hookName", hook(cdi.Hook{HookName: "poststop", Path: "/h"}), ErrUnimplemented},
		{at + "hooks[0].hookName", hook(cdi.Hook{HookName: "startContainer", Path: "/h"}), ErrUnimplemented},
	})
}

// TestCDIRequests: by field and by the container's annotations, each device once.
func TestCDIRequests(t *testing.T) {
	c := &runtimeapi.ContainerConfig{
		CDIDevices:  []*runtimeapi.CDIDevice{{Name: "v.com/gpu=1"}, {Name: "v.com/gpu=0"}, {Name: "v.com/gpu=1"}},
		Annotations: map[string]string{"cdi.k8s.io/b": "v.com/gpu=2", "cdi.k8s.io/a": "v.com/gpu=0,v.com/net=x", "cdi.k8s.iox": "no", "other": "no"},
	}
	got, err := CDIRequests(c)
	if want := "[{CDI_devices[0].name v.com/gpu=1} {CDI_devices[1].name v.com/gpu=0} {annotations[cdi.k8s.io/a] v.com/net=x} {annotations[cdi.k8s.io/b] v.com/gpu=2}]"; err != nil || fmt.Sprint(got) != want {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	for _, bad := range []string{"", "v.com/gpu", "gpu=0", "v.com/gpu=0,", "v.com/=0", "v.com/gpu=" + strings.Repeat("x", 300)} {
		c.Annotations = map[string]string{"cdi.k8s.io/a": bad}
		if _, err := CDIRequests(c); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "annotations[cdi.k8s.io/a]") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestPluginCDIRequests: each device once, and a name that is none is refused where it stands.
func TestPluginCDIRequests(t *testing.T) {
	a := &api.ContainerAdjustment{}
	for _, name := range []string{"v.com/c=a", "v.com/c=b", "v.com/c=a"} {
		a.AddCDIDevice(&api.CDIDevice{Name: name})
	}
	got, err := PluginCDIRequests(a)
	if want := []CDIRequest{{"CDI_devices[0].name", "v.com/c=a"}, {"CDI_devices[1].name", "v.com/c=b"}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
	a.AddCDIDevice(&api.CDIDevice{Name: "/dev/x"})
	var fe *FieldError
	if _, err := PluginCDIRequests(a); !errors.As(err, &fe) || fe.Field != "CDI_devices[3].name" {
		t.Errorf("a name that is none: %v", err)
	}
}
