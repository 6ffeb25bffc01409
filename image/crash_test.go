package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// files lists what the store has on disk, but for what it keeps when it is empty.
func (e *env) files() map[string]bool {
	e.Helper()
	all := map[string]bool{}
	must(e.TB, filepath.WalkDir(e.conf.Root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		all[strings.TrimPrefix(path, e.conf.Root)] = true
		return nil
	}))
	return all
}

// settled is the store's files once an image came and went.
func (e *env) settled(ref string) map[string]bool {
	e.Helper()
	e.remove(e.pull(ref))
	e.restart()
	return e.files()
}

// checkAfterKill looks at a store that was killed: what is listed runs, and the next
// pull works, and the next removal leaves nothing.
func (e *env) checkAfterKill(t *testing.T, what, ref string, empty map[string]bool) {
	t.Helper()
	e.open()
	list, err := e.List(soon(t), "")
	must(t, err)
	for _, img := range list {
		root := e.rootfs("listed", img.ID)
		wantFile(t, root, "upper", "upper")
		wantFile(t, root, "lower", "lower")
		must(t, root.Close())
		e.removeRootfs("listed")
	}
	if len(list) == 0 {
		if left := fresh(e.files(), empty); len(left) > 0 {
			t.Errorf("%s: left: %v", what, left)
		}
	}
	id := e.pull(ref)
	root := e.rootfs("pulled", id)
	wantFile(t, root, "upper", "upper")
	must(t, root.Close())
	e.removeRootfs("pulled")
	e.remove(id)
	if left := fresh(e.files(), empty); len(left) > 0 {
		t.Errorf("%s, pulled and removed: left: %v", what, left)
	}
	must(t, e.Store.Close())
	e.Store = nil
	problems, err := Check(soon(t), e.conf, CheckOptions{})
	must(t, err)
	if len(problems) > 0 {
		t.Errorf("%s: %v", what, problems)
	}
}

func fresh(now, before map[string]bool) (left []string) {
	for name := range now {
		if !before[name] {
			left = append(left, name)
		}
	}
	return left
}

func twoLayers(t *testing.T) v1.Image {
	return image(t, "two", nil, layer(t, file("lower", "lower")), layer(t, file("upper", "upper")))
}

// Killed at each of our own steps of a pull and of a removal.
func TestPullAndRemoveKilledAtEveryStep(t *testing.T) {
	e := newEnv(t)
	e.reg.push(t, "x", twoLayers(t))
	const ref = "registry.example/x"
	empty := e.settled(ref)
	for _, verb := range []string{"pull", "rmi"} {
		for n := 0; ; n++ {
			if verb == "rmi" {
				if e.Store == nil {
					e.open()
				}
				e.pull(ref)
			}
			if e.Store != nil {
				must(t, e.Store.Close())
				e.Store = nil
			}
			killed := e.helper(verb, n, ref)
			e.checkAfterKill(t, fmt.Sprintf("%s, step %d", verb, n), ref, empty)
			if !killed {
				t.Logf("%s has %d steps", verb, n)
				if n < 4 {
					t.Errorf("%s has only %d steps", verb, n)
				}
				break
			}
		}
	}
	e.open()
}

// Killed at any time, also between the library's own steps.
func TestPullKilledAtAnyTime(t *testing.T) {
	e := newEnv(t)
	big := layer(t, file("big", strings.Repeat("data", 1<<18)), file("upper", "upper"))
	e.reg.push(t, "x", image(t, "big", nil, layer(t, file("lower", "lower")), big))
	const ref = "registry.example/x"
	empty := e.settled(ref)
	must(t, e.Store.Close())
	e.Store = nil
	conf, err := json.Marshal(e.conf)
	must(t, err)
	start := time.Now()
	must(t, helperCommand("pull", string(conf), "1000", ref).Run())
	whole := time.Since(start)
	e.open()
	e.remove(ref)
	must(t, e.Store.Close())
	e.Store = nil
	const kills = 12
	for i := range kills {
		cmd := helperCommand("pull", string(conf), "1000", ref)
		must(t, cmd.Start())
		time.Sleep(whole * time.Duration(i+1) / kills)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		e.checkAfterKill(t, fmt.Sprintf("after %d of %d", i+1, kills), ref, empty)
	}
	e.open()
}

// A pull that was ended continues with what it had: finished layers are not
// fetched again.
func TestNextPullResumes(t *testing.T) {
	e := newEnv(t)
	img := twoLayers(t)
	e.reg.push(t, "x", img)
	layers, err := img.Layers()
	must(t, err)
	second, err := layers[1].Digest()
	must(t, err)
	arrived := make(chan struct{})
	e.reg.setHook(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, second.String()) {
			return false
		}
		for len(e.layerDirs()) == 0 {
			time.Sleep(time.Millisecond)
		}
		close(arrived)
		<-r.Context().Done()
		return true
	})
	ctx, cancel := context.WithCancel(context.Background())
	c := e.pullLater(ctx, "registry.example/x", nil)
	<-arrived
	cancel()
	wantErr(t, "cancelled", (<-c).err, context.Canceled)
	e.flights.work.Wait()
	e.reg.setHook(nil)
	e.pull("registry.example/x")
	equal(t, "blobs", e.reg.requests("GET /v2/x/blobs"), 2) // the config and the second layer
}

// broken makes a store with a healthy image and one that spoil has spoilt.
func broken(t *testing.T, spoil func(e *env, layer string)) (e *env, sick, healthy string) {
	t.Helper()
	e = newEnv(t)
	e.reg.push(t, "x", twoLayers(t))
	e.reg.push(t, "y", simple(t, "y"))
	sick, healthy = e.pull("registry.example/x"), e.pull("registry.example/y")
	top := e.current().byID[sick[7:]].layers[0]
	must(t, e.Store.Close())
	e.Store = nil
	spoil(e, top)
	return e, sick, healthy
}

// Each kind of damage is found, is repaired by taking away what cannot run and
// nothing else, and the next pull brings that back.
func TestCheckFindsAndRepairs(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(e *env, layer string)
		deep  bool
		want  string
		stays bool // the image is not concerned
	}{
		"missing directory": {func(e *env, l string) { must(t, os.RemoveAll(e.conf.Root+"/overlay/"+l)) }, false, "its directory is missing", false},
		"missing diff":      {func(e *env, l string) { must(t, os.RemoveAll(e.conf.Root+"/overlay/"+l+"/diff")) }, false, "its directory is missing", false},
		"tar-split": {func(e *env, l string) {
			path := e.conf.Root + "/overlay-layers/" + l + ".tar-split.gz"
			info, err := os.Stat(path)
			must(t, err)
			must(t, os.Truncate(path, info.Size()/2))
		}, false, "its tar-split cannot be read", false},
		"changed file": {func(e *env, l string) { e.write(e.conf.Root+"/overlay/"+l+"/diff/upper", "UPPER") }, true, "cannot be put together", false},
		"config": {func(e *env, _ string) {
			found, _ := filepath.Glob(e.conf.Root + "/overlay-images/*/=*")
			for _, f := range found {
				if data, _ := os.ReadFile(f); strings.Contains(string(data), `"two"`) {
					must(t, os.Remove(f))
				}
			}
		}, false, "image ", false},
		"layer record": {func(e *env, l string) {
			path := e.conf.Root + "/overlay-layers/layers.json"
			data, err := os.ReadFile(path)
			must(t, err)
			var all []map[string]any
			must(t, json.Unmarshal(data, &all))
			var kept []map[string]any
			for _, r := range all {
				if r["id"] != l {
					kept = append(kept, r)
				}
			}
			e.write(path, string(mustJSON(t, kept)))
		}, false, "is missing", false},
		"temporary file": {func(e *env, _ string) { e.write(e.conf.Root+"/tmp/left", "x") }, false, "left by something that was killed", true},
		"layer of nobody": {func(e *env, _ string) {
			must(t, os.MkdirAll(e.conf.Root+"/overlay/"+strings.Repeat("a", 64)+"/diff", 0o700))
		}, false, "belongs to nothing", true},
		"image of nobody": {func(e *env, _ string) {
			must(t, os.MkdirAll(e.conf.Root+"/overlay-images/"+strings.Repeat("b", 64), 0o700))
		}, false, "belongs to nothing", true},
		"half a record of layers": {func(e *env, _ string) { e.write(e.conf.Root+"/overlay-layers/.tmp-layers.json1798547861", "[") }, false, "belongs to nothing", true},
		"half a record of images": {func(e *env, _ string) { e.write(e.conf.Root+"/overlay-images/.tmp-images.json1798547861", "[") }, false, "belongs to nothing", true},
		"tar-split of none": {func(e *env, _ string) {
			e.write(e.conf.Root+"/overlay-layers/"+strings.Repeat("c", 64)+".tar-split.gz", "")
		}, false, "belongs to nothing", true},
		"link into the void": {func(e *env, _ string) { must(t, os.Symlink("../nowhere/diff", e.conf.Root+"/overlay/l/ABC")) }, false, "it leads nowhere", true},
	} {
		t.Run(name, func(t *testing.T) {
			e, sick, healthy := broken(t, c.spoil)
			has := func(options CheckOptions, repaired bool) {
				t.Helper()
				problems, err := Check(soon(t), e.conf, options)
				must(t, err)
				found := false
				for _, p := range problems {
					found = found || strings.Contains(p.What, c.want)
					if repaired && !p.Repaired {
						t.Errorf("not repaired: %s", p.What)
					}
				}
				if !found {
					t.Errorf("%q is not among %v", c.want, problems)
				}
			}
			if name != "temporary file" { // gone by opening
				has(CheckOptions{Deep: c.deep}, false)
			}
			has(CheckOptions{Deep: c.deep, Repair: true}, true)
			problems, err := Check(soon(t), e.conf, CheckOptions{Deep: true, Repair: true})
			must(t, err)
			if len(problems) > 0 {
				t.Errorf("after the repair: %v", problems)
			}
			e.open()
			if e.status(healthy) == nil {
				t.Error("another image is gone")
			}
			if got := e.status(sick) != nil; got != c.stays {
				t.Errorf("the image is there: %v", got)
			}
			root := e.rootfs("c", e.pull("registry.example/x"))
			wantFile(t, root, "upper", "upper")
			wantFile(t, root, "lower", "lower")
		})
	}
}

// Opening repairs as much as a kill can break, and says so.
func TestOpenRepairs(t *testing.T) {
	e, sick, healthy := broken(t, func(e *env, l string) { must(t, os.RemoveAll(e.conf.Root+"/overlay/"+l+"/diff")) })
	e.open()
	if len(e.Repaired()) == 0 {
		t.Error("nothing is said")
	}
	if e.status(sick) != nil || e.status(healthy) == nil {
		t.Error("the wrong image is listed")
	}
	wantFile(t, e.rootfs("c", e.pull("registry.example/x")), "upper", "upper")
}

// A check takes nothing from a container.
func TestCheckSparesContainers(t *testing.T) {
	e := newEnv(t)
	e.reg.push(t, "x", twoLayers(t))
	id := e.pull("registry.example/x")
	root := e.rootfs("c", id)
	layers := e.current().byID[id[7:]].layers
	e.remove(id)
	must(t, e.Store.Close())
	e.Store = nil
	must(t, os.Truncate(e.conf.Root+"/overlay-layers/"+layers[0]+".tar-split.gz", 10))
	for range 2 {
		problems, err := Check(soon(t), e.conf, CheckOptions{Repair: true, Deep: true})
		must(t, err)
		if len(problems) == 0 {
			t.Error("nothing is found")
		}
		wantFile(t, root, "upper", "upper")
	}
	e.open()
	wantFile(t, root, "lower", "lower")
	must(t, root.Close())
	e.removeRootfs("c")
	e.wantLayers(0)
}
