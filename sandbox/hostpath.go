package sandbox

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/sandbox/spec"
)

// What the kernel says of a path that cannot be used as it was asked for, and of one whose server is not there.
var (
	wrongPath  = []unix.Errno{unix.ENOTDIR, unix.EISDIR, unix.EEXIST, unix.ELOOP, unix.ENAMETOOLONG, unix.EACCES, unix.EPERM, unix.EROFS, unix.EINVAL}
	deadServer = []unix.Errno{unix.ENOTCONN, unix.ECONNABORTED, unix.ECONNREFUSED, unix.ECONNRESET, unix.ESTALE, unix.EHOSTDOWN, unix.EHOSTUNREACH, unix.ETIMEDOUT}
)

// hostPathError gives an error about a path of the host that a request names its kind: the path is not what the request takes it for
// (ErrInvalid), or its server does not serve it now (ErrUnavailable). Any other stays what it is.
func hostPathError(field, path string, err error) error {
	var errno unix.Errno
	switch {
	case !errors.As(err, &errno):
		return err
	case slices.Contains(wrongPath, errno):
		return spec.Invalid(field, path, "%v", err)
	case slices.Contains(deadServer, errno):
		return fmt.Errorf("%s: %w: %w", field, ErrUnavailable, err)
	}
	return err
}
