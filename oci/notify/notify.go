// Package notify passes the listener of a seccomp filter to whoever answers its
// notifications: the process behind linux.seccomp.listenerPath.
//
//	connect ── before the container is released: nobody there is an error then
//	send    ── {ContainerProcessState} + listener, in one message of a stream
//	close   ── the one who answers now is the only holder of the listener
//
// The process under the filter waits meanwhile and executes nothing before it
// was sent. What the message says is fixed but for the pid, which is put in at
// the end: the monitor of a pod sends what the daemon has written, and needs
// no JSON for it.
package notify

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/specjson"
	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// Unknown is the pid that Send replaces by that of the process.
const Unknown = -1

// Dial connects to the socket at path.
func Dial(path string) (*sys.FD, error) {
	if _, _, err := Split(path); err != nil {
		return nil, err
	}
	sock, err := sys.DialUnix(path)
	return sock, dialError(path, err)
}

// Split returns the directory of a listener's path and the name in there.
func Split(path string) (dir, name string, err error) {
	if !filepath.IsAbs(path) || strings.ContainsRune(path, 0) {
		return "", "", fmt.Errorf("linux.seccomp.listenerPath: %q is no absolute path: %w", path, unix.EINVAL)
	}
	return filepath.Dir(path), filepath.Base(path), nil
}

// DialIn connects to the socket called name in a directory that is out of sight,
// from a thread that goes into proc, a procfs, for that.
func DialIn(proc, dir *sys.FD, name string) (sock *sys.FD, err error) {
	if name == "" || name == ".." || strings.ContainsAny(name, "/\x00") {
		return nil, fmt.Errorf("connect to seccomp listener %q: %w", name, unix.EINVAL)
	}
	err = sys.OnLostThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		if err := unix.Fchdir(proc.Int()); err != nil {
			return os.NewSyscallError("fchdir", err)
		}
		sock, err = sys.ConnectUnix(fmt.Sprintf("self/fd/%d/%s", dir.Int(), name))
		return dialError(name, err)
	})
	return sock, err
}

func dialError(name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("connect to seccomp listener %s: %w", name, err)
}

// Message returns what is sent with the listener. The pid of the process, and
// that of the container where it is the same, is Unknown until Send.
func Message(state specs.State, metadata string) ([]byte, error) {
	b, err := specjson.Marshal(specs.ContainerProcessState{
		Version: specs.Version, Fds: []string{specs.SeccompFdName}, Pid: Unknown, Metadata: metadata, State: state,
	})
	if err != nil {
		return nil, fmt.Errorf("write state for the seccomp listener: %w", err)
	}
	return b, nil
}

// Send sends the listener of the process pid with a message of Message over a
// connected socket. It closes neither.
func Send(sock int, message []byte, pid int, listener *sys.FD) error {
	// Only a number of ours can look like this: a quote inside of a string is
	// written with a backslash, and other objects have no numbers.
	message = bytes.ReplaceAll(message, []byte(`"pid":-1`), strconv.AppendInt([]byte(`"pid":`), int64(pid), 10))
	rights := unix.UnixRights(listener.Int())
	for len(message) > 0 {
		n, err := sys.SendMessage(sock, message, rights, unix.MSG_NOSIGNAL)
		if err != nil {
			return fmt.Errorf("send to seccomp listener: %w", err)
		}
		message, rights = message[n:], nil
	}
	return nil
}
