package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// A volume is the content of an image that a container sees beside its own: the
// image's layers, read-only, with nothing of the container's on top.
//
//	NewRootfs(c, image, volumes...) ──> rootfs.json names the layers of all of them
//	MountVolume(c, volume, "a/b") ──> overlay of lower layers ──> clone of a/b ──> detached mount
//
// The layers are those of the store, so what is read is in memory once for all
// containers, whether they run the image or have it as a volume.

// ErrSubPath: the image has nothing under the sub path of a volume that can be mounted.
var ErrSubPath = errors.New("no such sub path in the image")

// volumeFlags are those of every volume. A stranger's devices and set-uid programs have
// no place in a container whose own image does not have them; its programs may
// run. A device is refused to a container by its cgroup as well, but not to a privileged one.
const volumeFlags = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV

// used is an image that a container uses, and its layers.
type used struct {
	Image  string   `json:"image"`  // without "sha256:"
	Layers []string `json:"layers"` // top first
}

// images returns all images that a container uses, each once: what runs, and volumes.
func (r *rootfs) images() []used {
	all := []used{{r.Image, r.Layers}}
	for _, v := range r.Volumes {
		if !slices.ContainsFunc(all, func(u used) bool { return u.Image == v.Image }) {
			all = append(all, v)
		}
	}
	return all
}

// layers returns the layers that a container needs, those of its volumes included.
func (r *rootfs) layers() []string {
	all := slices.Clone(r.Layers)
	for _, v := range r.Volumes {
		all = append(all, v.Layers...)
	}
	return all
}

// isOf says whether a container was made of these images.
func (r *rootfs) isOf(imageID string, volumes []string) bool {
	want := &rootfs{Image: strings.TrimPrefix(imageID, idPrefix)}
	for _, id := range volumes {
		want.addVolume(used{Image: strings.TrimPrefix(id, idPrefix)})
	}
	return r.Image == want.Image && slices.EqualFunc(r.Volumes, want.Volumes, func(a, b used) bool { return a.Image == b.Image })
}

// addVolume adds an image, once however often the container mounts it.
func (r *rootfs) addVolume(v used) {
	if slices.ContainsFunc(r.Volumes, func(u used) bool { return u.Image == v.Image }) {
		return
	}
	r.Version = volumesVersion
	r.Volumes = append(r.Volumes, v)
}

// MountVolume returns a new detached mount of the content of an image that NewRootfs
// was told of as a volume of the container: read-only, without devices and set-uid
// programs. The caller owns the descriptor.
//
// subPath is a directory or a file in the image, "" for all of it. It is looked up
// with the image as the root: links that lead out of it, or to /, end inside. Errors match ErrSubPath, or ErrUnsupported
// for an image without layers.
func (s *Store) MountVolume(ctx context.Context, containerID, imageID, subPath string, v View) (*sys.FD, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	layers, err := s.volumeLayers(containerID, imageID)
	if err != nil {
		return nil, fmt.Errorf("mount image %s for container %s: %w", imageID, containerID, err)
	}
	root, err := s.overlayOf(func(_, dirs *sys.FD) (*layerSet, error) { return openLower(dirs, layers) }, volumeFlags, v)
	if err != nil {
		return nil, fmt.Errorf("mount image %s for container %s: %w", imageID, containerID, err)
	}
	if subPath == "" {
		return root, nil
	}
	defer root.Close()
	part, err := s.cloneBelow(root, subPath)
	if err != nil {
		return nil, fmt.Errorf("mount %.256q of image %s: %w", subPath, imageID, err)
	}
	return part, nil
}

// volumeLayers looks a volume up in the record of its container.
func (s *Store) volumeLayers(containerID, imageID string) ([]string, error) {
	key, _ := strings.CutPrefix(imageID, idPrefix)
	s.mu.RLock()
	defer s.mu.RUnlock()
	rec := s.rootfses[containerID]
	if rec == nil {
		return nil, fs.ErrNotExist
	}
	i := slices.IndexFunc(rec.Volumes, func(u used) bool { return u.Image == key })
	if i < 0 {
		return nil, errors.New("it is no volume of the container")
	}
	if len(rec.Volumes[i].Layers) == 0 {
		return nil, fmt.Errorf("%w: it has no layers, so there is nothing to mount", ErrUnsupported)
	}
	return rec.Volumes[i].Layers, nil
}

// openLower opens the layers of a volume. overlayfs wants two where nothing is on top.
func openLower(dirs *sys.FD, ids []string) (*layerSet, error) {
	l := &layerSet{}
	paths := make([]string, 0, len(ids)+1)
	for _, id := range ids {
		paths = append(paths, id+"/diff")
	}
	if len(ids) == 1 {
		paths = append(paths, "../empty")
	}
	for _, p := range paths {
		fd, err := sys.OpenAt2(dirs.Int(), p, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if err != nil {
			l.close()
			return nil, err
		}
		l.lower = append(l.lower, fd)
	}
	return l, nil
}

// cloneBelow returns a detached mount of a part of root. Before 6.15 the kernel copies only
// what is mounted somewhere, so root is mounted for a moment, where nobody sees it.
func (s *Store) cloneBelow(root *sys.FD, name string) (*sys.FD, error) {
	var part *sys.FD
	err := sys.OnLostThread(func() (err error) {
		if err := leaveMounts(); err != nil {
			return err
		}
		at, err := sys.OpenAt2(unix.AT_FDCWD, s.config.tmp(), unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		defer at.Close()
		if err := sys.MoveMount(root, at); err != nil {
			return err
		}
		found, err := findBelow(root, name)
		if err != nil {
			return err
		}
		defer found.Close()
		part, err = sys.OpenTree(found.Int(), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
		return err
	})
	return part, err
}

// findBelow opens a directory or a file below root, which no link leads out of.
func findBelow(root *sys.FD, name string) (*sys.FD, error) {
	fd, err := sys.OpenAt2(root.Int(), name, unix.O_PATH, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS|unix.RESOLVE_NO_XDEV)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENAMETOOLONG):
		return nil, fmt.Errorf("%w: %w", ErrSubPath, err)
	case err != nil:
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd.Int(), &st); err != nil {
		return nil, errors.Join(&fs.PathError{Op: "stat", Path: name, Err: err}, fd.Close())
	}
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFDIR && kind != unix.S_IFREG {
		return nil, errors.Join(fmt.Errorf("%w: it is neither a directory nor a regular file", ErrSubPath), fd.Close())
	}
	return fd, nil
}
