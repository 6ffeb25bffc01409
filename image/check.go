package image

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"go.podman.io/storage"
	"go.podman.io/storage/pkg/archive"
)

// Problem is something in the store that should not be there, or should.
type Problem struct {
	// What is wrong, and with what: "layer 1f2e…: its directory is missing".
	What string
	// Repaired is set when it is not wrong any more. What a container still needs
	// is left alone.
	Repaired bool
}

// CheckOptions say how far Check goes.
type CheckOptions struct {
	// Repair takes away what is broken and what nobody owns.
	Repair bool
	// Deep also puts each layer's tar together again and compares its digest, which
	// reads the whole store: any changed byte is found.
	Deep bool
}

// Check looks a store over while no daemon works in it, and repairs it if it is told
// to. An image that cannot run any more is removed, so that the next pull brings it
// again; its layers stay as long as a container uses them.
//
// What a start of the daemon takes away by itself (half-made layers, downloads) is
// gone after Check in any case, and is reported.
func Check(ctx context.Context, config Config, options CheckOptions) (_ []Problem, err error) {
	var left []string
	for _, dir := range tempDirs {
		names, _ := filepath.Glob(filepath.Join(config.Root, dir, "*"))
		left = append(left, names...)
	}
	s, err := open(config)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if err := s.openDirs(); err != nil {
		return nil, err
	}
	c := &checker{s: s, options: options}
	if err := c.check(ctx); err != nil {
		return c.problems, err
	}
	for _, path := range left {
		_, err := os.Lstat(path)
		c.problems = append(c.problems, Problem{path + ": left by something that was killed", errors.Is(err, fs.ErrNotExist)})
	}
	if !options.Repair {
		return c.problems, nil
	}
	return c.problems, errors.Join(s.repairPins(), s.sweep())
}

// tempDirs hold what a killed predecessor was at, below Root.
var tempDirs = []string{"tmp", "overlay/tempdirs", "overlay-layers/tmp", "overlay/staging"}

// checker is one run of Check.
type checker struct {
	s        *Store
	options  CheckOptions
	problems []Problem
}

// found notes a problem, after repair if that is wanted. A repair that fails is
// the problem's, not the run's: the others can still be repaired.
func (c *checker) found(repair func() error, format string, args ...any) {
	p := Problem{What: fmt.Sprintf(format, args...)}
	if c.options.Repair && repair != nil {
		if err := repair(); err != nil {
			p.What += fmt.Sprintf(" (repair: %v)", err)
		} else {
			p.Repaired = true
		}
	}
	c.problems = append(c.problems, p)
}

// check runs from what is certain to what depends on it: directories, layers,
// images, files without an owner.
func (c *checker) check(ctx context.Context) error {
	layers, err := c.s.store.Layers()
	if err != nil {
		return fmt.Errorf("list layers: %w", err)
	}
	broken := map[string]string{}
	for i := range layers {
		what := c.layer(ctx, &layers[i])
		if err := ctx.Err(); err != nil {
			return err
		}
		if what != "" {
			broken[layers[i].ID] = what
		}
	}
	return c.settle(layers, broken)
}

// settle takes away what stands on broken layers, these, and what is left over.
func (c *checker) settle(layers []storage.Layer, broken map[string]string) error {
	if err := c.images(layers, broken); err != nil {
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(broken)) {
		c.found(func() error { return c.removeLayer(id, layers) }, "layer %s: %s", id, broken[id])
	}
	layers, err := c.s.store.Layers()
	if err != nil {
		return fmt.Errorf("list layers: %w", err)
	}
	return c.orphans(layers)
}

// layer says what is wrong with a layer, or nothing.
func (c *checker) layer(ctx context.Context, l *storage.Layer) string {
	if !c.s.hasDir(l.ID) {
		return "its directory is missing"
	}
	if err := readTarSplit(filepath.Join(c.s.config.Root, "overlay-layers", l.ID+".tar-split.gz")); err != nil {
		return fmt.Sprintf("its tar-split cannot be read: %v", err)
	}
	if !c.options.Deep || l.UncompressedDigest == "" {
		return ""
	}
	plain := archive.Uncompressed
	diff, err := c.s.store.Diff("", l.ID, &storage.DiffOptions{Compression: &plain})
	if err != nil {
		return fmt.Sprintf("its tar cannot be put together: %v", err)
	}
	defer diff.Close()
	got := digest.Canonical.Digester()
	if _, err := io.Copy(got.Hash(), &contextReader{ctx: ctx, in: diff}); err != nil && ctx.Err() == nil {
		return fmt.Sprintf("its tar cannot be put together: %v", err)
	}
	if ctx.Err() == nil && got.Digest() != l.UncompressedDigest {
		return fmt.Sprintf("its files are not those of %s", l.UncompressedDigest)
	}
	return ""
}

// readTarSplit reads a file to its end: it has a checksum.
func readTarSplit(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, z)
	return err
}

// images looks for images and pins that stand on a layer that is broken or not
// there, and for records without their parts.
func (c *checker) images(layers []storage.Layer, broken map[string]string) error {
	parent := map[string]string{}
	known := map[string]bool{"": true}
	for i := range layers {
		parent[layers[i].ID] = layers[i].Parent
		known[layers[i].ID] = true
	}
	images, err := c.s.store.Images()
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	for i := range images {
		img := &images[i]
		what := ""
		for id := img.TopLayer; id != "" && what == ""; id = parent[id] {
			switch {
			case !known[id]:
				what = "its layer " + id + " is missing"
			case broken[id] != "":
				what = "its layer " + id + " is broken"
			}
		}
		pin := pinnedImage(img)
		if what == "" && pin == "" {
			if err := c.s.inspect(&entry{}, img); err != nil {
				what = err.Error()
			}
		}
		switch {
		case what == "":
		case pin != "" && c.s.users[pin] > 0:
			c.found(nil, "image %s, which containers use: %s", pin, what)
		case pin != "": // goes with the image
			c.found(func() error { return c.removeRecord(img.ID) }, "what keeps the layers of image %s: %s", pin, what)
		default:
			c.found(func() error { return c.removeRecord(img.ID) }, "image %s: %s", img.ID, what)
		}
	}
	return nil
}

// removeLayer deletes a broken layer, those above it first, unless a container
// uses one of them.
func (c *checker) removeLayer(id string, layers []storage.Layer) error {
	used, err := c.s.layersInUse()
	if err != nil || used == nil {
		return errors.Join(err, errors.New("it cannot be told what containers use"))
	}
	if used[id] {
		return errors.New("in use")
	}
	for i := range layers {
		if layers[i].Parent == id {
			if err := c.removeLayer(layers[i].ID, layers); err != nil {
				return err
			}
		}
	}
	err = c.s.store.DeleteLayer(id)
	if errors.Is(err, storage.ErrLayerUnknown) || errors.Is(err, storage.ErrNotALayer) {
		return nil // with its image
	}
	return err
}

// removeRecord deletes an image or a pin, also where the library then misses a
// layer of it: the others are swept later.
func (c *checker) removeRecord(id string) error {
	err := c.s.delete(id)
	if errors.Is(err, storage.ErrLayerUnknown) && !c.s.store.Exists(id) {
		return nil
	}
	return err
}

// orphans looks for files that no record of the library's tells of.
func (c *checker) orphans(layers []storage.Layer) error {
	if len(c.s.broken) > 0 {
		return nil // a record that cannot be read may mean any layer
	}
	owned := map[string]bool{}
	for i := range layers {
		owned[layers[i].ID] = true
	}
	for _, rec := range c.s.rootfses { // also of a layer that the library has forgotten
		for _, id := range rec.layers() {
			owned[id] = true
		}
	}
	images, err := c.s.store.Images()
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	imageIDs := map[string]bool{}
	for i := range images {
		imageIDs[images[i].ID] = true
	}
	isID := func(name string) bool { return len(name) == idDigits && isHex(name) }
	c.strangers("overlay", func(name string) bool { return !isID(name) || owned[name] })
	// Whoever writes a record anew gives it this name as long as it is not whole.
	torn := func(name string) bool { return strings.HasPrefix(name, ".tmp-") }
	c.strangers("overlay-images", func(name string) bool { return !torn(name) && (!isID(name) || imageIDs[name]) })
	c.strangers("overlay-layers", func(name string) bool {
		id, _, _ := strings.Cut(name, ".")
		return !torn(name) && (!isID(id) || owned[id])
	})
	return c.links()
}

// links are the library's short names of layers.
func (c *checker) links() error {
	dir := filepath.Join(c.s.config.Root, "overlay", "l")
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if _, serr := os.Stat(path); errors.Is(serr, fs.ErrNotExist) {
			c.found(func() error { return os.Remove(path) }, "overlay/l/%s: it leads nowhere", e.Name())
		}
	}
	return err
}

// strangers looks for entries of a directory below Root that are not known.
func (c *checker) strangers(dir string, known func(name string) bool) {
	path := filepath.Join(c.s.config.Root, dir)
	entries, err := os.ReadDir(path)
	if err != nil {
		return // not there yet, or what is missing shows elsewhere
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	for _, e := range entries {
		if known(e.Name()) {
			continue
		}
		name := filepath.Join(path, e.Name())
		c.found(func() error { return os.RemoveAll(name) }, "%s/%s: it belongs to nothing", dir, e.Name())
	}
}

// hasDir reports whether a layer's files are there. The library trusts its record.
func (s *Store) hasDir(id string) bool {
	info, err := os.Lstat(filepath.Join(s.config.Root, "overlay", id, "diff"))
	return err == nil && info.IsDir()
}

// recover repairs what a kill may leave, when the store opens. It does not read
// layers: that takes time, and a kill does not change what is finished.
func (s *Store) recover() error {
	c := &checker{s: s, options: CheckOptions{Repair: true}}
	layers, err := s.store.Layers()
	if err != nil {
		return fmt.Errorf("list layers: %w", err)
	}
	broken := map[string]string{}
	for i := range layers {
		if !s.hasDir(layers[i].ID) {
			broken[layers[i].ID] = "its directory is missing"
		}
	}
	err = c.settle(layers, broken)
	s.repaired = c.problems
	return err
}

// Repaired returns what Open found wrong and what became of it, for the log.
func (s *Store) Repaired() []Problem { return s.repaired }
