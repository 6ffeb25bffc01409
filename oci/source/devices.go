package source

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/program"
)

// devices has a mount for each device of a container with a user namespace, in
// which nobody may make one. They are our own nodes, each with the mode and owner
// that the spec wants; where we may not make any either (in a user namespace
// ourselves), the host's node of the same path, if it is that device.
func (s *Set) devices() error {
	all := nodesOf(program.Devices(s.spec))
	if len(all) == 0 {
		return nil
	}
	var fds []*sys.FD
	if !s.guess {
		var err error
		if fds, err = s.makeDevices(all); errors.Is(err, unix.EPERM) {
			fds, err = hostDevices(all)
		}
		if err != nil {
			return err
		}
	} else {
		fds = make([]*sys.FD, len(all))
	}
	for i := range all {
		s.input.Devices[path.Clean("/"+all[i].Path)] = len(s.files)
		s.files = append(s.files, fds[i])
	}
	return nil
}

// nodesOf leaves out what can be made in a user namespace.
func nodesOf(all []specs.LinuxDevice) (nodes []specs.LinuxDevice) {
	for _, d := range all {
		if d.Type != "p" {
			nodes = append(nodes, d)
		}
	}
	return nodes
}

// makeDevices makes the nodes on a tmpfs that is attached, in a namespace of its
// own, only for as long as it takes to copy them out of it.
func (s *Set) makeDevices(all []specs.LinuxDevice) (fds []*sys.FD, err error) {
	tmpfs, err := newFilesystem("tmpfs", "devices", program.MountOptions{Data: []string{"mode=700"}})
	if err != nil {
		return nil, err
	}
	defer tmpfs.Close()
	for i := range all {
		if err := s.makeDevice(tmpfs, strconv.Itoa(i), &all[i]); err != nil {
			return nil, err
		}
	}
	err = inScratch(func() error {
		at, err := sys.OpenAt2(unix.AT_FDCWD, "/", unix.O_PATH, 0)
		if err != nil {
			return err
		}
		defer at.Close()
		if err := sys.MoveMount(tmpfs, at); err != nil {
			return err
		}
		for i := range all {
			fd, err := clone(tmpfs.Int(), strconv.Itoa(i), false)
			if err != nil {
				return fmt.Errorf("copy device %s: %w", all[i].Path, err)
			}
			fds = append(fds, fd)
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, closeAll(fds))
	}
	return fds, nil
}

func (s *Set) makeDevice(dir *sys.FD, name string, d *specs.LinuxDevice) error {
	kind, dev, err := deviceNumber(d)
	if err != nil {
		return err
	}
	mode := uint32(0o666)
	if d.FileMode != nil {
		mode = uint32(*d.FileMode & os.ModePerm)
	}
	if err := unix.Mknodat(dir.Int(), name, kind, int(dev)); err != nil {
		return fmt.Errorf("make device %s: %w", d.Path, err)
	}
	if err := unix.Fchmodat(dir.Int(), name, mode, 0); err != nil { // the umask is others' business
		return fmt.Errorf("set mode of device %s: %w", d.Path, err)
	}
	uid, gid := uint32(0), uint32(0)
	if d.UID != nil {
		uid = *d.UID
	}
	if d.GID != nil {
		gid = *d.GID
	}
	if err := unix.Fchownat(dir.Int(), name, int(outside(s.spec.Linux.UIDMappings, uid)), int(outside(s.spec.Linux.GIDMappings, gid)), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("give device %s to its owner: %w", d.Path, err)
	}
	return nil
}

// outside returns the host's number of an id of the container. Of a namespace that
// is joined the mapping is not in the spec, and the number stays what it is.
func outside(maps []specs.LinuxIDMapping, id uint32) uint32 {
	for _, m := range maps {
		if id >= m.ContainerID && id-m.ContainerID < m.Size {
			return m.HostID + (id - m.ContainerID)
		}
	}
	return id
}

// hostDevices returns the host's own nodes.
func hostDevices(all []specs.LinuxDevice) (fds []*sys.FD, err error) {
	for i := range all {
		fd, err := hostDevice(&all[i])
		if err != nil {
			return nil, errors.Join(err, closeAll(fds))
		}
		fds = append(fds, fd)
	}
	return fds, nil
}

func hostDevice(d *specs.LinuxDevice) (*sys.FD, error) {
	kind, dev, err := deviceNumber(d)
	if err != nil {
		return nil, err
	}
	fd, err := clone(unix.AT_FDCWD, path.Clean("/"+d.Path), false)
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", d.Path, err)
	}
	var st unix.Stat_t
	err = unix.Fstat(fd.Int(), &st)
	if err == nil && (st.Mode&unix.S_IFMT != kind || st.Rdev != dev) {
		err = unix.ENODEV
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("device %s of the host is not %s %d:%d: %w", d.Path, d.Type, d.Major, d.Minor, err), fd.Close())
	}
	return fd, nil
}

func deviceNumber(d *specs.LinuxDevice) (kind uint32, dev uint64, err error) {
	if d.Major < 0 || d.Minor < 0 || d.Major > 0xfff || d.Minor > 0xfffff {
		return 0, 0, fmt.Errorf("linux.devices: %s: number %d:%d: %w", d.Path, d.Major, d.Minor, program.ErrInvalid)
	}
	switch d.Type {
	case "c", "u":
		kind = unix.S_IFCHR
	case "b":
		kind = unix.S_IFBLK
	default:
		return 0, 0, fmt.Errorf("linux.devices: %s: type %q: %w", d.Path, d.Type, program.ErrInvalid)
	}
	return kind, unix.Mkdev(uint32(d.Major), uint32(d.Minor)), nil
}

func closeAll(fds []*sys.FD) error {
	var errs []error
	for _, f := range fds {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// visible has a procfs and a sysfs for a user namespace that is to mount its own:
// the kernel allows it only where the mount namespace shows one, uncovered, and the
// one that programs begin in shows none.
func (s *Set) visible() error {
	for _, fstype := range []string{"proc", "sysfs"} {
		wanted := false
		for i := range s.spec.Mounts {
			wanted = wanted || s.spec.Mounts[i].Type == fstype
		}
		if !wanted {
			continue
		}
		n, err := s.add("visible "+fstype, func() (*sys.FD, error) { return kernelFiles(fstype) })
		if err != nil {
			return err
		}
		s.input.Visible = append(s.input.Visible, n)
	}
	return nil
}

// kernelFiles returns a new procfs or sysfs, or a copy of the one that there is,
// with what covers parts of it, for who may not make one.
func kernelFiles(fstype string) (*sys.FD, error) {
	fd, err := newFilesystem(fstype, fstype, program.MountOptions{})
	if errors.Is(err, unix.EPERM) {
		at := map[string]string{"proc": "/proc", "sysfs": "/sys"}
		return clone(unix.AT_FDCWD, at[fstype], true)
	}
	return fd, err
}
