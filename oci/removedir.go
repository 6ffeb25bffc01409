package oci

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/wire"
)

// RemoveDir removes a container's directory with all that is in it. It is os.RemoveAll, in a
// third of the calls where nothing is there but what Create, the monitor and the names in also have
// left. A directory that is not there is no error.
func RemoveDir(dir string, also ...string) error {
	d, err := openDir(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return os.RemoveAll(dir)
	}
	for _, name := range append([]string{programName, wire.ExitName}, also...) {
		_ = sys.BriefUnlink(d.Int(), name) // what is still there is found below
	}
	d.BriefClose()
	if err := unix.Rmdir(dir); err == nil {
		return nil
	}
	return os.RemoveAll(dir)
}
