package sandbox

import (
	"errors"

	"github.com/vitrine-runtime/vitrine/sandbox/spec"
)

// The kinds of errors that a caller can tell apart with errors.Is. Everything else that a Manager returns
// is either the context's error or a fault of ours or of the machine.
var (
	// ErrNotFound: no pod or container has this id.
	ErrNotFound = errors.New("not found")
	// ErrInvalid: the request is wrong by itself; the message names the field.
	ErrInvalid = spec.ErrInvalid
	// ErrExists: another pod or container has this name and attempt.
	ErrExists = errors.New("already exists")
	// ErrState: the pod or container is not in a state for this.
	ErrState = errors.New("not possible in this state")
	// ErrExhausted: a limit of the node or of the pod is reached.
	ErrExhausted = errors.New("resource exhausted")
	// ErrUnavailable: something outside the runtime does not answer, and may do so later.
	ErrUnavailable = errors.New("unavailable")
	// ErrUnimplemented: legal, but not served by this version.
	ErrUnimplemented = spec.ErrUnimplemented
	// ErrImageVolume: beside one of the others, it was about an image that was to be mounted.
	ErrImageVolume = spec.ErrImageVolume
)
