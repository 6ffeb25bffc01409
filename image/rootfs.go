package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/atomicfile"
	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// What a container's directory holds.
const (
	recordFile = "rootfs.json" // rootfs; written first, removed last but for the directory
	upperDir   = "upper"       // the container's own files; its mode and owner are those of "/"
	workDir    = "work"        // overlayfs's
)

const (
	recordVersion = 1
	// volumesVersion is that of records with volumes. A daemon that knows nothing of
	// these cannot read them, and keeps every layer.
	volumesVersion = 2
	// maxRecord is above a record with maxVolumes images of the 500 layers that overlayfs can stack.
	maxRecord = 8 << 20
	// maxVolumes bounds the images that one container has as volumes.
	maxVolumes = 200
)

// rootfs is the record of a container's root filesystem. It names the layers
// itself, so a mount needs neither the image nor the library.
type rootfs struct {
	Version int      `json:"version"`
	Image   string   `json:"image"`  // without "sha256:"
	Layers  []string `json:"layers"` // top first
	Volumes []used   `json:"volumes,omitempty"`
	// Boot is the kernel's boot id when the directory was made. The upper
	// directory is mounted volatile: after a crash of the machine it holds
	// whatever happened to be written back, and no container may go on from it.
	Boot string `json:"boot"`
}

// errForeignBoot: see rootfs.Boot.
var errForeignBoot = errors.New("root filesystem is from before the last boot")

// NewRootfs gives a container a root filesystem of the image with the given id
// (as in Image.ID), and lets it mount further images as volumes. The layers of all of them stay until
// RemoveRootfs, whatever happens to the images. Calling it again for the same container
// and images does nothing.
//
// containerID becomes a directory name: letters, digits, ".", "_" and "-", at
// most 128, not beginning with a dot. Errors match ErrNotFound for an unknown
// image, ErrLimit for too many volumes. After an error, and after a crash at any point, RemoveRootfs cleans up.
func (s *Store) NewRootfs(ctx context.Context, containerID, imageID string, volumes ...string) error {
	if err := checkContainerID(containerID); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	unlock := s.locks.lock(containerID)
	defer unlock()
	rec, err := s.claim(containerID, imageID, volumes)
	if err != nil {
		return fmt.Errorf("make root filesystem of container %s: %w", containerID, err)
	}
	if err := s.makeRootfs(containerID, rec); err != nil {
		return fmt.Errorf("make root filesystem of container %s: %w", containerID, err)
	}
	return nil
}

// claim counts the container among the users of its images, from one lock to the next:
// a removal sees the user, or the user no image.
func (s *Store) claim(containerID, imageID string, volumes []string) (*rootfs, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, broken := s.broken[containerID]; broken {
		return nil, errors.New("its record cannot be read")
	}
	if rec := s.rootfses[containerID]; rec != nil {
		if !rec.isOf(imageID, volumes) {
			return nil, fmt.Errorf("it has one of image %s%s, or other volumes", idPrefix, rec.Image)
		}
		return rec, nil
	}
	root, err := s.usable(imageID)
	if err != nil {
		return nil, err
	}
	rec := &rootfs{Version: recordVersion, Image: root.Image, Layers: root.Layers, Boot: s.boot}
	for _, id := range volumes {
		v, err := s.usable(id)
		if err != nil {
			return nil, fmt.Errorf("image volume: %w", err)
		}
		rec.addVolume(v)
	}
	if len(rec.Volumes) > maxVolumes {
		return nil, limitError("images as volumes of a container", maxVolumes, "")
	}
	s.rootfses[containerID] = rec
	for _, u := range rec.images() {
		s.users[u.Image]++
	}
	return rec, nil
}

// usable returns an image that is listed. Preconditions: mu is held.
func (s *Store) usable(id string) (used, error) {
	key, _ := strings.CutPrefix(id, idPrefix)
	e := s.view.byID[key]
	if e == nil || s.removing[key] {
		return used{}, fmt.Errorf("%w: %s", ErrNotFound, id)
	}
	return used{key, e.layers}, nil
}

// makeRootfs makes the directories, the record before anything that it is the
// record of. Each step may have been done before.
func (s *Store) makeRootfs(containerID string, rec *rootfs) error {
	dir := path.Join(s.config.Containers, containerID)
	for _, step := range []func() error{
		func() error { return mkdir(dir) },
		func() error { return s.writeRecord(dir, rec) },
		func() error { return s.makeUpper(path.Join(dir, upperDir), rec) },
		func() error { return mkdir(path.Join(dir, workDir)) },
	} {
		failPoint()
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// failPoint is called between steps. Tests let it kill the process.
var failPoint = func() {}

func mkdir(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

func (s *Store) writeRecord(dir string, rec *rootfs) error {
	data, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	return atomicfile.Write(s.disk, path.Join(dir, recordFile), data, 0o600)
}

// makeUpper makes the upper directory with the mode and owner of the image's
// "/": overlayfs shows those of the upper directory, and what is above it is 0700.
func (s *Store) makeUpper(dir string, rec *rootfs) error {
	if err := mkdir(dir); err != nil {
		return err
	}
	st := unix.Stat_t{Mode: 0o755}
	if len(rec.Layers) > 0 {
		top := rec.Layers[0] + "/diff"
		if err := unix.Fstatat(s.layers.Int(), top, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return &fs.PathError{Op: "stat", Path: top, Err: err}
		}
	}
	if err := os.Lchown(dir, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	return unix.Chmod(dir, st.Mode&0o7777) // after chown, which clears bits
}

// View is how a container sees files that others see, too. Its zero value is as they are.
type View struct {
	// Readonly makes the mount (not the filesystem) read-only, also for whoever prepares mount points in it. Volumes
	// are so anyway.
	Readonly bool
	// IDs gives the files other owners; nil those of the image.
	IDs *IDMap
	// Label is the SELinux label that all files have, whatever the image says; "" for those of the directories on the host.
	// A kernel without SELinux refuses it.
	Label string
}

// Mount returns a new detached mount of a container's root filesystem: the
// image's layers below, the container's own directory on top. It vanishes with
// the last mount and descriptor that refer to it; the caller owns the descriptor.
//
// With ids, it also gives the container's own directory to the owner of the image's "/". At most one mount of a container may be in use at
// a time: overlayfs does not support two over one upper directory. The upper
// directory is not synced by anything (option volatile), so Mount refuses one
// from before the last boot.
func (s *Store) Mount(ctx context.Context, containerID string, v View) (*sys.FD, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	unlock := s.locks.lock(containerID)
	defer unlock()
	s.mu.RLock()
	rec := s.rootfses[containerID]
	s.mu.RUnlock()
	if rec == nil {
		return nil, fmt.Errorf("mount root filesystem of container %s: %w", containerID, fs.ErrNotExist)
	}
	if rec.Boot != s.boot {
		return nil, fmt.Errorf("mount root filesystem of container %s: %w", containerID, errForeignBoot)
	}
	if v.IDs != nil {
		if err := s.ownUpper(containerID, rec, v.IDs); err != nil {
			return nil, fmt.Errorf("mount root filesystem of container %s: %w", containerID, err)
		}
	}
	fd, err := s.mountOverlay(containerID, rec.Layers, v)
	if err != nil {
		return nil, fmt.Errorf("mount root filesystem of container %s: %w", containerID, err)
	}
	return fd, nil
}

// RemoveRootfs deletes what NewRootfs made, whole or half, and whatever the
// container wrote, and then the image's layers if nothing else needs them. The
// container's processes and mounts must be gone. An unknown container is not an
// error. When ctx ends in the middle, the rest stays and a later call goes on.
func (s *Store) RemoveRootfs(ctx context.Context, containerID string) error {
	if err := checkContainerID(containerID); err != nil {
		return err
	}
	unlock := s.locks.lock(containerID)
	defer unlock()
	if err := s.removeContainerDir(ctx, containerID); err != nil {
		return fmt.Errorf("remove root filesystem of container %s: %w", containerID, err)
	}
	var errs []error
	for _, key := range s.release(containerID) {
		unlockImage := s.images.lock(key)
		errs = append(errs, s.unpinLocked(key))
		unlockImage()
	}
	return errors.Join(errs...)
}

// removeContainerDir deletes the record only after everything else: as long as
// anything is left, it is known whose layers it needs.
func (s *Store) removeContainerDir(ctx context.Context, containerID string) error {
	dir, err := sys.OpenAt2(s.roots.Int(), containerID, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := readNames(dir.Int())
	if err != nil {
		return err
	}
	for _, name := range names {
		if name == recordFile {
			continue
		}
		failPoint()
		if err := removeTree(ctx, dir.Int(), name); err != nil {
			return err
		}
	}
	failPoint()
	if err := unix.Unlinkat(dir.Int(), recordFile, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "unlink", Path: recordFile, Err: err}
	}
	failPoint()
	if err := unix.Unlinkat(s.roots.Int(), containerID, unix.AT_REMOVEDIR); err != nil {
		return &fs.PathError{Op: "rmdir", Path: containerID, Err: err}
	}
	return nil
}

// release forgets a container. It returns the images that have no other user now.
func (s *Store) release(containerID string) (unused []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.broken, containerID)
	rec := s.rootfses[containerID]
	if rec == nil {
		return nil
	}
	delete(s.rootfses, containerID)
	for _, u := range rec.images() {
		if s.users[u.Image]--; s.users[u.Image] <= 0 {
			delete(s.users, u.Image)
			unused = append(unused, u.Image)
		}
	}
	return unused
}

// Rootfses returns the ids of all containers that have anything here, half-made
// and unreadable ones included, in order.
func (s *Store) Rootfses() ([]string, error) {
	entries, err := os.ReadDir(s.config.Containers)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		if e.IsDir() && checkContainerID(e.Name()) == nil {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

// loadRootfses reads the records that a previous daemon left.
func (s *Store) loadRootfses() error {
	ids, err := s.Rootfses()
	if err != nil {
		return err
	}
	for _, id := range ids {
		rec, err := s.readRecord(id)
		switch {
		case errors.Is(err, fs.ErrNotExist): // killed before the record: needs no layers
		case err != nil:
			s.broken[id] = struct{}{}
		default:
			s.rootfses[id] = rec
			for _, u := range rec.images() {
				s.users[u.Image]++
			}
		}
	}
	return nil
}

func (s *Store) readRecord(id string) (*rootfs, error) {
	data, err := atomicfile.Read(s.roots.Int(), path.Join(id, recordFile), maxRecord)
	if err != nil {
		return nil, err
	}
	rec := &rootfs{}
	if err := json.Unmarshal(data, rec); err != nil {
		return nil, err
	}
	if rec.Version != recordVersion && rec.Version != volumesVersion {
		return nil, fmt.Errorf("record of version %d", rec.Version)
	}
	for _, u := range rec.images() {
		if !isHex(u.Image) || len(u.Image) != idDigits {
			return nil, fmt.Errorf("image %.100q", u.Image)
		}
	}
	for _, l := range rec.layers() {
		if l == "" || !isHex(l) {
			return nil, fmt.Errorf("layer %q", l)
		}
	}
	return rec, nil
}

// usersOf returns the images that containers use. Tests look at it.
func (s *Store) usersOf() []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Sorted(maps.Keys(s.users))
}

// checkContainerID keeps ids from being paths.
func checkContainerID(id string) error {
	const allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
	if id == "" || len(id) > 128 || id[0] == '.' || strings.Trim(id, allowed) != "" {
		return fmt.Errorf("container id %q: %w", id, fs.ErrInvalid)
	}
	return nil
}

// bootID returns the kernel's id of this boot.
func bootID() (string, error) {
	data, err := atomicfile.Read(unix.AT_FDCWD, "/proc/sys/kernel/random/boot_id", 64)
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(data)), nil
}

// relaxedDisk writes without fsync. A record need not survive a power cut, as
// the container does not: what is torn by one reads as broken, and a broken
// record keeps every layer until RemoveRootfs. An fsync here would cost each
// container's start several milliseconds.
type relaxedDisk struct{ atomicfile.FS }

func (d relaxedDisk) Create(name string, perm fs.FileMode) (atomicfile.File, error) {
	f, err := d.FS.Create(name, perm)
	if err != nil {
		return nil, err
	}
	return relaxedFile{f}, nil
}

func (relaxedDisk) SyncDir(string) error { return nil }

type relaxedFile struct{ atomicfile.File }

func (relaxedFile) Sync() error { return nil }
