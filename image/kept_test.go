package image

import (
	"archive/tar"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// answer is one to a request for a parcel that wants the bytes from an offset on.
type answer func(w http.ResponseWriter, r *http.Request, from int)

// parcel is a blob that is asked for several times, each time answered in another way.
type parcel struct {
	data []byte
	next chan struct{} // closed when an answer that has halted goes on

	mu     sync.Mutex
	ranges []string // of the requests
	how    []answer
}

func newParcel(data []byte, how ...func(*parcel) answer) *parcel {
	p := &parcel{data: data, next: make(chan struct{})}
	for _, f := range how {
		p.how = append(p.how, f(p))
	}
	return p
}

func (p *parcel) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	n := len(p.ranges)
	p.ranges = append(p.ranges, r.Header.Get("Range"))
	how := p.how[min(n, len(p.how)-1)]
	p.mu.Unlock()
	from := 0
	_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from)
	how(w, r, from)
}

func (p *parcel) asked() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.ranges...)
}

// halt gives half of the data, and halts until it goes on or the client has left.
func (p *parcel) halt(w http.ResponseWriter, r *http.Request, data []byte) {
	w.Header().Set("Content-Length", fmt.Sprint(len(data)))
	_, _ = w.Write(data[:len(data)/2])
	w.(http.Flusher).Flush()
	select {
	case <-p.next:
	case <-r.Context().Done():
	}
}

// halting gives all of the data, and halts halfway.
func halting(p *parcel) answer {
	return func(w http.ResponseWriter, r *http.Request, _ int) {
		p.halt(w, r, p.data)
		_, _ = w.Write(p.data[len(p.data)/2:])
	}
}

// cut halts halfway, and breaks the connection then.
func cut(p *parcel) answer {
	return func(w http.ResponseWriter, r *http.Request, _ int) {
		p.halt(w, r, p.data)
		panic(http.ErrAbortHandler)
	}
}

// poison is halting, with a byte that is wrong and that the tar does not show.
func poison(p *parcel) answer {
	return func(w http.ResponseWriter, r *http.Request, _ int) {
		wrong := append([]byte(nil), p.data...)
		wrong[len(wrong)/4] ^= 1
		p.halt(w, r, wrong)
		_, _ = w.Write(wrong[len(wrong)/2:])
	}
}

// astray is halting, but that what comes then is no tar, and does not end.
func astray(p *parcel) answer {
	return func(w http.ResponseWriter, r *http.Request, _ int) {
		p.halt(w, r, p.data)
		_, _ = w.Write([]byte(strings.Repeat("no tar", len(p.data)/16)))
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}
}

// garbage is what no child would take.
func garbage(p *parcel) answer {
	return func(w http.ResponseWriter, r *http.Request, _ int) {
		p.halt(w, r, append([]byte("BZh9"), p.data...)[:len(p.data)])
	}
}

func whole(p *parcel) answer {
	return func(w http.ResponseWriter, _ *http.Request, _ int) {
		w.Header().Set("Content-Length", fmt.Sprint(len(p.data)))
		_, _ = w.Write(p.data)
	}
}

func part(p *parcel) answer {
	return func(w http.ResponseWriter, r *http.Request, from int) {
		w.Header().Set("Content-Length", fmt.Sprint(len(p.data)-from))
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(p.data)-1, len(p.data)))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(p.data[from:])
	}
}

// parcelOf offers an image of one layer of that many bytes, which is served by a parcel.
func (h *hostile) parcelOf(repo string, size int, how ...func(*parcel) answer) (*parcel, digest.Digest) {
	h.Helper()
	half := noise(h.TB.(*testing.T), size/2)
	data := tarOf(h.TB, file("x", half), file("y", half[:len(half)/2]), file("z", half[len(half)/2:]), file("own", repo))
	img := h.image([][]byte{data}, plainTar)
	h.offer(repo, img)
	p, d := newParcel(data, how...), img.layers[0].Digest
	h.blobs[d.String()] = p.ServeHTTP
	return p, d
}

// cancelHalfway begins a pull and cancels it when half of a blob is here. It returns when nothing of the pull goes on.
func (e *env) cancelHalfway(ref string, d digest.Digest, half int) {
	e.Helper()
	ctx, cancel := context.WithCancel(soon(e.TB))
	defer cancel()
	c := e.pullLater(ctx, ref, nil)
	for e.Store.blobs.coming()[d] < int64(half) {
		select {
		case r := <-c:
			e.Fatalf("the pull has ended: %v", r.err)
		case <-time.After(time.Millisecond):
		}
	}
	cancel()
	wantErr(e.TB.(*testing.T), "cancelled", (<-c).err, context.Canceled)
	e.flights.work.Wait()
}

// awaitBytes waits until so much of a blob is here.
func (e *env) awaitBytes(d digest.Digest, n int) {
	e.Helper()
	for end := time.Now().Add(time.Minute); e.Store.blobs.coming()[d] < int64(n); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			e.Fatalf("%d of %d bytes of %s have come", e.Store.blobs.coming()[d], n, d)
		}
	}
}

// keptBlobs lists what is kept.
func (e *env) keptBlobs() []*blob {
	e.Store.blobs.mu.Lock()
	defer e.Store.blobs.mu.Unlock()
	return append([]*blob(nil), e.Store.blobs.kept...)
}

// A pull that was cancelled is taken up where it was; and what it had got is never the reason for which a pull fails.
func TestPullIsTakenUp(t *testing.T) {
	h := newHostile(t)
	for name, c := range map[string]struct {
		how     []func(*parcel) answer
		from    string   // another registry
		expired bool     // it was kept too long
		asked   []string // HALF stands for a number
	}{
		"on the same connection":         {how: []func(*parcel) answer{halting}, asked: []string{""}},
		"on another one":                 {how: []func(*parcel) answer{cut, part}, asked: []string{"", "bytes=HALF-"}},
		"from whom has no parts":         {how: []func(*parcel) answer{cut, whole}, asked: []string{"", "bytes=HALF-", ""}},
		"after a beginning that is none": {how: []func(*parcel) answer{poison, whole}, asked: []string{"", ""}},
		"after a middle that is none":    {how: []func(*parcel) answer{astray, whole}, asked: []string{"", ""}},
		"by another registry":            {how: []func(*parcel) answer{halting, whole}, from: "other.example", asked: []string{"", ""}},
		"too late":                       {how: []func(*parcel) answer{halting, whole}, expired: true, asked: []string{"", ""}},
	} {
		t.Run(name, func(t *testing.T) {
			repo := strings.ReplaceAll(name, " ", "-")
			p, d := h.parcelOf(repo, 2<<20, c.how...)
			half := len(p.data) / 2
			h.cancelHalfway("registry.example/"+repo, d, half)
			kept := h.keptBlobs()
			equal(t, "kept", len(kept), 1)
			if c.expired {
				kept[0].expiry.Reset(0)
				<-kept[0].over
			}
			close(p.next)
			ref := orElse(c.from, "registry.example") + "/" + repo
			root := h.rootfs(repo, h.pull(ref))
			wantFile(t, root, "own", repo)
			must(t, root.Close())
			h.removeRootfs(repo)
			equalSlices(t, "asked for", p.asked(), strings.Split(strings.ReplaceAll(strings.Join(c.asked, " "), "HALF", fmt.Sprint(half)), " "))
			equal(t, "kept", len(h.keptBlobs()), 0)
			h.remove(ref)
		})
	}
}

func orElse(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// Who has nobody to download for gives its place to others and takes nothing more, however long; that is not held against its rate.
func TestCancelledPullRests(t *testing.T) {
	h := newHostile(t)
	h.limits.stall, h.limits.minProgress = 500*time.Millisecond, 1
	p, d := h.parcelOf("x", 64<<20, whole)
	h.cancelHalfway("registry.example/x", d, 1)
	came := func() int64 { return h.Store.blobs.coming()[d] }
	places := func() int {
		h.Store.blobs.places.mu.Lock()
		defer h.Store.blobs.places.mu.Unlock()
		return len(h.Store.blobs.places.byKey)
	}
	equal(t, "places taken", places(), 0)
	waits := func() bool { // what it was reading when the pull was cancelled is here
		h.Store.blobs.mu.Lock()
		defer h.Store.blobs.mu.Unlock()
		return h.Store.blobs.kept[0].wake != nil
	}
	for end := time.Now().Add(time.Minute); !waits() && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	then := came()
	if then == int64(len(p.data)) {
		t.Fatal("all of it came before the pull was cancelled")
	}
	time.Sleep(4 * h.limits.stall)
	equal(t, "bytes", came(), then)
	h.pull("registry.example/x")
	equalSlices(t, "asked for", p.asked(), []string{""})
}

// Who is taken up and waits for a place takes nothing meanwhile either, and loses nothing.
func TestTakenUpPullWaits(t *testing.T) {
	h := newHostile(t)
	h.limits.stall, h.limits.minProgress = 300*time.Millisecond, 1
	p, d := h.parcelOf("x", 2<<20, halting)
	half := len(p.data) / 2
	h.cancelHalfway("registry.example/x", d, half)
	var free []func()
	for range maxDownloads {
		f, err := h.Store.blobs.places.take(soon(t), "registry.example", maxDownloads)
		must(t, err)
		free = append(free, f)
	}
	close(p.next)
	c := h.pullLater(soon(t), "registry.example/x", nil)
	time.Sleep(5 * h.limits.stall)
	for _, f := range free {
		f()
	}
	r := <-c
	must(t, r.err)
	equalSlices(t, "asked for", p.asked(), []string{""})
}

// What a child has refused, and what is not what its digest says, is not kept: the next pull begins anew.
func TestWrongBlobIsNotKept(t *testing.T) {
	h := newHostile(t)
	for name, wrong := range map[string]func(*parcel) answer{"no tar": garbage, "a wrong byte": poison} {
		repo := strings.ReplaceAll(name, " ", "-")
		p, _ := h.parcelOf(repo, 2<<20, wrong, whole)
		if name == "a wrong byte" {
			close(p.next)
		}
		if _, err := h.Pull(soon(t), "registry.example/"+repo, nil); !isFault(err) {
			t.Errorf("%s: %v", name, err)
		}
		equal(t, name+": kept", len(h.keptBlobs()), 0)
		h.pull("registry.example/" + repo)
		equalSlices(t, name+": asked for", p.asked(), []string{"", ""})
		h.remove("registry.example/" + repo)
	}
}

// What has come as a whole is not fetched again either.
func TestWholeBlobIsKept(t *testing.T) {
	h := newHostile(t)
	lower, upper := tarOf(t, file("x", noise(t, 2<<20))), tarOf(t, file("y", noise(t, 1<<20)))
	img := h.image([][]byte{lower, upper}, plainTar)
	h.offer("x", img)
	low, up := newParcel(lower, halting), newParcel(upper, whole)
	h.blobs[img.layers[0].Digest.String()], h.blobs[img.layers[1].Digest.String()] = low.ServeHTTP, up.ServeHTTP
	ctx, cancel := context.WithCancel(soon(t))
	c := h.pullLater(ctx, "registry.example/x", nil)
	h.awaitBytes(img.layers[1].Digest, len(upper))
	h.awaitBytes(img.layers[0].Digest, len(lower)/2)
	cancel()
	wantErr(t, "cancelled", (<-c).err, context.Canceled)
	h.flights.work.Wait()
	close(low.next)
	h.pull("registry.example/x")
	equalSlices(t, "asked for the lower", low.asked(), []string{""})
	equalSlices(t, "asked for the upper", up.asked(), []string{""})
	equal(t, "kept", len(h.keptBlobs()), 0)
}

// The distribution's registry, whose answers pass through here and are cut while nobody reads.
func TestRealRegistryTakenUp(t *testing.T) {
	h := newHostile(t)
	r := newRealRegistry(t, "", "")
	data := tarOf(t, file("x", noise(t, 3<<20)))
	img := h.image([][]byte{data}, plainTar)
	r.pushParts(t, h, "x", img)
	d := img.layers[0].Digest
	to, err := url.Parse("http://" + r.host)
	must(t, err)
	proxy := httputil.NewSingleHostReverseProxy(to)
	p := newParcel(data, cut, func(*parcel) answer {
		return func(w http.ResponseWriter, r *http.Request, _ int) { proxy.ServeHTTP(w, r) }
	})
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, d.String()) {
			p.ServeHTTP(w, r)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	defer front.Close()
	h.write(h.conf.RegistriesConf, registriesConf(strings.TrimPrefix(front.URL, "http://")))
	h.cancelHalfway("registry.example/x", d, len(data)/2)
	close(p.next)
	h.pull("registry.example/x")
	equalSlices(t, "asked for", p.asked(), []string{"", fmt.Sprintf("bytes=%d-", len(data)/2)})
}

// nameless counts the files without a name that this process has in the store.
func (e *env) nameless() (n int) {
	e.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(e.TB, err)
	for _, entry := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + entry.Name()); err == nil && strings.HasPrefix(to, e.conf.tmp()+"/#") {
			n++
		}
	}
	return n
}

// What is kept is bounded in number, and goes with the store.
func TestKeptIsBounded(t *testing.T) {
	h := newHostile(t)
	var all []digest.Digest
	for n := range maxKept + 2 {
		repo := fmt.Sprintf("x%d", n)
		p, d := h.parcelOf(repo, 64<<10, halting)
		h.cancelHalfway("registry.example/"+repo, d, len(p.data)/2)
		all = append(all, d)
	}
	kept := h.keptBlobs()
	equal(t, "kept", len(kept), maxKept)
	equal(t, "the oldest", kept[0].info.Digest, all[2])
	for end := time.Now().Add(time.Minute); h.nameless() > maxKept && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	equal(t, "files", h.nameless(), maxKept)
	data := tarOf(t, file("x", noise(t, 64<<10)))
	big := h.image([][]byte{data}, plainTar)
	big.layers[0].Size = maxKeptBytes + 1
	h.offer("big", big)
	h.blobs[big.layers[0].Digest.String()] = newParcel(data, halting).ServeHTTP
	h.cancelHalfway("registry.example/big", big.layers[0].Digest, len(data)/2)
	equal(t, "kept beside one that is too large", len(h.keptBlobs()), maxKept)
	h.restart()
	equal(t, "files of a store that was closed", h.nameless(), 0)
}

// What is kept gives way where the disk is needed, and where somebody makes room.
func TestKeptGivesWay(t *testing.T) {
	h := newHostile(t)
	h.smallDisk("64m")
	p, d := h.parcelOf("x", 16<<20, halting)
	h.cancelHalfway("registry.example/x", d, len(p.data)/2)
	var st unix.Statfs_t
	must(t, unix.Statfs(h.conf.Root, &st))
	fill, err := os.Create(h.conf.Root + "/fill")
	must(t, err)
	defer fill.Close()
	_, err = fill.Write(make([]byte, st.Bavail*uint64(st.Bsize)-1<<20)) // a twentieth is more than that
	must(t, err)
	equal(t, "kept", len(h.keptBlobs()), 1)
	must(t, h.checkFree())
	equal(t, "kept where the disk is full", len(h.keptBlobs()), 0)
	_, err = fill.Write(make([]byte, 7<<20))
	must(t, err)
	wantErr(t, "full without them", h.checkFree(), ErrLimit)
	must(t, fill.Truncate(0))

	p, d = h.parcelOf("y", 1<<20, halting)
	h.offer("z", h.image([][]byte{tarOf(t, tar.Header{Typeflag: tar.TypeDir, Name: "d"})}, gzipped))
	h.pull("registry.example/z")
	h.cancelHalfway("registry.example/y", d, len(p.data)/2)
	equal(t, "kept", len(h.keptBlobs()), 1)
	h.remove("registry.example/z")
	equal(t, "kept after a removal", len(h.keptBlobs()), 0)
}
