package image

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/sirupsen/logrus"
)

func needRoot(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("needs root: unpacks layers in a chroot and mounts overlays")
	}
	logrus.SetLevel(logrus.FatalLevel) // the library's own log is not ours to show
}

// testRegistry is a registry on loopback with a log and a place for faults.
type testRegistry struct {
	host string

	mu   sync.Mutex
	log  []string                                                 // "GET /v2/..."
	hook func(w http.ResponseWriter, r *http.Request) (done bool) // runs before the registry
}

func newRegistry(tb testing.TB) *testRegistry {
	tb.Helper()
	reg := &testRegistry{}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reg.mu.Lock()
		reg.log = append(reg.log, r.Method+" "+r.URL.Path)
		hook := reg.hook
		reg.mu.Unlock()
		if hook != nil && hook(w, r) {
			return
		}
		inner.ServeHTTP(w, r)
	}))
	tb.Cleanup(srv.Close)
	reg.host = strings.TrimPrefix(srv.URL, "http://")
	return reg
}

// setHook also forgets the log.
func (r *testRegistry) setHook(hook func(http.ResponseWriter, *http.Request) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hook, r.log = hook, nil
}

// requests counts logged requests that contain sub.
func (r *testRegistry) requests(sub string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, l := range r.log {
		if strings.Contains(l, sub) {
			n++
		}
	}
	return n
}

func (r *testRegistry) ref(tb testing.TB, repo string) name.Reference {
	tb.Helper()
	ref, err := name.ParseReference(r.host+"/"+repo, name.Insecure)
	must(tb, err)
	return ref
}

func (r *testRegistry) push(tb testing.TB, repo string, img v1.Image) {
	tb.Helper()
	must(tb, remote.Write(r.ref(tb, repo), img))
}

func (r *testRegistry) pushIndex(tb testing.TB, repo string, idx v1.ImageIndex) {
	tb.Helper()
	must(tb, remote.WriteIndex(r.ref(tb, repo), idx))
}

// env is a store with a registry that its registries.conf knows under several names.
type env struct {
	testing.TB
	*Store
	reg  *testRegistry
	conf Config
}

// registriesConf maps two public registries and a search registry to host.
func registriesConf(host string) string {
	conf := "unqualified-search-registries = [\"search.example\"]\nshort-name-mode = \"enforcing\"\n"
	for _, prefix := range []string{"registry.example", "other.example", "search.example", "docker.io"} {
		conf += fmt.Sprintf("[[registry]]\nprefix = %q\nlocation = %q\ninsecure = true\n", prefix, host)
	}
	conf += fmt.Sprintf("[[registry]]\nprefix = \"none.example\"\nlocation = \"%s/none\"\ninsecure = true\n", host)
	return conf + fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n", host)
}

func newEnv(tb testing.TB) *env {
	tb.Helper()
	needRoot(tb)
	reg := newRegistry(tb)
	dir := tb.TempDir()
	e := &env{TB: tb, reg: reg, conf: Config{
		Root: filepath.Join(dir, "storage"), RunRoot: filepath.Join(dir, "run"), Containers: filepath.Join(dir, "upper"),
		RegistriesConf: filepath.Join(dir, "registries.conf"), PolicyPath: filepath.Join(dir, "policy.json"),
	}}
	e.write(e.conf.RegistriesConf, registriesConf(reg.host))
	e.write(e.conf.PolicyPath, `{"default":[{"type":"insecureAcceptAnything"}]}`)
	e.open()
	tb.Cleanup(func() {
		if e.Store != nil {
			must(tb, e.Store.Close())
		}
	})
	return e
}

func (e *env) write(path, text string) {
	e.Helper()
	must(e.TB, os.WriteFile(path, []byte(text), 0o600))
}

func (e *env) open() {
	e.Helper()
	s, err := Open(e.conf)
	must(e.TB, err)
	e.Store = s
}

// restart is what a restarted daemon does.
func (e *env) restart() {
	e.Helper()
	must(e.TB, e.Store.Close())
	e.Store = nil
	e.open()
}

func (e *env) pull(ref string) string {
	e.Helper()
	id, err := e.Store.Pull(context.Background(), ref, nil)
	must(e.TB, err)
	return id
}

func (e *env) status(ref string) *Image {
	e.Helper()
	img, err := e.Store.Status(context.Background(), ref)
	must(e.TB, err)
	return img
}

func (e *env) remove(ref string) {
	e.Helper()
	must(e.TB, e.Store.Remove(context.Background(), ref))
}

// layerDirs lists what the overlay driver has on disk.
func (e *env) layerDirs() []string {
	e.Helper()
	entries, err := os.ReadDir(filepath.Join(e.conf.Root, "overlay"))
	must(e.TB, err)
	var dirs []string
	for _, d := range entries {
		if len(d.Name()) == idDigits {
			dirs = append(dirs, d.Name())
		}
	}
	return dirs
}

func (e *env) wantLayers(n int) {
	e.Helper()
	if dirs := e.layerDirs(); len(dirs) != n {
		e.Fatalf("%d layers on disk, want %d: %v", len(dirs), n, dirs)
	}
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func equal[T comparable](tb testing.TB, what string, got, want T) {
	tb.Helper()
	if got != want {
		tb.Fatalf("%s: got %v, want %v", what, got, want)
	}
}

func equalSlices(tb testing.TB, what string, got, want []string) {
	tb.Helper()
	if !slices.Equal(got, want) {
		tb.Fatalf("%s:\n got %q\nwant %q", what, got, want)
	}
}

func soon(tb testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute) // nobody waits for it but a machine that is busy
	tb.Cleanup(cancel)
	return ctx
}

// layer makes a gzipped layer of tar entries.
func layer(tb testing.TB, entries ...tar.Header) v1.Layer {
	tb.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range entries {
		body := h.PAXRecords["body"]
		h.PAXRecords = nil
		h.Size = int64(len(body))
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		must(tb, w.WriteHeader(&h))
		_, err := io.WriteString(w, body)
		must(tb, err)
	}
	must(tb, w.Close())
	return compressed(tb, buf.Bytes())
}

func compressed(tb testing.TB, raw []byte) v1.Layer {
	tb.Helper()
	return static.NewLayer(raw, types.DockerUncompressedLayer)
}

func file(path, body string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: path, Mode: 0o644, PAXRecords: map[string]string{"body": body}}
}

func dir(path string) tar.Header { return tar.Header{Typeflag: tar.TypeDir, Name: path} }

// image makes an image of layers with a config that edit may change. Images of
// different labels have different ids.
func image(tb testing.TB, label string, edit func(*v1.Config), layers ...v1.Layer) v1.Image {
	tb.Helper()
	img, err := mutate.AppendLayers(empty.Image, layers...)
	must(tb, err)
	cf, err := img.ConfigFile()
	must(tb, err)
	cf = cf.DeepCopy()
	cf.Architecture, cf.OS = "amd64", "linux"
	cf.Config.Labels = map[string]string{"test": label}
	cf.Created = v1.Time{Time: time.Unix(1700000000, 0)}
	if edit != nil {
		edit(&cf.Config)
	}
	img, err = mutate.ConfigFile(img, cf)
	must(tb, err)
	return img
}

// simple is an image of one layer with one file.
func simple(tb testing.TB, label string) v1.Image {
	tb.Helper()
	return image(tb, label, nil, layer(tb, file("file", label)))
}

func configID(tb testing.TB, img v1.Image) string {
	tb.Helper()
	h, err := img.ConfigName()
	must(tb, err)
	return h.String()
}

func digestOf(tb testing.TB, x interface{ Digest() (v1.Hash, error) }) string {
	tb.Helper()
	h, err := x.Digest()
	must(tb, err)
	return h.String()
}

func contextFor(tb testing.TB, d time.Duration) (context.Context, context.CancelFunc) {
	tb.Helper()
	return context.WithTimeout(context.Background(), d)
}
