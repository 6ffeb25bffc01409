package sys

import (
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// OpenFile is os.OpenFile for what is a file or a directory for certain, without the half dozen calls by which package
// os finds out whether it is something that can be polled. O_CLOEXEC is always added.
func OpenFile(path string, flags int, mode uint32) (*os.File, error) {
	f, err := fdCall("open", path, func() (int, error) { return unix.Open(path, flags|unix.O_CLOEXEC, mode) })
	if err != nil {
		return nil, err
	}
	return f.File(path), nil
}

// ReadFile reads a file to its end, as os.ReadFile does, for the same price as OpenFile.
func ReadFile(path string) ([]byte, error) {
	f, err := fdCall("open", path, func() (int, error) { return unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0) })
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size := 4096 // of procfs, which says 0
	var st unix.Stat_t
	if unix.Fstat(f.Int(), &st) == nil && st.Size > 0 && st.Size < 1<<30 {
		size = int(st.Size) + 1 // the end is seen in room that is left
	}
	b := make([]byte, 0, size)
	for {
		var n int
		err := eintr(func() (err error) { n, err = unix.Read(f.Int(), b[len(b):cap(b)]); return err })
		if err != nil {
			return nil, &fs.PathError{Op: "read", Path: path, Err: err}
		}
		if n == 0 {
			return b, nil
		}
		if b = b[:len(b)+n]; len(b) == cap(b) {
			b = append(b, make([]byte, len(b))...)[:len(b)]
		}
	}
}
