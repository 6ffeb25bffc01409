package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// hostile is a registry that serves what no registry should. Everything that it
// does not know goes to the decent one behind it.
type hostile struct {
	*env
	blobs     map[string]http.HandlerFunc // by digest as it stands in the URL
	manifests map[string]http.HandlerFunc // by repo:reference
}

func newHostile(t *testing.T) *hostile {
	t.Helper()
	h := &hostile{env: newEnv(t), blobs: map[string]http.HandlerFunc{}, manifests: map[string]http.HandlerFunc{}}
	h.reg.setHook(h.serve)
	return h
}

func (h *hostile) serve(w http.ResponseWriter, r *http.Request) bool {
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/v2/"), "/")
	if len(parts) < 3 {
		return false
	}
	repo, kind, ref := strings.Join(parts[:len(parts)-2], "/"), parts[len(parts)-2], parts[len(parts)-1]
	f := h.manifests[repo+":"+ref]
	if kind == "blobs" {
		f = h.blobs[ref]
	}
	if f == nil {
		return false
	}
	f(w, r)
	return true
}

// bytesOf serves data with a content type.
func bytesOf(data []byte, kind string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", kind)
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		_, _ = w.Write(data)
	}
}

// endless serves zeros for as long as anybody reads, and counts them.
func endless(sent *int64) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		zeros := make([]byte, 64<<10)
		for r.Context().Err() == nil {
			n, err := w.Write(zeros)
			if *sent += int64(n); err != nil {
				return
			}
		}
	}
}

// blob offers data under its true digest.
func (h *hostile) blob(data []byte, kind string) ocispec.Descriptor {
	d := digest.FromBytes(data)
	h.blobs[d.String()] = bytesOf(data, "application/octet-stream")
	return ocispec.Descriptor{MediaType: kind, Digest: d, Size: int64(len(data))}
}

// manifest offers body under tag and under its digest.
func (h *hostile) manifest(repo string, body []byte, kind string) digest.Digest {
	d := digest.FromBytes(body)
	h.manifests[repo+":latest"] = bytesOf(body, kind)
	h.manifests[repo+":"+d.String()] = bytesOf(body, kind)
	return d
}

// parts are an honest image, for a test to spoil.
type parts struct {
	config   map[string]any
	manifest map[string]any
	layers   []ocispec.Descriptor
}

// image makes the parts of an image out of tars and how to compress them.
func (h *hostile) image(tars [][]byte, squeeze func(testing.TB, []byte) []byte) *parts {
	p := &parts{}
	ids := []string{}
	for _, t := range tars {
		ids = append(ids, digest.FromBytes(t).String())
		kind := ocispec.MediaTypeImageLayerGzip
		p.layers = append(p.layers, h.blob(squeeze(h.TB, t), kind))
	}
	p.config = map[string]any{
		"os": "linux", "architecture": "amd64", "config": map[string]any{"Cmd": []string{"/x"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": ids},
	}
	return p
}

// offer serves the parts as repo:latest.
func (h *hostile) offer(repo string, p *parts) digest.Digest {
	h.Helper()
	return h.offerConfig(repo, p, mustJSON(h.TB, p.config))
}

func (h *hostile) offerConfig(repo string, p *parts, config []byte) digest.Digest {
	h.Helper()
	m := map[string]any{
		"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageManifest,
		"config": h.blob(config, ocispec.MediaTypeImageConfig), "layers": p.layers,
	}
	for k, v := range p.manifest {
		m[k] = v
	}
	return h.manifest(repo, mustJSON(h.TB, m), ocispec.MediaTypeImageManifest)
}

func mustJSON(tb testing.TB, v any) []byte {
	tb.Helper()
	data, err := json.Marshal(v)
	must(tb, err)
	return data
}

// refuse pulls repo, wants that error, and nothing left of it. It returns the text.
func (h *hostile) refuse(repo string, want error) string {
	h.Helper()
	t := h.TB.(*testing.T)
	h.Store.blobs.dropAll() // what an earlier refusal was not about would not be asked for again
	start := time.Now()
	_, err := h.Pull(soon(t), "registry.example/"+repo, nil)
	wantErr(t, repo, err, want)
	if d := time.Since(start); d > time.Minute {
		h.Errorf("%s: refused after %v", repo, d)
	}
	h.clean(repo)
	return err.Error()
}

// clean wants a store with nothing in it.
func (h *hostile) clean(what string) {
	h.Helper()
	list, err := h.List(soon(h.TB), "")
	must(h.TB, err)
	if len(list) > 0 {
		h.Fatalf("%s: an image is listed: %v", what, list)
	}
	must(h.TB, h.flights.idle(h.sweep))
	for _, dir := range []string{"tmp", "overlay/tempdirs", "overlay-layers/tmp"} {
		entries, _ := os.ReadDir(filepath.Join(h.conf.Root, dir))
		if len(entries) > 0 {
			h.Fatalf("%s: left in %s: %v", what, dir, entries)
		}
	}
	if dirs := h.layerDirs(); len(dirs) > 0 {
		h.Fatalf("%s: layers are left: %v", what, dirs)
	}
	imgs, err := h.store.Images()
	must(h.TB, err)
	equal(h.TB, "records", len(imgs), 0)
}

// tarOf makes a tar of entries. A body is in the PAX record "body", as in layer.
func tarOf(tb testing.TB, entries ...tar.Header) []byte {
	tb.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		body := e.PAXRecords["body"]
		if body != "" {
			e.PAXRecords = nil
		}
		e.Size = int64(len(body))
		if e.Mode == 0 {
			e.Mode = 0o755
		}
		must(tb, w.WriteHeader(&e))
		_, err := io.WriteString(w, body)
		must(tb, err)
	}
	must(tb, w.Close())
	return buf.Bytes()
}

func plainTar(_ testing.TB, data []byte) []byte { return data }

func gzipped(tb testing.TB, data []byte) []byte {
	tb.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	_, err := w.Write(data)
	must(tb, err)
	must(tb, w.Close())
	return buf.Bytes()
}

func zstandard(tb testing.TB, data []byte) []byte {
	tb.Helper()
	w, err := zstd.NewWriter(nil)
	must(tb, err)
	return w.EncodeAll(data, nil)
}

// chunked has the shape of zstd:chunked: frames, and one to skip at the end.
func chunked(tb testing.TB, data []byte) []byte {
	tb.Helper()
	half := len(data) / 2
	all := append(zstandard(tb, data[:half]), zstandard(tb, data[half:])...)
	return append(all, 0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 'T', 'O', 'C', '!')
}

// squeezes are all ways in which a layer may come.
var squeezes = []func(testing.TB, []byte) []byte{gzipped, zstandard, plainTar, chunked}

// peak is the largest resident size of this process in bytes since the last call
// of forgetPeak, which returns what it is then.
func peak(t *testing.T) uint64 {
	t.Helper()
	data, err := os.ReadFile("/proc/self/status")
	must(t, err)
	var kib uint64
	for line := range strings.Lines(string(data)) {
		if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &kib); err == nil {
			return kib << 10
		}
	}
	t.Fatal("no VmHWM")
	return 0
}

func forgetPeak(t *testing.T) (now uint64) {
	t.Helper()
	debug.FreeOSMemory()
	must(t, os.WriteFile("/proc/self/clear_refs", []byte("5"), 0))
	return peak(t)
}
