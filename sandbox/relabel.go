package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/sandbox/spec"
)

// labelAttribute is where a file system keeps the label of a file.
const labelAttribute = "security.selinux"

// maxRelabelDepth bounds the directories that a walk has open: whoever fills a volume says how deep it is.
const maxRelabelDepth = 512

// hostOwn are what a host lives from. With the label of a container nothing of it would work any more. What they lead to is meant, under
// whatever name: /lib64 is a link on most hosts, and /home is one on some.
var hostOwn = []string{"/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/media", "/mnt", "/opt", "/proc", "/root", "/run", "/sbin", "/srv", "/sys",
	"/tmp", "/usr", "/usr/bin", "/usr/lib", "/usr/lib64", "/usr/libexec", "/usr/sbin", "/var", "/var/lib", "/var/log", "/etc/passwd", "/etc/shadow", "/etc/pki"}

// relabelVolumes gives the files of volumes the label of the container, where the request says so; those of other volumes stay as
// they are (CVE-2021-43816), and so does one that a plugin took away or put another in the place of. It may take long, as there may be
// many files; with ctx it ends in the middle, and the next one goes on. opened are the sources of mounts, by their index.
func (c *Container) relabelVolumes(ctx context.Context, op *operation, mounts []specs.Mount, opened map[int]*sys.FD) error {
	if c.labels.Mount == "" {
		return nil
	}
	at := byVolume(mounts)
	for i, r := range c.config.GetMounts() {
		j, there := at[volumeOf(r)]
		if !r.GetSelinuxRelabel() || spec.IsImageVolume(r) || !there {
			continue
		}
		path := mounts[j].Source
		op.at("relabel volume " + path)
		is, err := identify(opened[j].Int(), "")
		if err == nil {
			err = c.pod.m.volumes.relabel(ctx, path, is, c.labels.Mount)
		}
		if err != nil {
			return fmt.Errorf("config.mounts[%d].selinux_relabel: relabel volume %.256q: %w", i, path, err)
		}
	}
	return nil
}

// relabel walks one volume, at most one walk of the same at a time. A server that does not answer holds the walk, but not who
// waits for it. mounted is what the container has of it.
func (v *volumeOpener) relabel(ctx context.Context, path string, mounted identity, label string) error {
	key := "relabel " + path
	mine, err := v.claim(ctx, key)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { // ends with the walk, which ctx ends unless the kernel waits for a server
		err := labelVolume(ctx, path, mounted, label)
		v.mu.Lock()
		delete(v.stuck, key)
		v.mu.Unlock()
		close(mine)
		done <- err
	}()
	select {
	case err = <-done:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EROFS) {
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	return hostPathError("config.mounts.host_path", path, err)
}

// labelVolume gives all files at path and below it a label, path itself last. Containers may be at work in the volume meanwhile: no
// link in it is followed, by descriptors of directories instead of paths, and what vanishes is no error. What cannot have labels has
// those that its mount gives it.
//
// The way there is by path once more, and not by the mount of the container: that may have other ids, and who is none of them could be
// labelled by nobody. What is not mounted is not labelled.
func labelVolume(ctx context.Context, path string, mounted identity, label string) error {
	real, err := filepath.EvalSymlinks(path) // the way to the volume is the host's
	if err != nil {
		return err
	}
	top, err := sys.OpenAt2(unix.AT_FDCWD, real, unix.O_PATH|unix.O_NOFOLLOW, unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return err
	}
	defer top.Close()
	is, err := identify(top.Int(), "")
	if err != nil {
		return err
	}
	if is != mounted {
		return fmt.Errorf("there is something else now than what was mounted: %w", ErrState)
	}
	if name := is.among(hostOwn); name != "" {
		return spec.Invalid("config.mounts.host_path", path, "the host lives from this: it is %s", name)
	}
	if dir, err := openBelow(top.Int(), "."); err == nil {
		if err := labelBelow(ctx, dir, label, 0); err != nil {
			return err
		}
	} else if !errors.Is(err, unix.ENOTDIR) {
		return err
	}
	return setLabel(sys.ProcPath(top.Int()), label, unix.Getxattr, unix.Setxattr)
}

// identity is what a file is whatever path leads to it, over links and bind mounts.
type identity struct {
	major, minor uint32 // of its device
	inode        uint64
}

// identify looks a file up from dir, dir itself without a path. It asks no server and mounts nothing on the way: that could take for ever.
func identify(dir int, path string) (identity, error) {
	var st unix.Statx_t
	if err := unix.Statx(dir, path, unix.AT_EMPTY_PATH|unix.AT_NO_AUTOMOUNT|unix.AT_STATX_DONT_SYNC, unix.STATX_INO, &st); err != nil {
		return identity{}, &fs.PathError{Op: "statx", Path: path, Err: err}
	}
	return identity{st.Dev_major, st.Dev_minor, st.Ino}, nil
}

// among returns the path that leads to the file, "" if none does. One that cannot be looked at leads to nothing that was just opened.
func (is identity) among(paths []string) string {
	i := slices.IndexFunc(paths, func(path string) bool {
		other, err := identify(unix.AT_FDCWD, path)
		return err == nil && is == other
	})
	if i < 0 {
		return ""
	}
	return paths[i]
}

// openBelow opens a directory in another one, to be read, if it is one: not what a link leads to.
func openBelow(dir int, name string) (*os.File, error) {
	fd, err := sys.OpenAt2(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_MAGICLINKS)
	if err != nil {
		return nil, err
	}
	return fd.File(sys.ProcPath(fd.Int())), nil // its name is what ReadDir looks entries up by, where a file system does not say what they are
}

// labelBelow labels what is in dir, and closes it.
func labelBelow(ctx context.Context, dir *os.File, label string, depth int) error {
	defer dir.Close()
	if depth == maxRelabelDepth {
		return fmt.Errorf("more than %d directories in each other: %w", maxRelabelDepth, ErrState)
	}
	for {
		entries, err := dir.ReadDir(256)
		for _, e := range entries {
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
			if err := labelEntry(ctx, dir, e, label, depth); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, fs.ErrNotExist) { // the end, or removed meanwhile
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// labelEntry labels one entry of dir, a directory after what is in it.
func labelEntry(ctx context.Context, dir *os.File, e fs.DirEntry, label string, depth int) error {
	if e.IsDir() {
		sub, err := openBelow(int(dir.Fd()), e.Name())
		if err == nil {
			err = labelBelow(ctx, sub, label, depth+1)
		}
		// No directory any more, or none that is there: what is there now is labelled as what it is.
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP) {
			return err
		}
	}
	return setLabel(sys.ProcPath(int(dir.Fd()))+"/"+e.Name(), label, unix.Lgetxattr, unix.Lsetxattr)
}

// setLabel labels one file, unless it has the label: to write it again would cost the file system a transaction.
func setLabel(path, label string, get func(string, string, []byte) (int, error), set func(string, string, []byte, int) error) error {
	buf := make([]byte, len(label)+2)
	if n, err := get(path, labelAttribute, buf); err == nil && (string(buf[:n]) == label || string(buf[:n]) == label+"\x00") {
		return nil
	}
	err := set(path, labelAttribute, []byte(label), 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return &fs.PathError{Op: "label", Path: filepath.Base(path), Err: err}
	}
	return nil
}
