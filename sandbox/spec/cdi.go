package spec

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"tags.cncf.io/container-device-interface/pkg/parser"
	cdi "tags.cncf.io/container-device-interface/specs-go"
)

// CDIAnnotation begins the annotations of a container that name devices of the Container Device Interface. They are the
// kubelet's, from device plugins of before the field. Those of a pod are its author's, and mean nothing.
const CDIAnnotation = "cdi.k8s.io/"

// CDIRequest is one device that a container asks for, or a plugin for it.
type CDIRequest struct {
	Field string // where it says so
	Name  string // vendor/class=device
}

// CDIName says whether v is a device's full name.
func CDIName(v string) bool { return len(v) <= maxQuoted && parser.IsQualifiedName(v) }

// CDIRequests returns the devices that a container asks for, by the field first, each once.
func CDIRequests(c *runtimeapi.ContainerConfig) ([]CDIRequest, error) {
	var all []CDIRequest
	for i, d := range c.GetCDIDevices() {
		all = append(all, CDIRequest{fmt.Sprintf("CDI_devices[%d].name", i), d.GetName()})
	}
	for _, key := range slices.Sorted(maps.Keys(c.GetAnnotations())) {
		if !strings.HasPrefix(key, CDIAnnotation) {
			continue
		}
		for name := range strings.SplitSeq(c.GetAnnotations()[key], ",") {
			all = append(all, CDIRequest{"annotations[" + cut(key) + "]", name})
		}
	}
	return eachOnce(all)
}

// PluginCDIRequests returns the devices that plugins give a container, each once.
func PluginCDIRequests(a *api.ContainerAdjustment) ([]CDIRequest, error) {
	var all []CDIRequest
	for i, d := range a.GetCDIDevices() {
		all = append(all, CDIRequest{fmt.Sprintf("CDI_devices[%d].name", i), d.GetName()})
	}
	return eachOnce(all)
}

// eachOnce judges names, and leaves out those that come again.
func eachOnce(all []CDIRequest) ([]CDIRequest, error) {
	seen := map[string]bool{}
	for _, r := range all {
		if !CDIName(r.Name) {
			return nil, Invalid(r.Field, r.Name, "must be a name as vendor.com/class=device")
		}
	}
	return slices.DeleteFunc(all, func(r CDIRequest) bool {
		again := seen[r.Name]
		seen[r.Name] = true
		return again
	}), nil
}

// cdiField begins the names of what a device's spec says.
const cdiField = "CDI_devices.containerEdits."

// applyCDI makes the edits that the devices' specs ask for. Who writes such a spec may do as he likes on the node; still its
// mistakes must not become a way out of the container, so that what it names keeps the rules of a request. It
// counts more than the request: who asks for a device gets it as it works.
func applyCDI(in *Input, s *specs.Spec) error {
	if in.CDI == nil {
		return nil
	}
	for _, f := range []func(*Input, *specs.Spec) error{cdiRefused, cdiEnv, cdiNodes, cdiMounts, cdiGroups, cdiHooks} {
		if err := f(in, s); err != nil {
			return err
		}
	}
	return nil
}

// cdiRefused names what is not honoured.
func cdiRefused(in *Input, _ *specs.Spec) error {
	if len(in.CDI.NetDevices) > 0 {
		return Unimplemented(cdiField+"netDevices[0]", in.CDI.NetDevices[0].HostInterfaceName, "the network is the pod's, and no container brings an interface into it")
	}
	if in.CDI.IntelRdt != nil {
		return Unimplemented(cdiField+"intelRdt", in.CDI.IntelRdt.ClosID, "resource control is not applied")
	}
	return nil
}

// cdiEnv replaces variables of the same name.
func cdiEnv(in *Input, s *specs.Spec) error {
	env := newEnviron()
	for _, kv := range s.Process.Env {
		k, v, _ := strings.Cut(kv, "=")
		env.set(k, v)
	}
	for i, kv := range in.CDI.Env {
		k, v, _ := strings.Cut(kv, "=")
		if err := checkEnv(fmt.Sprintf("%senv[%d]", cdiField, i), k, v); err != nil {
			return err
		}
		env.set(k, v)
	}
	s.Process.Env = env.list
	return nil
}

// cdiNodes adds device nodes, and the right to use them. A node without an owner belongs to the container's user.
func cdiNodes(in *Input, s *specs.Spec) error {
	if len(in.CDINodes) != len(in.CDI.DeviceNodes) {
		return Invalid(cdiField+"deviceNodes", "", "%d devices were looked up for %d", len(in.CDINodes), len(in.CDI.DeviceNodes))
	}
	for i, n := range in.CDI.DeviceNodes {
		field := fmt.Sprintf("%sdeviceNodes[%d].", cdiField, i)
		dst, err := containerPath(field+"path", n.Path)
		if err != nil {
			return err
		}
		host := in.CDINodes[i]
		d := deviceNode(host, dst)
		d.UID, d.GID = owner(n.UID, s.Process.User.UID), owner(n.GID, s.Process.User.GID)
		s.Linux.Devices = setDevice(s.Linux.Devices, d)
		access := n.Permissions
		switch access {
		case "none":
			continue
		case "":
			access = "rwm"
		}
		if err := checkPermissions(field+"permissions", access); err != nil {
			return err
		}
		if host.Type == "p" {
			continue // no device to the kernel
		}
		kind := strings.Replace(host.Type, "u", "c", 1)
		s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{
			Allow: true, Type: kind, Major: &host.Major, Minor: &host.Minor, Access: access})
	}
	return nil
}

func owner(named *uint32, user uint32) *uint32 {
	if named != nil {
		return named
	}
	return &user
}

// cdiPropagation are the words for how mounts spread, as they are applied: to all that is mounted there.
var cdiPropagation = map[string]string{"private": "rprivate", "slave": "rslave", "shared": "rshared",
	"rprivate": "rprivate", "rslave": "rslave", "rshared": "rshared"}

func cdiMounts(in *Input, s *specs.Spec) error {
	if n := len(s.Mounts) + len(in.CDI.Mounts); n > maxMounts {
		return Invalid(cdiField+"mounts", "", "%d mounts are more than %d", n, maxMounts)
	}
	for i, m := range in.CDI.Mounts {
		v, err := cdiMount(fmt.Sprintf("%smounts[%d].", cdiField, i), m, in.Pod.UserNS)
		if err != nil {
			return err
		}
		setMount(s, v)
	}
	byDepth(s.Mounts)
	return nil
}

// cdiMount is a mount as the spec of a device has it. One of the host's files is recursive and private unless it says how;
// in a user namespace its ids are the pod's, as those of volumes.
func cdiMount(field string, m *cdi.Mount, u *UserNS) (specs.Mount, error) {
	out := specs.Mount{Type: m.Type, Source: m.HostPath}
	var err error
	if out.Destination, err = containerPath(field+"containerPath", m.ContainerPath); err != nil {
		return out, err
	}
	spreads := false
	for j, o := range m.Options {
		if o == "remount" || strings.ContainsAny(o, ",\x00") {
			return out, Invalid(fmt.Sprintf("%soptions[%d]", field, j), o, "not an option that a device's mount may have")
		}
		if p, ok := cdiPropagation[o]; ok {
			o, spreads = p, true
		}
		out.Options = append(out.Options, o)
	}
	bound := slices.Contains(out.Options, "bind") || slices.Contains(out.Options, "rbind")
	if !bound && !slices.Contains([]string{"", "none", "bind"}, m.Type) {
		return out, nil // a filesystem of its own, which the compiler judges
	}
	if err := checkAbsolute(field+"hostPath", m.HostPath); err != nil {
		return out, err
	}
	if !bound {
		out.Options = append(out.Options, "rbind")
	}
	if !spreads {
		out.Options = append(out.Options, "rprivate")
	}
	out.Type, out.Source = "bind", path.Clean(m.HostPath)
	if u != nil {
		out.UIDMappings, out.GIDMappings = u.lines(), u.lines()
	}
	return out, nil
}

// cdiGroups adds the groups that devices belong to; 0 stands for none.
func cdiGroups(in *Input, s *specs.Spec) error {
	for i, id := range in.CDI.AdditionalGIDs {
		field := fmt.Sprintf("%sadditionalGids[%d]", cdiField, i)
		u := &s.Process.User
		switch {
		case id > maxID:
			return Invalid(field, itoa(int64(id)), "no group")
		case in.Pod.UserNS != nil && id >= in.Pod.UserNS.Length:
			return Invalid(field, itoa(int64(id)), "not among the %d groups of the sandbox", in.Pod.UserNS.Length)
		case id == 0 || slices.Contains(u.AdditionalGids, id):
			continue
		case len(u.AdditionalGids) >= maxGroups:
			return Invalid(field, itoa(int64(id)), "more than %d groups", maxGroups)
		}
		u.AdditionalGids = append(u.AdditionalGids, id)
	}
	return nil
}

// maxHookSeconds is as long as a kubelet waits for a container, hookSeconds what a hook has that says nothing. Without a time of its own nobody
// would end it, and what it has started, when the creation has failed.
const (
	maxHookSeconds = 120
	hookSeconds    = 30
)

// cdiHooks adds hooks.
func cdiHooks(in *Input, s *specs.Spec) error {
	for i, h := range in.CDI.Hooks {
		hook := specs.Hook{Path: h.Path, Args: h.Args, Env: h.Env, Timeout: h.Timeout}
		if err := addHook(s, fmt.Sprintf("%shooks[%d].", cdiField, i), h.HookName, hook); err != nil {
			return err
		}
	}
	return nil
}

// addHook adds a hook of one of the phases that there are here: those of a container's creation.
func addHook(s *specs.Spec, field, phase string, h specs.Hook) error {
	if err := checkAbsolute(field+"path", h.Path); err != nil {
		return err
	}
	if strings.ContainsRune(strings.Join(append(slices.Clone(h.Args), h.Env...), ""), 0) {
		return Invalid(field+"args", "", "holds a NUL byte")
	}
	if t := h.Timeout; t != nil && (*t <= 0 || *t > maxHookSeconds) {
		return Invalid(field+"timeout", itoa(int64(*t)), "must be between 1 and %d seconds", maxHookSeconds)
	}
	if h.Timeout == nil {
		seconds := hookSeconds
		h.Timeout = &seconds
	}
	if s.Hooks == nil {
		s.Hooks = &specs.Hooks{}
	}
	switch phase {
	case "prestart":
		s.Hooks.Prestart = append(s.Hooks.Prestart, h) //nolint:staticcheck // deprecated, and in use
	case "createRuntime":
		s.Hooks.CreateRuntime = append(s.Hooks.CreateRuntime, h)
	case "createContainer":
		s.Hooks.CreateContainer = append(s.Hooks.CreateContainer, h)
	default:
		return Unimplemented(field+"hookName", phase, "only prestart, createRuntime and createContainer are run")
	}
	return nil
}
