package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"testing"

	"github.com/vitrine-runtime/vitrine/oci"
	"github.com/vitrine-runtime/vitrine/oci/cgroup"
)

// What is over a limit is told from what is wrong, wherever it comes from: a step, the
// fork of an exec (pids.max), a directory of a cgroup.
func TestKindsOfErrors(t *testing.T) {
	for _, tt := range []struct{ err, want error }{
		{ociError(fmt.Errorf("clone3: %w", syscall.EAGAIN)), ErrExhausted},
		{ociError(&oci.StartError{Step: 3, Errno: syscall.ENOSPC, Text: "mount"}), ErrExhausted},
		{startError(&oci.StartError{Step: 3, Errno: syscall.EAGAIN, Text: "set uid"}), ErrExhausted},
		{createError(fmt.Errorf("create container: %w: SIGKILL", oci.ErrDied)), ErrState},
		{ociError(fmt.Errorf("%w: %w", oci.ErrNotFound, syscall.EAGAIN)), ErrNotFound},
		{cgroupError(fmt.Errorf("mkdir: %w", syscall.EAGAIN)), ErrExhausted},
		{cgroupError(fmt.Errorf("leaf: %w", cgroup.ErrFrozen)), ErrState},
		{cgroupError(fmt.Errorf("place: %w", cgroup.ErrUnavailable)), ErrUnavailable},
		{cgroupError(fmt.Errorf("parent: %w", cgroup.ErrInvalid)), ErrInvalid},
	} {
		if !errors.Is(tt.err, tt.want) {
			t.Errorf("%v is not %v", tt.err, tt.want)
		}
	}
	if err := ociError(fmt.Errorf("open: %w", syscall.ENOENT)); errors.Is(err, ErrExhausted) || !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
