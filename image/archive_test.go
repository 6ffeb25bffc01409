package image

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// An image goes from one node to another without a registry, in both forms, and is
// the same there.
func TestSaveAndLoad(t *testing.T) {
	for name, oci := range map[string]bool{"docker archive": false, "OCI layout": true} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			e.reg.push(t, "x", twoLayers(t))
			e.reg.push(t, "y", simple(t, "y"))
			x, y := e.pull("registry.example/x"), e.pull("registry.example/y")
			e.pull("other.example/x")
			path := filepath.Join(t.TempDir(), "images")
			must(t, e.Save(soon(t), path, oci, "registry.example/x", x, "registry.example/y"))
			wantErr(t, "again", e.Save(soon(t), path, oci, x), fs.ErrExist)
			wantErr(t, "unknown", e.Save(soon(t), path+"2", oci, "registry.example/none"), ErrNotFound)

			other := newEnv(t)
			loaded, err := other.Load(soon(t), path)
			must(t, err)
			for _, l := range loaded {
				if l.ID != x && l.ID != y {
					t.Errorf("loaded %v", l)
				}
			}
			equalSlices(t, "names", other.status(x).RepoTags, []string{"other.example/x:latest", "registry.example/x:latest"})
			equal(t, "y", other.status("registry.example/y").ID, y)
			root := other.rootfs("c", x)
			wantFile(t, root, "lower", "lower")
			wantFile(t, root, "upper", "upper")
			must(t, root.Close())

			// The policy is asked here, too.
			third := newEnv(t)
			third.write(third.conf.PolicyPath, `{"default":[{"type":"reject"}]}`)
			_, err = third.Load(soon(t), path)
			wantErr(t, "policy", err, ErrSignature)
		})
	}
}

// A changed layer is not handed on, and a changed archive not taken.
func TestSaveAndLoadCorrupt(t *testing.T) {
	e := newEnv(t)
	e.reg.push(t, "x", twoLayers(t))
	id := e.pull("registry.example/x")
	for name, oci := range map[string]bool{"archive": false, "layout": true} {
		path := filepath.Join(t.TempDir(), name)
		must(t, e.Save(soon(t), path, oci, id))
		must(t, filepath.WalkDir(path, func(file string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			data, err := os.ReadFile(file)
			must(t, err)
			if i := strings.LastIndex(string(data), "upper\x00\x00"); i >= 0 {
				data[i] = 'U'
			}
			return os.WriteFile(file, data, 0o600)
		}))
		other := newEnv(t)
		if _, err := other.Load(soon(t), path); err == nil {
			t.Errorf("%s: a changed layer is taken", name)
		}
		list, err := other.List(soon(t), "")
		must(t, err)
		equal(t, "images", len(list), 0)
	}
	top := e.current().byID[id[7:]].layers[0]
	e.write(filepath.Join(e.conf.Root, "overlay", top, "diff", "upper"), "UPPER")
	path := filepath.Join(t.TempDir(), "changed")
	if err := e.Save(soon(t), path, false, id); err == nil {
		t.Error("a changed file is handed on")
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("half an archive is left")
	}
	for _, text := range []string{"", "no archive", strings.Repeat("\x00", 1024)} {
		e.write(path, text)
		if _, err := e.Load(soon(t), path); err == nil {
			t.Errorf("%.10q is taken for an archive", text)
		}
	}
}
