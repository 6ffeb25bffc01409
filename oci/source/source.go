// Package source opens what a container's program needs of the host's file
// tree: the root filesystem of a bundle and the sources of its mounts.
//
//	Spec, bundle ── Open ──┬─ file 0    detached mount of the root filesystem
//	                       ├─ file 1 …  detached mount for each bind
//	                       └─ Apply     which file belongs to which mount (program.Input)
//
// Everything is a descriptor of a mount that is attached nowhere: it dies with
// its last holder, so there is nothing to be cleaned up, and a program names no
// path of the host. What the host's own mounts forbid (noexec, nosuid, nodev,
// read-only) a detached copy forbids too.
//
// The paths opened here are those of the spec, whose author is trusted with the
// host; symbolic links on the way are followed as they are anywhere else.
package source

import (
	"errors"
	"fmt"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/program"
)

// Options are what is known about a container beside its spec.
type Options struct{}

// Set is the opened sources of one container. It belongs to one goroutine.
type Set struct {
	files []*sys.FD // files[0] is the root filesystem
	binds map[int]program.Bind
}

// Open opens the root filesystem and the sources of all mounts that need one.
// Relative paths are below the directory bundle. It must be called in the mount
// namespace that the paths are meant in, with CAP_SYS_ADMIN there. An error
// names the field of the spec, and nothing stays open then. The caller closes
// the Set.
func Open(spec *specs.Spec, bundle string, _ Options) (*Set, error) {
	s := &Set{binds: map[int]program.Bind{}}
	if err := s.open(spec, bundle); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Files returns the descriptors for the beginning of the program's file table,
// in order. They stay the Set's.
func (s *Set) Files() []*sys.FD { return s.files }

// Apply writes into in what the program has to know of the files.
func (s *Set) Apply(in *program.Input) { in.Binds = s.binds }

// Close closes all files. Mounts that a running program has attached live on.
func (s *Set) Close() error {
	var errs []error
	for _, f := range s.files {
		errs = append(errs, f.Close())
	}
	s.files = nil
	return errors.Join(errs...)
}

func (s *Set) open(spec *specs.Spec, bundle string) error {
	if spec == nil || spec.Root == nil || spec.Root.Path == "" {
		return fmt.Errorf("root.path is missing: %w", program.ErrInvalid)
	}
	root, err := clone(below(bundle, spec.Root.Path), true)
	if err != nil {
		return fmt.Errorf("root.path: %w", err)
	}
	if _, err := s.add(root, true); err != nil {
		return fmt.Errorf("root.path: %w", err)
	}
	for i := range spec.Mounts {
		if err := s.mount(i, &spec.Mounts[i], bundle); err != nil {
			return err
		}
	}
	return nil
}

// mount opens the source of one mount, if it has one.
func (s *Set) mount(i int, m *specs.Mount, bundle string) error {
	bind, recursive := bound(m)
	if !bind {
		return nil
	}
	field := fmt.Sprintf("mounts[%d].source", i)
	if m.Source == "" {
		return fmt.Errorf("%s is missing: %w", field, program.ErrInvalid)
	}
	fd, err := clone(below(bundle, m.Source), recursive)
	if err != nil {
		return fmt.Errorf("%s: %w", field, err)
	}
	b, err := s.add(fd, false)
	if err != nil {
		return fmt.Errorf("%s: %w", field, err)
	}
	s.binds[i] = b
	return nil
}

// add takes a mount into the table.
func (s *Set) add(fd *sys.FD, wantDir bool) (program.Bind, error) {
	s.files = append(s.files, fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd.Int(), &st); err != nil {
		return program.Bind{}, fmt.Errorf("stat: %w", err)
	}
	dir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if wantDir && !dir {
		return program.Bind{}, unix.ENOTDIR
	}
	return program.Bind{File: len(s.files) - 1, Dir: dir}, nil
}

// bound says whether a mount is a bind, and whether with all that is below.
func bound(m *specs.Mount) (bind, recursive bool) {
	bind = m.Type == "bind"
	for _, o := range m.Options {
		bind = bind || o == "bind" || o == "rbind"
		recursive = recursive || o == "rbind"
	}
	return bind, recursive
}

// below returns path, which is below dir where it is relative.
func below(dir, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

// clone returns a detached copy of the mount at path, or of the whole tree.
func clone(path string, recursive bool) (*sys.FD, error) {
	flags := uint(unix.OPEN_TREE_CLONE)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return sys.OpenTree(unix.AT_FDCWD, path, flags)
}
