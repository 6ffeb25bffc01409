package image

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/types"
	"golang.org/x/sys/unix"
)

// An OCI artifact is a manifest whose blobs are files and no layers: a model, a chart, a module. It becomes an image of one layer
// with these files, so that it is a volume, is listed, pinned, checked, saved and removed like any other.
//
//	manifest ──> blobs, as they are ──> tar ──> layer
//	                └─ names: org.opencontainers.image.title, or the digest
//
// The tar follows from names and contents alone, and the image's id from the tar: the same files have the same id, whoever serves
// them, for each architecture. What the artifact's own config says is nobody's business here, and it is not fetched.

// maxArtifactEntries is above what maxLayers files have with some directories around each.
const maxArtifactEntries = 10_000

// artifactFile is a blob and what it is called.
type artifactFile struct {
	name string
	blob types.BlobInfo
}

// isImageConfig reports whether a config is an image's.
func isImageConfig(kind string) bool {
	return kind == ocispec.MediaTypeImageConfig || kind == manifest.DockerV2Schema2ConfigMediaType
}

// artifactFiles names the files of an artifact.
func artifactFiles(blobs []manifest.LayerInfo) ([]artifactFile, error) {
	var files []artifactFile
	for i, b := range blobs {
		if b.MediaType == ocispec.MediaTypeEmptyJSON { // stands for nothing
			continue
		}
		name, titled := b.Annotations[ocispec.AnnotationTitle]
		if !titled {
			name = b.Digest.Encoded()
		}
		if err := checkTitle(name); err != nil {
			return nil, fmt.Errorf("blob %d: title %.200q: %w", i+1, name, err)
		}
		files = append(files, artifactFile{name, types.BlobInfo{Digest: b.Digest, Size: b.Size, MediaType: b.MediaType}})
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%w: an artifact without files", ErrUnsupported)
	}
	slices.SortFunc(files, func(a, b artifactFile) int { return strings.Compare(a.name, b.name) })
	return files, checkNames(files)
}

// checkTitle: a path below the volume's root, in its only form, that means nothing else to an overlay.
func checkTitle(name string) error {
	switch {
	case name == "" || name == "." || path.IsAbs(name) || path.Clean(name) != name || strings.ContainsRune(name, 0):
		return fmt.Errorf("%w: not the path of a file", ErrUnsupported)
	case len(name) > maxPathname:
		return limitError("length of a path", maxPathname, "bytes")
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." || strings.HasPrefix(part, ".wh.") {
			return fmt.Errorf("%w: not the path of a file", ErrUnsupported)
		}
	}
	return nil
}

// checkNames refuses a name that is there twice, or is a file's and a directory's, a blob of two sizes, and more than a layer may have.
func checkNames(files []artifactFile) error {
	names, sizes, dirs := map[string]bool{}, map[digest.Digest]int64{}, map[string]bool{}
	for _, f := range files {
		if names[f.name] {
			return fmt.Errorf("%w: ambiguous: the title %.200q is there twice", ErrUnsupported, f.name)
		}
		names[f.name] = true
		if size, known := sizes[f.blob.Digest]; known && size != f.blob.Size {
			return fmt.Errorf("%w: ambiguous: the blob %s has %d bytes and %d", ErrUnsupported, f.blob.Digest, size, f.blob.Size)
		}
		sizes[f.blob.Digest] = f.blob.Size
		for dir := path.Dir(f.name); dir != "." && !dirs[dir]; dir = path.Dir(dir) {
			dirs[dir] = true
		}
		if len(names)+len(dirs) > maxArtifactEntries {
			return limitError("files and directories of an artifact", maxArtifactEntries, "")
		}
	}
	for dir := range dirs {
		if names[dir] {
			return fmt.Errorf("%w: ambiguous: %.200q is a file and a directory", ErrUnsupported, dir)
		}
	}
	return nil
}

// fetchArtifact makes the layer of an artifact, and the config that its record has.
func (s *Store) fetchArtifact(ctx context.Context, src types.ImageSource, r *recipe) (err error) {
	if s.knownArtifact(r) {
		return nil
	}
	coming := make([]layerRef, len(r.files)) // to be shown
	for i, f := range r.files {
		coming[i].blob = f.blob
	}
	progressOf(ctx).plan(coming)
	a := &artifactWork{s: s, src: src, r: r, open: map[digest.Digest]download{}}
	defer func() {
		for _, d := range a.open {
			d.leave(isWanted(err))
		}
	}()
	if err := a.begin(); err != nil {
		return err
	}
	for i, f := range r.files {
		if err := a.fetch(ctx, f); err != nil {
			return fmt.Errorf("file %.200q: %w", f.name, err)
		}
		progressOf(ctx).finished(i)
	}
	sum := digest.Canonical.Digester()
	size, err := a.write(ctx, sum.Hash())
	if err != nil {
		return err
	}
	if size > s.limits.image {
		return limitError("unpacked layers", s.limits.image, "bytes")
	}
	if err := r.describeArtifact(sum.Digest(), size); err != nil {
		return err
	}
	return s.makeOnce(ctx, r.layers[0].id, a.make)
}

// artifactWork is one pull's way through an artifact.
type artifactWork struct {
	s    *Store
	src  types.ImageSource
	r    *recipe
	open map[digest.Digest]download
}

// describeArtifact gives an artifact a config as an image's, and with it its id.
func (r *recipe) describeArtifact(tar digest.Digest, size int64) error {
	config, err := json.Marshal(ocispec.Image{
		Platform: ocispec.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{tar}},
	})
	if err != nil {
		return err
	}
	r.id = digest.FromBytes(config).Encoded()
	return r.readConfig(config, []types.BlobInfo{{Digest: tar, Size: size}})
}

// knownArtifact looks for an artifact with the same manifest. If it is here as a whole, nothing is to be fetched.
func (s *Store) knownArtifact(r *recipe) bool {
	here, err := s.store.ImagesByDigest(r.instance)
	if err != nil {
		return false
	}
	for _, img := range here {
		known := *r
		raw, err := s.store.ImageBigData(img.ID, idPrefix+img.ID)
		if err != nil || digest.FromBytes(raw).Encoded() != img.ID || known.readConfig(raw, make([]types.BlobInfo, 1)) != nil {
			continue
		}
		have, err := s.store.Layer(known.topLayer())
		if err != nil || have.UncompressedDigest != known.layers[0].diffID || !s.hasDir(have.ID) {
			continue
		}
		known.id = img.ID
		*r = known
		return true
	}
	return false
}

// begin has all blobs come.
func (a *artifactWork) begin() error {
	for _, f := range a.r.files {
		if _, twice := a.open[f.blob.Digest]; twice {
			continue
		}
		b, own, err := a.s.blobs.open(a.src, f.blob)
		if err != nil {
			return err
		}
		a.open[f.blob.Digest] = download{b, own}
	}
	return nil
}

// fetch waits for a blob, from wherever it comes.
func (a *artifactWork) fetch(ctx context.Context, f artifactFile) error {
	for {
		d := a.open[f.blob.Digest]
		err := d.reader(ctx).wait()
		if err == nil || ctx.Err() != nil || d.isOurs(d.own, err) {
			return err
		}
		d.leave(false)
		delete(a.open, f.blob.Digest)
		if d.blob, d.own, err = a.s.blobs.open(a.src, f.blob); err != nil {
			return err
		}
		a.open[f.blob.Digest] = d
	}
}

// write writes the artifact's tar, and returns its size.
func (a *artifactWork) write(ctx context.Context, out io.Writer) (int64, error) {
	counted := &countingWriter{out: out}
	w := tar.NewWriter(counted)
	dirs := map[string]bool{".": true}
	for _, f := range a.r.files {
		if err := writeDirs(w, path.Dir(f.name), dirs); err != nil {
			return 0, err
		}
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: 0o444, Size: f.blob.Size, Format: tar.FormatPAX}); err != nil {
			return 0, fmt.Errorf("%w: file %.200q: %w", ErrUnsupported, f.name, err)
		}
		_, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{a.open[f.blob.Digest].reader(ctx)}, make([]byte, 256<<10))
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		if err != nil {
			return 0, err
		}
	}
	err := w.Close()
	return counted.n, err
}

// writeDirs writes the directories that a file is in, the upper ones first, each once.
func writeDirs(w *tar.Writer, dir string, done map[string]bool) error {
	if done[dir] {
		return nil
	}
	done[dir] = true
	if err := writeDirs(w, path.Dir(dir), done); err != nil {
		return err
	}
	return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o555, Format: tar.FormatPAX})
}

// countingWriter counts what goes through.
type countingWriter struct {
	out io.Writer
	n   int64
}

// Write implements io.Writer.
func (w *countingWriter) Write(p []byte) (int, error) {
	n, err := w.out.Write(p)
	w.n += int64(n)
	return n, err
}

// make has the unpacking child make the layer, as of any other tar. Somebody else may wait for it, so it holds the blobs itself.
func (a *artifactWork) make(ctx context.Context) error {
	if a.s.layerSource(a.r.layers[0]) != nil {
		return nil
	}
	for _, d := range a.open {
		if d.join() {
			defer d.leave(true)
		}
	}
	w := &layerWork{s: a.s, src: a.src, layers: a.r.layers}
	w.sizes = allowance{most: a.s.limits.image, used: make([]int64, 1)}
	ctx, cancel := context.WithTimeoutCause(ctx, a.s.limits.unpack, limitError("time to unpack a layer", a.s.limits.unpack, ""))
	defer cancel()
	in, out, err := os.Pipe()
	if err != nil {
		return err
	}
	written := make(chan error, 1)
	go func() { // ends with the child, which has the other end
		_, err := a.write(ctx, out)
		written <- errors.Join(err, out.Close())
	}()
	st, err := w.stage(ctx, 0, in)
	werr := <-written
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case werr != nil && !errors.Is(werr, unix.EPIPE):
		err = werr // what the child says then is that the tar ends
	}
	if err != nil {
		if st != nil {
			err = errors.Join(err, st.discard())
		}
		return fmt.Errorf("make layer of artifact: %w", err)
	}
	return w.put(ctx, 0, st, func() {})
}
