package oci

import (
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/vitrine-runtime/vitrine/oci/wire"
)

// Errors to branch on with errors.Is.
var (
	// ErrNoMonitor says that nobody answers for the pod: its monitor has died, or
	// the connection to it is closed.
	ErrNoMonitor = errors.New("no monitor")
	// ErrNotYet says that the monitor knows the request and does not serve it.
	ErrNotYet = errors.New("not yet")
	// ErrNotFound says that the monitor has no container of that id.
	ErrNotFound = errors.New("no such container")
	// ErrExists says that the monitor has a container of that id.
	ErrExists = errors.New("container exists")
	// ErrState says that the request is not possible in the container's phase:
	// signalling what is dead, starting what runs, stopping a pod with containers.
	ErrState = errors.New("wrong state")
	// ErrInvalid says that the request makes no sense.
	ErrInvalid = errors.New("invalid request")
	// ErrVersion says that daemon and monitor have no protocol version in common.
	ErrVersion = errors.New("no common protocol version")
	// ErrDied says that the process ended before its execve without a step having
	// failed: killed, by its own seccomp filter, or for want of memory.
	ErrDied = errors.New("died before execve")
	// ErrStuck says that the monitor has stopped reading requests.
	ErrStuck = errors.New("monitor does not answer")
)

// StartError says which step of a program failed. It is returned by Create,
// Start and Exec; errors.Is works with the errno (syscall.ENOENT, fs.ErrNotExist).
type StartError struct {
	Step  int           // index in the program, negative in the executor's prologue
	Errno syscall.Errno // what the kernel said
	Text  string        // what the step is for: "execute /bin/sh"
}

// Error returns the step's name and its errno.
func (e *StartError) Error() string { return e.Text + ": " + e.Errno.Error() }

// Unwrap returns the errno.
func (e *StartError) Unwrap() error { return e.Errno }

var codes = map[wire.Code]error{
	wire.CodeVersion: ErrVersion, wire.CodeNotYet: ErrNotYet, wire.CodeInvalid: ErrInvalid,
	wire.CodeNotFound: ErrNotFound, wire.CodeExists: ErrExists, wire.CodeState: ErrState, wire.CodeDied: ErrDied,
}

// remoteError is a failure with its kind and, where there is one, its errno.
type remoteError struct {
	text  string
	kinds []error
}

func (e *remoteError) Error() string   { return e.text }
func (e *remoteError) Unwrap() []error { return e.kinds }

// fromFailure turns what came over the wire back into an error.
func fromFailure(f *wire.Failure) error {
	if f.Code == wire.CodeStep {
		return &StartError{Step: int(f.Step), Errno: syscall.Errno(f.Errno), Text: f.Text}
	}
	e := &remoteError{text: f.Text}
	if kind := codes[f.Code]; kind != nil {
		e.kinds = append(e.kinds, kind)
		if !strings.Contains(f.Text, kind.Error()) {
			e.text = fmt.Sprintf("%v: %s", kind, f.Text)
		}
	}
	if f.Errno != 0 {
		e.kinds = append(e.kinds, syscall.Errno(f.Errno))
	}
	return e
}
