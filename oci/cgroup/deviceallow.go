package cgroup

import (
	"fmt"
	"os"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/vitrine-runtime/vitrine/internal/dbus"
)

// deviceEntry is an entry of DeviceAllow: a path, and what may be done there.
type deviceEntry = dbus.Pair

// deviceProperties says the device rules to systemd, which then attaches a filter
// beside ours, and shows and attaches it anew whenever it likes. Both must agree, so
// what holds is ours, and a daemon-reload cannot change it: not to more, and not to
// less, because theirs allows the same. That is why there is none at all where
// systemd cannot say the same: it knows rules that allow, after everything was
// denied, by number, by a whole driver that /proc/devices has a name for, or by
// type.
func deviceProperties(r *specs.LinuxResources) []property {
	if r == nil || len(r.Devices) == 0 {
		return nil
	}
	allow := []deviceEntry{}
	for i, d := range r.Devices {
		rule, err := compileRule(d)
		if err != nil {
			return nil
		}
		if i == 0 {
			if rule.allow || rule.kind >= 0 || rule.major >= 0 || rule.minor >= 0 || rule.access != accMknod|accRead|accWrite {
				return nil
			}
			continue
		}
		e, ok := rule.entries()
		if !ok {
			return nil
		}
		allow = append(allow, e...)
	}
	return []property{prop("DevicePolicy", "strict"), prop("DeviceAllow", allow)}
}

// entries returns a rule in systemd's words.
func (r deviceRule) entries() (out []deviceEntry, ok bool) {
	access := ""
	for i, c := range "mrw" {
		if r.access&(1<<i) != 0 {
			access += string(c)
		}
	}
	kinds := []int32{r.kind}
	if r.kind < 0 {
		kinds = []int32{devChar, devBlock}
	}
	for _, k := range kinds {
		word := "char"
		if k == devBlock {
			word = "block"
		}
		switch {
		case !r.allow, r.major < 0 && r.minor >= 0:
			return nil, false
		case r.major < 0:
			out = append(out, deviceEntry{word + "-*", access})
		case r.minor >= 0:
			out = append(out, deviceEntry{fmt.Sprintf("/dev/%s/%d:%d", word, r.major, r.minor), access})
		default:
			name := driverName(k, r.major)
			if name == "" {
				return nil, false
			}
			out = append(out, deviceEntry{word + "-" + name, access})
		}
	}
	return out, true
}

// driverName finds the name for all devices of a major number in /proc/devices, if
// it is the name of that number only.
func driverName(kind int32, major int64) string {
	b, err := os.ReadFile("/proc/devices")
	if err != nil {
		return ""
	}
	char, block, _ := strings.Cut(string(b), "Block devices:")
	list := char
	if kind == devBlock {
		list = block
	}
	found := ""
	count := map[string]int{}
	for line := range strings.Lines(list) {
		f := strings.Fields(line)
		if len(f) != 2 {
			continue
		}
		if count[f[1]]++; f[0] == fmt.Sprint(major) {
			found = f[1]
		}
	}
	if count[found] != 1 || strings.ContainsAny(found, "*?[\\") {
		return ""
	}
	return found
}
