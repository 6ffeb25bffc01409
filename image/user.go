package image

import (
	"math"
	"strconv"
	"strings"
)

// splitUser turns the USER of an image ("1002", "www-data", "1003:1004",
// "www-data:1004") into what the CRI reports: a number or a name, never both,
// and neither for root by omission.
//
// The kubelet decides runAsNonRoot by this. A number is reported as such only
// in plain digits and within what Kubernetes itself accepts for a uid (0 to
// 2^31-1). Anything else ("4294967296", which a 32-bit id would wrap to root,
// "-1", "+0", "0x0") goes out as a name: for a name the kubelet cannot tell
// whether it is root and refuses, which is the safe answer.
func splitUser(user string) (uid *int64, name string) {
	name, _, _ = strings.Cut(user, ":")
	if name == "" || strings.Trim(name, "0123456789") != "" {
		return nil, name
	}
	n, err := strconv.ParseInt(name, 10, 64)
	if err != nil || n > math.MaxInt32 {
		return nil, name
	}
	return &n, ""
}
