package image

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("%s: got %v, want %v", what, err, want)
	}
}

func TestInvalidReferences(t *testing.T) {
	e := newEnv(t)
	hex := strings.Repeat("a", 64)
	for _, ref := range []string{
		"", " ", "registry.example/UPPER", "registry.example/a b", "http://x/y", "registry.example/a@sha256:" + hex[:63], "a:tag:tag",
		"registry.example/" + strings.Repeat("a", 5<<10), "-x", "docker://registry.example/x", hex, "sha256:" + hex,
		"registry.example/a@md5:" + hex[:32], "registry.example/../x", "registry.example/x\n",
	} {
		_, err := e.Pull(soon(t), ref, nil)
		wantErr(t, fmt.Sprintf("%.40q", ref), err, ErrInvalidReference)
	}
	equal(t, "requests", e.reg.requests(""), 0)
}

func TestRegistryErrors(t *testing.T) {
	e := newEnv(t)
	e.reg.push(t, "x", simple(t, "x"))
	status := func(code int, body string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				return false
			}
			w.WriteHeader(code)
			fmt.Fprint(w, body)
			return true
		}
	}
	for name, c := range map[string]struct {
		hook func(http.ResponseWriter, *http.Request) bool
		want error
	}{
		"404 plain":  {status(404, "nothing here"), ErrNotFound},
		"404 json":   {status(404, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"m"}]}`), ErrNotFound},
		"404 name":   {status(404, `{"errors":[{"code":"NAME_UNKNOWN","message":"m"}]}`), ErrNotFound},
		"401 json":   {status(401, `{"errors":[{"code":"UNAUTHORIZED","message":"m"}]}`), ErrDenied},
		"403 json":   {status(403, `{"errors":[{"code":"DENIED","message":"m"}]}`), ErrDenied},
		"403 plain":  {status(403, "no"), ErrDenied},
		"500":        {status(500, "oops"), ErrUnavailable},
		"503 json":   {status(503, `{"errors":[{"code":"UNAVAILABLE","message":"m"}]}`), ErrUnavailable},
		"no manners": {func(w http.ResponseWriter, _ *http.Request) bool { panic(http.ErrAbortHandler) }, ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			e.reg.setHook(c.hook)
			_, err := e.Pull(soon(t), "registry.example/x", nil)
			wantErr(t, name, err, c.want)
			if !strings.HasPrefix(err.Error(), "pull registry.example/x: ") {
				t.Fatalf("text: %v", err)
			}
		})
	}
	e.reg.setHook(nil)
	_, err := e.Pull(soon(t), "registry.example/x:nothing", nil)
	wantErr(t, "unknown tag", err, ErrNotFound)
	e.pull("registry.example/x")
}

func TestUnreachableRegistry(t *testing.T) {
	e := newEnv(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	addr := l.Addr().String()
	must(t, l.Close())
	_, err = e.Pull(soon(t), addr+"/x", nil)
	wantErr(t, "closed port", err, ErrUnavailable)
}

func TestBlockedRegistry(t *testing.T) {
	e := newEnv(t)
	e.write(e.conf.RegistriesConf, "[[registry]]\nlocation = \"registry.example\"\nblocked = true\n")
	_, err := e.Pull(soon(t), "registry.example/x", nil)
	wantErr(t, "blocked", err, ErrDenied)
}

func TestUnsupportedImages(t *testing.T) {
	e := newEnv(t)
	foreign := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{
		Add: simple(t, "s390x"), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}},
	})
	e.reg.pushIndex(t, "foreign", foreign)
	e.reg.push(t, "plugin", mutate.ConfigMediaType(simple(t, "plugin"), "application/vnd.docker.plugin.v1+json"))
	for _, repo := range []string{"foreign", "plugin"} {
		_, err := e.Pull(soon(t), "registry.example/"+repo, nil)
		wantErr(t, repo, err, ErrUnsupported)
	}
	list, err := e.List(soon(t), "")
	must(t, err)
	equal(t, "images", len(list), 0)
}

func TestPolicy(t *testing.T) {
	e := newEnv(t)
	img := simple(t, "policy")
	e.reg.push(t, "good/x", img)
	e.reg.push(t, "bad/x", img)
	e.write(e.conf.PolicyPath, `{"default":[{"type":"reject"}],"transports":{"docker":{"registry.example/good":[{"type":"insecureAcceptAnything"}]}}}`)
	_, err := e.Pull(soon(t), "registry.example/bad/x", nil)
	wantErr(t, "rejected", err, ErrSignature)
	id := e.pull("registry.example/good/x")
	// An image that is here does not make the policy look away.
	_, err = e.Pull(soon(t), "registry.example/bad/x", nil)
	wantErr(t, "rejected, image present", err, ErrSignature)
	equal(t, "names", len(e.status(id).RepoTags), 1)
	// Nor does the name of the tag with an accepted digest.
	e.write(e.conf.PolicyPath, `{"default":[{"type":"insecureAcceptAnything"}]`)
	_, err = e.Pull(soon(t), "registry.example/good/x", nil)
	if err == nil {
		t.Fatal("a broken policy accepts")
	}
}

func TestMissingConfigFiles(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]Config{
		"policy":     {PolicyPath: dir + "/typo.json"},
		"registries": {RegistriesConf: dir + "/typo.conf"},
	} {
		c.Root, c.RunRoot, c.Containers = dir+"/a", dir+"/b", dir+"/c"
		if s, err := Open(c); err == nil {
			_ = s.Close()
			t.Errorf("%s: a path that does not exist is accepted", name)
		}
	}
	if _, err := Open(Config{Root: "relative", RunRoot: dir, Containers: dir}); err == nil {
		t.Error("a relative root is accepted")
	}
	p, err := configFile("", dir+"/none")
	must(t, err)
	equal(t, "default that does not exist", p, "")
	p, err = configFile(dir+"/none", dir+"/none")
	must(t, err)
	equal(t, "the same, spelled out", p, "")
}
