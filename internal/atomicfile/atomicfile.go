// Package atomicfile replaces small files so that a reader, a crash or a power
// cut sees either the old content or the new one, whole.
//
//	.name.tmp   create ── write ── fsync ── close
//	                                          │
//	name        <──────────────── rename ─────┘ ── fsync of the directory
//
// Whatever the daemon and the monitor must find again after a restart goes
// through this package, and this package touches the disk only through FS, a
// list of seven verbs. Tests put package faulty in its place, which fails at a
// chosen call, tears a write in the middle, or loses what was never synced.
package atomicfile

import (
	"errors"
	"io/fs"
	"path/filepath"
)

// FS is everything that durable state may ask of a disk. Paths are taken as
// they come: the implementation decides what a relative one is relative to.
// Errors keep their errno for errors.Is.
type FS interface {
	// Create makes a new file for writing and fails with fs.ErrExist if the
	// name is taken, be it by a dangling link.
	Create(path string, perm fs.FileMode) (File, error)
	// Rename moves a file over another one of the same directory.
	Rename(from, to string) error
	// SyncDir makes the entries of a directory durable: files made, renamed
	// and unlinked in it before the call survive a power cut after it.
	SyncDir(dir string) error
	// Unlink removes a file. It does not remove directories.
	Unlink(path string) error
	// Mkdir makes one directory.
	Mkdir(path string, perm fs.FileMode) error
}

// File is a file under construction. Write takes all of p or fails; Sync makes
// what was written durable; Close must be called, also after an error.
type File interface {
	Write(p []byte) (int, error)
	Sync() error
	Close() error
}

// Write replaces path with a file that holds data. perm applies as in open(2),
// that is below the umask. The temporary name is derived from path, so a crash
// leaves at most one of them and the next Write takes it away; in exchange,
// writers of one path must take turns.
//
// After an error path holds its old content, with one exception: when the last
// step, the sync of the directory, fails, the new content is visible but may
// not survive a power cut.
func Write(fsys FS, path string, data []byte, perm fs.FileMode) error {
	dir, name := filepath.Split(path)
	tmp := dir + "." + name + ".tmp"
	if err := create(fsys, tmp, data, perm); err != nil {
		return err
	}
	if err := fsys.Rename(tmp, path); err != nil {
		_ = fsys.Unlink(tmp)
		return err
	}
	return fsys.SyncDir(filepath.Clean(dir))
}

// create writes and syncs the temporary file, and leaves none after an error.
func create(fsys FS, tmp string, data []byte, perm fs.FileMode) error {
	f, err := fsys.Create(tmp, perm)
	if errors.Is(err, fs.ErrExist) { // left by a crash
		if err := fsys.Unlink(tmp); err != nil {
			return err
		}
		f, err = fsys.Create(tmp, perm)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	// Close reports what some network filesystems could not write; renaming
	// over good content after that would destroy it.
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		_ = fsys.Unlink(tmp)
	}
	return err
}

// Remove unlinks path and makes that durable. A file that is already gone is
// not an error.
func Remove(fsys FS, path string) error {
	if err := fsys.Unlink(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return fsys.SyncDir(filepath.Dir(path))
}

// Mkdir makes one directory durably. It fails with fs.ErrExist if the name is
// taken.
func Mkdir(fsys FS, path string, perm fs.FileMode) error {
	if err := fsys.Mkdir(path, perm); err != nil {
		return err
	}
	return fsys.SyncDir(filepath.Dir(path))
}
