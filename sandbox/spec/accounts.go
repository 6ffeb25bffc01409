package spec

import (
	"bufio"
	"errors"
	"io"
	"strconv"
	"strings"
)

// The bounds on passwd and group files, which a tenant writes. The bytes are bounded by the reader, the
// time by the file being a regular one; nesting there is none.
const (
	maxAccounts    = 100_000 // lines
	maxAccountLine = 1 << 20 // bytes of one line: a group may list many members
)

// account is a line of passwd or group. Numbers that are none, or out of range, make the field unusable
// but not the file: images carry junk lines, and only a line that somebody asks for can hurt.
type account struct {
	name    string
	id, gid int64
	idOK    bool // id was a number in range
	gidOK   bool
	home    string
	members []string // group only
}

// parseAccounts reads passwd (7 fields) or group (4 fields) lines. Lines with fewer fields, comments and
// NIS entries are skipped. r may be nil: no file, no accounts.
func parseAccounts(r io.Reader, what string, fields int) ([]account, error) {
	if r == nil {
		return nil, nil
	}
	var out []account
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 0, 4096), maxAccountLine)
	for n := 0; sc.Scan(); n++ {
		if n >= maxAccounts {
			return nil, Invalid("image", "", "/etc/%s has more than %d lines", what, maxAccounts)
		}
		line := strings.TrimSpace(sc.Text())
		if line == "" || strings.ContainsAny(line[:1], "#+-") {
			continue
		}
		f := strings.Split(line, ":")
		if len(f) < 3 || f[0] == "" {
			continue
		}
		a := account{name: f[0]}
		a.id, a.idOK = accountID(f[2])
		if fields == 7 && len(f) > 3 {
			a.gid, a.gidOK = accountID(f[3])
		}
		if fields == 7 && len(f) > 5 && strings.IndexByte(f[5], 0) < 0 {
			a.home = f[5]
		}
		if fields == 4 && len(f) > 3 && f[3] != "" {
			a.members = strings.Split(f[3], ",")
		}
		out = append(out, a)
	}
	if err := sc.Err(); errors.Is(err, bufio.ErrTooLong) {
		return nil, Invalid("image", "", "/etc/%s has a line longer than %d bytes", what, maxAccountLine)
	} else if err != nil {
		return nil, err
	}
	return out, nil
}

func accountID(s string) (int64, bool) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	id, err := strconv.ParseInt(s, 10, 64)
	return id, err == nil && id <= maxID
}
