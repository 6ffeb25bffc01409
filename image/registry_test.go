package image

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// realRegistry is Debian's distribution on a port of its own.
type realRegistry struct {
	host string
	opts []remote.Option
}

// newRealRegistry runs docker-registry until the test ends. extra goes into its
// configuration, below http and beside it.
func newRealRegistry(t *testing.T, inHTTP, extra string) *realRegistry {
	t.Helper()
	needRoot(t)
	path, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Skip("needs Debian's docker-registry: make deps installs it, and vm -with docker-registry in a guest: " + err.Error())
	}
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0") // it does not say which port it took
	must(t, err)
	host := l.Addr().String()
	must(t, l.Close())
	config := fmt.Sprintf("version: 0.1\nlog: {level: warn}\nstorage:\n  filesystem: {rootdirectory: %s}\n  delete: {enabled: true}\nhttp:\n  addr: %s\n%s%s", dir, host, inHTTP, extra)
	must(t, os.WriteFile(dir+"/config.yml", []byte(config), 0o600))
	cmd := exec.Command(path, "serve", dir+"/config.yml")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(said.String())
		}
	})
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", host)
		if err == nil {
			must(t, c.Close())
			return &realRegistry{host: host}
		}
		if time.Now().After(end) {
			t.Fatalf("docker-registry does not listen: %v", err)
		}
	}
}

func (r *realRegistry) ref(t *testing.T, repo string) name.Reference {
	t.Helper()
	ref, err := name.ParseReference(r.host+"/"+repo, name.Insecure)
	must(t, err)
	return ref
}

func (r *realRegistry) push(t *testing.T, repo string, img v1.Image) {
	t.Helper()
	must(t, remote.Write(r.ref(t, repo), img, r.opts...))
}

// pushParts puts what a hostile registry would offer honestly into the real one.
func (r *realRegistry) pushParts(t *testing.T, h *hostile, repo string, p *parts) {
	t.Helper()
	h.offer(repo, p)
	h.reg.setHook(h.serve)
	from, err := name.ParseReference(h.reg.host+"/"+repo+":latest", name.Insecure)
	must(t, err)
	img, err := remote.Image(from)
	must(t, err)
	r.push(t, repo, img)
}

// usedBy makes e know the registry.
func (r *realRegistry) usedBy(e *env) *realRegistry {
	e.Helper()
	e.write(e.conf.RegistriesConf, registriesConf(r.host))
	return r
}

// What a registry can hold: tags, digests, indexes, both kinds of manifest, and layers
// in all the ways in which they come.
func TestRealRegistryImages(t *testing.T) {
	h := newHostile(t)
	r := newRealRegistry(t, "", "").usedBy(h.env)
	tree := [][]byte{tarOf(t, dir("d"), file("d/base", strings.Repeat("base", 50000))), tarOf(t, file("own", "1"))}
	for kind, squeeze := range map[string]func(testing.TB, []byte) []byte{"gzip": gzipped, "zstd": zstandard, "chunked": chunked, "plain": plainTar} {
		r.pushParts(t, h, "oci-"+kind, h.image(tree, squeeze))
		for _, ref := range []string{"registry.example/oci-" + kind, "short"} {
			if ref == "short" {
				r.pushParts(t, h, ref, h.image(tree, squeeze))
			}
			root := h.rootfs(kind, h.pull(ref))
			wantFile(t, root, "own", "1")
			must(t, root.Close())
			h.removeRootfs(kind)
			h.remove(ref)
		}
	}
	docker := simple(t, "schema 2") // as go-containerregistry makes them
	r.push(t, "docker:1", docker)
	byDigest := "registry.example/docker@" + digestOf(t, docker)
	id := h.pull("registry.example/docker:1")
	equal(t, "id", id, configID(t, docker))
	equal(t, "by digest", h.pull(byDigest), id)
	idx := index(t, docker, "real")
	must(t, remote.WriteIndex(r.ref(t, "index:1"), idx))
	equal(t, "of an index", h.pull("registry.example/index:1"), id)
	equal(t, "of an index by digest", h.pull("registry.example/index@"+digestOf(t, idx)), id)
	h.remove(id)
	h.clean("all")
	for ref, want := range map[string]error{
		"registry.example/docker:2": ErrNotFound, "registry.example/nothing": ErrNotFound,
		"registry.example/docker@sha256:" + strings.Repeat("0", 64): ErrNotFound,
	} {
		wantErr(t, ref, second(h.Pull(soon(t), ref, nil)), want)
	}
	// registries.conf is read again for each pull: another block, and another drop-in.
	h.write(h.conf.RegistriesConf, registriesConf(r.host)+"[[registry]]\nlocation = \"blocked.example\"\nblocked = true\n")
	wantErr(t, "blocked", second(h.Pull(soon(t), "blocked.example/docker:1", nil)), ErrDenied)
	must(t, mkdir(h.conf.RegistriesConf+".d"))
	h.write(h.conf.RegistriesConf+".d/1.conf", fmt.Sprintf("[[registry]]\nprefix = \"late.example\"\nlocation = %q\ninsecure = true\n", r.host))
	equal(t, "by a drop-in", h.pull("late.example/docker:1"), id)
	h.write(h.conf.RegistriesConf+".d/1.conf", fmt.Sprintf("[[registry]]\nprefix = \"late.example\"\nlocation = %q\n", r.host))
	wantErr(t, "not insecure any more", second(h.Pull(soon(t), "late.example/docker:1", nil)), ErrUnavailable)
}

// Basic credentials by htpasswd.
func TestRealRegistryBasic(t *testing.T) {
	e := newEnv(t)
	dir := t.TempDir()
	const hash = "$2a$05$RTe/b69bFG8oak3P4zn7AOy/kf0bcZ7XjnjhM3fph3HgsHeRT3Cxa" // bcrypt of testPassword
	must(t, os.WriteFile(dir+"/htpasswd", []byte(testUser+":"+hash+"\n"), 0o600))
	r := newRealRegistry(t, "", "auth:\n  htpasswd: {realm: test, path: "+dir+"/htpasswd}\n").usedBy(e)
	r.opts = []remote.Option{remote.WithAuth(&authn.Basic{Username: testUser, Password: testPassword})}
	r.push(t, "x", simple(t, "x"))
	for name, c := range map[string]struct {
		auth *Auth
		want error
	}{
		"right": {&Auth{Username: testUser, Password: testPassword}, nil},
		"wrong": {&Auth{Username: testUser, Password: "wrong"}, ErrDenied},
		"none":  {nil, ErrDenied},
		"form":  {&Auth{Auth: basic(testUser, testPassword), ServerAddress: r.host}, nil},
	} {
		_, err := e.Pull(soon(t), r.host+"/x", c.auth)
		wantErr(t, name, err, c.want)
	}
}

// tokens is a server for the tokens that distribution takes, with the key that it knows
// it by.
func tokens(t *testing.T, key *ecdsa.PrivateKey, cert *x509.Certificate) *httptest.Server {
	part := func(v any) string { return base64.RawURLEncoding.EncodeToString(mustJSON(t, v)) }
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		refresh := r.FormValue("refresh_token")
		if (user != testUser || password != testPassword) && refresh != testToken {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		access := []map[string]any{}
		for _, scope := range r.Form["scope"] {
			if f := strings.Split(scope, ":"); len(f) == 3 {
				access = append(access, map[string]any{"type": f[0], "name": f[1], "actions": strings.Split(f[2], ",")})
			}
		}
		now := time.Now()
		text := part(map[string]any{"typ": "JWT", "alg": "ES256", "x5c": []string{base64.StdEncoding.EncodeToString(cert.Raw)}}) + "." + part(map[string]any{
			"iss": "test", "sub": user, "aud": r.FormValue("service"), "exp": now.Add(time.Hour).Unix(), "nbf": now.Add(-time.Hour).Unix(), "iat": now.Unix(), "jti": "1", "access": access})
		sum := sha256.Sum256([]byte(text))
		a, b, err := ecdsa.Sign(rand.Reader, key, sum[:])
		if err != nil {
			t.Error(err)
			return
		}
		sig := b.FillBytes(make([]byte, 64))
		a.FillBytes(sig[:32])
		text += "." + base64.RawURLEncoding.EncodeToString(sig)
		fmt.Fprintf(w, `{"token":%q,"access_token":%q}`, text, text)
	}))
	t.Cleanup(srv.Close)
	return srv
}

// Tokens, for a name and a password, for an identity token, and brought along.
func TestRealRegistryToken(t *testing.T) {
	e := newEnv(t)
	cert, key := certificate(t, nil, nil, func(c *x509.Certificate) { c.IsCA = true })
	bundle := tempFile(t, pemOf(cert))
	srv := tokens(t, key, cert)
	storage := newRealRegistry(t, "", "") // who pushes refuses tokens from loopback
	storage.push(t, "x", simple(t, "x"))
	r := newRealRegistry(t, "", "proxy: {remoteurl: \"http://"+storage.host+"\"}\nauth:\n  token: {realm: \""+srv.URL+"/token\", service: test, issuer: test, rootcertbundle: "+bundle+"}\n").usedBy(e)
	q, err := http.NewRequest(http.MethodGet, srv.URL+"/token?service=test&scope=repository:x:pull", nil)
	must(t, err)
	q.SetBasicAuth(testUser, testPassword)
	answer, err := http.DefaultClient.Do(q)
	must(t, err)
	defer answer.Body.Close()
	var brought struct{ Token string }
	must(t, json.NewDecoder(answer.Body).Decode(&brought))
	for name, c := range map[string]struct {
		auth *Auth
		want error
	}{
		"right":              {&Auth{Username: testUser, Password: testPassword}, nil},
		"wrong":              {&Auth{Username: testUser, Password: "wrong"}, ErrDenied},
		"none":               {nil, ErrDenied},
		"identity token":     {&Auth{IdentityToken: testToken}, nil},
		"a wrong one":        {&Auth{IdentityToken: "wrong"}, ErrDenied},
		"registry token":     {&Auth{RegistryToken: brought.Token}, nil},
		"another registry's": {&Auth{RegistryToken: "x.y.z"}, ErrDenied},
	} {
		_, err := e.Pull(soon(t), r.host+"/x", c.auth)
		wantErr(t, name, err, c.want)
	}
}

// certificate makes one for 127.0.0.1 and localhost, signed by ca or by itself.
func certificate(t *testing.T, ca *x509.Certificate, caKey *ecdsa.PrivateKey, edit func(*x509.Certificate)) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key := newECDSA(t)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, BasicConstraintsValid: true,
	}
	edit(c)
	if ca == nil {
		ca, caKey = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, ca, key.Public(), caKey)
	must(t, err)
	made, err := x509.ParseCertificate(der)
	must(t, err)
	return made, key
}

func pemOf(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

// TLS with an authority of one's own in certs.d, another one, and a client certificate.
func TestRealRegistryTLS(t *testing.T) {
	e := newEnv(t)
	e.conf.CertsDir = t.TempDir()
	e.restart()
	ca, caKey := certificate(t, nil, nil, func(c *x509.Certificate) { c.IsCA = true })
	other, _ := certificate(t, nil, nil, func(c *x509.Certificate) { c.IsCA = true })
	server, serverKey := certificate(t, ca, caKey, func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)} })
	client, clientKey := certificate(t, ca, caKey, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })
	dir := t.TempDir()
	keyPEM := func(k *ecdsa.PrivateKey) []byte {
		der, err := x509.MarshalPKCS8PrivateKey(k)
		must(t, err)
		return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	}
	for file, data := range map[string][]byte{"ca.crt": pemOf(ca), "server.crt": pemOf(server), "server.key": keyPEM(serverKey)} {
		must(t, os.WriteFile(filepath.Join(dir, file), data, 0o600))
	}
	storage := newRealRegistry(t, "", "") // to push to, without TLS
	storage.push(t, "x", simple(t, "x"))
	tls := fmt.Sprintf("  tls: {certificate: %s/server.crt, key: %s/server.key", dir, dir)
	proxy := "proxy: {remoteurl: \"http://" + storage.host + "\"}\n"
	e.write(e.conf.RegistriesConf, "")
	for name, c := range map[string]struct {
		http  string
		files map[string][]byte
		want  error
	}{
		"nobody's authority":           {tls + "}\n", nil, ErrUnavailable},
		"our authority":                {tls + "}\n", map[string][]byte{"ca.crt": pemOf(ca)}, nil},
		"another authority":            {tls + "}\n", map[string][]byte{"ca.crt": pemOf(other)}, ErrUnavailable},
		"without a client certificate": {tls + ", clientcas: [" + dir + "/ca.crt]}\n", map[string][]byte{"ca.crt": pemOf(ca)}, ErrUnavailable},
		"with a client certificate":    {tls + ", clientcas: [" + dir + "/ca.crt]}\n", map[string][]byte{"ca.crt": pemOf(ca), "c.cert": pemOf(client), "c.key": keyPEM(clientKey)}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRealRegistry(t, c.http, proxy)
			certs := filepath.Join(e.conf.CertsDir, r.host)
			must(t, mkdir(certs))
			for file, data := range c.files {
				must(t, os.WriteFile(filepath.Join(certs, file), data, 0o600))
			}
			id, err := e.Pull(soon(t), r.host+"/x", nil)
			wantErr(t, name, err, c.want)
			if err == nil {
				must(t, e.Remove(soon(t), id))
			}
		})
	}
}

// Mirrors: one that is down, one that lacks the image, one that has it, and what is
// only asked for digests.
func TestRealRegistryMirrors(t *testing.T) {
	e := newEnv(t)
	origin, empty, full := newRealRegistry(t, "", ""), newRealRegistry(t, "", ""), newRealRegistry(t, "", "")
	img, here := simple(t, "origin"), simple(t, "mirror")
	origin.push(t, "x", img)
	full.push(t, "x", here)
	conf := fmt.Sprintf("[[registry]]\nprefix = \"registry.example\"\nlocation = %q\ninsecure = true\n", origin.host)
	mirror := func(host, more string) string {
		return fmt.Sprintf("[[registry.mirror]]\nlocation = %q\ninsecure = true\n%s", host, more)
	}
	e.write(e.conf.RegistriesConf, conf+mirror("127.0.0.1:1", "")+mirror(empty.host, ""))
	equal(t, "behind two that do not have it", e.pull("registry.example/x"), configID(t, img))
	e.write(e.conf.RegistriesConf, conf+mirror("127.0.0.1:1", "")+mirror(full.host, ""))
	equal(t, "from the second mirror", e.pull("registry.example/x"), configID(t, here))
	e.write(e.conf.RegistriesConf, conf+mirror(full.host, "pull-from-mirror = \"digest-only\"\n"))
	equal(t, "a tag past the mirror", e.pull("registry.example/x"), configID(t, img))
	equal(t, "a digest from it", e.pull("registry.example/x@"+digestOf(t, here)), configID(t, here))
}

// flaky is a way to a registry that breaks each connection after some bytes of answer.
func flaky(t *testing.T, to string, each int64) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { must(t, l.Close()) })
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // ends with the connection
				defer c.Close()
				up, err := net.Dial("tcp", to)
				if err != nil {
					return
				}
				defer up.Close()
				go io.Copy(up, c)                             //nolint:errcheck // broken is what it is for
				_, _ = io.CopyN(c, bufio.NewReader(up), each) // and then
				time.Sleep(100 * time.Millisecond)            // so that all of it is read
				_ = c.(*net.TCPConn).SetLinger(0)             // a reset
			}()
		}
	}()
	return l.Addr().String()
}

// Connections that are reset after every MiB.
func TestRealRegistryResets(t *testing.T) {
	h := newHostile(t)
	r := newRealRegistry(t, "", "")
	r.pushParts(t, h, "x", h.image([][]byte{tarOf(t, file("x", noise(t, 5<<20)))}, plainTar))
	// With some room for headers: who does not give a MiB in ten seconds is given up.
	at := flaky(t, r.host, 1<<20+8<<10)
	h.write(h.conf.RegistriesConf, registriesConf(at))
	h.pull("registry.example/x")
}

// A registry that is busy for some seconds, and says so.
func TestRealRegistryBusy(t *testing.T) {
	e := newEnv(t)
	r := newRealRegistry(t, "", "")
	r.push(t, "x", simple(t, "x"))
	busy := 2
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if strings.Contains(q.URL.Path, "/blobs/") && busy > 0 {
			busy--
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		http.Redirect(w, q, "http://"+r.host+q.URL.Path, http.StatusTemporaryRedirect)
	}))
	defer front.Close()
	e.write(e.conf.RegistriesConf, registriesConf(strings.TrimPrefix(front.URL, "http://")))
	start := time.Now()
	e.pull("registry.example/x")
	if d := time.Since(start); d < 2*time.Second {
		t.Errorf("it came back after %v", d)
	}
	equal(t, "refusals left", busy, 0)
	busy = 1 << 30
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	must(t, e.Remove(soon(t), "registry.example/x"))
	begin := time.Now()
	if _, err := e.Pull(ctx, "registry.example/x", nil); err == nil || time.Since(begin) > 20*time.Second {
		t.Errorf("cancelled while it waits: %v", err)
	}
}
