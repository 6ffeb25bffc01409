// Package source opens what a container's program needs of the host's file
// tree: the root filesystem of a bundle, the sources of its mounts, and what of a
// user namespace only the host can give.
//
//	Spec, bundle ── Open ──┬─ file 0    detached mount of the root filesystem
//	                       ├─ file 1 …  a detached mount for each bind, for each filesystem
//	                       │            that a program cannot make itself (overlay, ext4, …, tmpcopyup,
//	                       │            idmap), and for each device in a user namespace
//	                       └─ Apply     which file is what (program.Input)
//
// Everything is a descriptor of a mount that is attached nowhere: it dies with
// its last holder, so there is nothing to be cleaned up, and a program names no
// path of the host. What the host's own mounts forbid (noexec, nosuid, nodev,
// read-only) a detached copy forbids too.
//
// The paths opened here are those of the spec, whose author is trusted with the
// host; symbolic links on the way are followed as they are anywhere else. The
// content of the root filesystem is not trusted: what is read of it (tmpcopyup,
// links that lead nowhere) is found by openat2 below its descriptor.
//
// Which namespaces stay locked: in a user namespace the kernel lets nobody loosen
// mounts that came with a copy of the host's namespace. These here come as
// descriptors and are the container's own, as the mounts that it makes itself:
// a container that has CAP_SYS_ADMIN in its user namespace may loosen a read-only
// bind, and unmount a mask. Who does not want that does not give it CAP_SYS_ADMIN.
package source

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/program"
)

// Set is the opened sources of one container. It belongs to one goroutine.
type Set struct {
	files []*sys.FD // files[0] is the root filesystem; all nil in a Guess
	input program.Input

	spec    *specs.Spec
	bundle  string
	guess   bool
	covered []string // destinations of the mounts so far
	cgroups []int    // files for ShowCgroup
}

// Open opens the root filesystem and the sources of all mounts that need one.
// Relative paths are below the directory bundle. It must be called in the mount
// namespace that the paths are meant in, with CAP_SYS_ADMIN there. An error
// names the field of the spec, and nothing stays open then. The caller closes
// the Set.
func Open(spec *specs.Spec, bundle string) (*Set, error) {
	s := &Set{spec: spec, bundle: bundle}
	if err := s.open(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Guess returns a Set without descriptors, for a program that is to be looked at
// and not to be run. It opens nothing and needs no privileges; a source that it cannot
// look at counts as a directory.
func Guess(spec *specs.Spec, bundle string) (*Set, error) {
	s := &Set{spec: spec, bundle: bundle, guess: true}
	return s, s.open()
}

// ShowCgroup is for a container that asks for a cgroup filesystem and has no
// cgroup namespace of its own. It is shown its own cgroup and not the machine's tree:
// the directory that open returns, which is made later than the rest is opened.
// open is not called for others, and what it returns becomes the Set's.
func (s *Set) ShowCgroup(open func() (*sys.FD, error)) error {
	if len(s.cgroups) == 0 {
		return nil
	}
	dir, err := open()
	if err != nil {
		return named("find the container's cgroup", err)
	}
	defer dir.Close()
	for _, n := range s.cgroups {
		if s.files[n], err = clone(dir.Int(), "", false); err != nil {
			return named("show the container's cgroup", err)
		}
	}
	return nil
}

// Files returns the descriptors for the beginning of the program's file table,
// in order. They stay the Set's. Those of ShowCgroup are nil before it.
func (s *Set) Files() []*sys.FD { return s.files }

// Apply writes into in what the program has to know of the files.
func (s *Set) Apply(in *program.Input) {
	in.Binds, in.Targets, in.Devices, in.Visible = s.input.Binds, s.input.Targets, s.input.Devices, s.input.Visible
}

// Close closes all files. Mounts that a running program has attached live on.
func (s *Set) Close() error {
	var errs []error
	for _, f := range s.files {
		errs = append(errs, f.Close())
	}
	s.files = nil
	return errors.Join(errs...)
}

func (s *Set) open() error {
	if s.spec == nil || s.spec.Root == nil || s.spec.Root.Path == "" {
		return named("root.path is missing", program.ErrInvalid)
	}
	s.input = program.Input{Binds: map[int]program.Bind{}, Targets: map[int]string{}, Devices: map[string]int{}}
	root, err := s.add("root.path", func() (*sys.FD, error) { return clone(unix.AT_FDCWD, below(s.bundle, s.spec.Root.Path), true) })
	if err != nil {
		return err
	}
	if !s.guess && !isDir(s.files[root]) {
		return named("root.path: "+s.spec.Root.Path, unix.ENOTDIR)
	}
	for i := range s.spec.Mounts {
		if err := s.mount(i, &s.spec.Mounts[i]); err != nil {
			return err
		}
	}
	// As in a user namespace of the container's own it is where we are in one ourselves.
	if !s.has(specs.UserNamespace) && (s.guess || sys.InFirstUserNS()) {
		return nil
	}
	if err := s.visible(); err != nil {
		return err
	}
	return s.devices()
}

// has says whether the spec names a namespace of this type: one of the
// container's own, or one that it joins.
func (s *Set) has(t specs.LinuxNamespaceType) bool {
	return s.spec.Linux != nil && slices.ContainsFunc(s.spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == t })
}

// mount opens the source of one mount, if it needs one.
func (s *Set) mount(i int, m *specs.Mount) error {
	field := fmt.Sprintf("mounts[%d]", i)
	o, err := program.ParseMount(field, m)
	if err != nil || o.Remount {
		return err
	}
	dest, err := program.MountPoint(field+".destination", m.Destination)
	if err != nil {
		return err
	}
	defer func() { s.covered = append(s.covered, dest) }()
	if !o.Bind && (m.Type == "cgroup" || m.Type == "cgroup2") && !s.has(specs.CgroupNamespace) {
		return s.cgroup(i, field, dest, o)
	}
	make := s.maker(field, dest, m, o)
	if make == nil {
		s.settle(i, dest, true)
		return nil
	}
	n, err := s.add(field+".source", make)
	if err != nil {
		return err
	}
	b := program.Bind{File: n, Dir: true, IDMapped: o.IDMap, Filled: o.CopyUp}
	switch {
	case !s.guess:
		b.Dir, b.Proc = isDir(s.files[n]), o.Bind && isProc(s.files[n])
	case o.Bind:
		var st unix.Stat_t
		b.Dir = unix.Stat(below(s.bundle, m.Source), &st) != nil || st.Mode&unix.S_IFMT == unix.S_IFDIR
		b.Proc = b.Dir && st.Ino == procRootInode
	}
	s.input.Binds[i] = b
	s.settle(i, dest, b.Dir)
	if o.IDMap {
		return s.idmap(field, n, m, o)
	}
	return nil
}

// cgroup leaves a place in the table for ShowCgroup.
func (s *Set) cgroup(i int, field, dest string, o program.MountOptions) error {
	if len(o.Data) > 0 {
		return named(field+": option "+o.Data[0]+" of a cgroup that is bound", program.ErrUnsupported)
	}
	n := len(s.files)
	s.files = append(s.files, nil)
	s.cgroups = append(s.cgroups, n)
	s.input.Binds[i] = program.Bind{File: n, Dir: true}
	s.settle(i, dest, true)
	return nil
}

// maker returns what makes the detached mount for a mount of the spec, or nil if
// the program does it.
func (s *Set) maker(field, dest string, m *specs.Mount, o program.MountOptions) func() (*sys.FD, error) {
	switch {
	case o.Bind:
		return func() (*sys.FD, error) {
			if m.Source == "" {
				return nil, named("missing", program.ErrInvalid)
			}
			return clone(unix.AT_FDCWD, below(s.bundle, m.Source), o.Recursive)
		}
	case o.CopyUp:
		return func() (*sys.FD, error) { return s.copyUp(dest, m, o) }
	case o.IDMap || !program.InProgram(m.Type):
		return func() (*sys.FD, error) {
			if m.Type == "" {
				return nil, named(field+".type is missing", program.ErrInvalid)
			}
			return newFilesystem(m.Type, m.Source, o)
		}
	}
	return nil
}

// add takes the mount that open returns into the table.
func (s *Set) add(field string, open func() (*sys.FD, error)) (int, error) {
	n := len(s.files)
	if s.guess {
		s.files = append(s.files, nil)
		return n, nil
	}
	fd, err := open()
	if err != nil {
		return 0, named(field, err)
	}
	s.files = append(s.files, fd)
	return n, nil
}

func isDir(fd *sys.FD) bool {
	var st unix.Stat_t
	return unix.Fstat(fd.Int(), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
}

// procRootInode is the number that the root of each procfs has.
const procRootInode = 1

// isProc says whether fd is the top of a procfs.
func isProc(fd *sys.FD) bool {
	var st unix.Stat_t
	var fs unix.Statfs_t
	return unix.Fstat(fd.Int(), &st) == nil && st.Ino == procRootInode && unix.Fstatfs(fd.Int(), &fs) == nil && fs.Type == unix.PROC_SUPER_MAGIC
}

// named says what an error is about. It is called in many places, and smaller
// than what it replaces.
//
//go:noinline
func named(what string, err error) error { return fmt.Errorf("%s: %w", what, err) }

// below returns path, which is below dir where it is relative.
func below(dir, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

// clone returns a detached copy of the mount at path, or of the whole tree there.
// An empty path is dir itself.
func clone(dir int, path string, recursive bool) (*sys.FD, error) {
	flags := uint(unix.OPEN_TREE_CLONE)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	if path == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	return sys.OpenTree(dir, path, flags)
}
