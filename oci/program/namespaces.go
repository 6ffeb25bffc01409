package program

import (
	"fmt"
	"slices"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
)

// namespaceFlags are the kernel's flags of the namespaces of the spec.
var namespaceFlags = map[specs.LinuxNamespaceType]uint64{
	specs.PIDNamespace:     unix.CLONE_NEWPID,
	specs.MountNamespace:   unix.CLONE_NEWNS,
	specs.NetworkNamespace: unix.CLONE_NEWNET,
	specs.IPCNamespace:     unix.CLONE_NEWIPC,
	specs.UTSNamespace:     unix.CLONE_NEWUTS,
	specs.CgroupNamespace:  unix.CLONE_NEWCGROUP,
	specs.TimeNamespace:    unix.CLONE_NEWTIME,
	specs.UserNamespace:    unix.CLONE_NEWUSER,
}

// NamespaceFlag returns the kernel's flag (CLONE_NEW*) of a namespace of the spec, 0 for none.
func NamespaceFlag(t specs.LinuxNamespaceType) uint64 { return namespaceFlags[t] }

// namespaceSets says, in CLONE_NEW* flags, where a container's namespaces come
// from. What is in none of the three is the forking process's.
type namespaceSets struct {
	fresh     uint64 // made for it
	joined    uint64 // behind descriptors of the table
	inherited uint64 // of the process that forks, and named in the spec
}

// sort fills the sets from the spec.
func (c *compiler) sort() error {
	for i, ns := range c.spec.Linux.Namespaces {
		field := fmt.Sprintf("linux.namespaces[%d]", i)
		flag, known := namespaceFlags[ns.Type]
		if !known {
			return fmt.Errorf("%s.type: %q: %w", field, ns.Type, ErrUnsupported)
		}
		if (c.ns.fresh|c.ns.joined|c.ns.inherited)&flag != 0 {
			return fmt.Errorf("%s: second %s namespace: %w", field, ns.Type, ErrInvalid)
		}
		_, join := c.in.Join[ns.Type]
		switch {
		case slices.Contains(c.in.Inherit, ns.Type):
			c.ns.inherited |= flag
		case ns.Path == "" && !join:
			c.ns.fresh |= flag
		case flag == unix.CLONE_NEWNS:
			// Its tree is somebody's in use. To attach a root to it and to pivot would
			// be seen by everybody who is there.
			return fmt.Errorf("%s.path: join a mount namespace: %w", field, ErrUnsupported)
		case ns.Path == "" || !join:
			return fmt.Errorf("%s.path: %q, and a descriptor of the namespace is there: %v: %w", field, ns.Path, join, ErrInvalid)
		default:
			c.ns.joined |= flag
		}
	}
	for t := range c.in.Join {
		if c.ns.joined&namespaceFlags[t] == 0 {
			return fmt.Errorf("linux.namespaces: descriptor of a %q namespace that is not to be joined: %w", t, ErrInvalid)
		}
	}
	if c.ns.fresh&unix.CLONE_NEWNS == 0 {
		return fmt.Errorf("linux.namespaces: without a mount namespace of its own: %w", ErrUnsupported)
	}
	return nil
}

// namespaces begins the program: namespaces, session, host name, loopback.
func (c *compiler) namespaces() error {
	// The root of a cgroup namespace is the cgroup that the process is in when it is
	// made, and with a driver that moves the process later that would be the
	// monitor's, were it made by the clone. The directory of an ipc namespace's message
	// queues belongs to who makes that, and in a user namespace this is nobody before
	// becomeRoot.
	inside, enters := c.ns.fresh&unix.CLONE_NEWCGROUP, (c.ns.fresh|c.ns.joined)&unix.CLONE_NEWUSER != 0
	if enters {
		inside |= c.ns.fresh & unix.CLONE_NEWIPC
	}
	flags := c.ns.fresh &^ inside
	if len(c.spec.Linux.TimeOffsets) > 0 {
		flags &^= unix.CLONE_NEWTIME // see clocks
	}
	if c.twice() {
		c.hop(flags)
	} else {
		c.p.Clone = flags
		c.join()
	}
	c.makeClocks()
	if c.ns.fresh&unix.CLONE_NEWUSER != 0 {
		c.gate(step.GateMaps)
	}
	if enters {
		c.becomeRoot(c.rootUID, c.rootGID)
	}
	c.call("become leader of a session", unix.SYS_SETSID)
	c.call("make files with the modes given", unix.SYS_UMASK, val(0))
	switch {
	case inside == unix.CLONE_NEWCGROUP:
		c.call("make the own cgroup the root of the view", unix.SYS_UNSHARE, val(inside))
	case inside != 0:
		c.call("make what is to belong to that root", unix.SYS_UNSHARE, val(inside))
	}
	if err := c.uts(c.ns.fresh&unix.CLONE_NEWUTS != 0); err != nil {
		return err
	}
	if c.ns.fresh&unix.CLONE_NEWNET != 0 {
		c.loopback()
	}
	if c.in.NetGate {
		c.gate(step.GateNet)
	}
	return nil
}

// uts names the host. In a namespace that is shared (the pod's, the host's) the
// name is not this container's to change.
func (c *compiler) uts(fresh bool) error {
	if !fresh {
		return nil
	}
	for _, n := range []struct {
		name, value string
		nr          uint32
	}{{"hostname", c.spec.Hostname, unix.SYS_SETHOSTNAME}, {"domainname", c.spec.Domainname, unix.SYS_SETDOMAINNAME}} {
		if n.value == "" {
			continue
		}
		if len(n.value) > 64 { // __NEW_UTS_LEN
			return fmt.Errorf("%s of %d bytes: %w", n.name, len(n.value), ErrInvalid)
		}
		c.call("set the "+n.name, n.nr, c.str(n.value), val(len(n.value)))
	}
	return nil
}

// loopback sets lo up in a network namespace made by the clone.
func (c *compiler) loopback() {
	ifreq := make([]byte, 40) // struct ifreq: name, then flags
	copy(ifreq, "lo")
	ifreq[16] = unix.IFF_UP
	c.call("reach the network stack", unix.SYS_SOCKET, val(unix.AF_INET), val(unix.SOCK_DGRAM|unix.SOCK_CLOEXEC), val(0)).to(rAny)
	c.call("set the loopback interface up", unix.SYS_IOCTL, reg(rAny), val(unix.SIOCSIFFLAGS), c.bytes(ifreq))
	c.closeReg(rAny)
}

// root attaches the detached root in the private copy of the monitor's mount
// namespace, where the clone has put the child.
func (c *compiler) root() error {
	// A root that was cloned from a shared mount of the host would show the
	// host all that is mounted in it.
	first, _, _, err := c.rootPropagation()
	if err != nil {
		return err
	}
	c.setattr("keep what is mounted in the root to ourselves", rootFD, c.str(""), unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, unix.MountAttr{Propagation: first})
	c.setattr("keep mounts to ourselves", val(atFDCWD), c.str("/"), unix.AT_RECURSIVE, unix.MountAttr{Propagation: unix.MS_PRIVATE})
	c.visible()
	c.call("attach the root", unix.SYS_MOVE_MOUNT, rootFD, c.str(""), val(atFDCWD), c.str(ScratchRoot), val(unix.MOVE_MOUNT_F_EMPTY_PATH))
	return nil
}

// pivot makes the root the root.
func (c *compiler) pivot() error {
	if c.in.HookGate {
		c.gate(step.GateHooks)
	}
	c.uncovered()
	c.call("enter the new root", unix.SYS_FCHDIR, rootFD)
	c.call("make it the root of the namespace", unix.SYS_PIVOT_ROOT, c.str("."), c.str("."))
	c.call("detach the old root", unix.SYS_UMOUNT2, c.str("."), val(unix.MNT_DETACH))
	c.call("go to the top", unix.SYS_CHDIR, c.str("/"))
	if c.spec.Root != nil && c.spec.Root.Readonly {
		c.setattr("make the root read-only", rootFD, c.str(""), unix.AT_EMPTY_PATH, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	}
	return c.propagateRoot()
}

// uncovered makes sure that nothing was mounted on the root itself, where a
// destination led that is a symlink to "/": it would be out of the container's
// sight, and a later exec, whom the kernel puts on top, would see nothing else.
func (c *compiler) uncovered() {
	ours := c.mountID("look at the root", rootFD, "", unix.AT_EMPTY_PATH)
	top := c.mountID("look at what is on top of it", val(atFDCWD), ScratchRoot, 0)
	c.same("find nothing mounted on the root itself", ours, top, unix.EBUSY)
}

// mountID asks for the number of a mount, and returns where the answer stands.
func (b *builder) mountID(name string, dir step.Arg, path string, flags uint64) step.Arg {
	st := b.room(int(unsafe.Sizeof(unix.Statx_t{})))
	b.call(name, unix.SYS_STATX, dir, b.str(path), val(flags), val(unix.STATX_MNT_ID), st)
	return mem64(st, unsafe.Offsetof(unix.Statx_t{}.Mnt_id))
}

const atFDCWD = unix.AT_FDCWD

// setattr adds a mount_setattr.
func (b *builder) setattr(name string, dir, path step.Arg, flags uint64, a unix.MountAttr) {
	attr := b.words(a.Attr_set, a.Attr_clr, a.Propagation, a.Userns_fd)
	b.call(name, unix.SYS_MOUNT_SETATTR, dir, path, val(flags), attr, val(uint64(unix.MOUNT_ATTR_SIZE_VER0)))
}
