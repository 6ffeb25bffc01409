package source

import (
	"errors"
	"os"
	"path"
	"slices"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/program"
)

// devices has a mount for each device of a container with a user namespace, in
// which nobody may make one. They are our own nodes, each with the mode and owner
// that the spec wants, on a tmpfs that is attached, in a namespace of its own, only
// for as long as it takes to copy them out of it. Where we may not make any either (in
// a user namespace ourselves), it is the host's node of the same path, if it is that
// device.
func (s *Set) devices() error {
	all := slices.DeleteFunc(program.Devices(s.spec), func(d specs.LinuxDevice) bool { return d.Type == "p" }) // a FIFO can be made
	for i := range all {
		s.input.Devices[path.Clean("/"+all[i].Path)] = len(s.files) + i
	}
	if s.guess || len(all) == 0 {
		s.files = append(s.files, make([]*sys.FD, len(all))...)
		return nil
	}
	tmpfs, err := newFilesystem("tmpfs", "devices", program.MountOptions{Data: []string{"mode=700"}})
	if err != nil {
		return err
	}
	defer tmpfs.Close()
	return inScratch(func() error {
		at, err := sys.OpenAt2(unix.AT_FDCWD, "/", unix.O_PATH, 0)
		if err == nil {
			err = sys.MoveMount(tmpfs, at)
			at.Close()
		}
		for i := 0; i < len(all) && err == nil; i++ {
			var fd *sys.FD
			if fd, err = s.device(tmpfs.Int(), strconv.Itoa(i), &all[i]); err == nil {
				s.files = append(s.files, fd)
			} else {
				err = named("device "+all[i].Path, err)
			}
		}
		return err
	})
}

// device makes a node below dir and returns a mount of it.
func (s *Set) device(dir int, name string, d *specs.LinuxDevice) (*sys.FD, error) {
	kind, dev, err := deviceNumber(d)
	if err != nil {
		return nil, err
	}
	if err := unix.Mknodat(dir, name, kind, int(dev)); errors.Is(err, unix.EPERM) {
		return s.hostDevice(d, kind, dev)
	} else if err != nil {
		return nil, err
	}
	mode, uid, gid := uint32(0o666), uint32(0), uint32(0)
	if d.FileMode != nil {
		mode = uint32(*d.FileMode & os.ModePerm)
	}
	if d.UID != nil {
		uid = *d.UID
	}
	if d.GID != nil {
		gid = *d.GID
	}
	if err := unix.Fchmodat(dir, name, mode, 0); err != nil { // the umask is others' business
		return nil, err
	}
	if err := unix.Fchownat(dir, name, int(outside(s.spec.Linux.UIDMappings, uid)), int(outside(s.spec.Linux.GIDMappings, gid)), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, err
	}
	return clone(dir, name, false)
}

// hostDevice returns the host's node of the same path, which must be the device wanted,
// with the mode and the owner that are asked for.
func (s *Set) hostDevice(d *specs.LinuxDevice, kind uint32, dev uint64) (*sys.FD, error) {
	fd, err := clone(unix.AT_FDCWD, path.Clean("/"+d.Path), false)
	if err != nil {
		return nil, named("bind the host's, since nobody makes devices in a user namespace", err)
	}
	var st unix.Stat_t
	wrong := ""
	err = unix.Fstat(fd.Int(), &st)
	switch {
	case err != nil || st.Mode&unix.S_IFMT != kind || st.Rdev != dev:
		wrong, err = "another one is the host's", unix.ENODEV
	case d.FileMode != nil && uint32(*d.FileMode&os.ModePerm) != st.Mode&0o777:
		wrong = "fileMode"
	case d.UID != nil && outside(s.spec.Linux.UIDMappings, *d.UID) != st.Uid:
		wrong = "uid"
	case d.GID != nil && outside(s.spec.Linux.GIDMappings, *d.GID) != st.Gid:
		wrong = "gid"
	default:
		return fd, nil
	}
	fd.Close()
	if err == nil {
		wrong, err = wrong+" that the host's node does not have, without root", program.ErrUnsupported
	}
	return nil, named(wrong, err)
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

func deviceNumber(d *specs.LinuxDevice) (kind uint32, dev uint64, err error) {
	if d.Major < 0 || d.Minor < 0 || d.Major > 0xfff || d.Minor > 0xfffff {
		return 0, 0, named("number", program.ErrInvalid)
	}
	switch d.Type {
	case "c", "u":
		kind = unix.S_IFCHR
	case "b":
		kind = unix.S_IFBLK
	default:
		return 0, 0, named("type "+d.Type, program.ErrInvalid)
	}
	return kind, unix.Mkdev(uint32(d.Major), uint32(d.Minor)), nil
}

// visible has a procfs and a sysfs for a user namespace that is to mount its own:
// the kernel allows it only where the mount namespace shows one, uncovered, and the
// one that programs begin in shows none.
func (s *Set) visible() error {
	for _, fstype := range []string{"proc", "sysfs"} {
		if !slices.ContainsFunc(s.spec.Mounts, func(m specs.Mount) bool { return m.Type == fstype }) {
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
