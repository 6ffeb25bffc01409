package image

import (
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// slowly lets a blob come in two halves, the second when the gate opens.
func slowly(t *testing.T, e *env, gate <-chan struct{}, body []byte, blob string) {
	e.reg.setHook(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, "/blobs/"+blob) {
			return false
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		_, _ = w.Write(body[:len(body)/2])
		w.(http.Flusher).Flush() //nolint:forcetypeassert // of net/http
		<-gate
		_, _ = w.Write(body[len(body)/2:])
		return true
	})
}

// What a pull is at can be seen while it runs, layer by layer, and nothing is left of it afterwards.
func TestPullsAreSeen(t *testing.T) {
	e := newEnv(t)
	here, comes := layer(t, file("here", "x")), layer(t, file("comes", strings.Repeat("0123456789", 10000)))
	e.reg.push(t, "base", image(t, "base", nil, here))
	e.reg.push(t, "x", image(t, "x", nil, here, comes))
	e.pull("registry.example/base")
	equal(t, "pulls before", len(e.Pulls()), 0)
	rc, err := comes.Compressed()
	must(t, err)
	body, err := io.ReadAll(rc)
	must(t, err)
	gate := make(chan struct{})
	open := sync.OnceFunc(func() { close(gate) })
	defer open() // or a failure would wait for the registry for ever
	slowly(t, e, gate, body, digestOf(t, comes))
	pulled := make(chan error, 1)
	go func() {
		_, err := e.Pull(soon(t), "registry.example/x", nil)
		pulled <- err
	}()
	var seen PullProgress
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if pulls := e.Pulls(); len(pulls) == 1 && len(pulls[0].Layers) == 2 && pulls[0].Layers[0].State == LayerIsAvailable && pulls[0].Layers[1].Received >= int64(len(body)/2) {
			seen = pulls[0]
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("not seen: %+v", e.Pulls())
		}
	}
	equal(t, "reference", seen.Ref, "registry.example/x")
	equal(t, "layer", seen.Layers[1], LayerProgress{digestOf(t, comes), LayerComes, int64(len(body)), int64(len(body) / 2)})
	received, size := seen.Received()
	equal(t, "received", received, seen.Layers[0].Size+int64(len(body)/2))
	equal(t, "size", size, seen.Layers[0].Size+int64(len(body)))
	open()
	must(t, <-pulled)
	equal(t, "pulls after", len(e.Pulls()), 0)
	if _, err := e.Pull(soon(t), "registry.example/missing", nil); err == nil {
		t.Fatal("pulled what is not there")
	}
	equal(t, "pulls after a failed one", len(e.Pulls()), 0)
}
