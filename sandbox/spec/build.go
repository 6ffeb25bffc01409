package spec

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// rule reads the input and writes its own part of the spec, and no other part.
type rule struct {
	name  string
	apply func(*Input, *specs.Spec) error
}

// rules run in this order. Later ones may read what earlier ones wrote: env needs the user, volumes are
// laid over the default mounts, CDI devices over the request, masks may meet a volume.
var rules = []rule{
	{"args", applyArgs},
	{"user", applyUser},
	{"env", applyEnv},
	{"cwd", applyCwd},
	{"limits", applyLimits},
	{"capabilities", applyCapabilities},
	{"privileges", applyPrivileges},
	{"namespaces", applyNamespaces},
	{"mounts", applyDefaultMounts},
	{"volumes", applyVolumes},
	{"devices", applyDevices},
	{"cdi", applyCDI},
	{"paths", applyPaths},
	{"resources", applyResources},
	{"seccomp", applySeccomp},
}

// Build translates one CreateContainer request. The result carries no path of the root file system: the
// root is handed to the executor as a descriptor. Mounts of type bind name their source on the host; the
// caller opens each as a detached tree.
//
// An error is a [FieldError]; the input is never changed.
func Build(in Input) (*specs.Spec, error) {
	s := &specs.Spec{
		Version:  specs.Version,
		Process:  &specs.Process{Terminal: in.Container.GetTty()},
		Root:     &specs.Root{Path: "rootfs", Readonly: security(in.Container).GetReadonlyRootfs()},
		Hostname: in.Pod.Hostname,
		Linux:    &specs.Linux{CgroupsPath: in.CgroupsPath},
	}
	if in.Pod.HostNetwork {
		// The UTS namespace is the host's: naming it would rename the node.
		s.Hostname = ""
	}
	for _, r := range rules {
		if err := r.apply(&in, s); err != nil {
			return nil, err
		}
	}
	return s, nil
}
