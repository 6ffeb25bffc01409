package sys

import (
	"errors"
	"io/fs"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// eintr runs f until it returns something other than EINTR.
func eintr(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// fdCall runs f until it returns something other than EINTR and wraps what it
// made.
func fdCall(op, path string, f func() (int, error)) (*FD, error) {
	var n int
	err := eintr(func() (err error) { n, err = f(); return err })
	if err != nil {
		return nil, &fs.PathError{Op: op, Path: path, Err: err}
	}
	return NewFD(n), nil
}

// OpenTree opens the mount at path, relative to dir (a descriptor or
// unix.AT_FDCWD). With unix.OPEN_TREE_CLONE the result is a detached copy that
// vanishes with its last descriptor. unix.OPEN_TREE_CLOEXEC is always added.
func OpenTree(dir int, path string, flags uint) (*FD, error) {
	return fdCall("open_tree", path, func() (int, error) {
		return unix.OpenTree(dir, path, flags|unix.OPEN_TREE_CLOEXEC)
	})
}

// MoveMount attaches the mount behind from (a detached tree) to the directory
// or file behind to. Neither is closed.
func MoveMount(from, to *FD) error {
	err := unix.MoveMount(from.Int(), "", to.Int(), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	runtime.KeepAlive(from)
	runtime.KeepAlive(to)
	return os.NewSyscallError("move_mount", err)
}

// FSOpen opens a configuration context for a filesystem of the named type.
func FSOpen(fstype string) (*FD, error) {
	return fdCall("fsopen", fstype, func() (int, error) { return unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC) })
}

// FSConfigString sets a key of a filesystem context. The kernel takes at most
// 256 bytes with the terminating NUL.
func FSConfigString(ctx *FD, key, value string) error {
	err := unix.FsconfigSetString(ctx.Int(), key, value)
	runtime.KeepAlive(ctx)
	return fsconfigError(key, err)
}

// FSConfigFlag sets a key without a value.
func FSConfigFlag(ctx *FD, key string) error {
	err := unix.FsconfigSetFlag(ctx.Int(), key)
	runtime.KeepAlive(ctx)
	return fsconfigError(key, err)
}

// FSConfigFD sets a key to an open descriptor.
func FSConfigFD(ctx *FD, key string, value *FD) error {
	err := unix.FsconfigSetFd(ctx.Int(), key, value.Int())
	runtime.KeepAlive(ctx)
	runtime.KeepAlive(value)
	return fsconfigError(key, err)
}

// FSConfigCreate makes the superblock that the context describes.
func FSConfigCreate(ctx *FD) error {
	err := unix.FsconfigCreate(ctx.Int())
	runtime.KeepAlive(ctx)
	return fsconfigError("create", err)
}

func fsconfigError(key string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: "fsconfig", Path: key, Err: err}
}

// FSMount makes a detached mount of a created context with the given
// MOUNT_ATTR_* attributes. The context may be closed afterwards.
func FSMount(ctx *FD, attr int) (*FD, error) {
	f, err := fdCall("fsmount", "", func() (int, error) {
		return unix.Fsmount(ctx.Int(), unix.FSMOUNT_CLOEXEC, attr)
	})
	runtime.KeepAlive(ctx)
	return f, err
}

// OpenAt2 opens path relative to dir under the given resolve restrictions
// (unix.RESOLVE_*). O_CLOEXEC is always added. Below a root the kernel gives up with
// EAGAIN whenever anybody on the machine renames or mounts something while it passes a
// "..", as in a symlink: that is repeated, but not for ever.
func OpenAt2(dir int, path string, flags int, resolve uint64) (*FD, error) {
	how := unix.OpenHow{Flags: uint64(flags) | unix.O_CLOEXEC, Resolve: resolve}
	return fdCall("openat2", path, func() (fd int, err error) {
		for range 10_000 {
			fd, err = unix.Openat2(dir, path, &how)
			if err != unix.EAGAIN || resolve&(unix.RESOLVE_IN_ROOT|unix.RESOLVE_BENEATH) == 0 {
				break
			}
		}
		return fd, err
	})
}

// MountSetattr changes the attributes of the mount at path relative to dir.
// With an empty path and unix.AT_EMPTY_PATH it is the mount behind dir itself.
func MountSetattr(dir int, path string, flags uint, attr *unix.MountAttr) error {
	if err := unix.MountSetattr(dir, path, flags, attr); err != nil {
		return &fs.PathError{Op: "mount_setattr", Path: path, Err: err}
	}
	return nil
}

// CloseRange closes (or, with unix.CLOSE_RANGE_CLOEXEC, marks close-on-exec)
// all descriptors from first to last.
func CloseRange(first, last uint, flags uint) error {
	return os.NewSyscallError("close_range", unix.CloseRange(first, last, flags))
}

// MountIDMap has the mount behind fd, or with tree all mounts of the tree, show the ids
// of its files as the user namespace maps them: what belongs to 0 on disk belongs to who
// is 0 there. fd is a detached mount that nobody has attached yet, of a filesystem
// that supports it (EINVAL else), and not mapped already (EPERM).
func MountIDMap(fd, userns *FD, tree bool) error {
	flags := uint(unix.AT_EMPTY_PATH)
	if tree {
		flags |= unix.AT_RECURSIVE
	}
	err := MountSetattr(fd.Int(), "", flags, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns.Int())})
	runtime.KeepAlive(userns)
	return err
}
