package program

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// rootPropagation says what linux.rootfsPropagation makes of the root: at first
// private, so that nothing of what is mounted in it is seen outside, or a slave, so
// that what the host mounts there later is seen inside.
//
//	""  private   nothing either way
//	slave         from the host in
//	shared        private towards the host; then a new group of peers, whom a namespace
//	              or container that is made inside may join
//	unbindable    private, and no bind mount can be made of it
//
// With the r (rshared) the second setting holds for all that is mounted by then.
func (c *compiler) rootPropagation() (first, then uint64, recursive uint64, err error) {
	p := c.spec.Linux.RootfsPropagation
	kind, known := propagations[p]
	switch {
	case p == "":
		return unix.MS_PRIVATE, 0, 0, nil
	case !known:
		return 0, 0, 0, fmt.Errorf("linux.rootfsPropagation: %q: %w", p, ErrInvalid)
	case kind == unix.MS_PRIVATE || kind == unix.MS_SLAVE:
		return kind, 0, 0, nil
	case strings.HasPrefix(p, "r"):
		recursive = unix.AT_RECURSIVE
	}
	return unix.MS_PRIVATE, kind, recursive, nil
}

// propagateRoot is the second setting: behind the pivot, which is refused below a shared
// mount, and behind all copies of mounts, which cannot be made of an unbindable one.
func (c *compiler) propagateRoot() error {
	_, then, recursive, err := c.rootPropagation()
	if err == nil && then != 0 {
		c.setattr("set the propagation of the root", rootFD, c.str(""), unix.AT_EMPTY_PATH|recursive, unix.MountAttr{Propagation: then})
	}
	return err
}

// visible attaches a procfs and a sysfs where the root will cover them. The
// kernel lets a user namespace mount these two only where its mount namespace shows them
// already, uncovered; both go with the old root. They may be copies of the host's, which are
// shared: what is attached on top of them, the root itself, would be seen on the host's.
func (c *compiler) visible() {
	for _, f := range c.in.Visible {
		c.setattr("keep what comes on top to ourselves", file(f), c.str(""), unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, unix.MountAttr{Propagation: unix.MS_PRIVATE})
		c.call("show the kernel's files for a moment", unix.SYS_MOVE_MOUNT, file(f), c.str(""), val(atFDCWD), c.str(ScratchRoot), val(unix.MOVE_MOUNT_F_EMPTY_PATH))
	}
}
