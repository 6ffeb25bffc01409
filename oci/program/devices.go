package program

import (
	"fmt"
	"os"
	"path"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
)

// defaultDevices are in every container (runtime-spec, "Default Devices").
var defaultDevices = []specs.LinuxDevice{
	{Path: "/dev/null", Type: "c", Major: 1, Minor: 3},
	{Path: "/dev/zero", Type: "c", Major: 1, Minor: 5},
	{Path: "/dev/full", Type: "c", Major: 1, Minor: 7},
	{Path: "/dev/random", Type: "c", Major: 1, Minor: 8},
	{Path: "/dev/urandom", Type: "c", Major: 1, Minor: 9},
	{Path: "/dev/tty", Type: "c", Major: 5, Minor: 0},
}

// devLinks are the symlinks that programs expect in /dev.
var devLinks = [][2]string{
	{"fd", "/proc/self/fd"}, {"stdin", "/proc/self/fd/0"}, {"stdout", "/proc/self/fd/1"}, {"stderr", "/proc/self/fd/2"},
	{"ptmx", "pts/ptmx"},
}

// Devices returns what a program makes in /dev: the devices of the spec and the
// default ones that it does not have. There are none where /dev is a bind mount.
func Devices(spec *specs.Spec) []specs.LinuxDevice {
	for i := range spec.Mounts {
		o, err := ParseMount("", &spec.Mounts[i])
		if dest, _ := MountPoint("", spec.Mounts[i].Destination); err == nil && o.Bind && !o.Remount && dest == "dev" {
			return nil
		}
	}
	all, done := []specs.LinuxDevice{}, map[string]bool{}
	if spec.Linux != nil {
		all = append(all, spec.Linux.Devices...)
	}
	for i := range all {
		done[path.Clean(all[i].Path)] = true
	}
	for _, d := range defaultDevices {
		if !done[d.Path] {
			all = append(all, d)
		}
	}
	return all
}

// devices makes device nodes and links. Where /dev is a bind mount it is
// somebody else's directory, and nothing is made in it.
func (c *compiler) devices() error {
	if c.devBound() {
		return nil
	}
	done := map[string]bool{}
	for i := range c.spec.Linux.Devices {
		d := &c.spec.Linux.Devices[i]
		dest, err := cleanDest(fmt.Sprintf("linux.devices[%d].path", i), d.Path)
		if err != nil {
			return err
		}
		if dest == "" || done[dest] {
			return fmt.Errorf("linux.devices[%d].path: %q: %w", i, d.Path, ErrInvalid)
		}
		done[dest] = true
		if err := c.device(fmt.Sprintf("linux.devices[%d]", i), dest, d); err != nil {
			return err
		}
	}
	for i := range defaultDevices {
		if dest := defaultDevices[i].Path[1:]; !done[dest] {
			if err := c.device("default device", dest, &defaultDevices[i]); err != nil {
				return err
			}
		}
	}
	c.links()
	return nil
}

// devBound says whether /dev is a bind mount.
func (c *compiler) devBound() (bound bool) {
	for i := range c.spec.Mounts {
		if path.Clean(c.spec.Mounts[i].Destination) == "/dev" {
			b, ok := c.in.Binds[i]
			bound = ok && !b.Filled
		}
	}
	return bound
}

// device makes one node: mknodat of a single component below an open
// directory, so a symlink that an image has put there is EEXIST and not a way
// out.
func (c *compiler) device(field, dest string, d *specs.LinuxDevice) error {
	mode := uint64(0o666)
	if d.FileMode != nil {
		mode = uint64(*d.FileMode & os.ModePerm)
	}
	switch d.Type {
	case "c", "u":
		mode |= unix.S_IFCHR
	case "b":
		mode |= unix.S_IFBLK
	case "p":
		mode |= unix.S_IFIFO
	default:
		return fmt.Errorf("%s.type: %q: %w", field, d.Type, ErrInvalid)
	}
	if d.Major < 0 || d.Minor < 0 || d.Major > 0xfff || d.Minor > 0xfffff {
		return fmt.Errorf("%s: number %d:%d: %w", field, d.Major, d.Minor, ErrInvalid)
	}
	if f, ok := c.in.Devices["/"+dest]; ok {
		c.bindDevice(dest, f)
		return nil
	}
	if mode&unix.S_IFMT != unix.S_IFIFO && c.userNS() {
		return fmt.Errorf("%s: %q in a user namespace without a descriptor: %w", field, d.Path, ErrUnsupported)
	}
	base := c.str(path.Base(dest))
	c.mkdirAll(path.Dir(dest), inRoot)
	dev := unix.Mkdev(uint32(d.Major), uint32(d.Minor))
	var made, done label
	c.call("make device /"+dest, unix.SYS_MKNODAT, reg(rParent), base, val(mode), val(dev)).then(&made).ok(unix.EEXIST)
	c.sameDevice(dest, base, mode&unix.S_IFMT, dev).then(&done)
	c.here(&made)
	if uid, gid := owner(d); uid != 0 || gid != 0 {
		c.call("give it to its owner", unix.SYS_FCHOWNAT, reg(rParent), base, val(uid), val(gid), val(unix.AT_SYMLINK_NOFOLLOW))
	}
	c.here(&done)
	c.closeParent(path.Dir(dest))
	return nil
}

// bindDevice covers what is at dest, or an empty file made for it, with a device
// node that was made outside of the user namespace. A symlink there is covered
// itself.
func (c *compiler) bindDevice(dest string, f int) {
	c.mkdirAll(path.Dir(dest), inRoot)
	c.call("make file /"+dest, unix.SYS_MKNODAT, reg(rParent), c.str(path.Base(dest)), val(uint64(unix.S_IFREG|0o644)), val(0)).ok(unix.EEXIST)
	c.closeParent(path.Dir(dest))
	c.open("open /"+dest, dest, unix.O_PATH|unix.O_NOFOLLOW, inRoot, rTarget)
	c.setattr("keep device /"+dest+" to ourselves", file(f), c.str(""), unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, unix.MountAttr{Propagation: unix.MS_PRIVATE})
	c.moveMount("bind device /"+dest, file(f))
	c.closeReg(rTarget)
}

// sameDevice looks at what is there already. An image or a mount may have
// brought the device, and that is fine; a file in the place of /dev/null is not.
func (c *compiler) sameDevice(dest string, base step.Arg, kind, dev uint64) op {
	const modeAt, devAt = unsafe.Offsetof(unix.Stat_t{}.Mode), unsafe.Offsetof(unix.Stat_t{}.Rdev)
	st := c.room(int(unsafe.Sizeof(unix.Stat_t{})))
	c.call("look at what is there", unix.SYS_NEWFSTATAT, reg(rParent), base, st, val(unix.AT_SYMLINK_NOFOLLOW))
	if kind == unix.S_IFIFO {
		dev = 0
	}
	c.expect("find nothing but device /"+dest+" there", mem64(st, devAt), dev, ^uint64(0), unix.EEXIST)
	return c.expect("find nothing but device /"+dest+" there", mem32(st, modeAt), kind, unix.S_IFMT, unix.EEXIST)
}

func owner(d *specs.LinuxDevice) (uid, gid uint32) {
	if d.UID != nil {
		uid = *d.UID
	}
	if d.GID != nil {
		gid = *d.GID
	}
	return uid, gid
}

// links makes the symlinks. An image's own /dev may have them, or what it
// prefers; and a mount may have been asked for in the place of one.
func (c *compiler) links() {
	c.open("open /dev", "dev", unix.O_PATH|unix.O_DIRECTORY, inRoot, rParent)
	for _, l := range devLinks {
		c.call("link /dev/"+l[0], unix.SYS_SYMLINKAT, c.str(l[1]), reg(rParent), c.str(l[0])).ok(unix.EEXIST)
	}
	c.closeReg(rParent)
}
