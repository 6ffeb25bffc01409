package cgroup

import (
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// beneath keeps an open inside of the directory that it starts at, whatever the
// path says.
const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV

// readFile returns the content of a file of the cgroup behind dir. Files of the
// kernel that are worth reading here are small.
func readFile(dir int, name string) (string, error) {
	fd, err := sys.OpenAt2(dir, name, unix.O_RDONLY, beneath)
	if err != nil {
		return "", err
	}
	defer fd.Close()
	var out strings.Builder
	buf := make([]byte, 4096)
	for {
		n, err := unix.Read(fd.Int(), buf)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return "", &os.PathError{Op: "read", Path: name, Err: err}
		case n == 0:
			return out.String(), nil
		default:
			out.Write(buf[:n])
		}
	}
}

// writeFile writes a value with one write(2), which is how the kernel wants it.
// A file that is not there is not made.
func writeFile(dir int, name, value string) error {
	fd, err := sys.OpenAt2(dir, name, unix.O_WRONLY, beneath)
	if err != nil {
		return err
	}
	defer fd.Close()
	for {
		_, err := unix.Write(fd.Int(), []byte(value))
		if err == nil {
			return nil
		}
		if err != unix.EINTR {
			return &os.PathError{Op: "write " + strconv.Quote(value) + " to", Path: name, Err: err}
		}
	}
}

func fields(dir int, name string) ([]string, error) {
	s, err := readFile(dir, name)
	return strings.Fields(s), err
}

// keyed returns the number behind key in a file of lines "key number".
func keyed(dir int, name, key string) (uint64, error) {
	s, err := readFile(dir, name)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(s) {
		if v, ok := strings.CutPrefix(line, key+" "); ok {
			return strconv.ParseUint(strings.TrimSpace(v), 10, 64)
		}
	}
	return 0, &os.PathError{Op: "find " + key + " in", Path: name, Err: fs.ErrNotExist}
}

// gone says whether an error means that the cgroup was removed: the path is no
// more, or the descriptor's directory is dead.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV)
}
