package cgroup

import (
	"fmt"
	"strings"
)

const (
	maxPath      = 1024 // what requests use is around 200; the kernel's own bound is PATH_MAX
	maxComponent = 255
)

// reserved begin the names of files that the kernel puts into every cgroup; a
// cgroup of such a name could never be told from a file.
var reserved = []string{"cgroup.", "cpu.", "cpuset.", "memory.", "io.", "pids.", "hugetlb.", "rdma.", "misc.", "dmem.", "irq.", "perf_event."}

// splitPath checks a path from outside and returns its components. A leading
// slash means the root of the tree, as it does for the kubelet; an empty path is
// that root.
func splitPath(path string) ([]string, error) {
	path = strings.Trim(path, "/")
	if path == "" {
		return nil, nil
	}
	if len(path) > maxPath {
		return nil, fmt.Errorf("check cgroup path: %d bytes, at most %d: %w", len(path), maxPath, ErrInvalid)
	}
	parts := strings.Split(path, "/")
	for _, p := range parts {
		if err := checkComponent(p); err != nil {
			return nil, err
		}
	}
	return parts, nil
}

// checkComponent wants a name that is one directory everywhere: in the kernel, in
// /proc/<pid>/cgroup, which is a file of lines, and in logs.
func checkComponent(name string) error {
	why := ""
	switch {
	case name == "" || name == "." || name == "..":
		why = "is no name"
	case len(name) > maxComponent:
		why = "is too long"
	case strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == '/' || r == '\\' || r == 0x7f || r == 0xfffd }):
		why = "holds a character that is not for names"
	}
	for _, r := range reserved {
		if strings.HasPrefix(name, r) {
			why = "begins like a file of the kernel's"
		}
	}
	if why != "" {
		return fmt.Errorf("check cgroup name %.80q: %s: %w", name, why, ErrInvalid)
	}
	return nil
}
