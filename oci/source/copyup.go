package source

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/program"
)

// What is copied into a tmpfs is an image's content: a bound on everything. The
// size= of the tmpfs is a further one.
const (
	maxCopyBytes   = 1 << 30
	maxCopyEntries = 1 << 17
	maxCopyDepth   = 200
)

// copyUp makes the tmpfs of a mount with tmpcopyup: filled with what the root
// filesystem has at the destination, and with that directory's mode and owner unless
// the options name others. What an earlier mount of the spec hides cannot be
// copied: it is not there yet.
func (s *Set) copyUp(dest string, m *specs.Mount, o program.MountOptions) (*sys.FD, error) {
	if m.Type != "tmpfs" {
		return nil, named("tmpcopyup with a filesystem of type "+m.Type, program.ErrInvalid)
	}
	if o.IDMap {
		return nil, named("tmpcopyup with a mapping of ids", program.ErrUnsupported)
	}
	if place, _ := follow(s.files[0], dest); s.hidden(dest) || s.hidden(place) {
		return nil, named("tmpcopyup below another mount of the spec", program.ErrUnsupported)
	}
	var err error
	if o.Data, err = s.outsideOwner(o.Data); err != nil {
		return nil, err
	}
	fd, err := newFilesystem(m.Type, m.Source, program.MountOptions{Super: o.Super, Data: program.Labelled(s.spec, m.Type, o.Data)})
	if err != nil {
		return nil, err
	}
	if err := s.fill(fd, dest, o); err != nil {
		return nil, errors.Join(named("copy /"+dest, err), fd.Close())
	}
	return fd, nil
}

// outsideOwner turns uid= and gid=, which are ids of the container, into the
// host's: this tmpfs is made outside of the user namespace. Without them its owner
// is the container's root.
func (s *Set) outsideOwner(data []string) ([]string, error) {
	data = slices.Clone(data)
	for _, k := range []struct {
		key  string
		maps []specs.LinuxIDMapping
	}{{"uid", s.spec.Linux.UIDMappings}, {"gid", s.spec.Linux.GIDMappings}} {
		seen := false
		for i, d := range data {
			v, ok := strings.CutPrefix(d, k.key+"=")
			if !ok {
				continue
			}
			id, err := strconv.ParseUint(v, 10, 32)
			if err != nil {
				return nil, named("option "+d, program.ErrInvalid)
			}
			seen, data[i] = true, fmt.Sprintf("%s=%d", k.key, outside(k.maps, uint32(id)))
		}
		if !seen && outside(k.maps, 0) != 0 {
			data = append(data, fmt.Sprintf("%s=%d", k.key, outside(k.maps, 0)))
		}
	}
	return data, nil
}

// fill copies the root's directory at dest into the tmpfs. There may be none.
func (s *Set) fill(tmpfs *sys.FD, dest string, o program.MountOptions) error {
	from, err := sys.OpenAt2(s.files[0].Int(), dest, unix.O_RDONLY|unix.O_DIRECTORY, inRoot)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := sys.OpenAt2(tmpfs.Int(), ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer to.Close()
	c := copier{bytes: maxCopyBytes, entries: maxCopyEntries}
	if err := c.directory(from, to, 0); err != nil {
		return err
	}
	has := func(key string) bool {
		return slices.ContainsFunc(o.Data, func(d string) bool { return strings.HasPrefix(d, key+"=") })
	}
	var st unix.Stat_t
	if err := unix.Fstat(from.Int(), &st); err != nil {
		return err
	}
	uid, gid := int(st.Uid), int(st.Gid)
	if has("uid") {
		uid = -1
	}
	if has("gid") {
		gid = -1
	}
	if err := unix.Fchown(to.Int(), uid, gid); err != nil {
		return named("set owner", err)
	}
	if !has("mode") {
		err = unix.Fchmod(to.Int(), st.Mode&0o7777)
	}
	return err
}

// copier copies a tree by descriptors: no name leads through a link, and nothing
// is opened that could block.
type copier struct {
	bytes   int64 // what may still be copied
	entries int
}

// directory copies the entries of one directory.
func (c *copier) directory(from, to *sys.FD, depth int) error {
	if depth > maxCopyDepth {
		return fmt.Errorf("deeper than %d directories: %w", maxCopyDepth, program.ErrUnsupported)
	}
	d, err := from.Dup()
	if err != nil {
		return err
	}
	f := d.File("")
	defer f.Close()
	for {
		names, err := f.Readdirnames(256)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, name := range names {
			if c.entries--; c.entries < 0 {
				return fmt.Errorf("more than %d entries: %w", maxCopyEntries, program.ErrUnsupported)
			}
			if err := c.entry(from, to, name, depth); err != nil {
				return fmt.Errorf("%.64q: %w", name, err)
			}
		}
	}
}

// entry copies one name.
func (c *copier) entry(from, to *sys.FD, name string, depth int) error {
	src, err := sys.OpenAt2(from.Int(), name, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer src.Close()
	var st unix.Stat_t
	if err := unix.Fstat(src.Int(), &st); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		err = c.subdirectory(from, to, name, depth)
	case unix.S_IFREG:
		err = c.regular(from, to, name)
	case unix.S_IFLNK:
		buf := make([]byte, unix.PathMax)
		n, e := unix.Readlinkat(src.Int(), "", buf)
		if err = e; err == nil {
			err = unix.Symlinkat(string(buf[:n]), to.Int(), name)
		}
	default: // a device, FIFO or socket
		err = unix.Mknodat(to.Int(), name, st.Mode&unix.S_IFMT, int(st.Rdev))
	}
	if err != nil {
		return err
	}
	if err := unix.Fchownat(to.Int(), name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK { // behind the owner, who takes setuid bits along
		if err := unix.Fchmodat(to.Int(), name, st.Mode&0o7777, 0); err != nil {
			return err
		}
	}
	return unix.UtimesNanoAt(to.Int(), name, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

func (c *copier) subdirectory(from, to *sys.FD, name string, depth int) error {
	if err := unix.Mkdirat(to.Int(), name, 0o700); err != nil {
		return err
	}
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW
	src, err := sys.OpenAt2(from.Int(), name, flags, 0)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := sys.OpenAt2(to.Int(), name, flags, 0)
	if err != nil {
		return err
	}
	defer dst.Close()
	copyAttributes(src, dst)
	return c.directory(src, dst, depth+1)
}

func (c *copier) regular(from, to *sys.FD, name string) error {
	src, err := sys.OpenAt2(from.Int(), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer src.Close()
	var st unix.Stat_t
	if err := unix.Fstat(src.Int(), &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return named("it has changed", unix.EINVAL)
	}
	n, err := unix.Openat(to.Int(), name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	dst := sys.NewFD(n)
	defer dst.Close()
	for {
		n, err := unix.Sendfile(dst.Int(), src.Int(), nil, 1<<20)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			copyAttributes(src, dst)
			return nil
		}
		if c.bytes -= int64(n); c.bytes < 0 {
			return fmt.Errorf("more than %d bytes: %w", maxCopyBytes, program.ErrUnsupported)
		}
	}
}

// copyAttributes copies file capabilities, ACLs and users' attributes as far as a
// tmpfs has them. Labels are the business of who mounts, and overlay's of overlay.
func copyAttributes(src, dst *sys.FD) {
	list := make([]byte, 4096)
	n, err := unix.Flistxattr(src.Int(), list)
	if err != nil {
		return
	}
	for _, name := range strings.Split(string(list[:n]), "\x00") {
		if name != "security.capability" && !strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "system.posix_acl_") {
			continue
		}
		value := make([]byte, 4096)
		if n, err := unix.Fgetxattr(src.Int(), name, value); err == nil {
			_ = unix.Fsetxattr(dst.Int(), name, value[:n], 0)
		}
	}
}
