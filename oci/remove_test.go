package oci

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"golang.org/x/sys/unix"
)

// TestIDIsFreeAfterRemove uses an id again as soon as Remove has returned, which waits
// for no answer where the death was told; and Remove of what is not dead waits and fails.
func TestIDIsFreeAfterRemove(t *testing.T) {
	n := newNode(t)
	p := n.pod(nil)
	cgroup := n.leaf("c")
	defer cgroup.Close()
	for range 20 {
		c := ContainerConfig{ID: "c", Spec: n.spec("true"), Dir: filepath.Join(n.dir, p.ID(), "c")}
		if err := os.Mkdir(c.Dir, 0o700); err != nil {
			t.Fatal(err)
		}
		var err error
		if c.Rootfs, err = sys.OpenTree(unix.AT_FDCWD, n.rootfs, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		if c.Cgroup, err = cgroup.Dup(); err != nil {
			t.Fatal(err)
		}
		pr, err := p.Create(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		if err := pr.Remove(t.Context()); err == nil {
			t.Fatal("what waits for its start was removed")
		}
		if err := pr.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		exited(t, p, "c")
		if err := pr.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(c.Dir); err != nil {
			t.Fatal(err)
		}
	}
	if l, err := p.List(t.Context()); err != nil || len(l) != 0 {
		t.Errorf("left: %v, %v", l, err)
	}
}

// TestRemoveDir: whatever a container's directory holds goes, and nothing that a link in it
// leads to.
func TestRemoveDir(t *testing.T) {
	at := t.TempDir()
	outside := filepath.Join(at, "outside")
	if err := os.WriteFile(outside, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, fill := range map[string]func(dir string) error{
		"empty": func(string) error { return nil },
		"usual": func(dir string) error {
			return errors.Join(os.WriteFile(filepath.Join(dir, programName), nil, 0o600), os.WriteFile(filepath.Join(dir, "exit.json"), nil, 0o600),
				os.WriteFile(filepath.Join(dir, "mine"), nil, 0o600))
		},
		"more":        func(dir string) error { return os.MkdirAll(filepath.Join(dir, "program", "deep"), 0o700) },
		"link inside": func(dir string) error { return os.Symlink(outside, filepath.Join(dir, "program")) },
	} {
		dir := filepath.Join(at, name)
		if err := errors.Join(os.Mkdir(dir, 0o700), fill(dir), RemoveDir(dir, "mine")); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: is still there: %v", name, err)
		}
	}
	if err := errors.Join(os.Symlink(at, filepath.Join(at, "link")), RemoveDir(filepath.Join(at, "link")), RemoveDir(filepath.Join(at, "nothing"))); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(outside); err != nil {
		t.Error(err)
	}
}
