package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// overlayMode is the way in which this kernel takes an overlay's layers.
type overlayMode int

const (
	// layersByFD: descriptors, kernel 6.13. No path is looked up.
	layersByFD overlayMode = iota + 1
	// layersByPath: "lowerdir+" with one path each, kernel 6.5. The paths are
	// /proc/self/fd/n, since a value has at most 256 bytes.
	layersByPath
	// layersByMount: mount(2) with all layers in one page of options.
	layersByMount
)

// overlayOptions are the options of every root filesystem.
//
//   - index, nfs_export and xino cost time and serve NFS servers and inode numbers
//     across filesystems.
//   - metacopy and redirect_dir let extended attributes of a lower file say where
//     its content is. Lower files are strangers' work, so they are neither made
//     nor followed.
//   - volatile: an unmount throws dirty pages away instead of writing them first
//     (27 ms became 0.2 with 64 MB dirty). A container does not outlive its machine.
var overlayOptions = [][2]string{
	{"index", "off"}, {"xino", "off"}, {"nfs_export", "off"}, {"metacopy", "off"}, {"redirect_dir", "nofollow"},
}

const overlayVolatile = "volatile"

// overlayLabel is SELinux's own option: the label of every file of the mount, whatever the layers say. Layers are shared by
// containers of many labels.
const overlayLabel = "context"

// maxMountOptions is what mount(2) copies.
const maxMountOptions = 4095

// probeOverlay finds the first mode in which the kernel really makes an overlay
// of two directories of ours. Less would not do: before 6.5 fsconfig takes any
// key for overlay and only making the superblock finds it unknown.
func probeOverlay(dirs ...string) (overlayMode, error) {
	l, err := openProbe(dirs)
	if err != nil {
		return 0, err
	}
	defer l.close()
	for _, mode := range []overlayMode{layersByFD, layersByPath} {
		ctx, err := sys.FSOpen("overlay")
		if err != nil {
			return 0, fmt.Errorf("probe overlay: %w", err)
		}
		err = configureOverlay(ctx, l, mode)
		_ = ctx.Close()
		if err == nil {
			return mode, nil
		}
	}
	return layersByMount, nil
}

// openProbe opens the layers of an overlay that is made to see whether it can be.
func openProbe(dirs []string) (*layerSet, error) {
	l := &layerSet{}
	for _, dir := range dirs {
		fd, err := sys.OpenAt2(unix.AT_FDCWD, dir, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			l.close()
			return nil, err
		}
		l.lower = append(l.lower, fd)
	}
	return l, nil
}

// layerSet is the opened directories of one overlay, all O_PATH.
type layerSet struct {
	lower       []*sys.FD
	upper, work *sys.FD
	label       string // of View
}

func (l *layerSet) close() {
	for _, fd := range append(l.lower, l.upper, l.work) {
		_ = fd.Close()
	}
}

// openLayers opens the directories of a container's overlay. roots and layers are
// s.roots and s.layers, or the same directories seen from another mount namespace.
func openLayers(roots, layers *sys.FD, containerID string, ids []string) (*layerSet, error) {
	l := &layerSet{}
	var err error
	at := func(dir *sys.FD, name string) (fd *sys.FD) {
		if err == nil {
			fd, err = sys.OpenAt2(dir.Int(), name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		}
		return fd
	}
	l.upper, l.work = at(roots, containerID+"/"+upperDir), at(roots, containerID+"/"+workDir)
	for _, id := range ids {
		l.lower = append(l.lower, at(layers, id+"/diff"))
	}
	if len(ids) == 0 {
		// An image without layers still needs something below. Nothing is ever
		// written to a lower directory, so any empty one does.
		l.lower = []*sys.FD{at(layers, "../empty")}
	}
	if err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

// mountOverlay makes a container's root filesystem. Preconditions: the container's lock is held.
func (s *Store) mountOverlay(containerID string, ids []string, v View) (*sys.FD, error) {
	if err := s.clearVolatile(containerID); err != nil {
		return nil, err
	}
	attr := 0
	if v.Readonly {
		attr = unix.MOUNT_ATTR_RDONLY
	}
	return s.overlayOf(func(roots, layers *sys.FD) (*layerSet, error) { return openLayers(roots, layers, containerID, ids) }, attr, v)
}

// overlayOf makes a detached mount with the attributes attr of the directories that
// open opens, with the ids and the label of v. open gets s.roots and
// s.layers, or the same directories seen from another mount namespace.
func (s *Store) overlayOf(open func(roots, layers *sys.FD) (*layerSet, error), attr int, v View) (*sys.FD, error) {
	if v.IDs != nil && s.idmap == idmapNever {
		return nil, ErrNoIDMaps
	}
	if s.overlay == layersByMount || v.IDs != nil && s.idmap == idmapAttached {
		return s.mountInScratch(open, attr, v)
	}
	l, err := open(s.roots, s.layers)
	if err != nil {
		return nil, err
	}
	defer l.close()
	l.label = v.Label
	if v.IDs != nil {
		if err := l.mapIDs(v.IDs.UserNS, nil); err != nil {
			return nil, err
		}
	}
	return s.stack(l, attr)
}

// stack makes the overlay of opened layers, in the mode of this kernel.
func (s *Store) stack(l *layerSet, attr int) (*sys.FD, error) {
	if s.overlay == layersByMount {
		return s.stackByMount(l, attr)
	}
	ctx, err := sys.FSOpen("overlay")
	if err != nil {
		return nil, err
	}
	defer ctx.Close()
	if err := configureOverlay(ctx, l, s.overlay); err != nil {
		return nil, withKernelLog(ctx, err)
	}
	return sys.FSMount(ctx, attr)
}

// configureOverlay sets layers and options and makes the superblock.
func configureOverlay(ctx *sys.FD, l *layerSet, mode overlayMode) error {
	set := func(key string, dir *sys.FD) error {
		if mode == layersByFD {
			return sys.FSConfigFD(ctx, key, dir)
		}
		return sys.FSConfigString(ctx, key, sys.ProcPath(dir.Int()))
	}
	for _, dir := range l.lower {
		if err := set("lowerdir+", dir); err != nil {
			return err
		}
	}
	for _, o := range overlayOptions {
		if err := sys.FSConfigString(ctx, o[0], o[1]); err != nil {
			return err
		}
	}
	if l.label != "" {
		if err := sys.FSConfigString(ctx, overlayLabel, l.label); err != nil {
			return err
		}
	}
	if l.upper != nil { // not in a volume, nor in a probe
		if err := errors.Join(set("upperdir", l.upper), set("workdir", l.work), sys.FSConfigFlag(ctx, overlayVolatile)); err != nil {
			return err
		}
	}
	return sys.FSConfigCreate(ctx)
}

// withKernelLog adds what the kernel wrote into the context about err: the errno
// alone (EINVAL for nearly everything) does not tell one cause from another.
func withKernelLog(ctx *sys.FD, err error) error {
	buf := make([]byte, 512)
	n, rerr := unix.Read(ctx.Int(), buf)
	runtime.KeepAlive(ctx)
	if rerr != nil || n <= 0 {
		return err
	}
	return fmt.Errorf("%w (%s)", err, strings.TrimSpace(string(buf[:n])))
}

// clearVolatile removes the mark of an earlier volatile mount in this boot.
// overlayfs leaves it behind on purpose and refuses the directory then; Mount
// has made sure that the machine did not crash in between.
func (s *Store) clearVolatile(containerID string) error {
	return removeTree(context.Background(), s.roots.Int(), containerID+"/"+workDir+"/work/incompat")
}

// mountInScratch is the way of kernels before 6.5, and before 6.15 of layers with mapped
// ids: in a mount namespace that lives as long as one thread, from where a detached
// mount is taken. The thread ends with its namespace, so nothing is left to clean.
func (s *Store) mountInScratch(open func(roots, layers *sys.FD) (*layerSet, error), attr int, v View) (*sys.FD, error) {
	var fd *sys.FD
	err := sys.OnLostThread(func() (err error) {
		fd, err = s.scratchMount(open, attr, v)
		return err
	})
	return fd, err
}

// leaveMounts gives the calling thread a mount namespace of its own, from which nothing
// gets back. Preconditions: the thread is locked and will not be used again.
func leaveMounts() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	return nil
}

// scratchMount does mountInScratch's work. Preconditions: as leaveMounts.
func (s *Store) scratchMount(open func(roots, layers *sys.FD) (*layerSet, error), attr int, v View) (*sys.FD, error) {
	if err := leaveMounts(); err != nil {
		return nil, err
	}
	// overlayfs takes no directory from another mount namespace, so the store's
	// own descriptors do not do.
	layers, err := sys.OpenAt2(unix.AT_FDCWD, s.config.Root+"/overlay", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer layers.Close()
	roots, err := sys.OpenAt2(unix.AT_FDCWD, s.config.Containers, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer roots.Close()
	l, err := open(roots, layers)
	if err != nil {
		return nil, err
	}
	defer l.close()
	l.label = v.Label
	if v.IDs != nil {
		if err := l.mapIDs(v.IDs.UserNS, s.attachAt); err != nil {
			return nil, err
		}
	}
	return s.stack(l, attr)
}

// stackByMount makes the overlay with mount(2). Preconditions: the thread is in a scratch namespace.
func (s *Store) stackByMount(l *layerSet, attr int) (*sys.FD, error) {
	opts, err := mountOptions(l)
	if err != nil {
		return nil, err
	}
	// Mounted over the directory of temporary files: in this namespace nobody
	// needs that.
	target := s.config.tmp()
	if err := unix.Mount("overlay", target, "overlay", 0, opts); err != nil {
		return nil, &fs.PathError{Op: "mount", Path: "overlay", Err: err}
	}
	fd, err := sys.OpenTree(unix.AT_FDCWD, target, unix.OPEN_TREE_CLONE)
	if err != nil || attr == 0 {
		return fd, err
	}
	if err := sys.MountSetattr(fd.Int(), "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: uint64(attr)}); err != nil {
		return nil, errors.Join(err, fd.Close())
	}
	return fd, nil
}

// mountOptions writes an overlay's options for mount(2).
func mountOptions(l *layerSet) (string, error) {
	lower := make([]string, len(l.lower))
	for i, fd := range l.lower {
		lower[i] = sys.ProcPath(fd.Int())
	}
	opts := []string{"lowerdir=" + strings.Join(lower, ":")}
	if l.upper != nil {
		opts = append(opts, "upperdir="+sys.ProcPath(l.upper.Int()), "workdir="+sys.ProcPath(l.work.Int()), overlayVolatile)
	}
	for _, o := range overlayOptions {
		opts = append(opts, o[0]+"="+o[1])
	}
	if l.label != "" { // with its commas
		opts = append(opts, overlayLabel+`="`+l.label+`"`)
	}
	all := strings.Join(opts, ",")
	if len(all) > maxMountOptions {
		return "", fmt.Errorf("stack %d layers: this kernel takes %d bytes of options, they need %d: %w", len(l.lower), maxMountOptions, len(all), unix.E2BIG)
	}
	return all, nil
}
