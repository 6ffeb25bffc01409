package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// pinPrefix marks the pins that are ours.
const pinPrefix = "vitrine-"

// netns returns the path of the pod's pinned network namespace.
func (sb *Sandbox) netns() string {
	return filepath.Join(sb.m.cfg.NetNSDir, pinPrefix+sb.id[:12])
}

// pinNetNS binds a network namespace to a file, so that it can be opened by path: by network plugins, which
// are given the path, by their agents from other mount namespaces, and after the monitor's death. The
// directory is made a shared mount first, as ip-netns(8) does.
func pinNetNS(ns *sys.FD, dir, path string) error {
	if err := shareDir(dir); err != nil {
		return fmt.Errorf("share %s: %w", dir, err)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return fmt.Errorf("pin network namespace: %w", err)
	}
	f.Close()
	// A bind mount of a namespace is one of its inode: the magic link has to be followed.
	if err := unix.Mount(sys.ProcPath(ns.Int()), path, "", unix.MS_BIND, ""); err != nil {
		return errors.Join(fmt.Errorf("pin network namespace: mount %s: %w", path, err), os.Remove(path))
	}
	return nil
}

// sharing is held while somebody looks whether a directory is a mount and makes it one: of two pods that are the first at
// the same time, one would otherwise put a second mount over the other's.
var sharing sync.Mutex

// shareDir makes dir a shared mount unless it is one.
func shareDir(dir string) error {
	sharing.Lock()
	defer sharing.Unlock()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(dir))
	if err != nil {
		return err
	}
	if len(mounts) == 0 {
		if err := unix.Mount(dir, dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return os.NewSyscallError("mount", err)
		}
	} else if strings.Contains(mounts[0].Optional, "shared:") {
		return nil
	}
	return os.NewSyscallError("mount", unix.Mount("", dir, "", unix.MS_SHARED|unix.MS_REC, ""))
}

// unpinNetNS takes a pin away. A pin that does not exist is no error.
func unpinNetNS(path string) error {
	if err := unmountAll(path); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// unmountAll unmounts whatever is mounted on path, also several mounts on top of each other, lazily: what
// is still in use ends with its last user. Nothing mounted, or no such path, is no error.
func unmountAll(path string) error {
	for range 64 {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		switch {
		case errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT):
			return nil
		case err != nil:
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
	return fmt.Errorf("unmount %s: more than 64 mounts on top of each other", path)
}

// strayPins returns the pins of ours that belong to none of the given pods.
func strayPins(dir string, pods []string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	own := map[string]bool{}
	for _, id := range pods {
		own[pinPrefix+id[:12]] = true
	}
	var out []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), pinPrefix) && len(e.Name()) == len(pinPrefix)+12 && !own[e.Name()] {
			out = append(out, filepath.Join(dir, e.Name()))
		}
	}
	return out, nil
}
