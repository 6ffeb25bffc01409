package program

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// filesystems that a container may be given a new instance of, by their type
// in the spec.
var filesystems = map[string]string{
	"proc": "proc", "sysfs": "sysfs", "tmpfs": "tmpfs", "devpts": "devpts", "mqueue": "mqueue",
	"cgroup": "cgroup2", "cgroup2": "cgroup2",
}

// mounts adds the mounts of the spec, in its order.
func (c *compiler) mounts() error {
	genuine := map[string]uint64{} // destination -> what the last mount there is of
	for i := range c.spec.Mounts {
		m := &c.spec.Mounts[i]
		if err := c.mount(i, m); err != nil {
			return err
		}
		dest := path.Clean(m.Destination)
		delete(genuine, dest)
		if _, bound := c.in.Binds[i]; !bound && magic[m.Type] != 0 {
			genuine[dest] = magic[m.Type]
		}
	}
	for _, dest := range slices.Sorted(maps.Keys(genuine)) {
		c.genuine(dest[1:], genuine[dest])
	}
	return nil
}

// magic has the filesystems that masks and read-only paths are meant for.
var magic = map[string]uint64{"proc": unix.PROC_SUPER_MAGIC, "sysfs": unix.SYSFS_MAGIC}

// genuine makes sure that the kernel's files are still where they were mounted.
// A later destination that is a symlink of the image may have led on top of
// them; the masks would then find nothing to mask, and say nothing.
func (c *compiler) genuine(dest string, magic uint64) {
	st := c.room(int(unsafe.Sizeof(unix.Statfs_t{})))
	c.open("find /"+dest+" again", dest, unix.O_PATH|unix.O_DIRECTORY, inRoot|unix.RESOLVE_NO_SYMLINKS, rTarget)
	c.call("ask what filesystem it is", unix.SYS_FSTATFS, reg(rTarget), st)
	c.expect("find /"+dest+" uncovered", mem64(st, unsafe.Offsetof(unix.Statfs_t{}.Type)), magic, ^uint64(0), unix.EBUSY)
	c.closeReg(rTarget)
}

func (c *compiler) mount(i int, m *specs.Mount) error {
	field := fmt.Sprintf("mounts[%d]", i)
	dest, err := cleanDest(field+".destination", m.Destination)
	if err != nil {
		return err
	}
	if dest == "" {
		return fmt.Errorf("%s.destination: the root itself: %w", field, ErrInvalid)
	}
	o, err := parseOptions(field, m)
	if err != nil {
		return err
	}
	if o.bind {
		return c.bindMount(i, field, dest, o)
	}
	fstype, ok := filesystems[m.Type]
	if !ok {
		return fmt.Errorf("%s.type: %q: %w", field, m.Type, ErrUnsupported)
	}
	source := m.Source
	if source == "" {
		source = fstype
	}
	if strings.ContainsRune(source, 0) {
		return fmt.Errorf("%s.source: %q: %w", field, source, ErrInvalid)
	}
	if fstype == "cgroup2" && !c.ownCgroupNS {
		o.data = hierarchyFlags(o.data)
	}
	c.fsMount(fstype, source, dest, o)
	return nil
}

// hierarchyFlags keeps the flags of the machine's one cgroup hierarchy as
// service managers set them. A mount from outside of any cgroup namespace sets
// them anew for everybody: without nsdelegate, say, containers could leave the
// limits of their parents.
func hierarchyFlags(data []string) []string {
	for _, f := range []string{"nsdelegate", "memory_recursiveprot"} {
		if !slices.Contains(data, f) {
			data = append(data, f)
		}
	}
	return data
}

// fsMount mounts a new filesystem instance.
func (c *compiler) fsMount(fstype, source, dest string, o options) {
	c.call("prepare a "+fstype, unix.SYS_FSOPEN, c.str(fstype), val(unix.FSOPEN_CLOEXEC)).to(rContext)
	c.call("called "+source, unix.SYS_FSCONFIG, reg(rContext), val(unix.FSCONFIG_SET_STRING), c.str("source"), c.str(source), val(0))
	for _, d := range o.data {
		if k, v, has := strings.Cut(d, "="); has {
			c.call("with "+d, unix.SYS_FSCONFIG, reg(rContext), val(unix.FSCONFIG_SET_STRING), c.str(k), c.str(v), val(0))
		} else {
			c.call("with "+d, unix.SYS_FSCONFIG, reg(rContext), val(unix.FSCONFIG_SET_FLAG), c.str(k), val(0), val(0))
		}
	}
	c.call("make it", unix.SYS_FSCONFIG, reg(rContext), val(unix.FSCONFIG_CMD_CREATE), val(0), val(0), val(0))
	c.call("make a mount of it", unix.SYS_FSMOUNT, reg(rContext), val(unix.FSMOUNT_CLOEXEC), val(o.set)).to(rMount)
	c.closeReg(rContext)
	resolve := uint64(inRoot)
	if fstype == "proc" || fstype == "sysfs" {
		// An image whose /proc is a symlink wants the kernel's files somewhere else,
		// where later writes and masks would miss them (CVE-2019-19921).
		resolve |= unix.RESOLVE_NO_SYMLINKS
	}
	c.target(dest, true, resolve)
	c.attach("mount " + fstype + " on /" + dest)
	if o.propagation != 0 {
		c.setattr("set its propagation", reg(rMount), c.str(""), unix.AT_EMPTY_PATH, unix.MountAttr{Propagation: o.propagation})
	}
	c.closeReg(rMount)
	c.closeReg(rTarget)
}

// bindMount attaches a detached source. What the source's own mount forbids
// (noexec, nosuid, nodev, read-only) stays forbidden: attributes are added,
// and none is cleared that the spec does not name.
func (c *compiler) bindMount(i int, field, dest string, o options) error {
	src, ok := c.in.Binds[i]
	if !ok {
		return fmt.Errorf("%s.source: bind mount without a descriptor: %w", field, ErrUnsupported)
	}
	if len(o.data) > 0 {
		return fmt.Errorf("%s.options: %q on a bind mount: %w", field, o.data[0], ErrUnsupported)
	}
	if (dest == "proc" || strings.HasPrefix(dest, "proc/")) && (src.Dir || !slices.Contains(procFiles, dest)) {
		// Labels and sysctls are written through /proc; a volume there would take
		// them (CVE-2019-16884).
		return fmt.Errorf("%s.destination: bind mount on /%s: %w", field, dest, ErrInvalid)
	}
	fd := file(src.File)
	prop := o.propagation
	if prop == 0 {
		prop = unix.MS_PRIVATE
	}
	c.setattr("set propagation of the source of /"+dest, fd, c.str(""), unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, unix.MountAttr{Propagation: prop})
	if o.set != 0 || o.clr != 0 {
		c.setattr("restrict the source of /"+dest, fd, c.str(""), unix.AT_EMPTY_PATH, unix.MountAttr{Attr_set: o.set, Attr_clr: o.clr})
	}
	if o.setRec != 0 || o.clrRec != 0 {
		c.setattr("restrict all below it", fd, c.str(""), unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, unix.MountAttr{Attr_set: o.setRec, Attr_clr: o.clrRec})
	}
	c.target(dest, src.Dir, inRoot)
	c.moveMount("bind /"+dest, fd)
	c.closeReg(rTarget)
	return nil
}

// procFiles may be covered by a file: lxcfs shows a container its own numbers
// there. No label and no sysctl is written to them.
var procFiles = []string{"proc/cpuinfo", "proc/diskstats", "proc/loadavg", "proc/meminfo", "proc/slabinfo", "proc/stat", "proc/swaps", "proc/uptime"}

// options are the parsed options of one mount.
type options struct {
	bind           bool
	set, clr       uint64 // MOUNT_ATTR_*
	setRec, clrRec uint64 // the same, for the whole tree
	propagation    uint64 // MS_PRIVATE, ...; always applied to the whole tree of a bind
	data           []string
}

// attribute is what an option of mount(8) does to the mount.
type attribute struct {
	bits  uint64
	clear bool
}

const atime = unix.MOUNT_ATTR__ATIME

var attributes = map[string]attribute{
	"ro": {unix.MOUNT_ATTR_RDONLY, false}, "rw": {unix.MOUNT_ATTR_RDONLY, true},
	"nosuid": {unix.MOUNT_ATTR_NOSUID, false}, "suid": {unix.MOUNT_ATTR_NOSUID, true},
	"nodev": {unix.MOUNT_ATTR_NODEV, false}, "dev": {unix.MOUNT_ATTR_NODEV, true},
	"noexec": {unix.MOUNT_ATTR_NOEXEC, false}, "exec": {unix.MOUNT_ATTR_NOEXEC, true},
	"nodiratime": {unix.MOUNT_ATTR_NODIRATIME, false}, "diratime": {unix.MOUNT_ATTR_NODIRATIME, true},
	"nosymfollow": {unix.MOUNT_ATTR_NOSYMFOLLOW, false}, "symfollow": {unix.MOUNT_ATTR_NOSYMFOLLOW, true},
}

// Access-time modes are one field, not bits: its old value has to be cleared.
var atimes = map[string]uint64{
	"relatime": unix.MOUNT_ATTR_RELATIME, "noatime": unix.MOUNT_ATTR_NOATIME, "strictatime": unix.MOUNT_ATTR_STRICTATIME,
}

var propagations = map[string]uint64{
	"private": unix.MS_PRIVATE, "rprivate": unix.MS_PRIVATE, "slave": unix.MS_SLAVE, "rslave": unix.MS_SLAVE,
	"shared": unix.MS_SHARED, "rshared": unix.MS_SHARED, "unbindable": unix.MS_UNBINDABLE, "runbindable": unix.MS_UNBINDABLE,
}

// refusedOptions are options that would otherwise be taken for data of the
// filesystem.
var refusedOptions = []string{"idmap", "ridmap", "tmpcopyup", "remount", "sync", "async", "dirsync", "mand", "nomand", "loop"}

// parseOptions sorts the options of a mount.
func parseOptions(field string, m *specs.Mount) (options, error) {
	o := options{bind: m.Type == "bind"}
	if len(m.UIDMappings) > 0 || len(m.GIDMappings) > 0 {
		return o, fmt.Errorf("%s.uidMappings: %w", field, ErrUnsupported)
	}
	for _, opt := range m.Options {
		if slices.Contains(refusedOptions, opt) {
			return o, fmt.Errorf("%s.options: %q: %w", field, opt, ErrUnsupported)
		}
		if strings.ContainsRune(opt, 0) || len(opt) > 4096 {
			return o, fmt.Errorf("%s.options: %q: %w", field, opt, ErrInvalid)
		}
		o.add(opt)
	}
	if o.bind {
		// "rw" on a bind only says that "ro" was not asked for; clearing the flag would
		// make a read-only source writable.
		o.clr &^= unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
	} else {
		o.set |= o.setRec // a new mount has nothing below it
	}
	return o, nil
}

// add takes one option in.
func (o *options) add(opt string) {
	if opt == "bind" || opt == "rbind" {
		o.bind = true
		return
	}
	if opt == "defaults" {
		return
	}
	if p, ok := propagations[opt]; ok {
		o.propagation = p
		return
	}
	if apply(&o.set, &o.clr, opt) {
		return
	}
	if r, ok := strings.CutPrefix(opt, "r"); ok && apply(&o.setRec, &o.clrRec, r) {
		return
	}
	o.data = append(o.data, opt)
}

// apply sets or clears the attribute that opt names; the last option wins.
func apply(set, clr *uint64, opt string) bool {
	if v, ok := atimes[opt]; ok {
		*set = *set&^atime | v
		*clr |= atime
		return true
	}
	a, ok := attributes[opt]
	if !ok {
		return false
	}
	if a.clear {
		*set &^= a.bits
		*clr |= a.bits
	} else {
		*set |= a.bits
		*clr &^= a.bits
	}
	return true
}
