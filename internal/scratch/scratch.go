// Package scratch makes the tiny mount namespace that programs are started from:
//
//	/       tmpfs, read-only
//	/root   where a container's root is attached before the pivot
//	/empty  an empty directory, 0555: masks directories
//	/null   character device 1:3: masks files, is stdin; in a user namespace the host's, bound
//
// A container's mount namespace is a copy of this one, so its cost grows with
// what is mounted here, and nothing of the host is in it to be reached by a
// program that went wrong. The monitor of a pod moves there for good; the command
// line sends one thread there.
package scratch

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// Names in the tiny root.
const (
	Root     = "/root"
	EmptyDir = "/empty"
)

// Enter makes the calling thread's mount namespace, which must be a fresh copy of
// the host's and its own, as small as it can be. There has to be a /proc in it. A
// thread that shares its directories with others (CLONE_FS) is refused by the kernel;
// unshare(CLONE_NEWNS) ends that sharing. After an error the namespace is of no use.
//
// label is the SELinux label that all files in it have, which containers see as masks; "" leaves that to the policy.
func Enter(label string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	root, err := build(label)
	if err != nil {
		return err
	}
	defer root.Close()
	null, err := hostNull(root)
	if err != nil {
		return err
	}
	defer null.Close()
	// pivot_root wants an attached mount. Any directory will do.
	proc, err := sys.OpenTree(unix.AT_FDCWD, "/proc", unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return err
	}
	defer proc.Close()
	if err := sys.MoveMount(root, proc); err != nil {
		return err
	}
	if err := bindNull(root, null); err != nil {
		return err
	}
	if err := unix.Fchdir(root.Int()); err != nil {
		return fmt.Errorf("enter tmpfs: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	// The old root now lies on top of the new one.
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detach the host's mounts: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("enter /: %w", err)
	}
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC}
	return sys.MountSetattr(unix.AT_FDCWD, "/", 0, attr)
}

// build returns the tmpfs, detached and still writable.
func build(label string) (*sys.FD, error) {
	fs, err := sys.FSOpen("tmpfs")
	if err != nil {
		return nil, err
	}
	defer fs.Close()
	for _, o := range [][2]string{{"source", "vitrine"}, {"mode", "0755"}, {"size", "4096"}, {"nr_inodes", "8"}, {"context", label}} {
		if o[1] == "" {
			continue
		}
		if err := sys.FSConfigString(fs, o[0], o[1]); err != nil {
			return nil, err
		}
	}
	if err := sys.FSConfigCreate(fs); err != nil {
		return nil, err
	}
	root, err := sys.FSMount(fs, 0)
	if err != nil {
		return nil, err
	}
	old := unix.Umask(0)
	defer unix.Umask(old)
	for _, d := range []struct {
		name string
		mode uint32
	}{{"root", 0o755}, {"empty", 0o555}} {
		if err := unix.Mkdirat(root.Int(), d.name, d.mode); err != nil {
			root.Close()
			return nil, fmt.Errorf("mkdir /%s: %w", d.name, err)
		}
	}
	err = unix.Mknodat(root.Int(), "null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3)))
	if errors.Is(err, unix.EPERM) { // in a user namespace nobody makes devices: Enter binds the host's
		err = unix.Mknodat(root.Int(), "null", unix.S_IFREG|0o666, 0)
	}
	if err != nil {
		root.Close()
		return nil, fmt.Errorf("mknod /null: %w", err)
	}
	return root, nil
}

// hostNull returns the host's null device where root has none of its own, and else nil.
func hostNull(root *sys.FD) (*sys.FD, error) {
	null := unix.Mkdev(1, 3)
	is := func(dir int, name string) bool {
		var st unix.Stat_t
		return unix.Fstatat(dir, name, &st, 0) == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == null
	}
	if is(root.Int(), "null") {
		return nil, nil
	}
	if !is(unix.AT_FDCWD, "/dev/null") {
		return nil, fmt.Errorf("use /dev/null: it is another file: %w", unix.ENODEV)
	}
	return sys.OpenTree(unix.AT_FDCWD, "/dev/null", unix.OPEN_TREE_CLONE)
}

// bindNull puts that in its place.
func bindNull(root, null *sys.FD) error {
	if null == nil {
		return nil
	}
	at, err := sys.OpenAt2(root.Int(), "null", unix.O_PATH|unix.O_NOFOLLOW, unix.RESOLVE_BENEATH)
	if err != nil {
		return err
	}
	defer at.Close()
	return sys.MoveMount(null, at)
}
