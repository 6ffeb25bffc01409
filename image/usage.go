package image

import (
	"context"
	"errors"
	"fmt"
	"path"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// FsUsage is what the store occupies on a filesystem.
type FsUsage struct {
	// Mountpoint is the directory that was measured. The kubelet asks statfs
	// about it.
	Mountpoint string
	// UsedBytes counts allocated blocks, Inodes files and directories.
	UsedBytes, Inodes uint64
}

// usageCache remembers what each layer occupies. Layers never change, and there
// may be a million files in them, while the kubelet asks every ten seconds.
type usageCache struct {
	mu    sync.Mutex
	layer map[string]diskUsage
}

// FsInfo measures what images and containers occupy, each layer once. The first
// call after Open walks all layers, later ones the new layers and what the
// containers wrote. Errors match ErrUnavailable if the directories cannot be read.
func (s *Store) FsInfo(ctx context.Context) (images, containers FsUsage, err error) {
	img, err := s.measureImages(ctx)
	if err != nil {
		return FsUsage{}, FsUsage{}, measureError(s.config.Root, err)
	}
	ctrs, err := measure(ctx, unix.AT_FDCWD, s.config.Containers)
	if err != nil {
		return FsUsage{}, FsUsage{}, measureError(s.config.Containers, err)
	}
	return FsUsage{s.config.Root, img.bytes, img.inodes},
		FsUsage{s.config.Containers, ctrs.bytes, ctrs.inodes}, nil
}

// RootfsUsage measures what a container wrote: its own directory, without the
// image's layers. Files with several links count once.
//
// The directory is the container's, and may hold millions of files: pace is called
// after about every thousandth entry, and may sleep; its error, or the end of ctx,
// ends the measuring. A container without a root filesystem is fs.ErrNotExist.
func (s *Store) RootfsUsage(ctx context.Context, containerID string, pace func() error) (FsUsage, error) {
	if err := checkContainerID(containerID); err != nil {
		return FsUsage{}, err
	}
	upper := path.Join(s.config.Containers, containerID, upperDir)
	var st unix.Stat_t
	if err := unix.Lstat(upper, &st); err != nil {
		return FsUsage{}, fmt.Errorf("measure root filesystem of container %s: %w", containerID, err)
	}
	m := measurer{ctx: ctx, pace: pace}
	if err := m.all(unix.AT_FDCWD, upper); err != nil {
		return FsUsage{}, fmt.Errorf("measure root filesystem of container %s: %w", containerID, err)
	}
	return FsUsage{s.config.Containers, m.sum.bytes, m.sum.inodes}, nil
}

func measureError(dir string, err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("measure %s: %w: %w", dir, ErrUnavailable, err)
}

// measureImages adds up the layers and the library's tables beside them.
func (s *Store) measureImages(ctx context.Context) (diskUsage, error) {
	var sum diskUsage
	for _, dir := range []string{"overlay-images", "overlay-layers"} {
		u, err := measure(ctx, unix.AT_FDCWD, s.config.Root+"/"+dir)
		if err != nil {
			return sum, err
		}
		sum.add(u)
	}
	dir, err := sys.OpenAt2(unix.AT_FDCWD, s.config.Root+"/overlay", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return sum, err
	}
	defer dir.Close()
	names, err := readNames(dir.Int())
	if err != nil {
		return sum, err
	}
	s.usage.mu.Lock() // also keeps two callers from walking at once
	defer s.usage.mu.Unlock()
	next, done := map[string]diskUsage{}, s.finished() // forgets layers that are gone
	for _, name := range names {
		u, known := s.usage.layer[name]
		if !known {
			if u, err = measure(ctx, dir.Int(), name); err != nil {
				return sum, err
			}
		}
		if done[name] {
			next[name] = u
		}
		sum.add(u)
	}
	s.usage.layer = next
	return sum, nil
}

// finished returns the layers that will not change any more.
func (s *Store) finished() map[string]bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	done := map[string]bool{}
	for _, e := range s.view.images {
		for _, l := range e.layers {
			done[l] = true
		}
	}
	for _, rec := range s.rootfses { // of images that were removed
		for _, l := range rec.layers() {
			done[l] = true
		}
	}
	return done
}
