package image

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	dockerarchive "go.podman.io/image/v5/docker/archive"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/oci/layout"
	"go.podman.io/image/v5/pkg/compression"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"
	"go.podman.io/storage"
	"go.podman.io/storage/pkg/archive"

	"github.com/vitrine-runtime/vitrine/internal/atomicfile"
	"golang.org/x/sys/unix"
)

// Images travel without a registry in two forms, both with the layers as plain tars:
//
//	docker archive   one tar: manifest.json, <config>.json, <layer>.tar
//	OCI layout       a directory: oci-layout, index.json, blobs/sha256/...
//
// An image keeps its id on the way. The digest of its manifest changes, as the
// layers are not compressed in the same way again.

// Loaded is an image that Load has brought, and what it is called.
type Loaded struct {
	ID    string
	Names []string
}

// Load makes the images of a docker archive or, where path is a directory, of an OCI
// layout available. They go the same way as a pull, with the same checks, the
// signature policy of their transport included, and the same errors.
func (s *Store) Load(ctx context.Context, path string) ([]Loaded, error) {
	sysctx, err := s.config.systemContext()
	if err != nil {
		return nil, err
	}
	rules, err := s.policies.rules(&s.config, "")
	if err != nil {
		return nil, err
	}
	pc, err := signature.NewPolicyContext(rules.policy)
	if err != nil {
		return nil, err
	}
	defer pc.Destroy() //nolint:errcheck // it has nothing to say
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	from := s.loadArchive
	if info.IsDir() {
		from = s.loadLayout
	}
	all, err := from(ctx, sysctx, pc, path)
	if err != nil {
		err = pullError(path, err, nil)
	}
	return all, err
}

func (s *Store) loadArchive(ctx context.Context, sysctx *types.SystemContext, pc *signature.PolicyContext, path string) (all []Loaded, err error) {
	plain, err := s.plainArchive(ctx, path)
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	r, err := dockerarchive.NewReader(sysctx, fmt.Sprintf("/proc/self/fd/%d", plain.Fd()))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	images, err := r.List()
	if err != nil {
		return nil, err
	}
	for _, refs := range images {
		var one Loaded
		for _, ref := range refs { // one for each name, or one without
			id, err := s.pullFrom(ctx, sysctx, pc, ref, ref.DockerReference(), nil)
			if err != nil {
				return all, err
			}
			one.ID = id
			if n := ref.DockerReference(); n != nil {
				one.Names = append(one.Names, n.String())
			}
		}
		all = append(all, one)
	}
	return all, nil
}

// plainArchive opens a docker archive, by way of a file without a name where it is compressed: the library would
// decompress it without an end to time and room.
func (s *Store) plainArchive(ctx context.Context, path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	in, compressed, err := compression.AutoDecompress(f)
	if err == nil && !compressed {
		err = in.Close()
		if err == nil {
			return f, nil
		}
	}
	defer f.Close()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	defer in.Close()
	return s.blobs.spool(ctx, in)
}

// maxIndex bounds the index of a layout.
const maxIndex = 4 << 20

// nameAnnotations are where a layout says what an image is called, in order: the
// first is a whole name by containerd's custom, the second often only a tag.
var nameAnnotations = []string{"io.containerd.image.name", ocispec.AnnotationRefName}

func (s *Store) loadLayout(ctx context.Context, sysctx *types.SystemContext, pc *signature.PolicyContext, path string) (all []Loaded, err error) {
	raw, err := atomicfile.Read(unix.AT_FDCWD, filepath.Join(path, ocispec.ImageIndexFile), maxIndex)
	if err != nil {
		return nil, err
	}
	if _, err := checkJSON(raw, manifestKeys); err != nil {
		return nil, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, fmt.Errorf("%w: decode index: %w", ErrUnsupported, err)
	}
	if len(index.Manifests) > maxInstances {
		return nil, limitError("images in the layout", maxInstances, "")
	}
	for i, m := range index.Manifests {
		ref, err := layout.NewIndexReference(path, i)
		if err != nil {
			return all, fmt.Errorf("%w: %w", ErrUnsupported, err)
		}
		named := layoutName(m.Annotations)
		id, err := s.pullFrom(ctx, sysctx, pc, ref, named, nil)
		if err != nil {
			return all, err
		}
		one := Loaded{ID: id}
		if named != nil {
			one.Names = []string{named.String()}
		}
		all = append(all, one)
	}
	return all, nil
}

// layoutName returns the full name that annotations give, or nil.
func layoutName(annotations map[string]string) reference.Named {
	for _, key := range nameAnnotations {
		n, err := reference.ParseNormalizedNamed(annotations[key])
		if err != nil || reference.IsNameOnly(n) {
			continue
		}
		if c, err := canonical(n); err == nil {
			return c
		}
	}
	return nil
}

// Save writes the images that refs name, in the forms of Status, to path: as a docker
// archive, or as an OCI layout where that is wanted. Each layer is compared with its
// digest on the way. After an error what was written is no image. Errors match
// ErrNotFound, ErrCorrupt or fs.ErrExist: nothing is overwritten.
func (s *Store) Save(ctx context.Context, path string, oci bool, refs ...string) (err error) {
	var entries []*entry
	for _, ref := range refs {
		e, err := s.find(ref)
		if err == nil && e == nil {
			err = fmt.Errorf("save %q: %w", ref, ErrNotFound)
		}
		if err != nil {
			return err
		}
		if !slices.Contains(entries, e) {
			entries = append(entries, e)
		}
	}
	if oci {
		return s.saveLayout(ctx, path, entries)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = errors.Join(s.saveArchive(ctx, f, entries), f.Sync(), f.Close())
	if err != nil {
		_ = os.Remove(path)
	}
	return err
}

// archiveItem is one image in a docker archive's manifest.json.
type archiveItem struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func (s *Store) saveArchive(ctx context.Context, f io.Writer, entries []*entry) error {
	w := tar.NewWriter(f)
	done := map[string]bool{}
	var items []archiveItem
	for _, e := range entries {
		config, err := s.store.ImageBigData(e.key, e.ID)
		if err != nil {
			return fmt.Errorf("read config of %s: %w", e.ID, err)
		}
		item := archiveItem{Config: e.key + ".json", RepoTags: e.RepoTags}
		if err := writeEntry(w, item.Config, config); err != nil {
			return err
		}
		for _, id := range slices.Backward(e.layers) {
			l, err := s.store.Layer(id)
			if err != nil {
				return err
			}
			name := l.UncompressedDigest.Encoded() + ".tar"
			item.Layers = append(item.Layers, name)
			if done[name] {
				continue
			}
			done[name] = true
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: l.UncompressedSize}); err != nil {
				return err
			}
			if err := s.writeLayer(ctx, w, l); err != nil {
				return err
			}
		}
		items = append(items, item)
	}
	text, err := json.Marshal(items)
	if err != nil {
		return err
	}
	return errors.Join(writeEntry(w, "manifest.json", text), w.Close())
}

func writeEntry(w *tar.Writer, name string, data []byte) error {
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data))}); err != nil {
		return err
	}
	_, err := w.Write(data)
	return err
}

// writeLayer writes a layer's tar, and fails if it is not the one that it was.
func (s *Store) writeLayer(ctx context.Context, w io.Writer, l *storage.Layer) error {
	plain := archive.Uncompressed
	diff, err := s.store.Diff("", l.ID, &storage.DiffOptions{Compression: &plain})
	if err != nil {
		return fmt.Errorf("read layer %s: %w", l.ID, err)
	}
	got := digest.Canonical.Digester()
	_, err = io.Copy(io.MultiWriter(w, got.Hash()), &contextReader{ctx: ctx, in: diff})
	if err = errors.Join(err, diff.Close()); err != nil {
		return fmt.Errorf("read layer %s: %w", l.ID, err)
	}
	if got.Digest() != l.UncompressedDigest {
		return fmt.Errorf("%w: the files of layer %s are not those of %s", ErrCorrupt, l.ID, l.UncompressedDigest)
	}
	return nil
}

func (s *Store) saveLayout(ctx context.Context, dir string, entries []*entry) error {
	blobDir := filepath.Join(dir, ocispec.ImageBlobsDir, string(digest.Canonical))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if err := os.MkdirAll(blobDir, 0o755); err != nil {
		return err
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, e := range entries {
		d, err := s.saveManifest(ctx, blobDir, e)
		if err != nil {
			return err
		}
		for _, name := range append(slices.Clone(e.RepoTags), "")[:max(len(e.RepoTags), 1)] {
			named := d
			if name != "" {
				named.Annotations = map[string]string{nameAnnotations[0]: name, nameAnnotations[1]: name}
			}
			index.Manifests = append(index.Manifests, named)
		}
	}
	for name, v := range map[string]any{ocispec.ImageLayoutFile: ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}, ocispec.ImageIndexFile: index} {
		text, err := json.Marshal(v)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// saveManifest writes an image's blobs and a manifest for them.
func (s *Store) saveManifest(ctx context.Context, blobDir string, e *entry) (ocispec.Descriptor, error) {
	var none ocispec.Descriptor
	config, err := s.store.ImageBigData(e.key, e.ID)
	if err != nil {
		return none, fmt.Errorf("read config of %s: %w", e.ID, err)
	}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Annotations: e.Annotations}
	if m.Config, err = saveBlob(blobDir, config, ocispec.MediaTypeImageConfig); err != nil {
		return none, err
	}
	for _, id := range slices.Backward(e.layers) {
		l, err := s.store.Layer(id)
		if err != nil {
			return none, err
		}
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: l.UncompressedDigest, Size: l.UncompressedSize})
		f, err := os.OpenFile(filepath.Join(blobDir, l.UncompressedDigest.Encoded()), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
		if err != nil {
			return none, err
		}
		if err := errors.Join(s.writeLayer(ctx, f, l), f.Close()); err != nil {
			return none, err
		}
	}
	text, err := json.Marshal(m)
	if err != nil {
		return none, err
	}
	return saveBlob(blobDir, text, ocispec.MediaTypeImageManifest)
}

func saveBlob(blobDir string, data []byte, kind string) (ocispec.Descriptor, error) {
	d := digest.FromBytes(data)
	return ocispec.Descriptor{MediaType: kind, Digest: d, Size: int64(len(data))},
		os.WriteFile(filepath.Join(blobDir, d.Encoded()), data, 0o644)
}
