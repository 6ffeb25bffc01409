package program

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
)

// filesystems that a program makes a new instance of, by their type in the
// spec: those of the kernel that need no device and no path of the host. All
// others arrive as descriptors.
var filesystems = map[string]string{
	"proc": "proc", "sysfs": "sysfs", "tmpfs": "tmpfs", "devpts": "devpts", "mqueue": "mqueue",
	"cgroup": "cgroup2", "cgroup2": "cgroup2", "ramfs": "ramfs", "hugetlbfs": "hugetlbfs", "bpf": "bpf", "binder": "binder",
	"debugfs": "debugfs", "tracefs": "tracefs", "securityfs": "securityfs", "configfs": "configfs", "fusectl": "fusectl",
	"pstore": "pstore", "efivarfs": "efivarfs", "selinuxfs": "selinuxfs", "binfmt_misc": "binfmt_misc",
}

// labelled are the filesystems whose files have linux.mountLabel: those that are the container's own and that keep labels,
// also in a user namespace. The kernel's own files have labels by its policy, and what is bound has those that it has.
var labelled = []string{"tmpfs", "ramfs", "devpts"}

// Labelled returns the options of a new filesystem together with the label that all its files have by
// linux.mountLabel. An option of the mount that speaks of labels counts more.
func Labelled(s *specs.Spec, fstype string, options []string) []string {
	const option = "context="
	if s.Linux.MountLabel == "" || !slices.Contains(labelled, fstype) || strings.Contains(strings.Join(options, ","), option) {
		return options
	}
	return append(slices.Clone(options), option+s.Linux.MountLabel)
}

// InProgram says whether a program makes a filesystem of this type itself. A
// mount of another type, and each bind, needs a descriptor in Input.Binds.
func InProgram(fstype string) bool { return filesystems[fstype] != "" }

// own are the filesystems of which each mount is an instance of its own: what a
// remount changes there, it changes for nobody else.
var own = []string{"tmpfs", "ramfs", "devpts", "proc", "hugetlbfs"}

// mounts adds the mounts of the spec, in its order.
func (c *compiler) mounts() error {
	genuine := map[string]uint64{} // destination -> what the last mount there is of
	c.made, c.kernel = map[string]string{}, map[string]step.Register{}
	c.again = c.remounted()
	for i := range c.spec.Mounts {
		m := &c.spec.Mounts[i]
		o, dest, err := c.mount(i, m)
		if err != nil {
			return err
		}
		if o.Remount {
			continue
		}
		delete(genuine, dest)
		delete(c.made, dest)
		delete(c.kernel, dest)
		b, bound := c.in.Binds[i]
		if dest != "proc" && (b.Proc || !bound && filesystems[m.Type] == "proc") {
			c.procs = append(c.procs, dest+"/")
		}
		switch {
		case bound && dest == "proc" && b.Proc:
			genuine[dest] = unix.PROC_SUPER_MAGIC
		case !bound:
			c.made[dest] = filesystems[m.Type]
			if magic[m.Type] != 0 {
				genuine[dest] = magic[m.Type]
			}
		}
		if r, ok := keeps[dest]; ok && genuine[dest] != 0 {
			c.kernel[dest] = r
		}
	}
	for _, dest := range slices.Sorted(maps.Keys(genuine)) {
		c.genuine(dest, genuine[dest])
	}
	return nil
}

// remounted has the destinations that a mount of the spec speaks of a second time.
func (c *compiler) remounted() map[string]*step.Arg {
	again := map[string]*step.Arg{}
	for i := range c.spec.Mounts {
		m := &c.spec.Mounts[i]
		if slices.ContainsFunc(m.Options, func(o string) bool { return strings.Contains(o, "remount") }) {
			if dest, err := MountPoint("", m.Destination); err == nil {
				again[dest] = nil
			}
		}
	}
	return again
}

// remember keeps the number of the mount at dest if it is to be found again.
func (c *compiler) remember(dest string, mount step.Arg) {
	if _, ok := c.again[dest]; ok {
		id := c.mountID("look which mount it is", mount, "", unix.AT_EMPTY_PATH)
		c.again[dest] = &id
	}
}

// keeps has the registers for descriptors of what is mounted on these two. Masks find
// their files by them, whatever who can write to the root calls the directories
// meanwhile.
var keeps = map[string]step.Register{"proc": rProcRoot, "sys": rSysRoot}

// keep holds the mount at dest, if it is one of those, and says so.
func (c *compiler) keep(dest string, mount step.Arg) bool {
	r, ok := keeps[dest]
	if ok {
		c.call("hold on to /"+dest, step.OpSet, mount).to(r)
	}
	return ok
}

// magic has the filesystems that masks and read-only paths are meant for.
var magic = map[string]uint64{"proc": unix.PROC_SUPER_MAGIC, "sysfs": unix.SYSFS_MAGIC}

// genuine makes sure that the kernel's files are still where they were mounted.
// A later destination that is a symlink of the image may have led on top of
// them; the masks would then find nothing to mask, and say nothing.
func (c *compiler) genuine(dest string, magic uint64) {
	c.open("find /"+dest+" again", dest, unix.O_PATH|unix.O_DIRECTORY, inRoot|unix.RESOLVE_NO_SYMLINKS, rTarget)
	c.expect("find /"+dest+" uncovered", c.filesystem(rTarget), magic, ^uint64(0), unix.EBUSY)
	c.closeReg(rTarget)
}

// filesystem asks what filesystem a descriptor is of, and returns where the answer
// stands.
func (b *builder) filesystem(r step.Register) step.Arg {
	st := b.room(int(unsafe.Sizeof(unix.Statfs_t{})))
	b.call("ask what filesystem it is", unix.SYS_FSTATFS, reg(r), st)
	return mem64(st, unsafe.Offsetof(unix.Statfs_t{}.Type))
}

// mount adds one mount and says where it is.
func (c *compiler) mount(i int, m *specs.Mount) (o MountOptions, dest string, err error) {
	field := fmt.Sprintf("mounts[%d]", i)
	if o, err = ParseMount(field, m); err != nil {
		return o, "", err
	}
	if dest, err = MountPoint(field+".destination", m.Destination); err != nil {
		return o, dest, err
	}
	if dest == "" && !o.Remount {
		return o, dest, fmt.Errorf("%s.destination: the root itself: %w", field, ErrInvalid)
	}
	if o.Remount {
		return o, dest, c.remount(field, dest, o)
	}
	if b, ok := c.in.Binds[i]; ok || o.Bind {
		if !ok {
			return o, dest, fmt.Errorf("%s.source: bind mount without a descriptor: %w", field, ErrUnsupported)
		}
		return o, dest, c.bindMount(i, field, dest, o, b)
	}
	fstype, ok := filesystems[m.Type]
	if !ok {
		return o, dest, fmt.Errorf("%s.type: %q without a descriptor: %w", field, m.Type, ErrUnsupported)
	}
	if o.IDMap || o.CopyUp {
		return o, dest, fmt.Errorf("%s.options: idmap or tmpcopyup without a descriptor: %w", field, ErrUnsupported)
	}
	if fstype == "cgroup2" && c.ns.fresh&unix.CLONE_NEWCGROUP == 0 {
		if c.userNS() {
			return o, dest, fmt.Errorf("%s: cgroup in a user namespace without a cgroup namespace or a descriptor: %w", field, ErrUnsupported)
		}
		o.Data = hierarchyFlags(o.Data)
	}
	return o, dest, c.fsMount(i, field, fstype, m.Source, dest, o)
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
func (c *compiler) fsMount(i int, field, fstype, source, dest string, o MountOptions) error {
	if source == "" {
		source = fstype
	}
	if strings.ContainsRune(source, 0) || len(source) > maxFSValue {
		return fmt.Errorf("%s.source: %.256q: %w", field, source, ErrInvalid)
	}
	c.call("prepare a "+fstype, unix.SYS_FSOPEN, c.str(fstype), val(unix.FSOPEN_CLOEXEC)).to(rContext)
	c.call("called "+source, unix.SYS_FSCONFIG, reg(rContext), val(unix.FSCONFIG_SET_STRING), c.str("source"), c.str(source), val(0))
	if err := c.configure(field, append(slices.Clone(o.Super), Labelled(c.spec, fstype, o.Data)...)); err != nil {
		return err
	}
	c.call("make it", unix.SYS_FSCONFIG, reg(rContext), val(unix.FSCONFIG_CMD_CREATE), val(0), val(0), val(0))
	c.call("make a mount of it", unix.SYS_FSMOUNT, reg(rContext), val(unix.FSMOUNT_CLOEXEC), val(o.Set)).to(rMount)
	c.closeReg(rContext)
	resolve := uint64(inRoot)
	if fstype == "proc" || fstype == "sysfs" {
		// An image whose /proc is a symlink wants the kernel's files somewhere else,
		// where later writes and masks would miss them (CVE-2019-19921).
		resolve |= unix.RESOLVE_NO_SYMLINKS
	}
	c.target(c.place(i, dest), true, resolve)
	c.attach("mount " + fstype + " on /" + dest)
	for _, p := range o.Propagation {
		c.setattr("set its propagation", reg(rMount), c.str(""), unix.AT_EMPTY_PATH, unix.MountAttr{Propagation: p})
	}
	c.remember(dest, reg(rMount))
	if magic[fstype] == 0 || !c.keep(dest, reg(rMount)) {
		c.closeReg(rMount)
	}
	c.closeReg(rTarget)
	return nil
}

// maxFSValue is the longest value that fsconfig takes, without its NUL.
const maxFSValue = 255

// configure sets options of the filesystem whose context is in rContext.
func (c *compiler) configure(field string, options []string) error {
	for _, d := range options {
		k, v, has := strings.Cut(d, "=")
		if k == "" || len(k) > maxFSValue || len(v) > maxFSValue {
			return fmt.Errorf("%s.options: %.256q: longer than the kernel takes, or without a name: %w", field, d, ErrInvalid)
		}
		if has {
			c.call("with "+d, unix.SYS_FSCONFIG, reg(rContext), val(unix.FSCONFIG_SET_STRING), c.str(k), c.str(v), val(0))
		} else {
			c.call("with "+d, unix.SYS_FSCONFIG, reg(rContext), val(unix.FSCONFIG_SET_FLAG), c.str(k), val(0), val(0))
		}
	}
	return nil
}

// place is where a mount goes: its destination, or where a symlink of the root
// that leads to nothing wants it to be.
func (c *compiler) place(i int, dest string) string {
	if t, ok := c.in.Targets[i]; ok {
		return t
	}
	return dest
}

// remount changes what is mounted at dest: the attributes that the spec names,
// and no others. What the mount forbids and the spec does not speak of stays
// forbidden. The options of a filesystem are changed only where it is this
// program's own; of others, which the host or other containers see too, only the
// mount changes.
func (c *compiler) remount(field, dest string, o MountOptions) error {
	fstype := c.made[dest]
	if len(o.Super)+len(o.Data) > 0 && (o.Bind || !slices.Contains(own, fstype)) {
		return fmt.Errorf("%s.options: %q of a filesystem that is not the container's own: %w", field, append(o.Super, o.Data...)[0], ErrUnsupported)
	}
	at := dest
	if at == "" {
		at = "."
	}
	c.open("find /"+dest, at, unix.O_PATH, inRoot, rTarget)
	if id := c.again[dest]; id != nil {
		// A link of the image may have led another mount on top of it, a volume say,
		// which it is not about.
		there := c.mountID("look which mount is there", reg(rTarget), "", unix.AT_EMPTY_PATH)
		c.same("find the mount on /"+dest+" again", there, *id, unix.EBUSY)
	}
	options := append(slices.Clone(o.Super), o.Data...)
	if !o.Bind && slices.Contains(own, fstype) && (o.Set|o.Clear)&unix.MOUNT_ATTR_RDONLY != 0 {
		options = append(options, map[bool]string{true: "ro", false: "rw"}[o.Set&unix.MOUNT_ATTR_RDONLY != 0])
	}
	if len(options) > 0 {
		c.call("take the "+fstype+" on /"+dest, unix.SYS_FSPICK, reg(rTarget), c.str(""), val(unix.FSPICK_CLOEXEC|unix.FSPICK_EMPTY_PATH)).to(rContext)
		if err := c.configure(field, options); err != nil {
			return err
		}
		c.call("change it", unix.SYS_FSCONFIG, reg(rContext), val(unix.FSCONFIG_CMD_RECONFIGURE), val(0), val(0), val(0))
		c.closeReg(rContext)
	}
	c.restrict("/"+dest, reg(rTarget), o)
	for _, p := range o.Propagation {
		c.setattr("set the propagation of /"+dest, reg(rTarget), c.str(""), unix.AT_EMPTY_PATH, unix.MountAttr{Propagation: p})
	}
	c.closeReg(rTarget)
	return nil
}

// restrict changes the attributes of a mount, and of all below it.
func (c *compiler) restrict(what string, fd step.Arg, o MountOptions) {
	if o.Set != 0 || o.Clear != 0 {
		c.setattr("change the attributes of "+what, fd, c.str(""), unix.AT_EMPTY_PATH, unix.MountAttr{Attr_set: o.Set, Attr_clr: o.Clear})
	}
	if o.SetAll != 0 || o.ClearAll != 0 {
		c.setattr("and of all below it", fd, c.str(""), unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, unix.MountAttr{Attr_set: o.SetAll, Attr_clr: o.ClearAll})
	}
}

// bindMount attaches a detached source. What the source's own mount forbids
// (noexec, nosuid, nodev, read-only) stays forbidden: attributes are added,
// and none is cleared that the spec does not name.
func (c *compiler) bindMount(i int, field, dest string, o MountOptions, src Bind) error {
	if o.IDMap && !src.IDMapped {
		return fmt.Errorf("%s.options: idmap of a source that is not mapped: %w", field, ErrUnsupported)
	}
	if o.CopyUp && !src.Filled {
		return fmt.Errorf("%s.options: tmpcopyup of a source that is not filled: %w", field, ErrUnsupported)
	}
	resolve := uint64(inRoot)
	switch {
	case dest == "proc" && src.Proc && src.Dir:
		resolve |= unix.RESOLVE_NO_SYMLINKS
	case inProc(dest) && (src.Dir || !slices.Contains(procFiles, dest)):
		// Labels and sysctls are written through /proc; a volume there would take
		// them (CVE-2019-16884).
		return fmt.Errorf("%s.destination: bind mount on /%s: %w", field, dest, ErrInvalid)
	}
	fd := file(src.File)
	if len(o.Propagation) == 0 {
		o.Propagation = []uint64{unix.MS_PRIVATE}
	}
	for _, p := range o.Propagation {
		c.setattr("set propagation of the source of /"+dest, fd, c.str(""), unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, unix.MountAttr{Propagation: p})
	}
	c.restrict("the source of /"+dest, fd, o)
	c.target(c.place(i, dest), src.Dir, resolve)
	if !inProc(dest) && !slices.ContainsFunc(c.procs, func(p string) bool { return strings.HasPrefix(dest, p) }) {
		c.offProcfs(dest)
	}
	c.moveMount("bind /"+dest, fd)
	c.closeReg(rTarget)
	c.remember(dest, fd)
	if src.Proc {
		c.keep(dest, fd)
	}
	return nil
}

// inProc says whether a destination is /proc or below it, by its name.
func inProc(dest string) bool { return dest == "proc" || strings.HasPrefix(dest, "proc/") }

// offProcfs ends the child if the place in rTarget is in a procfs, where a link of
// the image has led to: what a volume may not cover by name it does not cover that way
// either. Below a procfs that the spec itself has mounted somewhere it is meant.
func (c *compiler) offProcfs(dest string) {
	var other label
	c.expect("see whether it is a procfs", c.filesystem(rTarget), unix.PROC_SUPER_MAGIC, ^uint64(0), unix.EPERM).on(unix.EPERM, &other)
	c.never("find no file of a procfs behind /"+dest, unix.EPERM)
	c.here(&other)
}

// procFiles may be covered by a file: lxcfs shows a container its own numbers
// there. No label and no setting of the runtime's is written to them.
var procFiles = []string{
	"proc/cpuinfo", "proc/diskstats", "proc/loadavg", "proc/meminfo", "proc/slabinfo", "proc/stat", "proc/swaps", "proc/uptime",
	"proc/net/dev", "proc/sys/kernel/ns_last_pid", "proc/sys/crypto/fips_enabled",
}

// userNS says whether the container has a user namespace, its own or a joined
// one: no device can be made there, and not every filesystem.
func (c *compiler) userNS() bool {
	return slices.ContainsFunc(c.spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == specs.UserNamespace })
}
