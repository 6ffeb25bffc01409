package image

import (
	"errors"
	"fmt"
	"path"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/internal/userns"
)

// IDMap is who the ids of an image are on the host, for a container in a user
// namespace: what belongs to an id in the image belongs to who has that id there. What belongs to an id that the
// namespace lacks is nobody's there.
type IDMap struct {
	UserNS     *sys.FD     // the namespace; it stays the caller's
	UIDs, GIDs []sys.IDMap // its maps
}

// idmapMode is the way in which this kernel takes an overlay's layers with mapped
// ids. No file of a layer is changed or copied for it: the mount says who owns them.
type idmapMode int

const (
	// idmapNever: the kernel, or the filesystem that the layers are on, cannot.
	idmapNever idmapMode = iota
	// idmapDetached: layers are mounts that are attached nowhere, kernel 6.15.
	idmapDetached
	// idmapAttached: they have to be attached in the mount namespace of who makes the
	// overlay. That is one of a thread's: a node that has hundreds of them come and go
	// in its own has a service manager that reads them all again each time.
	idmapAttached
)

// IDMaps says whether root filesystems can be mounted for user namespaces.
func (s *Store) IDMaps() bool { return s.idmap != idmapNever }

// probeIDMap finds the first mode in which the kernel really makes an overlay of two
// directories of ours with mapped ids.
func (s *Store) probeIDMap(dirs ...string) idmapMode {
	one := []sys.IDMap{{Inside: 0, Outside: 1, Count: 1}}
	ns, err := userns.Make(sys.IDMaps{UIDs: one, GIDs: one}, 0)
	if err != nil {
		return idmapNever // they are switched off, or we may not make any
	}
	defer ns.Close()
	open := func(_, _ *sys.FD) (*layerSet, error) { return openProbe(dirs) }
	for _, s.idmap = range []idmapMode{idmapDetached, idmapAttached} {
		fd, err := s.overlayOf(open, 0, View{IDs: &IDMap{UserNS: ns.User}})
		if err == nil {
			fd.Close()
			return s.idmap
		}
	}
	return idmapNever
}

// attachAt is a directory that nobody needs in a scratch namespace.
func (s *Store) attachAt() (*sys.FD, error) {
	return sys.OpenAt2(unix.AT_FDCWD, s.config.tmp(), unix.O_PATH|unix.O_DIRECTORY, 0)
}

// mapIDs replaces the lower layers by mounts of them that show ids as the user
// namespace has them, attached where at says, one on top of the other, if it is not
// nil. The upper directory is not mapped: overlayfs makes files of its own beside it, as
// an id that the namespace need not have.
func (l *layerSet) mapIDs(user *sys.FD, at func() (*sys.FD, error)) error {
	for i, dir := range l.lower {
		fd, err := sys.OpenTree(dir.Int(), "", unix.OPEN_TREE_CLONE|unix.AT_EMPTY_PATH)
		if err != nil {
			return err
		}
		dir.Close()
		l.lower[i] = fd
		if err := sys.MountIDMap(fd, user, false); err != nil {
			return fmt.Errorf("map ids of layer: %w", err)
		}
		if at == nil {
			continue
		}
		to, err := at()
		if err != nil {
			return err
		}
		err = sys.MoveMount(fd, to)
		to.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// errUnmapped says that the image's "/" belongs to nobody.
var errUnmapped = errors.New("the user namespace has no id for the owner of the image's root directory")

// ownUpper gives the upper directory to the owner of the image's "/" in the namespace.
func (s *Store) ownUpper(containerID string, rec *rootfs, m *IDMap) error {
	var st unix.Stat_t
	if len(rec.Layers) > 0 {
		top := rec.Layers[0] + "/diff"
		if err := unix.Fstatat(s.layers.Int(), top, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("stat %s: %w", top, err)
		}
	}
	uid, ok := outside(m.UIDs, st.Uid)
	gid, both := outside(m.GIDs, st.Gid)
	if !ok || !both {
		return fmt.Errorf("%w: %w: %d:%d", ErrUnsupported, errUnmapped, st.Uid, st.Gid)
	}
	upper := path.Join(containerID, upperDir)
	if err := unix.Fchownat(s.roots.Int(), upper, int(uid), int(gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("chown %s: %w", upper, err)
	}
	return nil
}

func outside(maps []sys.IDMap, id uint32) (uint32, bool) {
	for _, m := range maps {
		if id >= m.Inside && id-m.Inside < m.Count {
			return m.Outside + (id - m.Inside), true
		}
	}
	return 0, false
}
