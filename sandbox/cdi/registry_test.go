package cdi

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// device is a spec with one device, which sets a variable.
func device(kind, name, value string) string {
	return fmt.Sprintf(`{"cdiVersion": "0.6.0", "kind": %q, "devices": [{"name": %q, "containerEdits": {"env": ["V=%s"]}}], "containerEdits": {"env": ["KIND=%s"]}}`,
		kind, name, value, kind)
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// wants resolves devices and compares the variables that they set, or what is said of one that cannot be had.
func wants(t *testing.T, r *Registry, want string, names ...string) {
	t.Helper()
	e, err := r.Resolve(names)
	var unknown *UnknownError
	if errors.As(err, &unknown) && strings.Contains(err.Error(), want) && strings.Contains(err.Error(), names[unknown.Index]) {
		return
	}
	if err != nil || strings.Join(e.Env, " ") != want {
		t.Errorf("%q: %+v, %v, want %q", names, e, err, want)
	}
}

// TestRegistry: what is found is what is there, a later directory counts more, and two equals are none.
func TestRegistry(t *testing.T) {
	low, high := t.TempDir(), t.TempDir()
	r := New([]string{low, filepath.Join(low, "missing"), high})
	wants(t, r, "no such device in "+low, "v.com/gpu=a")
	put(t, low+"/a.json", device("v.com/gpu", "a", "1"))
	put(t, low+"/b.yaml", device("v.com/net", "b", "2"))
	put(t, low+"/c.txt", device("v.com/gpu", "c", "3"))
	wants(t, r, "KIND=v.com/gpu V=1", "v.com/gpu=a")
	wants(t, r, "KIND=v.com/net V=2 KIND=v.com/gpu V=1", "v.com/net=b", "v.com/gpu=a")
	wants(t, r, "no such device", "v.com/gpu=a", "v.com/gpu=c")
	// The same size within the same tick of the filesystem's clock.
	for _, v := range []string{"4", "5", "6"} {
		put(t, low+"/a.json", device("v.com/gpu", "a", v))
		wants(t, r, "KIND=v.com/gpu V="+v, "v.com/gpu=a")
	}
	put(t, high+"/a.json", device("v.com/gpu", "a", "7"))
	wants(t, r, "KIND=v.com/gpu V=7", "v.com/gpu=a")
	put(t, high+"/z.json", device("v.com/gpu", "a", "8"))
	wants(t, r, "described by both "+high+"/a.json and "+high+"/z.json", "v.com/gpu=a")
	if err := os.RemoveAll(high); err != nil {
		t.Fatal(err)
	}
	wants(t, r, "KIND=v.com/gpu V=6", "v.com/gpu=a")
	wants(t, nil, "no such device", "v.com/gpu=a")
}

// TestEditsOnce: the edits of a spec are made once for all of its devices, and nothing of an answer is in the next.
func TestEditsOnce(t *testing.T) {
	dir := t.TempDir()
	put(t, dir+"/a.yaml", "cdiVersion: 0.6.0\nkind: v.com/gpu\ncontainerEdits: {env: [ALL=1]}\ndevices:\n"+
		"- {name: a, containerEdits: {env: [A=1]}}\n- {name: b, containerEdits: {env: [B=1]}}\n")
	r := New([]string{dir})
	for range 2 {
		wants(t, r, "ALL=1 B=1 A=1", "v.com/gpu=b", "v.com/gpu=a")
		wants(t, r, "ALL=1 A=1", "v.com/gpu=a")
	}
}

// TestEditsThatItHas: who has devices already gets neither them nor the edits of their spec again.
func TestEditsThatItHas(t *testing.T) {
	dir := t.TempDir()
	put(t, dir+"/a.yaml", "cdiVersion: 0.6.0\nkind: v.com/gpu\ncontainerEdits: {env: [ALL=1]}\ndevices:\n"+
		"- {name: a, containerEdits: {env: [A=1]}}\n- {name: b, containerEdits: {env: [B=1]}}\n")
	put(t, dir+"/c.json", device("v.com/net", "c", "3"))
	r := New([]string{dir})
	for want, had := range map[string][]string{
		"B=1 KIND=v.com/net V=3": {"v.com/gpu=a"}, "KIND=v.com/net V=3": {"v.com/gpu=b"}, "ALL=1 B=1": {"v.com/net=c"},
		"ALL=1 B=1 KIND=v.com/net V=3": {"v.com/gpu=went", "v.com/other=a"}, "": {"v.com/net=c", "v.com/gpu=b"},
	} {
		e, err := r.Resolve([]string{"v.com/gpu=b", "v.com/net=c"}, had...)
		if err != nil || strings.Join(e.Env, " ") != want {
			t.Errorf("beside %q: %+v, %v, want %q", had, e, err, want)
		}
	}
	var unknown *UnknownError
	if _, err := r.Resolve([]string{"v.com/gpu=a", "v.com/gpu=x"}, "v.com/gpu=a"); !errors.As(err, &unknown) || unknown.Index != 1 {
		t.Errorf("unknown: %v", err)
	}
}

// TestUnusableFiles: F-68. Whatever lies there is nobody's trouble but theirs who ask for what would be in it, and they are told.
func TestUnusableFiles(t *testing.T) {
	dir := t.TempDir()
	put(t, dir+"/good.json", device("v.com/gpu", "a", "1"))
	put(t, dir+"/half.json", device("v.com/half", "a", "1")[:40])
	put(t, dir+"/kind.json", device("kind", "a", "1"))
	put(t, dir+"/field.json", strings.Replace(device("v.com/field", "a", "1"), "cdiVersion", "version", 1))
	put(t, dir+"/old.json", strings.Replace(device("v.com/old", "a", "1"), "0.6.0", "99.0.0", 1))
	put(t, dir+"/empty.yaml", "")
	huge := dir + "/huge.json"
	put(t, huge, "")
	err := errors.Join(unix.Mkfifo(dir+"/fifo.json", 0o644), os.Symlink(dir+"/nothing", dir+"/link.json"), os.Symlink("loop.json", dir+"/loop.json"),
		os.Symlink("/dev/zero", dir+"/zero.json"), os.Mkdir(dir+"/dir.json", 0o755), os.Truncate(huge, maxSpec+1))
	if err != nil {
		t.Fatal(err)
	}
	r := New([]string{dir, dir + "/good.json"})
	before := descriptors(t)
	for range 20 {
		wants(t, r, "KIND=v.com/gpu V=1", "v.com/gpu=a")
		wants(t, r, "cannot be used", "v.com/half=a")
	}
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
	s := r.State()
	if len(s.Devices) != 1 || s.Devices[0] != "v.com/gpu=a" {
		t.Errorf("devices %q", s.Devices)
	}
	for _, name := range []string{"half.json", "kind.json", "field.json", "old.json", "empty.yaml", "fifo.json", "loop.json", "zero.json", "huge.json"} {
		if s.Unusable[filepath.Join(dir, name)] == "" {
			t.Errorf("%s is not among %v", name, s.Unusable)
		}
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	l, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(l)
}
