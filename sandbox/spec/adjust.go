package spec

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Adjust changes a spec as the node's plugins want it, and returns the limits that they want changed, for
// [MergeResources]. What cannot be honoured is a [FieldError] that names the field of NRI's ContainerAdjustment;
// nothing is left out in silence. The spec is of no use after an error.
//
// Of in, it reads what the adjustment's CDI devices bring (CDI and CDINodes, looked up by the caller) and the Pod. Their edits come after
// the variables of the adjustment, and before its nodes and mounts, which is where other runtimes make them: a plugin may take away
// or replace a node or mount that a device brings, and not a variable.
//
// A key, path or place that begins with a minus sign takes away what has the rest as its name, as NRI has it. To
// take away what is not there is no error.
//
// A plugin is root of the node, and still the same is refused to it as to a caller: what it may not do here would
// break what other parts rely on, such as that nothing is mounted over /proc.
func Adjust(s *specs.Spec, a *api.ContainerAdjustment, in Input) (*runtimeapi.LinuxContainerResources, error) {
	devices := func(s *specs.Spec, a *api.ContainerAdjustment) error { return adjustCDI(&in, s, a) }
	for _, f := range []func(*specs.Spec, *api.ContainerAdjustment) error{
		refuseAdjustments, adjustAnnotations, adjustArgs, adjustEnv, adjustHooks, devices, adjustRlimits, adjustMounts, adjustDevices, adjustScore,
		adjustSchedule, adjustSeccomp,
	} {
		if err := f(s, a); err != nil {
			return nil, err
		}
	}
	return PluginResources("linux.resources.", a.GetLinux().GetResources())
}

// refuseAdjustments names what a plugin cannot change here, and why.
func refuseAdjustments(_ *specs.Spec, a *api.ContainerAdjustment) error {
	h, l := a.GetHooks(), a.GetLinux()
	for _, r := range []struct {
		field string
		set   bool
		why   string
	}{
		{"hooks.start_container", len(h.GetStartContainer()) != 0, otherHooks}, {"hooks.poststart", len(h.GetPoststart()) != 0, otherHooks},
		{"hooks.poststop", len(h.GetPoststop()) != 0, otherHooks},
		{"linux.cgroups_path", l.GetCgroupsPath() != "", "the cgroup's place follows from the pod's; limits and recovery rely on it"},
		{"linux.namespaces", len(l.GetNamespaces()) != 0, "the namespaces are the pod's, and its monitor's"},
		{"linux.sysctl", len(l.GetSysctl()) != 0, "sysctls are the pod's, and are set before there is a container"},
		{"linux.net_devices", len(l.GetNetDevices()) != 0, "the network is the pod's; a plugin that wants a device in it moves it at RunPodSandbox"},
		{"linux.rdt.clos_id", l.GetRdt().GetClosId() != nil, noResctrl}, {"linux.rdt.schemata", l.GetRdt().GetSchemata() != nil, noResctrl},
		{"linux.rdt.enable_monitoring", l.GetRdt().GetEnableMonitoring() != nil, noResctrl},
	} {
		if r.set {
			return Unimplemented(r.field, "", "%s", r.why)
		}
	}
	return nil
}

const (
	otherHooks = "only hooks of a container's creation are run: prestart, create_runtime and create_container"
	noResctrl  = "resctrl is not supported"
)

// adjustAnnotations changes the spec's, which nothing is read from: they are for other plugins, and for people.
func adjustAnnotations(s *specs.Spec, a *api.ContainerAdjustment) error {
	for k := range a.GetAnnotations() {
		if key, gone := api.IsMarkedForRemoval(k); gone {
			delete(s.Annotations, key)
		}
	}
	for k, v := range a.GetAnnotations() {
		if _, gone := api.IsMarkedForRemoval(k); gone {
			continue
		}
		if k == "" || strings.ContainsRune(k+v, 0) {
			return Invalid("annotations", k, "its name is empty, or it holds a NUL byte")
		}
		if s.Annotations == nil {
			s.Annotations = map[string]string{}
		}
		s.Annotations[k] = v
	}
	return nil
}

func adjustArgs(s *specs.Spec, a *api.ContainerAdjustment) error {
	args := a.GetArgs()
	if len(args) == 0 {
		return nil
	}
	for i, arg := range args {
		if i == 0 && arg == "" || strings.IndexByte(arg, 0) >= 0 {
			return Invalid(fmt.Sprintf("args[%d]", i), arg, "the program has no name, or an argument holds a NUL byte")
		}
	}
	s.Process.Args = slices.Clone(args)
	return nil
}

// adjustEnv keeps the rule of a container's environment: no name comes twice.
func adjustEnv(s *specs.Spec, a *api.ContainerAdjustment) error {
	if len(a.GetEnv()) == 0 {
		return nil
	}
	env := newEnviron()
	for _, kv := range s.Process.Env {
		k, v, _ := strings.Cut(kv, "=")
		gone := slices.ContainsFunc(a.GetEnv(), func(e *api.KeyValue) bool { return e.GetKey() == api.MarkForRemoval(k) })
		if !gone {
			env.set(k, v)
		}
	}
	for i, e := range a.GetEnv() {
		if _, gone := e.IsMarkedForRemoval(); gone {
			continue
		}
		if err := checkEnv(fmt.Sprintf("env[%d]", i), e.GetKey(), e.GetValue()); err != nil {
			return err
		}
		env.set(e.GetKey(), e.GetValue())
	}
	s.Process.Env = env.list
	return nil
}

// adjustHooks adds hooks after those that the container has already, by the rules of a device's.
func adjustHooks(s *specs.Spec, a *api.ContainerAdjustment) error {
	h := a.GetHooks()
	for _, p := range []struct {
		field, phase string
		list         []*api.Hook
	}{
		{"hooks.prestart", "prestart", h.GetPrestart()}, {"hooks.create_runtime", "createRuntime", h.GetCreateRuntime()},
		{"hooks.create_container", "createContainer", h.GetCreateContainer()},
	} {
		for i, hook := range p.list {
			if err := addHook(s, fmt.Sprintf("%s[%d].", p.field, i), p.phase, hook.ToOCI()); err != nil {
				return err
			}
		}
	}
	return nil
}

// adjustCDI makes the edits of devices, which are those of a request's.
func adjustCDI(in *Input, s *specs.Spec, a *api.ContainerAdjustment) error {
	if len(a.GetCDIDevices()) != 0 && in.CDI == nil {
		return Invalid("CDI_devices", "", "%d devices were not looked up", len(a.GetCDIDevices()))
	}
	return applyCDI(in, s)
}

// adjustRlimits takes the names and the order of soft and hard as they are: the compiler judges them.
func adjustRlimits(s *specs.Spec, a *api.ContainerAdjustment) error {
	for i, r := range a.GetRlimits() {
		if r.GetSoft() > r.GetHard() {
			return Invalid(fmt.Sprintf("rlimits[%d]", i), r.GetType(), "soft is %d, above hard, which is %d", r.GetSoft(), r.GetHard())
		}
		s.Process.Rlimits = slices.DeleteFunc(s.Process.Rlimits, func(o specs.POSIXRlimit) bool { return o.Type == r.GetType() })
		s.Process.Rlimits = append(s.Process.Rlimits, specs.POSIXRlimit{Type: r.GetType(), Hard: r.GetHard(), Soft: r.GetSoft()})
	}
	return nil
}
