package image

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// titled is a blob of an artifact.
type titled struct{ title, content string }

// artifact offers an artifact as repo:latest, and returns the digests of its blobs. A file without a title has none.
func (h *hostile) artifact(repo string, files ...titled) (blobs []digest.Digest) {
	h.Helper()
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, ArtifactType: "application/vnd.test.model", Config: h.blob([]byte("{}"), ocispec.MediaTypeEmptyJSON)}
	m.SchemaVersion = 2
	m.Annotations = map[string]string{"of": repo}
	for _, f := range files {
		d := h.blob([]byte(f.content), "application/vnd.test.file")
		if f.title != "" {
			d.Annotations = map[string]string{ocispec.AnnotationTitle: f.title}
		}
		m.Layers = append(m.Layers, d)
		blobs = append(blobs, d.Digest)
	}
	h.manifest(repo, mustJSON(h.TB, m), ocispec.MediaTypeImageManifest)
	return blobs
}

// An artifact is an image of one layer that has its files, and a volume like any other.
func TestArtifact(t *testing.T) {
	h := newHostile(t)
	weights := noise(t, 3<<20)
	files := []titled{{"model/weights.bin", weights}, {"README", "read me"}, {"", "nameless"}, {"model/deep/twin", "read me"}}
	blobs := h.artifact("model", files...)
	h.offer("own", h.image([][]byte{tarOf(t, file("file", "own"))}, gzipped))
	own, id := h.pull("registry.example/own"), h.pull("registry.example/model")
	status := h.status("registry.example/model")
	equal(t, "id", status.ID, id)
	equal(t, "annotation", status.Annotations["of"], "model")
	if status.Size < uint64(len(weights)) {
		t.Errorf("size %d", status.Size)
	}
	h.withVolumes("c", own, id)
	root := h.volume("c", id, "")
	wantVolumeFlags(t, root)
	for _, f := range files {
		path := f.title
		if path == "" {
			path = blobs[2].Encoded()
		}
		wantFile(t, root, path, f.content)
		var st unix.Stat_t
		must(t, unix.Fstatat(root.Int(), path, &st, 0))
		equal(t, "mode of "+path, st.Mode, unix.S_IFREG|0o444)
	}
	wantFile(t, h.volume("c", id, "model"), "deep/twin", "read me")
	// Again, under another name, and of another manifest: nothing is fetched for what is here.
	h.reg.setHook(h.serve)
	equal(t, "again", h.pull("registry.example/model"), id)
	equal(t, "blobs", h.reg.requests("/blobs/"), 0)
	h.artifact("twin", files...)
	equal(t, "the same files", h.pull("other.example/twin"), id)
	h.artifact("other", titled{"README", "read me"})
	if other := h.pull("registry.example/other"); other == id {
		t.Error("other files have the same id")
	}
	// It is checked, kept, saved and loaded as an image.
	h.restart()
	h.volume("c", id, "README")
	path := filepath.Join(t.TempDir(), "layout")
	must(t, h.Save(soon(t), path, true, "registry.example/model"))
	h.removeRootfs("c")
	for _, ref := range []string{own, id, "registry.example/other"} {
		h.remove(ref)
	}
	h.clean("removed")
	loaded, err := h.Load(soon(t), path)
	must(t, err)
	equal(t, "loaded", loaded[0].ID, id)
	must(t, h.Store.Close())
	h.Store = nil
	problems, err := Check(soon(t), h.conf, CheckOptions{Deep: true})
	must(t, err)
	equal(t, "problems", fmt.Sprint(problems), "[]")
}

// Names that are not those of files below the volume's root, or mean something else to an overlay.
func TestArtifactTitles(t *testing.T) {
	h := newHostile(t)
	for _, title := range []string{"/etc/passwd", "../x", "a/../../x", "a/..", ".", "..", "./a", "a//b", "a/", ".wh.a", "a/.wh..wh..opq", "a/.wh.b/c", "a\x00b", strings.Repeat("n", 256), strings.Repeat("n/", 2100) + "n"} {
		h.artifact("bad", titled{title, "content"})
		h.refuse("bad", h.eitherOf("bad", ErrUnsupported, ErrLimit))
	}
	for what, files := range map[string][]titled{
		"twice": {{"a", "1"}, {"a", "2"}}, "file and directory": {{"a", "1"}, {"a/b", "2"}}, "above": {{"a/b/c", "1"}, {"a", "2"}, {"ab", "3"}}, "none": {},
	} {
		h.artifact("bad", files...)
		if text := h.refuse("bad", ErrUnsupported); what != "none" && !strings.Contains(text, "ambiguous") {
			t.Errorf("%s: %s", what, text)
		}
	}
	h.artifact("good", titled{"..a/b..", "1"}, titled{".wha", "2"}, titled{"a b/ü", "3"}, titled{strings.Repeat("n", 255), "4"})
	h.pull("registry.example/good")
}

// eitherOf returns the one of some errors that the pull of repo meets, or the first.
func (h *hostile) eitherOf(repo string, some ...error) error {
	_, err := h.Pull(soon(h.TB), "registry.example/"+repo, nil)
	for _, one := range some {
		if strings.Contains(fmt.Sprint(err), one.Error()) {
			return one
		}
	}
	return some[0]
}

// What a registry says of a blob and what it serves are compared, and nothing of an artifact that is refused is left.
func TestArtifactOfLies(t *testing.T) {
	h := newHostile(t)
	blobs := h.artifact("x", titled{"a", "content of a"}, titled{"b", noise(t, 1<<20)})
	honest := h.blobs[blobs[0].String()]
	for what, lie := range map[string]http.HandlerFunc{
		"other bytes": bytesOf([]byte("something or"), ""), "short": bytesOf([]byte("content"), ""), "long": bytesOf([]byte("content of a, and more"), ""),
	} {
		h.blobs[blobs[0].String()] = lie
		if text := h.refuse("x", ErrCorrupt); !strings.Contains(text, `file "a"`) {
			t.Errorf("%s: %s", what, text)
		}
	}
	h.blobs[blobs[0].String()] = honest
	h.limits.image = 1<<20 + 100 // a tar has headers beside its files
	h.refuse("x", ErrLimit)
	h.limits.image = defaultLimits.image
	h.pull("registry.example/x")
}

// An artifact whose pull was cancelled is taken up where it was, as an image is, with what has come as a whole.
func TestArtifactIsTakenUp(t *testing.T) {
	h := newHostile(t)
	data := noise(t, 2<<20)
	blobs := h.artifact("x", titled{"a", data}, titled{"b", "small"})
	p, small := newParcel([]byte(data), cut, part), newParcel([]byte("small"), whole)
	h.blobs[blobs[0].String()], h.blobs[blobs[1].String()] = p.ServeHTTP, small.ServeHTTP
	ctx, cancel := context.WithCancel(soon(t))
	c := h.pullLater(ctx, "registry.example/x", nil)
	h.awaitBytes(blobs[0], len(data)/2)
	h.awaitBytes(blobs[1], len("small"))
	cancel()
	wantErr(t, "cancelled", (<-c).err, context.Canceled)
	h.flights.work.Wait()
	close(p.next)
	h.pull("registry.example/x")
	equalSlices(t, "asked for", p.asked(), []string{"", fmt.Sprintf("bytes=%d-", len(data)/2)})
	equal(t, "requests for the small one", len(small.asked()), 1)
}

// Two pulls of the same files at the same time, under different manifests, make one layer.
func TestArtifactsBesideEachOther(t *testing.T) {
	h := newHostile(t)
	files := []titled{{"a", noise(t, 1<<20)}}
	const beside = 8
	for n := range beside {
		h.artifact(fmt.Sprintf("x%d", n), files...)
	}
	var all []<-chan result
	for n := range beside {
		all = append(all, h.pullLater(soon(t), fmt.Sprintf("registry.example/x%d", n), nil))
	}
	ids := map[string]bool{}
	for _, c := range all {
		r := <-c
		must(t, r.err)
		ids[r.id] = true
	}
	equal(t, "ids", len(ids), 1)
	h.wantLayers(1)
}
