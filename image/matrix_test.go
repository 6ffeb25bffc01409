package image

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// noise is text that does not compress, so that sizes on the wire are sizes.
func noise(t *testing.T, n int) string {
	t.Helper()
	data := make([]byte, n*3/4)
	_, err := rand.Read(data)
	must(t, err)
	return base64.StdEncoding.EncodeToString(data)
}

// 50 pulls of 10 images that share layers, at the bottom and at different heights:
// each blob crosses the wire once.
func TestParallelPullsShareBlobs(t *testing.T) {
	e := newEnv(t)
	base, middle := layer(t, file("base", noise(t, 1<<20))), layer(t, file("middle", noise(t, 1<<20)))
	var blobs []string
	for i := range 10 {
		own := layer(t, file("own", fmt.Sprint(i)))
		layers := []v1.Layer{base, middle, own}
		if i%2 == 1 {
			layers = []v1.Layer{own, middle, base}
		}
		img := image(t, fmt.Sprint(i), nil, layers...)
		e.reg.push(t, fmt.Sprintf("i%d", i), img)
		for _, l := range append(layers[:3:3], own) {
			blobs = append(blobs, digestOf(t, l))
		}
		blobs = append(blobs, configID(t, img))
	}
	e.reg.setHook(func(http.ResponseWriter, *http.Request) bool { return false })
	e.write(e.conf.PolicyPath, `{"default":[{"type":"insecureAcceptAnything"}]}`) // new, and a moment later no longer
	var wg sync.WaitGroup
	for n := range 50 {
		wg.Go(func() {
			time.Sleep(time.Duration(n) * tick / 25)
			if _, err := e.Pull(soon(t), fmt.Sprintf("registry.example/i%d", n%10), nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, d := range blobs {
		if n := e.reg.requests("/blobs/" + d); n != 1 {
			t.Errorf("blob %s was asked for %d times", d, n)
		}
	}
	for i := range 10 {
		ref := fmt.Sprintf("registry.example/i%d", i)
		root := e.rootfs(fmt.Sprint(i), e.status(ref).ID)
		wantFile(t, root, "own", fmt.Sprint(i))
		must(t, root.Close())
		e.removeRootfs(fmt.Sprint(i))
		e.remove(ref)
	}
	e.wantLayers(0)
}

// A connection that breaks at every MiB.
func TestPullThroughResets(t *testing.T) {
	h := newHostile(t)
	data := tarOf(t, file("x", noise(t, 3<<20)))
	p := h.image([][]byte{data}, plainTar)
	h.offer("x", p)
	asked := 0
	h.blobs[p.layers[0].Digest.String()] = func(w http.ResponseWriter, r *http.Request) {
		asked++
		from := 0
		if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from); err == nil {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(data)-1, len(data)))
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(data)-from))
		if from > 0 {
			w.WriteHeader(http.StatusPartialContent)
		}
		if len(data)-from > 1<<20 {
			_, _ = w.Write(data[from : from+1<<20])
			w.(http.Flusher).Flush()
			time.Sleep(50 * time.Millisecond) // so that all of it is read
			panic(http.ErrAbortHandler)
		}
		_, _ = w.Write(data[from:])
	}
	h.pull("registry.example/x")
	if asked != 4 {
		t.Errorf("%d requests, want 4", asked)
	}
}

// A registry that is busy is asked again.
func TestPullBusyRegistry(t *testing.T) {
	e := newEnv(t)
	e.reg.push(t, "x", simple(t, "x"))
	left := 2
	e.reg.setHook(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/manifests/") || left == 0 {
			return false
		}
		left--
		w.Header().Set("Retry-After", "0")
		w.WriteHeader(http.StatusTooManyRequests)
		return true
	})
	e.pull("registry.example/x")
	equal(t, "refusals left", left, 0)
}

// A mirror that is down, and one that lacks the image.
func TestMirrorFallback(t *testing.T) {
	e := newEnv(t)
	e.reg.push(t, "x", simple(t, "x"))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	dead := l.Addr().String()
	must(t, l.Close())
	poor := newRegistry(t)
	conf := fmt.Sprintf("[[registry]]\nprefix = \"registry.example\"\nlocation = %q\ninsecure = true\n", e.reg.host)
	for _, m := range []string{dead, poor.host} {
		conf += fmt.Sprintf("[[registry.mirror]]\nlocation = %q\ninsecure = true\n", m)
	}
	e.write(e.conf.RegistriesConf, conf) // read again without a restart
	e.pull("registry.example/x")
	if poor.requests("manifests") == 0 {
		t.Error("the second mirror was not asked")
	}
	poor.push(t, "x", simple(t, "x"))
	e.remove("registry.example/x")
	e.reg.setHook(nil)
	e.pull("registry.example/x")
	equal(t, "asked behind a mirror that has it", e.reg.requests("x"), 0)
}

// TLS with a certificate that nobody vouches for.
func TestPullTLS(t *testing.T) {
	e := newEnv(t)
	e.reg.push(t, "x", simple(t, "x"))
	front := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://"+e.reg.host+r.URL.Path, http.StatusTemporaryRedirect)
	}))
	front.Config.ErrorLog = log.New(io.Discard, "", 0)
	front.StartTLS()
	defer front.Close()
	host := strings.TrimPrefix(front.URL, "https://")
	_, err := e.Pull(soon(t), host+"/x", nil)
	wantErr(t, "unknown certificate", err, ErrUnavailable)
	e.write(e.conf.RegistriesConf, fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n", host))
	_, err = e.Pull(soon(t), host+"/x", nil)
	must(t, err)
}
