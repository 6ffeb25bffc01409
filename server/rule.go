package server

import (
	"path"
	"strconv"
	"strings"
)

// A rule returns "" for a value that keeps it, and else what the value must be.
type rule func(v string) string

// text applies rules to a string field, in order.
func text(field, v string, rules ...rule) error {
	for _, r := range rules {
		must := r(v)
		switch {
		case must == "":
		case v == "":
			return wrong(field, must)
		default:
			return bad(field, v, must)
		}
	}
	return nil
}

// optional is text for a field that may be empty.
func optional(field, v string, rules ...rule) error {
	if v == "" {
		return nil
	}
	return text(field, v, rules...)
}

// required: not empty.
func required(v string) string {
	if v == "" {
		return "must be set"
	}
	return ""
}

// atMost limits the length in bytes.
func atMost(n int) rule {
	return func(v string) string {
		if len(v) > n {
			return "must be at most " + strconv.Itoa(n) + " bytes long"
		}
		return ""
	}
}

// singleLine: no control characters. Such values end in files and protocols that
// are made of lines: resolv.conf, passwd, cgroup files, systemd units.
func singleLine(v string) string {
	for i := 0; i < len(v); i++ {
		if v[i] < ' ' || v[i] == 0x7f {
			return "must not hold control characters"
		}
	}
	return ""
}

// chars allows ASCII letters, digits and the characters of extra.
func chars(extra string) rule {
	return func(v string) string {
		for i := 0; i < len(v); i++ {
			if !alnum(v[i]) && strings.IndexByte(extra, v[i]) < 0 {
				return "must consist of letters, digits and " + strconv.Quote(extra)
			}
		}
		return ""
	}
}

// edges wants the first and the last byte to be a letter or a digit.
func edges(v string) string {
	if v != "" && (!alnum(v[0]) || !alnum(v[len(v)-1])) {
		return "must begin and end with a letter or a digit"
	}
	return ""
}

// absolute: a path from the root.
func absolute(v string) string {
	if !strings.HasPrefix(v, "/") {
		return "must be an absolute path"
	}
	return ""
}

// relative: a path that is not from the root.
func relative(v string) string {
	if strings.HasPrefix(v, "/") {
		return "must be a relative path"
	}
	return ""
}

// noParent: no ".." element anywhere, so that joining it stays below.
func noParent(v string) string {
	for e := range strings.SplitSeq(v, "/") {
		if e == ".." {
			return `must not hold ".." elements`
		}
	}
	return ""
}

// notRoot: something below "/", also after cleaning.
func notRoot(v string) string {
	if path.Clean(v) == "/" {
		return "must not be the root directory"
	}
	return ""
}

// pathMax is PATH_MAX without the final NUL.
var pathMax = atMost(4095)

func alnum(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// digits: at least one, nothing else.
func digits(v string) bool {
	for i := 0; i < len(v); i++ {
		if v[i] < '0' || v[i] > '9' {
			return false
		}
	}
	return v != ""
}
