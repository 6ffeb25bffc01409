package spec

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// ErrInvalid is the kind of every error about a value that is wrong by itself, whatever the state of
// the node. The caller must change the request.
var ErrInvalid = errors.New("invalid request")

// ErrUnimplemented is the kind of every error about a legal CRI request that this version does not serve.
var ErrUnimplemented = errors.New("not implemented")

// ErrImageVolume is beside the kind of every error about a mount of an image.
var ErrImageVolume = errors.New("image volume")

// maxQuoted is how much of a bad value an error repeats. The value comes from a tenant and the message
// ends in events and logs.
const maxQuoted = 256

// FieldError says which field of a request is refused and why. Its kind is [ErrInvalid] or
// [ErrUnimplemented], to be asked with errors.Is.
type FieldError struct {
	Field   string // path in the CRI message, such as "linux.sysctls" or "mounts[2].host_path"
	Value   string // the offending value, cut to 256 bytes; empty when there is none to show
	Problem string // what is wrong with it
	Kind    error  // ErrInvalid or ErrUnimplemented
}

// Error returns `field "value": problem`.
func (e *FieldError) Error() string {
	if e.Value == "" {
		return e.Field + ": " + e.Problem
	}
	return e.Field + " " + strconv.Quote(e.Value) + ": " + e.Problem
}

// Unwrap returns the kind, so that errors.Is(err, ErrInvalid) holds.
func (e *FieldError) Unwrap() error { return e.Kind }

// Invalid makes a [FieldError] of the kind [ErrInvalid]. value is cut to 256 bytes.
func Invalid(field, value, format string, args ...any) error {
	return &FieldError{Field: field, Value: cut(value), Problem: fmt.Sprintf(format, args...), Kind: ErrInvalid}
}

// Unimplemented makes a [FieldError] of the kind [ErrUnimplemented]. value is cut to 256 bytes.
func Unimplemented(field, value, format string, args ...any) error {
	return &FieldError{Field: field, Value: cut(value), Problem: fmt.Sprintf(format, args...), Kind: ErrUnimplemented}
}

// InConfig puts the request's name for a pod's or a container's configuration before the field of an error: the judges here know only
// that part, and a client looks for the whole path. What is the image's fault, what has the name already, and any other error pass unchanged.
func InConfig(err error) error {
	var f *FieldError
	if errors.As(err, &f) && !strings.HasPrefix(f.Field, "image") && !strings.HasPrefix(f.Field, "config.") {
		f.Field = "config." + f.Field
	}
	return err
}

func cut(s string) string {
	if len(s) > maxQuoted {
		return s[:maxQuoted] + "..."
	}
	return s
}
