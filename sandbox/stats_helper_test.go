package sandbox

import (
	"context"
	"os"
	"path/filepath"

	"github.com/vitrine-runtime/vitrine/image"
)

// RootfsUsage counts the sizes of files; the test decides how long that takes.
func (s *testImages) RootfsUsage(ctx context.Context, id string, pace func() error) (image.FsUsage, error) {
	s.mu.Lock()
	walk := s.walk
	s.mu.Unlock()
	if walk != nil {
		if err := walk(ctx, id, pace); err != nil {
			return image.FsUsage{}, err
		}
	}
	u := image.FsUsage{Mountpoint: s.dir}
	err := filepath.WalkDir(filepath.Join(s.dir, id), func(_ string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		u.Inodes++
		if i, err := d.Info(); err == nil && i.Mode().IsRegular() {
			u.UsedBytes += uint64(i.Size())
		}
		return pace()
	})
	if err != nil {
		return u, err
	}
	return u, nil
}
