package atomicfile

import (
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// Disk is the real FS. Relative paths start at the working directory.
var Disk FS = At(unix.AT_FDCWD)

// At returns the real FS with relative paths starting at the directory behind
// the descriptor dir, for the monitor, which sees no host paths. The caller
// keeps dir open for as long as it uses the FS.
func At(dir int) FS { return disk{dir} }

type disk struct{ dir int }

func (d disk) Create(path string, perm fs.FileMode) (File, error) {
	f, err := d.open("create", path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, perm)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (d disk) Rename(from, to string) error {
	if err := unix.Renameat(d.dir, from, d.dir, to); err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}

func (d disk) SyncDir(dir string) error {
	f, err := d.open("sync", dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

func (d disk) Unlink(path string) error {
	return pathError("unlink", path, unix.Unlinkat(d.dir, path, 0))
}

func (d disk) Mkdir(path string, perm fs.FileMode) error {
	return pathError("mkdir", path, unix.Mkdirat(d.dir, path, uint32(perm.Perm())))
}

func (d disk) open(op, path string, flags int, perm fs.FileMode) (*os.File, error) {
	for {
		n, err := unix.Openat(d.dir, path, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, uint32(perm.Perm()))
		if err == nil {
			return os.NewFile(uintptr(n), path), nil
		}
		if err != unix.EINTR {
			return nil, pathError(op, path, err)
		}
	}
}

// Read returns the content of the file at path, relative to the directory
// behind the descriptor dir or unix.AT_FDCWD. State files are read at start-up,
// when whatever a crash, a full disk or a curious hand left behind comes to
// light, so Read does not follow a link in the last component, does not wait on
// a FIFO, takes nothing but a regular file (EINVAL), and refuses one above limit
// bytes (EFBIG).
func Read(dir int, path string, limit int64) ([]byte, error) {
	f, err := disk{dir}.open("read", path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, pathError("read", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, pathError("read", path, unix.EINVAL)
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = pathError("read", path, unix.EFBIG)
	}
	if err != nil {
		return nil, err
	}
	return data, nil
}

func pathError(op, path string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: path, Err: err}
}
