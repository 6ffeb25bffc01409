package image

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// gate lets requests for blobs wait until it is opened.
type gate struct {
	arrived chan struct{} // one value per waiting request
	open    chan struct{}
}

func newGate(reg *testRegistry) *gate {
	g := &gate{arrived: make(chan struct{}, 100), open: make(chan struct{})}
	reg.setHook(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			g.arrived <- struct{}{}
			select {
			case <-g.open:
			case <-r.Context().Done():
			}
		}
		return false
	})
	return g
}

type result struct {
	id  string
	err error
}

func (e *env) pullLater(ctx context.Context, ref string, auth *Auth) <-chan result {
	c := make(chan result, 1)
	go func() {
		id, err := e.Pull(ctx, ref, auth)
		c <- result{id, err}
	}()
	return c
}

// waitWaiters waits until n callers share the running pulls.
func (e *env) waitWaiters(n int) {
	e.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		e.flights.mu.Lock()
		got := 0
		for _, f := range e.flights.byKey {
			got += f.waiters
		}
		e.flights.mu.Unlock()
		if got == n {
			return
		}
		if time.Now().After(deadline) {
			e.Fatalf("%d waiters, want %d", got, n)
		}
	}
}

// A registry that never answers keeps nobody longer than his deadline, and nothing of those pulls is in the way of the next.
func TestPullDeadline(t *testing.T) {
	e := newEnv(t)
	e.reg.push(t, "x", simple(t, "x"))
	g := newGate(e.reg)
	for range 20 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		select {
		case r := <-e.pullLater(ctx, "registry.example/x", nil):
			wantErr(t, "1 ms", r.err, context.DeadlineExceeded)
		case <-time.After(10 * time.Second):
			t.Fatal("a pull outlives its deadline")
		}
		cancel()
	}
	close(g.open)
	e.pull("registry.example/x")
}

func TestPullsAreJoined(t *testing.T) {
	e := newEnv(t)
	img := simple(t, "joined")
	e.reg.push(t, "x", img)
	g := newGate(e.reg)
	impatient, cancel := context.WithCancel(context.Background())
	first := e.pullLater(impatient, "registry.example/x", nil)
	<-g.arrived
	var others []<-chan result
	for range 5 {
		others = append(others, e.pullLater(soon(t), "registry.example/x:latest", nil))
	}
	e.waitWaiters(6)
	cancel() // the one who started it
	start := time.Now()
	r := <-first
	wantErr(t, "cancelled caller", r.err, context.Canceled)
	if d := time.Since(start); d > time.Second {
		t.Fatalf("the cancelled caller waited %v", d)
	}
	close(g.open)
	for _, c := range others {
		r := <-c
		must(t, r.err)
		equal(t, "id", r.id, configID(t, img))
	}
	equal(t, "manifest requests", e.reg.requests("GET /v2/x/manifests"), 1)
	equal(t, "blob requests", e.reg.requests("GET /v2/x/blobs"), 2) // config and layer
}

func TestLastCallerEndsPull(t *testing.T) {
	e := newEnv(t)
	e.reg.push(t, "x", simple(t, "x"))
	g := newGate(e.reg)
	ctx, cancel := context.WithCancel(context.Background())
	c := e.pullLater(ctx, "registry.example/x", nil)
	<-g.arrived
	cancel()
	wantErr(t, "caller", (<-c).err, context.Canceled)
	ended := make(chan struct{})
	go func() { e.flights.work.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Fatal("the pull goes on for nobody")
	}
	close(g.open)
	e.pull("registry.example/x")
}

// A caller with wrong credentials must not ride on another one's pull.
func TestOtherCredentialsAreNotJoined(t *testing.T) {
	e := newEnv(t)
	e.reg.push(t, "x", simple(t, "x"))
	open := make(chan struct{})
	ask := demand(`Basic realm="test"`, "Basic "+basic(testUser, testPassword))
	arrived := make(chan struct{}, 10)
	e.reg.setHook(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			arrived <- struct{}{}
			<-open
		}
		return ask(w, r)
	})
	ref := e.reg.host + "/x"
	good := e.pullLater(soon(t), ref, &Auth{Username: testUser, Password: testPassword})
	<-arrived
	for _, a := range []*Auth{nil, {Username: testUser, Password: "wrong"}} {
		_, err := e.Pull(soon(t), ref, a)
		wantErr(t, "stranger", err, ErrDenied)
	}
	close(open)
	must(t, (<-good).err)
}

func TestConcurrentRemoves(t *testing.T) {
	e := newEnv(t)
	e.reg.push(t, "x", simple(t, "x"))
	for range 5 {
		id := e.pull("registry.example/x")
		errs := make(chan error, 5)
		for range 5 {
			go func() {
				err := e.Remove(context.Background(), id)
				// At once: also for those who were not the first.
				if img, serr := e.Status(context.Background(), id); img != nil || serr != nil {
					err = errors.Join(err, serr, fmt.Errorf("status after remove: %v", img))
				}
				if list, lerr := e.List(context.Background(), ""); len(list) != 0 {
					err = errors.Join(err, lerr, fmt.Errorf("list after remove: %v", list))
				}
				errs <- err
			}()
		}
		for range 5 {
			must(t, <-errs)
		}
	}
	equal(t, "marks left", len(e.removing), 0)
}

// Pulls and removals of images that share layers, with containers coming and
// going. Whatever the order: no call fails but for an image that is not there,
// a pull's image is there when nobody removed it, and nothing is left at the end.
func TestPullRemoveRace(t *testing.T) {
	e := newEnv(t)
	base := layer(t, file("base", "base"))
	refs := []string{"registry.example/a", "registry.example/b", "other.example/a"}
	for _, l := range []string{"a", "b"} {
		e.reg.push(t, l, image(t, l, nil, base, layer(t, file(l, l))))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	errs := make(chan error, 100)
	loop := func(n int, f func(n, i int) error) {
		for w := range n {
			wg.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					if err := f(w, i); err != nil {
						errs <- err
						return
					}
				}
			})
		}
	}
	loop(3, func(n, _ int) error { return second(e.Pull(context.Background(), refs[n], nil)) })
	loop(2, func(_, i int) error {
		time.Sleep(10 * time.Millisecond)
		return e.Remove(context.Background(), refs[i%len(refs)])
	})
	loop(2, func(n, i int) error { return e.useOnce(refs[i%len(refs)], fmt.Sprintf("c%d", n)) })
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	for _, ref := range refs {
		e.remove(ref)
	}
	e.restart()
	e.wantLayers(0)
	imgs, err := e.store.Images()
	must(t, err)
	equal(t, "records left", len(imgs), 0)
}

// useOnce is the life of one container. It is content if there is no image.
func (e *env) useOnce(ref, container string) error {
	ctx := context.Background()
	img, err := e.Status(ctx, ref)
	if img == nil {
		return err
	}
	if err := e.NewRootfs(ctx, container, img.ID); err != nil {
		if errors.Is(err, ErrNotFound) {
			err = nil
		}
		return errors.Join(err, e.RemoveRootfs(ctx, container))
	}
	time.Sleep(5 * time.Millisecond)
	fd, err := e.Mount(ctx, container, View{})
	if err != nil {
		return err
	}
	if got, err := readAt(fd, "base"); got != "base" {
		return fmt.Errorf("base layer holds %q: %w", got, err)
	}
	return errors.Join(fd.Close(), e.RemoveRootfs(ctx, container))
}

// failSecondLayer lets the registry lose an image's upper layer once the lower
// one is unpacked.
func (e *env) failSecondLayer(repo string) {
	e.Helper()
	lower, upper := layer(e.TB, file("lower", repo)), layer(e.TB, file("upper", repo))
	e.reg.push(e.TB, repo, image(e.TB, repo, nil, lower, upper))
	h, err := upper.Digest()
	must(e.TB, err)
	before := len(e.layerDirs())
	e.reg.setHook(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, h.String()) {
			return false
		}
		for len(e.layerDirs()) == before && r.Context().Err() == nil {
			time.Sleep(time.Millisecond)
		}
		w.WriteHeader(http.StatusNotFound)
		return true
	})
	_, err = e.Pull(soon(e.TB), "registry.example/"+repo, nil)
	if !errors.Is(err, ErrNotFound) {
		e.Fatalf("pull without a layer: %v", err)
	}
	e.wantLayers(before + 1)
	e.reg.setHook(nil)
}

func TestPartialPull(t *testing.T) {
	e := newEnv(t)
	e.failSecondLayer("a")
	e.pull("registry.example/a") // uses what is there
	equal(t, "blob requests", e.reg.requests("GET /v2/a/blobs"), 2)
	e.failSecondLayer("b")
	e.wantLayers(3)
	e.remove("registry.example/a")
	e.wantLayers(0)
	e.failSecondLayer("c")
	e.restart()
	e.wantLayers(0)
	e.pull("registry.example/b")
}

// A registry that is slow, and has all of its places taken, keeps nobody from another one.
func TestSlowRegistryHoldsNobodyElse(t *testing.T) {
	h := newHostile(t)
	release, waiting := make(chan struct{}), make(chan struct{}, 100)
	free := sync.OnceFunc(func() { close(release) })
	defer free()
	var tars [][]byte
	for n := range maxDownloads + 2 {
		tars = append(tars, tarOf(t, file("f", fmt.Sprint("slow ", n))))
	}
	slow := h.image(tars, gzipped)
	h.offer("slow", slow)
	h.offer("quick", h.image([][]byte{tarOf(t, file("f", "quick"))}, gzipped))
	for _, l := range slow.layers {
		honest := h.blobs[l.Digest.String()]
		h.blobs[l.Digest.String()] = func(w http.ResponseWriter, r *http.Request) {
			waiting <- struct{}{}
			<-release
			honest(w, r)
		}
	}
	c := h.pullLater(soon(t), "registry.example/slow", nil)
	for range maxDownloads {
		<-waiting
	}
	must(t, second(h.Pull(soon(t), "other.example/quick", nil)))
	equal(t, "further requests to the slow one", len(waiting), 0)
	free()
	must(t, (<-c).err)
	h.Store.blobs.work.Wait()
	equal(t, "keys", len(h.Store.blobs.places.byKey), 0)
}
