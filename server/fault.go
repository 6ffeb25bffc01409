package server

import (
	"errors"
	"strconv"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// maxQuoted is how many bytes of a bad value an error repeats. Errors end in pod
// events and logs, and a value may be a megabyte long.
const maxQuoted = 256

// fault says what is wrong with one field of a request. Its path is built from
// the inside out, by at, so that a request without faults costs no allocation.
type fault struct {
	field  string // as in api.proto: config.mounts[3].host_path
	rule   string // what the field must be: "must be an absolute path"
	value  string // what it is; only with quoted
	quoted bool   // false for secrets and for values that are not there
	code   codes.Code
	kind   error // one of cri-api's errors that clients know by the first word, or nil
}

// Error names the field first: whoever reads it in a pod event looks for that.
func (f *fault) Error() string {
	text := f.field + ": " + f.rule
	if f.quoted {
		text += ", got " + quote(f.value)
	}
	if f.kind != nil {
		text = f.kind.Error() + ": " + text
	}
	return text
}

// GRPCStatus makes a fault its own gRPC status.
func (f *fault) GRPCStatus() *status.Status { return status.New(f.code, f.Error()) }

// bad is a field whose value breaks a rule.
func bad(field, value, rule string) error {
	return &fault{field: field, rule: rule, value: value, quoted: true, code: codes.InvalidArgument}
}

// badInt is bad for a number.
func badInt(field string, value int64, rule string) error {
	return bad(field, strconv.FormatInt(value, 10), rule)
}

// missing is a field that must be set and is not.
func missing(field string) error {
	return &fault{field: field, rule: "must be set", code: codes.InvalidArgument}
}

// wrong is a field, or a secret, whose value is better not repeated.
func wrong(field, rule string) error {
	return &fault{field: field, rule: rule, code: codes.InvalidArgument}
}

// unsupported is a field that asks for what this version does not do.
func unsupported(field, what string) error {
	return &fault{field: field, rule: what + " not supported by this version", code: codes.Unimplemented}
}

// prefixed marks a fault as one of cri-api's kinds.
func prefixed(kind, err error) error {
	var f *fault
	if errors.As(err, &f) {
		f.kind = kind
	}
	return err
}

// at puts the name of the message around a fault inside it. Other errors and nil
// pass unchanged.
func at(parent string, err error) error {
	if err == nil { // nearly always, so it must cost nothing
		return nil
	}
	return inside(parent, err)
}

func inside(parent string, err error) error {
	var f *fault
	if !errors.As(err, &f) {
		return err
	}
	switch {
	case f.field == "":
		f.field = parent
	case parent == "":
	case f.field[0] == '[':
		f.field = parent + f.field
	default:
		f.field = parent + "." + f.field
	}
	return f
}

// atIndex is at for an element of a list.
func atIndex(list string, i int, err error) error {
	if err == nil {
		return nil
	}
	return inside(list, inside("["+strconv.Itoa(i)+"]", err))
}

// atKey is at for an entry of a map.
func atKey(field, key string, err error) error {
	if err == nil {
		return nil
	}
	return inside(field, inside("["+quote(key)+"]", err))
}

// first returns the first fault of several checks.
func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// quote is %q of at most maxQuoted bytes, cut between runes.
func quote(s string) string {
	if len(s) <= maxQuoted {
		return strconv.Quote(s)
	}
	cut := maxQuoted
	for cut > maxQuoted-utf8.UTFMax && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return strconv.Quote(s[:cut]) + "..."
}
