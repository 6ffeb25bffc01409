package spec

import (
	"errors"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/reflect/protoreflect"
	cdi "tags.cncf.io/container-device-interface/specs-go"
)

// adjustable is a spec with one of everything that plugins change.
func adjustable() *specs.Spec {
	return &specs.Spec{
		Annotations: map[string]string{"gone": "1", "kept": "1"},
		Process:     &specs.Process{Args: []string{"a"}, Env: []string{"A=1", "B=2"}, Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 2, Soft: 1}}},
		Mounts:      []specs.Mount{{Destination: "/proc", Type: "proc"}, {Destination: "/gone", Type: "bind", Source: "/s"}, {Destination: "/same", Type: "bind", Source: "/old"}},
		Linux:       &specs.Linux{Resources: &specs.LinuxResources{Devices: standardDeviceRules()}},
	}
}

// TestAdjust: what is honoured is in the spec, in the form that a request of the kubelet's would have.
func TestAdjust(t *testing.T) {
	s := adjustable()
	a := &api.ContainerAdjustment{}
	a.RemoveAnnotation("gone")
	a.AddAnnotation("new", "2")
	a.RemoveEnv("A")
	a.AddEnv("B", "3")
	a.RemoveMount("/gone")
	a.AddMount(&api.Mount{Destination: "/same/", Type: "bind", Source: "/new", Options: []string{"ro", "slave"}})
	a.AddMount(&api.Mount{Destination: "/a", Source: "/flat", Options: []string{"bind"}})
	a.AddRlimit("RLIMIT_NOFILE", 9, 8)
	a.AddDevice(&api.LinuxDevice{Path: "/dev/d", Type: "c", Major: 1, Minor: 5})
	a.SetLinuxIOPriority(&api.LinuxIOPriority{Class: api.IOPrioClass_IOPRIO_CLASS_BE, Priority: 3})
	a.SetLinuxSeccompPolicy(&api.LinuxSeccomp{DefaultAction: "SCMP_ACT_ALLOW"})
	a.SetLinuxMemoryReservation(1 << 20)
	a.SetLinuxPidLimits(-1)
	a.SetLinuxCPUShares(7)
	r, err := Adjust(s, a, Input{})
	if err != nil {
		t.Fatal(err)
	}
	if want := map[string]string{"memory.low": "1048576", "pids.max": "max"}; !reflect.DeepEqual(r.GetUnified(), want) || r.GetCpuShares() != 7 {
		t.Errorf("limits %v, want %v", r, want)
	}
	if want := map[string]string{"kept": "1", "new": "2"}; !reflect.DeepEqual(s.Annotations, want) {
		t.Errorf("annotations %v, want %v", s.Annotations, want)
	}
	if !slices.Equal(s.Process.Env, []string{"B=3"}) {
		t.Errorf("env %q", s.Process.Env)
	}
	want := []specs.Mount{
		{Destination: "/proc", Type: "proc"},
		{Destination: "/same", Type: "bind", Source: "/new", Options: []string{"ro", "rslave", "rbind"}},
		{Destination: "/a", Type: "bind", Source: "/flat", Options: []string{"bind", "rprivate"}},
	}
	if !reflect.DeepEqual(s.Mounts, want) {
		t.Errorf("mounts %v, want %v", s.Mounts, want)
	}
	if want := []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 9, Soft: 8}}; !reflect.DeepEqual(s.Process.Rlimits, want) {
		t.Errorf("rlimits %v", s.Process.Rlimits)
	}
	rules := s.Linux.Resources.Devices
	if last := rules[len(rules)-1]; len(s.Linux.Devices) != 1 || *last.Major != 1 || *last.Minor != 5 || last.Access != "rwm" {
		t.Errorf("devices %v, rules %v", s.Linux.Devices, rules)
	}
	if s.Process.IOPriority == nil || s.Process.IOPriority.Priority != 3 || s.Linux.Seccomp == nil {
		t.Errorf("io priority %v, seccomp %v", s.Process.IOPriority, s.Linux.Seccomp)
	}
	b := &api.ContainerAdjustment{}
	b.RemoveDevice("/dev/d")
	if _, err := Adjust(s, b, Input{}); err != nil || len(s.Linux.Devices) != 0 || len(s.Linux.Resources.Devices) != len(standardDeviceRules()) {
		t.Errorf("device taken away: %v, %v, %v", err, s.Linux.Devices, s.Linux.Resources.Devices)
	}
}

// TestAdjustCDI: devices of plugins bring what those of a request bring, after the variables of the adjustment and before its nodes and mounts.
// Hooks come in the order of those that the container has, the adjustment's own, and the devices'.
func TestAdjustCDI(t *testing.T) {
	s := adjustable()
	s.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{{Path: "/request"}}}
	a := &api.ContainerAdjustment{}
	a.AddCDIDevice(&api.CDIDevice{Name: "v.com/c=d"})
	a.AddEnv("A", "plugin")
	a.RemoveDevice("/dev/gone")
	a.RemoveMount("/cdi/gone")
	a.AddMount(&api.Mount{Destination: "/cdi/same", Type: "bind", Source: "/plugin"})
	seven := 7
	a.AddHooks(&api.Hooks{
		Prestart: []*api.Hook{{Path: "/pre"}}, CreateRuntime: []*api.Hook{{Path: "/out"}},
		CreateContainer: []*api.Hook{{Path: "/in", Args: []string{"in", "1"}, Env: []string{"E=1"}, Timeout: api.Int(&seven)}},
	})
	node := func(p string) *cdi.DeviceNode { return &cdi.DeviceNode{Path: p} }
	nodes := []HostDevice{{Path: "/dev/null", Type: "c", Major: 1, Minor: 3}, {Path: "/dev/full", Type: "c", Major: 1, Minor: 7}}
	in := Input{Pod: &Pod{}, CDINodes: nodes, CDI: &cdi.ContainerEdits{
		Env: []string{"A=device", "D=device"}, DeviceNodes: []*cdi.DeviceNode{node("/dev/gone"), node("/dev/kept")}, AdditionalGIDs: []uint32{44},
		Mounts: []*cdi.Mount{{HostPath: "/h", ContainerPath: "/cdi/gone"}, {HostPath: "/h", ContainerPath: "/cdi/same"}, {HostPath: "/h", ContainerPath: "/cdi/kept"}},
		Hooks:  []*cdi.Hook{{HookName: "createContainer", Path: "/device"}},
	}}
	if _, err := Adjust(s, a, in); err != nil {
		t.Fatal(err)
	}
	var mounts []string
	for _, m := range s.Mounts {
		if strings.HasPrefix(m.Destination, "/cdi/") {
			mounts = append(mounts, m.Source+" on "+m.Destination)
		}
	}
	slices.Sort(mounts)
	if want := []string{"/h on /cdi/kept", "/plugin on /cdi/same"}; !slices.Equal(mounts, want) {
		t.Errorf("mounts %q, want %q", mounts, want)
	}
	if want := []string{"A=device", "B=2", "D=device"}; !slices.Equal(s.Process.Env, want) {
		t.Errorf("env %q, want %q", s.Process.Env, want)
	}
	if len(s.Linux.Devices) != 1 || s.Linux.Devices[0].Path != "/dev/kept" || !slices.Equal(s.Process.User.AdditionalGids, []uint32{44}) {
		t.Errorf("devices %v, groups %v", s.Linux.Devices, s.Process.User.AdditionalGids)
	}
	rules := s.Linux.Resources.Devices
	if last := rules[len(rules)-1]; len(rules) != len(standardDeviceRules())+1 || *last.Minor != 7 || last.Access != "rwm" {
		t.Errorf("rules of the device cgroup %v", rules)
	}
	usual := hookSeconds
	want := &specs.Hooks{Prestart: []specs.Hook{{Path: "/pre", Timeout: &usual}}, CreateRuntime: []specs.Hook{{Path: "/out", Timeout: &usual}}, //nolint:staticcheck // deprecated, and in use
		CreateContainer: []specs.Hook{{Path: "/request"}, {Path: "/in", Args: []string{"in", "1"}, Env: []string{"E=1"}, Timeout: &seven},
			{Path: "/device", Timeout: &usual}}}
	if !reflect.DeepEqual(s.Hooks, want) {
		t.Errorf("hooks %+v, want %+v", s.Hooks, want)
	}
}

// TestAdjustRefuses: what a request may not have, a plugin may not have either, and it hears which field it was.
func TestAdjustRefuses(t *testing.T) {
	for field, f := range map[string]func(*api.ContainerAdjustment){
		"env[0].key":   func(a *api.ContainerAdjustment) { a.AddEnv("A=B", "1") },
		"env[0].value": func(a *api.ContainerAdjustment) { a.AddEnv("A", "\x00") },
		"args[0]":      func(a *api.ContainerAdjustment) { a.Args = []string{""} },
		"mounts[0].source": func(a *api.ContainerAdjustment) {
			a.AddMount(&api.Mount{Destination: "/a", Type: "bind", Source: "image:x"})
		},
		"mounts[0].destination": func(a *api.ContainerAdjustment) {
			a.AddMount(&api.Mount{Destination: "/a/../proc/1", Type: "bind", Source: "/x"})
		},
		"mounts[0].options[0]": func(a *api.ContainerAdjustment) {
			a.AddMount(&api.Mount{Destination: "/a", Type: "bind", Source: "/x", Options: []string{"idmap"}})
		},
		"mounts[0].type": func(a *api.ContainerAdjustment) {
			a.AddMount(&api.Mount{Destination: "/a", Type: "proc", Source: "proc"})
		},
		"hooks.prestart[0].path": func(a *api.ContainerAdjustment) {
			a.AddHooks(&api.Hooks{Prestart: []*api.Hook{{Path: "relative"}}})
		},
		"hooks.create_runtime[1].args": func(a *api.ContainerAdjustment) {
			a.AddHooks(&api.Hooks{CreateRuntime: []*api.Hook{{Path: "/h"}, {Path: "/h", Env: []string{"\x00"}}}})
		},
		"hooks.create_container[0].timeout": func(a *api.ContainerAdjustment) {
			a.AddHooks(&api.Hooks{CreateContainer: []*api.Hook{{Path: "/h", Timeout: &api.OptionalInt{Value: 121}}}})
		},
		"CDI_devices":           func(a *api.ContainerAdjustment) { a.AddCDIDevice(&api.CDIDevice{Name: "v.com/c=d"}) }, // nobody has looked it up
		"rlimits[0]":            func(a *api.ContainerAdjustment) { a.AddRlimit("RLIMIT_NOFILE", 1, 2) },
		"linux.devices[0].type": func(a *api.ContainerAdjustment) { a.AddDevice(&api.LinuxDevice{Path: "/dev/a", Type: "p"}) },
		"linux.devices[0].path": func(a *api.ContainerAdjustment) { a.AddDevice(&api.LinuxDevice{Path: "/proc/kcore", Type: "c"}) },
		"linux.oom_score_adj":   func(a *api.ContainerAdjustment) { a.SetLinuxOomScoreAdj(&[]int{1001}[0]) },
		"linux.seccomp_policy": func(a *api.ContainerAdjustment) {
			a.SetLinuxSeccompPolicy(&api.LinuxSeccomp{DefaultAction: "SCMP_ACT_NOTIFY"})
		},
		"linux.resources.memory.swap": func(a *api.ContainerAdjustment) { a.SetLinuxMemorySwap(0) },
	} {
		a := &api.ContainerAdjustment{}
		f(a)
		_, err := Adjust(adjustable(), a, Input{})
		var fe *FieldError
		if !errors.As(err, &fe) || fe.Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
}

// TestAdjustPage holds the table of docs/nri.md against NRI's messages and the code: no field of an adjustment is left
// out, and what stands there as refused is.
func TestAdjustPage(t *testing.T) {
	b, err := os.ReadFile("../../docs/nri.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(b), "\n## Adjustments\n")
	section, _, _ = strings.Cut(section, "\n## ")
	said := map[string]string{}
	for line := range strings.Lines(section) {
		cells := strings.Split(line, "|")
		if len(cells) < 4 {
			continue
		}
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cells[1], -1) {
			said[m[1]] = strings.TrimSpace(cells[2])
		}
	}
	a := &api.ContainerAdjustment{}
	for _, field := range leaves("", a.ProtoReflect().Descriptor()) {
		word, ok := said[field]
		if !ok || word != "honoured" && word != "refused" {
			t.Errorf("%s: the page says %q", field, word)
		}
		delete(said, field)
		one := &api.ContainerAdjustment{}
		setAt(one.ProtoReflect(), strings.Split(field, "."))
		_, err := Adjust(adjustable(), one, Input{})
		var fe *FieldError
		refused := errors.As(err, &fe) && errors.Is(err, ErrUnimplemented) && strings.HasPrefix(field, fe.Field)
		if refused != (word == "refused") {
			t.Errorf("%s: the page says %s, the code %v", field, word, err)
		}
	}
	for field := range said {
		t.Errorf("%s is no field of an adjustment", field)
	}
}

// whole are messages that are one thing for the table.
var whole = []string{"Mount", "KeyValue", "Hook", "LinuxDevice", "POSIXRlimit", "CDIDevice", "LinuxIOPriority", "LinuxSeccomp", "LinuxNamespace",
	"LinuxNetDevice", "LinuxScheduler", "LinuxMemoryPolicy", "HugepageLimit", "LinuxDeviceCgroup", "LinuxPids"}

// leaves lists the fields of a message by their paths.
func leaves(prefix string, d protoreflect.MessageDescriptor) (out []string) {
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		name, m := prefix+string(f.Name()), f.Message()
		if m == nil || f.IsMap() || slices.Contains(whole, string(m.Name())) || strings.HasPrefix(string(m.Name()), "Optional") {
			out = append(out, name)
			continue
		}
		out = append(out, leaves(name+".", m)...)
	}
	return out
}

// setAt sets one field to something, which need not make sense.
func setAt(m protoreflect.Message, path []string) {
	f := m.Descriptor().Fields().ByName(protoreflect.Name(path[0]))
	switch {
	case len(path) > 1:
		setAt(m.Mutable(f).Message(), path[1:])
	case f.IsMap():
		k := protoreflect.ValueOfString("k").MapKey()
		v := m.Mutable(f).Map()
		v.Set(k, v.NewValue())
	case f.IsList():
		l := m.Mutable(f).List()
		l.Append(l.NewElement())
	case f.Kind() == protoreflect.BoolKind:
		m.Set(f, protoreflect.ValueOfBool(true))
	case f.Message() != nil:
		m.Mutable(f)
	default:
		m.Set(f, protoreflect.ValueOfString("x"))
	}
}
