package cgroup

import (
	"fmt"
	"path"
	"strings"
)

// Under systemd the name of a slice is its place: a-b.slice is below a.slice, and
// the slice above all is -.slice, whose cgroup is the root. So the kubelet may
// call a pod's parent
//
//	kubepods-burstable-pod1a_2b.slice
//	/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1a_2b.slice
//
// and means the same. A dash within a name it has made an underscore before.

const (
	sliceSuffix = ".slice"
	scopeSuffix = ".scope"
	maxUnitName = 255
)

// expandSlice returns the directories of a slice, from the name of the unit or from the
// whole path, which then must be the right one.
func expandSlice(parent string) ([]string, error) {
	given := strings.Trim(parent, "/")
	name := path.Base(given)
	if given == "" || given == "-"+sliceSuffix {
		return nil, nil
	}
	bad := func(why string) error {
		return fmt.Errorf("check cgroup parent %.300q: %s: %w", parent, why, ErrInvalid)
	}
	stem, ok := strings.CutSuffix(name, sliceSuffix)
	switch {
	case !ok:
		return nil, bad("with the systemd driver it must be a slice, as a-b.slice")
	case len(name) > maxUnitName:
		return nil, bad("the name is too long for a unit")
	case strings.ContainsFunc(stem, func(r rune) bool { return !isUnitChar(r) }):
		return nil, bad("holds a character that is not for units")
	}
	var parts []string
	prefix := ""
	for part := range strings.SplitSeq(stem, "-") {
		if part == "" {
			return nil, bad("a name between two dashes is empty")
		}
		prefix += part
		parts = append(parts, escapeDir(prefix+sliceSuffix))
		prefix += "-"
	}
	if given != name && given != strings.Join(parts, "/") {
		return nil, bad("is not where systemd has this slice, which is " + strings.Join(parts, "/"))
	}
	return parts, nil
}

// isUnitChar: what a unit's name is made of, less the backslash, with which systemd
// writes everything else and the kubelet nothing.
func isUnitChar(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(":-_.", r)
}

// systemdControllers are the names that systemd knows, of v1 too: those of others, as
// misc, it does not escape.
var systemdControllers = []string{"cgroup", "cpu", "cpuacct", "cpuset", "io", "blkio", "memory", "devices", "pids",
	"bpf-firewall", "bpf-devices", "bpf-foreign", "bpf-socket-bind", "bpf-restrict-network-interfaces", "bpf-bind-network-interface"}

// escapeDir is systemd's rule for the directory of a unit: one that could be taken
// for a file of the kernel's, or for an escaped one, has an underscore before it.
func escapeDir(name string) string {
	if name[0] == '_' || name[0] == '.' {
		return "_" + name
	}
	for _, c := range systemdControllers {
		if strings.HasPrefix(name, c+".") {
			return "_" + name
		}
	}
	return name
}

// unitOf is the unit whose directory has that name.
func unitOf(dir string) string { return strings.TrimPrefix(dir, "_") }

// sliceUnit is the slice that a scope's path is in.
func sliceUnit(scope string) string {
	dir := path.Dir(scope)
	if dir == "." || dir == "/" {
		return "-" + sliceSuffix
	}
	return unitOf(path.Base(dir))
}

// parentOf returns the directories of a parent as requests name it.
func (t *Tree) parentOf(parent string) ([]string, error) {
	if t.units == nil {
		return splitPath(parent)
	}
	if len(parent) > maxPath {
		return nil, fmt.Errorf("check cgroup parent: %d bytes, at most %d: %w", len(parent), maxPath, ErrInvalid)
	}
	return expandSlice(parent)
}

// Parent returns the whole path of a parent as requests name it, relative to
// Config.Root: for systemd the slices of a name like a-b.slice, "" for -.slice. A
// name that the driver cannot have as parent is ErrInvalid.
func (t *Tree) Parent(parent string) (string, error) {
	parts, err := t.parentOf(parent)
	return path.Join(parts...), err
}

// PodParent returns the path of a pod's cgroup below base, for a pod whose request
// names no parent: base/<id>, or for systemd the slice <base>-pod<id>.slice. Create
// makes it with the first scope in it, and Scope.Remove takes it away again.
func (t *Tree) PodParent(base, id string) (string, error) {
	if t.units == nil {
		return t.Parent(path.Join(base, id))
	}
	base = strings.TrimSuffix(path.Base(strings.Trim(base, "/")), sliceSuffix)
	return t.Parent(base + "-pod" + id + sliceSuffix)
}

// ScopePath returns the path that Create gives the cgroup of id below parent.
func (t *Tree) ScopePath(parent, id string) (string, error) {
	parts, err := t.parentOf(parent)
	if err != nil {
		return "", err
	}
	name := t.scopeName(id)
	return path.Join(path.Join(parts...), name), checkComponent(name)
}

func (t *Tree) scopeName(id string) string {
	if t.units == nil {
		return t.prefix + id
	}
	return t.prefix + id + scopeSuffix
}
