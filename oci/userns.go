package oci

import (
	"fmt"
	"maps"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/program"
)

// UserNS is what a container needs that is in its pod's user namespace. The spec names
// the namespace, with any path, and has its maps, which decide nothing: they are the ids that
// may be asked for. Descriptors move into Create with the rest.
type UserNS struct {
	// Namespace is the pod's (Pod.UserNS).
	Namespace *sys.FD
	// Devices has a detached mount of each device node by its path in the container:
	// nobody makes one in a user namespace.
	Devices map[string]*sys.FD
	// Visible are a procfs and a sysfs, without which the kernel would not let the container
	// mount its own.
	Visible []*sys.FD

	pause *sys.FD // pidfd of somebody in the pid namespace that the pod shares, or nil
}

// Close closes what Create was not given.
func (u *UserNS) Close() {
	if u == nil {
		return
	}
	u.Namespace.Close()
	u.pause.Close()
	for _, f := range u.Devices {
		f.Close()
	}
	for _, f := range u.Visible {
		f.Close()
	}
}

// outside is who the container's user is on the host: what it opens again as /dev/stdout is his.
func (u *UserNS) outside(s *specs.Spec) uint32 {
	id := s.Process.User.UID
	if u == nil {
		return id
	}
	for _, m := range s.Linux.UIDMappings {
		if id >= m.ContainerID && id-m.ContainerID < m.Size {
			return m.HostID + (id - m.ContainerID)
		}
	}
	return id
}

// holdPause takes hold of the pod's shared pid namespace for a container that is to join it.
func (p *Pod) holdPause(u *UserNS) (err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if u == nil || p.pausePid == 0 {
		return nil
	}
	if u.pause, err = p.pause.Dup(); err != nil {
		return fmt.Errorf("hold the pod's pid namespace: %w", ErrNoMonitor)
	}
	return nil
}

// join adds what there is to the program's input and to its table. The pod's shared pid
// namespace is joined, too, and not forked into: the program goes on in a second process, which is
// the one to be born there.
func (u *UserNS) join(in *program.Input, table []int) ([]int, error) {
	if u == nil {
		return table, nil
	}
	if u.Namespace == nil || u.pause == nil && slices.Contains(in.Inherit, specs.PIDNamespace) {
		return table, fmt.Errorf("user namespace without a descriptor: %w", ErrInvalid)
	}
	add := func(f *sys.FD) int {
		table = append(table, f.Int())
		return len(table) - 1
	}
	in.Join = map[specs.LinuxNamespaceType]int{specs.UserNamespace: add(u.Namespace)}
	if slices.Contains(in.Inherit, specs.PIDNamespace) {
		in.Inherit = slices.DeleteFunc(in.Inherit, func(t specs.LinuxNamespaceType) bool { return t == specs.PIDNamespace })
		in.Join[specs.PIDNamespace] = add(u.pause)
		s, l := *in.Spec, *in.Spec.Linux
		l.Namespaces = append(slices.Clone(l.Namespaces), specs.LinuxNamespace{Type: specs.PIDNamespace, Path: "the pod's"})
		s.Linux, in.Spec = &l, &s
	}
	in.Devices = map[string]int{}
	for _, path := range slices.Sorted(maps.Keys(u.Devices)) {
		in.Devices[path] = add(u.Devices[path])
	}
	for _, f := range u.Visible {
		in.Visible = append(in.Visible, add(f))
	}
	return table, nil
}
