package program

import (
	"cmp"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
)

// Resolution inside the root: absolute symlinks mean the root, nothing leads
// out, and no magic link of a procfs is followed.
const inRoot = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS

// beneath is resolution below another directory, which nothing leads out of either.
const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS

// cleanDest returns a destination inside the root without its leading slash.
func cleanDest(field, p string) (string, error) {
	if !path.IsAbs(p) || strings.ContainsRune(p, 0) {
		return "", fmt.Errorf("%s: path %q: %w", field, p, ErrInvalid)
	}
	if len(p) >= unix.PathMax {
		return "", fmt.Errorf("%s: path of %d bytes: %w", field, len(p), ErrInvalid)
	}
	return strings.TrimPrefix(path.Clean(p), "/"), nil
}

// MountPoint returns the clean destination of a mount without its leading slash:
// relative ones are below the root, as the spec has it for old configurations.
func MountPoint(field, p string) (string, error) {
	if p == "" {
		return "", fmt.Errorf("%s is missing: %w", field, ErrInvalid)
	}
	if p[0] != '/' {
		p = "/" + p
	}
	return cleanDest(field, p)
}

// open adds an openat2 of a path inside the root.
func (b *builder) open(name, p string, flags uint64, resolve uint64, to step.Register) op {
	return b.openBelow(name, rootFD, p, flags, resolve, to)
}

// openBelow opens p below another directory.
func (b *builder) openBelow(name string, dir step.Arg, p string, flags, resolve uint64, to step.Register) op {
	how := b.words(flags|unix.O_CLOEXEC, 0, resolve)
	return b.call(name, unix.SYS_OPENAT2, dir, b.str(p), how, val(unix.SizeofOpenHow)).to(to)
}

// protect opens a path that is to be covered: the kernel's files below the mount that
// has them, and all others inside the root.
func (c *compiler) protect(name, p string, flags uint64) op {
	top, rest, _ := strings.Cut(p, "/")
	if r, ok := c.kernel[top]; ok {
		return c.openBelow(name, reg(r), cmp.Or(rest, "."), flags, beneath, rTarget)
	}
	return c.open(name, p, flags, inRoot, rTarget)
}

// target opens the place p inside the root, made if it is missing: as a
// directory with its parents, or as an empty file. The descriptor is in
// rTarget.
func (b *builder) target(p string, dir bool, resolve uint64) {
	flags := uint64(unix.O_PATH)
	if dir {
		flags |= unix.O_DIRECTORY
	}
	var found, missing label
	b.open("find /"+p, p, flags, resolve, rTarget).then(&found).on(unix.ENOENT, &missing)
	b.here(&missing)
	if dir {
		b.mkdirAll(p, resolve)
		b.closeParent(p)
		b.open("open /"+p, p, flags, resolve, rTarget)
	} else {
		b.mkdirAll(path.Dir(p), resolve)
		b.call("make file /"+p, unix.SYS_MKNODAT, reg(rParent), b.str(path.Base(p)), val(uint64(unix.S_IFREG|0o644)), val(0)).ok(unix.EEXIST)
		b.closeParent(path.Dir(p))
		b.open("open /"+p, p, flags, resolve, rTarget).then(&found).ok(unix.ENOENT)
		// A symlink that leads nowhere, as /etc/resolv.conf of images that were a
		// machine's once: it is covered itself, which needs nothing behind it.
		b.open("open the dangling link /"+p, p, flags|unix.O_NOFOLLOW, resolve, rTarget)
	}
	b.here(&found)
}

// mkdirAll makes directory p with its parents. The last directory stays open in
// rParent (see closeParent). Each prefix is resolved
// from the root again, and each directory is made as one component below an
// open one, so that a symlink put there meanwhile can only redirect inside.
func (b *builder) mkdirAll(p string, resolve uint64) {
	b.call("start at the root", step.OpSet, rootFD).to(rParent)
	if p == "." {
		return
	}
	parts := strings.Split(p, "/")
	for i, part := range parts {
		prefix := strings.Join(parts[:i+1], "/")
		var there label
		b.open("enter /"+prefix, prefix, unix.O_PATH|unix.O_DIRECTORY, resolve, rWalk).then(&there).ok(unix.ENOENT)
		b.call("make directory /"+prefix, unix.SYS_MKDIRAT, reg(rParent), b.str(part), val(0o755)).ok(unix.EEXIST)
		b.open("enter /"+prefix, prefix, unix.O_PATH|unix.O_DIRECTORY, resolve, rWalk)
		b.here(&there)
		if i > 0 {
			b.closeReg(rParent)
		}
		b.call("go on from there", step.OpSet, reg(rWalk)).to(rParent)
	}
}

// closeParent closes what mkdirAll left open, unless it is the root itself.
func (b *builder) closeParent(p string) {
	if p != "." {
		b.closeReg(rParent)
	}
}

// paths covers the masked paths and makes the read-only ones read-only. A path
// that does not exist needs no cover; every other failure ends the child.
func (c *compiler) paths() error {
	for i, p := range c.spec.Linux.MaskedPaths {
		dest, err := protectedPath(fmt.Sprintf("linux.maskedPaths[%d]", i), p)
		if err != nil {
			return err
		}
		c.mask(dest)
	}
	for i, p := range c.spec.Linux.ReadonlyPaths {
		dest, err := protectedPath(fmt.Sprintf("linux.readonlyPaths[%d]", i), p)
		if err != nil {
			return err
		}
		c.readonly(dest)
	}
	return nil
}

func protectedPath(field, p string) (string, error) {
	dest, err := cleanDest(field, p)
	if err == nil && dest == "" {
		err = fmt.Errorf("%s: the root itself: %w", field, ErrInvalid)
	}
	return dest, err
}

// mask covers a directory with our empty one and anything else with our null
// device, both opened in the monitor's mount namespace, where no image and no
// container can have put them.
func (c *compiler) mask(p string) {
	const cover = uint64(unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC)
	var file, absent label
	c.protect("find directory /"+p, p, unix.O_PATH|unix.O_DIRECTORY).on(unix.ENOTDIR, &file).on(unix.ENOENT, &absent)
	c.call("copy the empty directory", unix.SYS_OPEN_TREE, val(atFDCWD), c.str(EmptyDir), val(uint64(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC))).to(rMount)
	c.setattr("make it read-only", reg(rMount), c.str(""), unix.AT_EMPTY_PATH, unix.MountAttr{Attr_set: cover})
	var done label
	c.attach("mask /" + p)
	c.call("close it", unix.SYS_CLOSE, reg(rMount)).then(&done)
	c.here(&file)
	// ENOTDIR again: a parent is a file, and so the path does not exist.
	c.protect("find /"+p, p, unix.O_PATH).on(unix.ENOTDIR, &absent)
	c.call("copy the null device", unix.SYS_OPEN_TREE, val(atFDCWD), c.str(NullFile), val(uint64(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC))).to(rMount)
	c.setattr("make it read-only", reg(rMount), c.str(""), unix.AT_EMPTY_PATH, unix.MountAttr{Attr_set: cover})
	c.attach("mask /" + p)
	c.closeReg(rMount)
	c.here(&done)
	c.closeReg(rTarget)
	c.here(&absent)
}

// readonly covers a path with a read-only copy of itself and of all below.
func (c *compiler) readonly(p string) {
	var absent label
	c.protect("find /"+p, p, unix.O_PATH).on(unix.ENOENT, &absent).on(unix.ENOTDIR, &absent)
	c.call("copy it", unix.SYS_OPEN_TREE, reg(rTarget), c.str(""),
		val(uint64(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE))).to(rMount)
	c.setattr("make the copy read-only", reg(rMount), c.str(""), unix.AT_EMPTY_PATH|unix.AT_RECURSIVE,
		unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	c.attach("make /" + p + " read-only")
	c.closeReg(rMount)
	c.closeReg(rTarget)
	c.here(&absent)
}

// attach moves the mount in rMount to the place in rTarget.
func (b *builder) attach(name string) { b.moveMount(name, reg(rMount)) }

func (b *builder) moveMount(name string, from step.Arg) {
	b.call(name, unix.SYS_MOVE_MOUNT, from, b.str(""), reg(rTarget), b.str(""),
		val(uint64(unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)))
}

// workdir makes the working directory if the image lacks it.
func (c *compiler) workdir() error {
	dest, err := cleanDest("process.cwd", c.spec.Process.Cwd)
	if err != nil || dest == "" {
		return err
	}
	var there label
	c.open("look for the working directory", dest, unix.O_PATH, inRoot, rParent).then(&there).ok(unix.ENOENT)
	c.mkdirAll(dest, inRoot)
	c.here(&there)
	c.closeReg(rParent)
	return nil
}
