package cgroup

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCheckDelegation(t *testing.T) {
	for line, ok := range map[string]bool{
		"27 20 0:24 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n": true,
		"27 20 0:24 / /sys/fs/cgroup rw,nosuid - cgroup2 none rw,nsdelegate\n":                                  true,
		"27 20 0:24 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,memory_recursiveprot\n":            false,
		"27 20 0:24 / /sys/fs/cgroup rw,nsdelegate shared:9 - cgroup2 cgroup2 rw\n":                             false,
		"27 20 0:24 / /mnt rw shared:9 - tmpfs cgroup2 rw,nsdelegate\n":                                         false,
		"27 20 0:24 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,nsdelegate,pids\n":                              false,
		"": false,
	} {
		path := filepath.Join(t.TempDir(), "mountinfo")
		if err := os.WriteFile(path, []byte(line), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := checkDelegation(path); (err == nil) != ok || err != nil && !errors.Is(err, ErrDelegation) {
			t.Errorf("%q: %v", line, err)
		}
	}
}

// A delegated scope holds its process in a leaf, belongs to the user as far as children go, bounds their number, and
// is removed with what the user made in it.
func TestDelegate(t *testing.T) {
	tr, root := tree(t)
	s, err := tr.Create("pod", "delegated", nil)
	if err != nil {
		t.Fatal(err)
	}
	cmd := run(t, s, "sleep", "1000")
	if err := s.delegate(cmd.Process.Pid, 1234, 2345); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(root, s.Path())
	for name, uid := range map[string]uint32{
		".": 1234, "cgroup.procs": 1234, "cgroup.subtree_control": 1234, "init": 1234, "init/cgroup.procs": 1234,
		"cgroup.kill": 0, "cgroup.max.depth": 0, "cgroup.freeze": 0,
	} {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, name), &st); err != nil || st.Uid != uid {
			t.Errorf("%s belongs to %d, %v; want %d", name, st.Uid, err, uid)
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs")); err != nil || strings.TrimSpace(string(b)) != "" {
		t.Errorf("the scope itself holds %q, %v", b, err)
	}
	if pids, err := s.Procs(); err != nil || len(pids) != 1 || pids[0] != cmd.Process.Pid {
		t.Errorf("processes %v, %v", pids, err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "cgroup.max.descendants")); err != nil || strings.TrimSpace(string(b)) != "1000" {
		t.Errorf("descendants %q, %v", b, err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "theirs/deep"), 0o755); err != nil {
		t.Fatal(err)
	}
	leaf, err := s.Leaf("exec-1")
	if err != nil {
		t.Fatal(err)
	}
	run(t, leaf, "sleep", "1000")
	if err := s.delegate(cmd.Process.Pid, 0, 0); !errors.Is(err, syscall.EEXIST) {
		t.Errorf("delegated twice: %v", err)
	}
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.WaitEmpty(t.Context()), s.Remove(t.Context())); err != nil {
		t.Fatal(err)
	}
}
