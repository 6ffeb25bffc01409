package cgroup

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// hierarchy returns a directory of this kernel's cgroup v2 that is the test's
// own, reached through a detached mount: the host sees none, and its v1 mounts
// are left alone. Whatever is left in it at the end is killed and reported.
func hierarchy(t testing.TB) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts cgroup2")
	}
	ctx, err := sys.FSOpen("cgroup2")
	if err != nil {
		t.Fatal(err)
	}
	defer ctx.Close()
	// A mount from the initial cgroup namespace sets the options of the whole hierarchy; others need this one.
	if err := sys.FSConfigFlag(ctx, "nsdelegate"); err != nil {
		t.Fatal(err)
	}
	if err := sys.FSConfigCreate(ctx); err != nil {
		t.Fatal(err)
	}
	m, err := sys.FSMount(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	root := fmt.Sprintf("/proc/self/fd/%d/vitrine-test-%d-%d", m.Int(), os.Getpid(), time.Now().UnixNano())
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		defer m.Close()
		os.WriteFile(filepath.Join(root, "cgroup.kill"), []byte("1"), 0)
		var left []string
		for range 50 {
			left = left[:0]
			var dirs []string
			filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					dirs = append(dirs, p)
				}
				return nil
			})
			for i := len(dirs) - 1; i >= 0; i-- {
				if err := os.Remove(dirs[i]); err != nil {
					left = append(left, dirs[i])
				}
			}
			if len(left) == 0 {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Errorf("cgroups are left: %v", left)
	})
	return root
}

// tree opens the test's own hierarchy.
func tree(t testing.TB) (*Tree, string) {
	t.Helper()
	root := hierarchy(t)
	tr, err := Open(Config{Root: root, Driver: "cgroupfs", AllowUnenforced: true, Prefix: "vitrine-"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.root.Close() })
	return tr, root
}

// run starts a command in a scope, cloned right into it.
func run(t testing.TB, s *Scope, name string, args ...string) *exec.Cmd {
	t.Helper()
	dir, err := s.OpenDir()
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	cmd := exec.Command(name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: dir.Int()}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd
}

func dirsBelow(t testing.TB, root string) string {
	t.Helper()
	var out []string
	filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() && p != root {
			out = append(out, strings.TrimPrefix(p, root+"/"))
		}
		return nil
	})
	return strings.Join(out, " ")
}

func inCgroup(dir int) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: dir}
}
