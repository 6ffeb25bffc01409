package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/sandbox/spec"
)

// maxAccountFile bounds /etc/passwd and /etc/group of an image.
const maxAccountFile = 10 << 20

// resolveUser looks the user up in the container's own files.
func resolveUser(root *sys.FD, req spec.UserRequest) (spec.User, error) {
	passwd, err := openInRoot(root, "etc/passwd")
	if err != nil {
		return spec.User{}, err
	}
	defer passwd.close()
	group, err := openInRoot(root, "etc/group")
	if err != nil {
		return spec.User{}, err
	}
	defer group.close()
	return spec.ResolveUser(req, passwd.reader(), group.reader())
}

// rootFile is a file of a container's root file system, or none.
type rootFile struct {
	f    *os.File
	name string
}

// openInRoot opens a file as the container would find it: every link ends below root (R1, R6). A FIFO or a
// device cannot hold the open up, and is refused. A file that is missing is no error.
func openInRoot(root *sys.FD, name string) (*rootFile, error) {
	fd, err := sys.OpenAt2(root.Int(), name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC,
		unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS)
	// ELOOP, ENOTDIR and ENXIO (a socket): there is something, but no such file.
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) {
		return &rootFile{name: name}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open /%s of the image: %w", name, err)
	}
	f := fd.File(name)
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = spec.Invalid("image", "", "/%s is not a regular file", name)
	}
	if err == nil && st.Size() > maxAccountFile {
		err = spec.Invalid("image", "", "/%s has more than %d bytes", name, maxAccountFile)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &rootFile{f: f, name: name}, nil
}

// reader returns the file's bounded content, nil if there is no file.
func (r *rootFile) reader() io.Reader {
	if r.f == nil {
		return nil
	}
	return io.LimitReader(r.f, maxAccountFile) // it may grow while it is read
}

func (r *rootFile) close() {
	if r.f != nil {
		r.f.Close()
	}
}
