package image

import (
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// IM-18: each way in which an image can be signed, rightly and wrongly, when it is
// pulled and when a container is made of what was pulled before the rules were these.
func TestSignatures(t *testing.T) {
	for _, w := range signedWays(t) {
		t.Run(w.name, func(t *testing.T) { w.cases(t) })
	}
}

const (
	signedName = "registry.example/good/x:1"
	anyTag     = `{"type":"matchRepository"}`
)

func (w *signedWay) cases(t *testing.T) {
	good, wrong := w.key(t), w.key(t)
	rubbish := seal{[]byte("\x88rubbish"), map[string]string{sigstoreSignature: "%"}} // begins as OpenPGP does
	if w.name == "registry's extension" {
		rubbish.content[0] = 0xff // or as nothing does
	}
	other := manifestBytes(t, simple(t, w.name+" other"))
	for _, c := range []struct {
		name     string
		seals    func(m []byte) []seal
		identity string
		allowed  bool
		byDigest bool // where that is another verdict
	}{
		{name: "right key", seals: func(m []byte) []seal { return []seal{good.sign(m, signedName)} }, allowed: true, byDigest: true},
		{name: "none", seals: func([]byte) []seal { return nil }},
		{name: "wrong key", seals: func(m []byte) []seal { return []seal{wrong.sign(m, signedName)} }},
		{name: "of another image", seals: func([]byte) []seal { return []seal{good.sign(other, signedName)} }},
		{name: "for another repository", seals: func(m []byte) []seal { return []seal{good.sign(m, "registry.example/other/x:1")} }},
		{name: "for another registry", seals: func(m []byte) []seal { return []seal{good.sign(m, "other.example/good/x:1")} }},
		{name: "for another tag", seals: func(m []byte) []seal { return []seal{good.sign(m, "registry.example/good/x:2")} }, byDigest: true},
		{name: "for any tag", seals: func(m []byte) []seal { return []seal{good.sign(m, "registry.example/good/x:2")} }, identity: anyTag, allowed: true, byDigest: true},
		{name: "one of three", seals: func(m []byte) []seal {
			return []seal{wrong.sign(m, signedName), good.sign(other, signedName), good.sign(m, signedName)}
		}, allowed: true, byDigest: true},
		{name: "spoilt", seals: func(m []byte) []seal {
			s := good.sign(m, signedName)
			s.content = append([]byte(nil), s.content...)
			s.content[len(s.content)/2] ^= 1
			return []seal{s}
		}},
		{name: "rubbish", seals: func([]byte) []seal { return []seal{rubbish} }},
		{name: "rubbish and the right one", seals: func(m []byte) []seal { return []seal{rubbish, good.sign(m, signedName)} }, allowed: true, byDigest: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			img := simple(t, w.name+c.name)
			m := manifestBytes(t, img)
			w.reg.push(t, "good/x:1", img)
			w.attach("good/x", m, c.seals(m)...)
			policy := w.require(good, c.identity)
			byDigest := "registry.example/good/x@" + digestOf(t, img)
			w.write(w.conf.PolicyPath, policy)
			for ref, want := range map[string]bool{signedName: c.allowed, byDigest: c.byDigest} {
				w.wantPull(t, ref, img, want)
			}
			// Here already, under rules that did not ask.
			w.write(w.conf.PolicyPath, acceptAll)
			id, err := w.Pull(soon(t), signedName, nil)
			must(t, err)
			w.write(w.conf.PolicyPath, policy)
			for range 2 { // asked, and remembered
				for asked, want := range map[string]bool{
					signedName: c.allowed, id: c.allowed || c.byDigest, "": c.allowed || c.byDigest, byDigest: c.byDigest,
					"registry.example/good/x:1@" + digestOf(t, img): c.byDigest, "other.example/good/x:1": false,
				} {
					if err := w.Permit(soon(t), "", id, asked); (err == nil) != want {
						t.Errorf("create as %q: %v, want allowed: %v", asked, err, want)
					} else if err != nil {
						wantErr(t, asked, err, ErrSignature)
					}
				}
			}
			must(t, w.Remove(soon(t), id))
		})
	}
}

// wantPull wants that verdict, and nothing left of an image that was refused.
func (w *signedWay) wantPull(t *testing.T, ref string, img v1.Image, want bool) {
	t.Helper()
	layers, err := img.Layers()
	must(t, err)
	layer := "GET /v2/good/x/blobs/" + digestOf(t, layers[0])
	before := w.reg.requests(layer)
	id, err := w.Pull(soon(t), ref, nil)
	if want {
		must(t, err)
		w.remove(id)
		return
	}
	wantErr(t, ref, err, ErrSignature)
	(&hostile{env: w.env}).clean(ref)
	equal(t, ref+": fetches of a layer", w.reg.requests(layer), before)
}

// A signature stays with an image whatever else it is pulled as.
func TestSignatureStays(t *testing.T) {
	for _, w := range signedWays(t)[2:] {
		t.Run(w.name, func(t *testing.T) {
			key := w.key(t)
			img := simple(t, "stays")
			m := manifestBytes(t, img)
			w.reg.push(t, "good/x:1", img)
			w.reg.push(t, "plain/x:1", img)
			w.attach("good/x", m, key.sign(m, signedName))
			id := w.pull(signedName)
			w.pull("registry.example/plain/x:1")
			w.write(w.conf.PolicyPath, w.require(key, ""))
			must(t, w.Permit(soon(t), "", id, signedName))
			wantErr(t, "the other name", w.Permit(soon(t), "", id, "registry.example/plain/x:1"), ErrSignature)
			w.restart()
			must(t, w.Permit(soon(t), "", id, signedName))
		})
	}
}

// The same content, compressed in another way, is another manifest: the one that is
// signed counts, whichever came last.
func TestSignatureOfOneOfTwoManifests(t *testing.T) {
	w := signedWays(t)[3]
	key := w.key(t)
	w.reg.push(t, "plain/x:bystander", simple(t, "bystander")) // the registry knows the repository
	h := &hostile{env: w.env, blobs: map[string]http.HandlerFunc{}, manifests: map[string]http.HandlerFunc{}}
	w.reg.setHook(h.serve)
	tars := [][]byte{tarOf(t, file("file", "one"))}
	h.offer("good/x", h.image(tars, gzipped))
	h.offer("plain/x", h.image(tars, zstandard))
	answer := httptest.NewRecorder()
	h.manifests["good/x:latest"](answer, nil)
	w.attach("good/x", answer.Body.Bytes(), key.sign(answer.Body.Bytes(), "registry.example/good/x:latest"))
	id := w.pull("registry.example/good/x")
	equal(t, "id of the other", w.pull("registry.example/plain/x"), id)
	w.write(w.conf.PolicyPath, w.require(key, ""))
	must(t, w.Permit(soon(t), "", id, "registry.example/good/x"))
	wantErr(t, "the other name", w.Permit(soon(t), "", id, "registry.example/plain/x"), ErrSignature)
}

// A key that is taken back is taken back at once, also for images that were allowed.
func TestKeyIsReplaced(t *testing.T) {
	w := signedWays(t)[0]
	key, next := w.key(t), w.key(t)
	img := simple(t, "replaced")
	m := manifestBytes(t, img)
	w.reg.push(t, "good/x:1", img)
	w.attach("good/x", m, key.sign(m, signedName))
	w.write(w.conf.PolicyPath, w.require(key, ""))
	id := w.pull(signedName)
	must(t, w.Permit(soon(t), "", id, signedName))
	data, err := os.ReadFile(next.public)
	must(t, err)
	w.write(key.public, string(data))
	wantErr(t, "create", w.Permit(soon(t), "", id, signedName), ErrSignature)
	wantErr(t, "pull", second(w.Pull(soon(t), signedName, nil)), ErrSignature)
	must(t, os.Remove(key.public))
	wantErr(t, "create without a key", w.Permit(soon(t), "", id, signedName), ErrSignature)
}

// Through a mirror it is the image's own name that is signed, and not the mirror's.
func TestSignaturesThroughMirrors(t *testing.T) {
	for _, w := range signedWays(t) {
		t.Run(w.name, func(t *testing.T) {
			origin := newRegistry(t)
			origin.push(t, "good/x:1", simple(t, "unsigned"))
			w.write(w.conf.RegistriesConf, fmt.Sprintf("[[registry]]\nprefix = \"registry.example\"\nlocation = %q\ninsecure = true\n[[registry.mirror]]\nlocation = %q\ninsecure = true\n", origin.host, w.reg.host))
			key := w.key(t)
			w.write(w.conf.PolicyPath, w.require(key, ""))
			for as, want := range map[string]bool{signedName: true, w.reg.host + "/good/x:1": false} {
				img := simple(t, w.name+as)
				m := manifestBytes(t, img)
				w.reg.push(t, "good/x:1", img)
				w.attach("good/x", m, key.sign(m, as))
				w.wantPull(t, signedName, img, want)
				equal(t, "requests to the registry behind", origin.requests("GET /v2/good"), 0)
			}
		})
	}
}

// A server of signatures that is down is no verdict.
func TestSignaturesUnavailable(t *testing.T) {
	w := signedWays(t)[2]
	key := w.key(t)
	w.reg.push(t, "good/x:1", simple(t, "x"))
	w.write(w.conf.PolicyPath, w.require(key, ""))
	w.reg.setHook(func(rw http.ResponseWriter, r *http.Request) bool {
		rw.Header().Set("X-Registry-Supports-Signatures", "1")
		if strings.HasPrefix(r.URL.Path, "/extensions/") {
			rw.WriteHeader(http.StatusServiceUnavailable)
			return true
		}
		return false
	})
	_, err := w.Pull(soon(t), signedName, nil)
	wantErr(t, "no signatures to be had", err, ErrUnavailable)
	if errors.Is(err, ErrSignature) {
		t.Errorf("%v", err)
	}
	(&hostile{env: w.env}).clean("unavailable")
}

// A registry may list signatures without end; each is a request, and up to 4 MiB.
func TestManySignatures(t *testing.T) {
	w := signedWays(t)[3]
	key := w.key(t)
	w.write(w.conf.PolicyPath, w.require(key, ""))
	for n, want := range map[int]error{maxSignatures: nil, maxAskedBlobs + 5: ErrLimit} {
		var layers []v1.Layer
		for i := range 20 { // are blobs as well, and do not count
			layers = append(layers, layer(t, file(fmt.Sprint("file", i), fmt.Sprint(n))))
		}
		img := image(t, fmt.Sprint(n), nil, layers...)
		m := manifestBytes(t, img)
		w.reg.push(t, "good/x:1", img)
		seals := make([]seal, n)
		for i := range seals {
			seals[i] = key.sign(m, fmt.Sprintf("registry.example/other/x:%d", i))
		}
		seals[n-1] = key.sign(m, signedName)
		w.attach("good/x", m, seals...)
		before := w.reg.requests("GET /v2/good/x/blobs/")
		id, err := w.Pull(soon(t), signedName, nil)
		wantErr(t, fmt.Sprint(n), err, want)
		if err == nil {
			w.remove(id)
		}
		if got := w.reg.requests("GET /v2/good/x/blobs/") - before; want != nil && got > maxAskedBlobs {
			t.Errorf("%d requests", got)
		}
	}
	(&hostile{env: w.env}).clean("many signatures")
}

// Certificates of one's own authority instead of a key, and who they are for.
func TestSigstoreCertificates(t *testing.T) {
	w := signedWays(t)[3]
	ca, caKey := certificate(t, nil, nil, func(c *x509.Certificate) { c.IsCA = true })
	roots := tempFile(t, pemOf(ca))
	sign := func(m []byte, ca *x509.Certificate, caKey *ecdsa.PrivateKey, email string) seal {
		leaf, key := certificate(t, ca, caKey, func(c *x509.Certificate) {
			c.EmailAddresses, c.ExtKeyUsage = []string{email}, []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
		})
		s := signSigstore(t, key, m, signedName)
		s.annotations[sigstoreCert] = string(pemOf(leaf))
		return s
	}
	w.write(w.conf.PolicyPath, fmt.Sprintf(`{"default":[{"type":"reject"}],"transports":{"docker":{"registry.example":[
		{"type":"sigstoreSigned","pki":{"caRootsPath":%q,"subjectEmail":"builder@example.com"}}]}}}`, roots))
	otherCA, otherKey := certificate(t, nil, nil, func(c *x509.Certificate) { c.IsCA = true })
	for name, c := range map[string]struct {
		ca    *x509.Certificate
		key   *ecdsa.PrivateKey
		email string
		want  bool
	}{
		"right":             {ca, caKey, "builder@example.com", true},
		"another person":    {ca, caKey, "intern@example.com", false},
		"another authority": {otherCA, otherKey, "builder@example.com", false},
	} {
		img := simple(t, name)
		m := manifestBytes(t, img)
		w.reg.push(t, "good/x:1", img)
		w.attach("good/x", m, sign(m, c.ca, c.key, c.email))
		t.Log(name)
		w.wantPull(t, signedName, img, c.want)
	}
}
