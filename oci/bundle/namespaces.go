package bundle

import (
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/program"
)

// table is what is handed over with a program, in its order.
type table struct{ files []*sys.FD }

// add takes a descriptor and returns its index.
func (t *table) add(f *sys.FD) int {
	t.files = append(t.files, f)
	return len(t.files) - 1
}

func (t *table) ints() []int {
	list := make([]int, 0, len(t.files))
	for _, f := range t.files {
		list = append(list, f.Int())
	}
	return list
}

// joinNamespaces opens the namespaces that the spec names by a path. A guess opens
// none, and leaves places in the table.
func joinNamespaces(spec *specs.Spec, in *program.Input, t *table, guess bool) (opened []*sys.FD, err error) {
	in.Join = map[specs.LinuxNamespaceType]int{}
	for i, ns := range spec.Linux.Namespaces {
		switch {
		case ns.Path == "":
			continue
		case guess:
			in.Join[ns.Type] = t.add(nil)
			continue
		}
		fd, err := openNamespace(ns)
		if err != nil {
			return opened, fmt.Errorf("linux.namespaces[%d].path: %w", i, err)
		}
		opened = append(opened, fd)
		in.Join[ns.Type] = t.add(fd)
		if ownNamespace(ns.Type, fd) {
			in.Host = append(in.Host, ns.Type)
		}
	}
	return opened, nil
}

// ownNamespace says whether a namespace is the one that we are in ourselves: the
// host's, whose parameters and devices no container is given.
func ownNamespace(typ specs.LinuxNamespaceType, fd *sys.FD) bool {
	name := string(typ)
	switch typ { // the others are called the same
	case specs.NetworkNamespace:
		name = "net"
	case specs.MountNamespace:
		name = "mnt"
	}
	var a, b unix.Stat_t
	if unix.Fstat(fd.Int(), &a) != nil || unix.Stat("/proc/self/ns/"+name, &b) != nil {
		return true // it may be: the stricter answer
	}
	return a.Dev == b.Dev && a.Ino == b.Ino
}

// openNamespace opens a namespace's file and makes sure that it is one of the
// type that was said.
func openNamespace(ns specs.LinuxNamespace) (*sys.FD, error) {
	fd, err := sys.OpenAt2(unix.AT_FDCWD, ns.Path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	kind, err := unix.IoctlRetInt(fd.Int(), unix.NS_GET_NSTYPE)
	if err == nil && uint64(kind) != program.NamespaceFlag(ns.Type) {
		err = unix.EINVAL
	}
	if err != nil {
		fd.Close()
		return nil, fmt.Errorf("%s is no %s namespace: %w", ns.Path, ns.Type, err)
	}
	return fd, nil
}

// idMaps are the maps of a user namespace that the container is to have; nil where
// it has none of its own.
func idMaps(l *specs.Linux) *sys.IDMaps {
	if len(l.UIDMappings) == 0 && len(l.GIDMappings) == 0 {
		return nil
	}
	lines := func(list []specs.LinuxIDMapping) (out []sys.IDMap) {
		for _, m := range list {
			out = append(out, sys.IDMap{Inside: m.ContainerID, Outside: m.HostID, Count: m.Size})
		}
		return out
	}
	return &sys.IDMaps{UIDs: lines(l.UIDMappings), GIDs: lines(l.GIDMappings)}
}
