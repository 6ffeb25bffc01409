package sandbox

import (
	"crypto/rand"
	"encoding/hex"
	"strconv"
	"strings"
	"time"
)

// idLength is the length of an id: 256 random bits in hex digits, as every client expects.
const idLength = 64

func newID() string {
	var b [idLength / 2]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the process instead
	return hex.EncodeToString(b[:])
}

// isID tells an id from whatever else a directory may hold.
func isID(s string) bool {
	return len(s) == idLength && strings.Trim(s, "0123456789abcdef") == ""
}

func itoa(n int) string { return strconv.Itoa(n) }

func now() int64 { return time.Now().UnixNano() }
