package image

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ProtonMail/go-crypto/openpgp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	ggcr "github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/signature"
)

// seal is one signature of an image, in whatever form.
type seal struct {
	content     []byte
	annotations map[string]string // of sigstore's
}

// sealer holds a private key. public is the file that a policy names.
type sealer struct {
	public string
	sign   func(manifest []byte, as string) seal
}

// gpgKey signs for the library, which words what is signed and can sign itself with
// gpgme only, that is with cgo.
type gpgKey struct {
	signature.SigningMechanism // nil: only Sign is asked for
	entity                     *openpgp.Entity
}

func (k gpgKey) Sign(input []byte, _ string) ([]byte, error) {
	var out bytes.Buffer
	w, err := openpgp.Sign(&out, k.entity, nil, nil)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(input); err != nil {
		return nil, err
	}
	err = w.Close()
	return out.Bytes(), err
}

func newGPG(t *testing.T) *sealer {
	t.Helper()
	entity, err := openpgp.NewEntity("test", "", "test@example.com", nil)
	must(t, err)
	var public bytes.Buffer
	must(t, entity.Serialize(&public))
	return &sealer{tempFile(t, public.Bytes()), func(m []byte, as string) seal {
		sig, err := signature.SignDockerManifest(m, as, gpgKey{entity: entity}, "")
		must(t, err)
		return seal{content: sig}
	}}
}

func tempFile(t *testing.T, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	must(t, os.WriteFile(path, data, 0o600))
	return path
}

// Names in a signature of sigstore.
const (
	sigstoreType      = "application/vnd.dev.cosign.simplesigning.v1+json"
	sigstoreSignature = "dev.cosignproject.cosign/signature"
	sigstoreCert      = "dev.sigstore.cosign/certificate"
)

// signSigstore signs as cosign does.
func signSigstore(t *testing.T, key *ecdsa.PrivateKey, manifest []byte, as string) seal {
	t.Helper()
	payload := mustJSON(t, map[string]any{
		"critical": map[string]any{
			"type":     "cosign container image signature",
			"image":    map[string]any{"docker-manifest-digest": digest.FromBytes(manifest)},
			"identity": map[string]any{"docker-reference": as},
		},
		"optional": nil,
	})
	sum := sha256.Sum256(payload)
	sig, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	must(t, err)
	return seal{payload, map[string]string{sigstoreSignature: base64.StdEncoding.EncodeToString(sig)}}
}

func newECDSA(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return key
}

func newSigstore(t *testing.T) *sealer {
	t.Helper()
	key := newECDSA(t)
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	must(t, err)
	public := tempFile(t, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	return &sealer{public, func(m []byte, as string) seal { return signSigstore(t, key, m, as) }}
}

// signedWay is a way for signatures to come, with where they come from.
type signedWay struct {
	*env
	name   string
	key    func(*testing.T) *sealer
	kind   string // of requirement
	attach func(repo string, manifest []byte, seals ...seal)
}

// require is a policy in which registry.example is signed by that key.
func (w *signedWay) require(key *sealer, identity string) string {
	if identity != "" {
		identity = `,"signedIdentity":` + identity
	}
	keyType := ""
	if w.kind == "signedBy" {
		keyType = `,"keyType":"GPGKeys"`
	}
	return fmt.Sprintf(`{"default":[{"type":"reject"}],"transports":{"docker":{"registry.example":[{"type":%q%s,"keyPath":%q%s}]}}}`, w.kind, keyType, key.public, identity)
}

const acceptAll = `{"default":[{"type":"insecureAcceptAnything"}]}`

// signedWays opens a store for each way.
func signedWays(t *testing.T) []*signedWay {
	t.Helper()
	open := func(yaml string) *env {
		e := newEnv(t)
		e.conf.RegistriesDir = t.TempDir()
		e.write(filepath.Join(e.conf.RegistriesDir, "x.yaml"), yaml)
		e.restart()
		return e
	}
	dir := t.TempDir()
	attachFile := func(repo string, m []byte, seals ...seal) {
		d := digest.FromBytes(m)
		to := filepath.Join(dir, fmt.Sprintf("%s@sha256=%s", repo, d.Encoded()))
		must(t, os.RemoveAll(to))
		must(t, os.MkdirAll(to, 0o700))
		for i, s := range seals {
			must(t, os.WriteFile(filepath.Join(to, fmt.Sprintf("signature-%d", i+1)), s.content, 0o600))
		}
	}
	web := httptest.NewServer(http.StripPrefix("/sigs", http.FileServer(http.Dir(dir))))
	t.Cleanup(web.Close)
	ways := []*signedWay{
		{name: "lookaside in files", env: open("default-docker:\n  lookaside: file://" + dir + "\n"), key: newGPG, kind: "signedBy", attach: attachFile},
		{name: "lookaside by HTTP", env: open("default-docker:\n  lookaside: " + web.URL + "/sigs\n"), key: newGPG, kind: "signedBy", attach: attachFile},
		{name: "registry's extension", env: open(""), key: newGPG, kind: "signedBy"},
		{name: "sigstore attachments", env: open("default-docker:\n  use-sigstore-attachments: true\n"), key: newSigstore, kind: "sigstoreSigned"},
	}
	ways[2].attach = serveExtension(ways[2].reg)
	for _, w := range ways {
		if w.attach == nil {
			w.attach = func(repo string, m []byte, seals ...seal) { attachSigstore(t, w.reg, repo, m, seals...) }
		}
	}
	return ways
}

// serveExtension makes reg offer the signatures of images itself, and returns how to
// give it some.
func serveExtension(reg *testRegistry) func(repo string, m []byte, seals ...seal) {
	type entry struct {
		Version int    `json:"schemaVersion"`
		Name    string `json:"name"`
		Type    string `json:"type"`
		Content []byte `json:"content"`
	}
	lists := map[string][]entry{}
	reg.setHook(func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("X-Registry-Supports-Signatures", "1")
		list, ok := strings.CutPrefix(r.URL.Path, "/extensions/v2/")
		if ok {
			_ = json.NewEncoder(w).Encode(map[string]any{"signatures": lists[list]})
		}
		return ok
	})
	return func(repo string, m []byte, seals ...seal) {
		d := digest.FromBytes(m)
		var list []entry
		for i, s := range seals {
			list = append(list, entry{2, fmt.Sprintf("%s@%032d", d, i), "atomic", s.content})
		}
		lists[repo+"/signatures/"+d.String()] = list
	}
}

// attachSigstore pushes signatures as cosign does: an image beside the image, called
// by its digest.
func attachSigstore(t *testing.T, reg *testRegistry, repo string, m []byte, seals ...seal) {
	t.Helper()
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, ggcr.OCIManifestSchema1), ggcr.OCIConfigJSON)
	for _, s := range seals {
		var err error
		img, err = mutate.Append(img, mutate.Addendum{Layer: static.NewLayer(s.content, sigstoreType), Annotations: s.annotations, MediaType: sigstoreType})
		must(t, err)
	}
	reg.push(t, repo+":sha256-"+digest.FromBytes(m).Encoded()+".sig", img)
}

func manifestBytes(t *testing.T, img v1.Image) []byte {
	t.Helper()
	raw, err := img.RawManifest()
	must(t, err)
	return raw
}
