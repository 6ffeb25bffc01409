package oci

import (
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/notify"
	"github.com/vitrine-runtime/vitrine/oci/seccomp"
	"github.com/vitrine-runtime/vitrine/oci/wire"
)

// filters holds what was compiled last: a node has a handful of profiles, and a
// default one takes longer to compile than its container to start.
var filters = seccomp.NewCache(8)

// compileSeccomp returns the filter as the kernel takes it, the flags to load it
// with, and who answers its notifications; nothing for no profile. Where the
// monitor is too old to pass a listener on, a profile that notifies is refused.
func compileSeccomp(s *specs.LinuxSeccomp, version uint16) (filter []byte, flags uint64, l *seccomp.Listener, err error) {
	if s == nil {
		return nil, 0, nil, nil
	}
	f, err := filters.CompileWith(s, seccomp.Options{Notify: version >= 4})
	if err != nil {
		return nil, 0, nil, fmt.Errorf("%w: compile seccomp profile: %w", ErrInvalid, err)
	}
	return f.Bytes(), f.Flags, f.Listener, nil
}

// openListener returns what a monitor is sent for a listener: the directory of its
// socket, the message for it, and the socket's name.
func openListener(l *seccomp.Listener, state specs.State) (dir, message *sys.FD, name string, err error) {
	path, name, err := notify.Split(l.Path)
	if err != nil {
		return nil, nil, "", fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	text, err := notify.Message(state, l.Metadata)
	if err != nil {
		return nil, nil, "", err
	}
	if len(text) > wire.MaxBody {
		return nil, nil, "", fmt.Errorf("state of %d bytes for the seccomp listener: %w", len(text), ErrInvalid)
	}
	if dir, err = sys.OpenAt2(unix.AT_FDCWD, path, unix.O_PATH|unix.O_DIRECTORY, 0); err != nil {
		return nil, nil, "", fmt.Errorf("linux.seccomp.listenerPath: %w", err)
	}
	if message, err = sys.SealedMemfd("vitrine-listener", text, false); err != nil {
		dir.Close()
		return nil, nil, "", err
	}
	return dir, message, name, nil
}
