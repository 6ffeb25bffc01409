package spec

import (
	"fmt"
	"path"
	"slices"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// bindOptions are what a plugin may say of a bind mount beside the options of a volume, and what we take it for. The
// propagation is always that of the whole tree, as a volume has it.
var bindOptions = map[string]string{
	"bind": "bind", "rbind": "rbind", "ro": "ro", "rw": "rw", "rro": "rro",
	"private": "rprivate", "rprivate": "rprivate", "slave": "rslave", "rslave": "rslave", "shared": "rshared", "rshared": "rshared",
}

// adjustMounts takes mounts away, adds others, and replaces what is on the same place.
func adjustMounts(s *specs.Spec, a *api.ContainerAdjustment) error {
	if len(a.GetMounts()) == 0 {
		return nil
	}
	for i, m := range a.GetMounts() {
		field := fmt.Sprintf("mounts[%d]", i)
		place, gone := m.IsMarkedForRemoval()
		dst, err := containerPath(field+".destination", place)
		if err != nil {
			return err
		}
		s.Mounts = slices.DeleteFunc(s.Mounts, func(o specs.Mount) bool { return path.Clean(o.Destination) == dst })
		if gone {
			continue
		}
		v, err := pluginMount(field, m)
		if err != nil {
			return err
		}
		v.Destination = dst
		s.Mounts = append(s.Mounts, v)
	}
	if len(s.Mounts) > maxMounts {
		return Invalid("mounts", "", "%d mounts are more than %d", len(s.Mounts), maxMounts)
	}
	byDepth(s.Mounts)
	return nil
}

// pluginMount judges one mount: a bind of the host's, or a new tmpfs.
func pluginMount(field string, m *api.Mount) (specs.Mount, error) {
	bound := m.GetType() == "bind" || slices.Contains(m.GetOptions(), "bind") || slices.Contains(m.GetOptions(), "rbind")
	switch {
	case bound:
		return pluginBind(field, m)
	case m.GetType() == "tmpfs":
		return specs.Mount{Type: "tmpfs", Source: "tmpfs", Options: slices.Clone(m.GetOptions())}, nil
	}
	return specs.Mount{}, Unimplemented(field+".type", m.GetType(), "neither bind nor tmpfs")
}

// timeOption says whether o is one of those that a plugin may say besides MountOption's: none gives anything.
func timeOption(o string) bool {
	return slices.Contains([]string{"noatime", "relatime", "strictatime", "nodiratime", "nosymfollow"}, o)
}

// pluginBind is a bind mount. Without a word on it, it brings what is mounted below the source and stays private.
func pluginBind(field string, m *api.Mount) (specs.Mount, error) {
	none := specs.Mount{}
	if err := checkAbsolute(field+".source", m.GetSource()); err != nil {
		return none, err
	}
	var opts []string
	for j, o := range m.GetOptions() {
		word, ok := bindOptions[o]
		if !ok && !MountOption(o) && !timeOption(o) {
			return none, Invalid(fmt.Sprintf("%s.options[%d]", field, j), o, "not an option that a bind mount may have")
		}
		if !ok {
			word = o
		}
		opts = append(opts, word)
	}
	if !slices.Contains(opts, "bind") && !slices.Contains(opts, "rbind") {
		opts = append(opts, "rbind")
	}
	if !slices.ContainsFunc(opts, func(o string) bool { return o == "rprivate" || o == "rslave" || o == "rshared" }) {
		opts = append(opts, "rprivate")
	}
	return specs.Mount{Type: "bind", Source: path.Clean(m.GetSource()), Options: opts}, nil
}
