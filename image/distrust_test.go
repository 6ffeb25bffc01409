package image

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// IM-01: what the host does with a container's root filesystem while the container
// may change it follows none of its links.
func TestIM01NoHostWriteIntoALiveRoot(t *testing.T) {
	h := newHostile(t)
	h.offer("x", h.image([][]byte{tarOf(t, dir("etc"), file("etc/passwd", "root:x:0:0::/:/x\n"))}, gzipped))
	id := h.pull("registry.example/x")
	outside := filepath.Join(t.TempDir(), "canary")
	must(t, os.MkdirAll(filepath.Join(outside, "etc"), 0o700))
	h.write(filepath.Join(outside, "etc", "passwd"), "host")
	before := snapshot(t, outside)
	root := h.rootfs("c", id)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { // the container: /etc is a directory, and then a link
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			_ = unix.Renameat(root.Int(), "etc", root.Int(), fmt.Sprintf("etc%d", i%2))
			_ = unix.Symlinkat(outside+"/etc", root.Int(), "etc")
			_ = unix.Unlinkat(root.Int(), "etc", 0)
			_ = unix.Renameat(root.Int(), fmt.Sprintf("etc%d", i%2), root.Int(), "etc")
		}
	})
	for range 50 {
		must(t, h.NewRootfs(soon(t), "c", id))
		_, err := h.RootfsUsage(soon(t), "c", nil)
		must(t, err)
	}
	close(stop)
	wg.Wait()
	_ = unix.Symlinkat(outside, root.Int(), "etc-link")
	must(t, root.Close())
	h.removeRootfs("c")
	equal(t, "canary", snapshot(t, outside), before)
}

// IM-05: a small blob may not become a large one.
func TestIM05Bombs(t *testing.T) {
	h := newHostile(t)
	zeros := func(n int64) []byte { // a tar of one file of zeros, as gzip
		var buf bytes.Buffer
		w := gzip.NewWriter(&buf)
		head := tarOf(t, file("zeros", "x"))[:512]
		copy(head[124:136], fmt.Sprintf("%011o\x00", n))
		copy(head[148:156], "        ")
		sum := 0
		for _, c := range head {
			sum += int(c)
		}
		copy(head[148:156], fmt.Sprintf("%06o\x00 ", sum))
		_, _ = w.Write(head)
		block := make([]byte, 1<<20)
		for ; n > 0; n -= 1 << 20 {
			_, _ = w.Write(block)
		}
		must(t, w.Close())
		return buf.Bytes()
	}
	offer := func(repo string, blob []byte) {
		p := h.image([][]byte{tarOf(t, file("x", "y"))}, gzipped)
		p.layers = []ocispec.Descriptor{h.blob(blob, ocispec.MediaTypeImageLayerGzip)}
		h.offer(repo, p)
	}
	good := tarOf(t, file("x", strings.Repeat("decent ", 10000)))
	window := func(log int) []byte { // the header of a frame that wants a window of 2^log
		return []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, byte(log-10) << 3, 1, 0, 0}
	}
	h.limits.image = 64 << 20
	offer("zeros", zeros(256<<20))
	offer("window", window(28))
	offer("truncated", gzipped(t, good)[:100])
	offer("trailing", append(gzipped(t, good), []byte("and more")...))
	offer("trailing-zstd", append(zstandard(t, good), []byte("and more")...))
	offer("xz", append([]byte{0xfd, '7', 'z', 'X', 'Z', 0}, make([]byte, 100)...))
	offer("bzip2", []byte("BZh91AY&SY"))
	for repo, want := range map[string]error{
		"zeros": ErrLimit, "window": ErrLimit, "truncated": ErrCorrupt, "trailing": ErrCorrupt, "trailing-zstd": ErrCorrupt, "xz": ErrUnsupported, "bzip2": ErrUnsupported,
	} {
		before := forgetPeak(t)
		t.Log(h.refuse(repo, want))
		if p := peak(t) - before; p > 100<<20 {
			t.Errorf("%s: %d MiB", repo, p>>20)
		}
	}
	// Many members, and the largest window that is allowed: slow, and right.
	members := bytes.Repeat(gzipped(t, nil), 100000)
	p := h.image([][]byte{good}, func(tb testing.TB, data []byte) []byte { return append(gzipped(tb, data), members...) })
	h.offer("members", p)
	h.remove(h.pull("registry.example/members"))
	h.offer("long", h.image([][]byte{good}, func(_ testing.TB, data []byte) []byte {
		var buf bytes.Buffer
		w, err := zstd.NewWriter(&buf, zstd.WithWindowSize(maxWindow))
		must(t, err)
		_, err = w.Write(data) // streamed: the frame has the whole window
		must(t, err)
		must(t, w.Flush())
		must(t, w.Close())
		return buf.Bytes()
	}))
	h.remove(h.pull("registry.example/long"))
	h.clean("long")

	// A cancelled pull stops within a second, wherever it is.
	h.limits.image = 1 << 40
	offer("cancelled", zeros(2<<30))
	ctx, cancel := context.WithCancel(context.Background())
	c := h.pullLater(ctx, "registry.example/cancelled", nil)
	childStatus(t, inflateName)
	cancel()
	start := time.Now()
	wantErr(t, "cancelled", (<-c).err, context.Canceled)
	h.flights.work.Wait()
	h.unpacking.work.Wait()
	if d := time.Since(start); d > time.Second {
		t.Errorf("it went on for %v", d)
	}
	h.clean("cancelled")
}

// smallDisk puts the store, which is empty, on a filesystem of that size.
func (h *hostile) smallDisk(size string) {
	h.Helper()
	must(h.TB, h.Store.Close())
	h.Store = nil
	must(h.TB, os.MkdirAll(h.conf.Root, 0o700))
	must(h.TB, unix.Mount("tmpfs", h.conf.Root, "tmpfs", 0, "size="+size))
	h.Cleanup(func() { _ = unix.Unmount(h.conf.Root, unix.MNT_DETACH) })
	h.conf.Containers = filepath.Join(h.conf.Root, "upper")
	h.open()
	h.Cleanup(func() { must(h.TB, h.Store.Close()); h.Store = nil })
}

// IM-05, IM-19: a filesystem that is nearly full is not filled, and what was half
// unpacked is gone again.
func TestIM19FullDisk(t *testing.T) {
	h := newHostile(t)
	h.smallDisk("64m")
	h.offer("small", h.image([][]byte{tarOf(t, file("x", "y"))}, gzipped))
	free := func() uint64 {
		var st unix.Statfs_t
		must(t, unix.Statfs(h.conf.Root, &st))
		return st.Bfree
	}
	h.pull("registry.example/small")
	before := free()
	h.offer("large", h.image([][]byte{tarOf(t, file("base", "1")), tarOf(t, file("x", strings.Repeat("z", 100<<20)))}, gzipped))
	for _, reserve := range []uint64{defaultLimits.reserve, 0} { // noticed by us, and by the disk
		h.limits.reserve = reserve
		_, err := h.Pull(soon(t), "registry.example/large", nil)
		wantErr(t, "full disk", err, unix.ENOSPC)
		must(t, h.flights.idle(h.sweep))
		if after := free(); after+64 < before {
			t.Errorf("%d blocks are lost", before-after)
		}
	}
	if h.status("registry.example/small") == nil {
		t.Error("another image is gone")
	}
}

// IM-06: bodies without end, and without haste.
func TestIM06EndlessBodies(t *testing.T) {
	h := newHostile(t)
	h.limits.answer, h.limits.stall = 3*time.Second, time.Second
	var sent int64
	p := h.image([][]byte{tarOf(t, file("x", "y"))}, gzipped)
	h.offer("blob", p)
	h.blobs[p.layers[0].Digest.String()] = endless(&sent)
	text := h.refuse("blob", ErrCorrupt)
	if sent > 16<<20 {
		t.Errorf("%d bytes were taken of a blob of %d", sent, p.layers[0].Size)
	}
	t.Log(text)
	p = h.image([][]byte{tarOf(t, file("x", "config"))}, gzipped)
	h.offer("config", p)
	h.blobs[digest.FromBytes(mustJSON(t, p.config)).String()] = endless(&sent)
	h.refuse("config", ErrCorrupt)
	h.manifests["manifest:latest"] = endless(&sent)
	_, err := h.Pull(soon(t), "registry.example/manifest", nil)
	if err == nil || !strings.Contains(err.Error(), "4194304") {
		t.Errorf("manifest: %v", err)
	}
	h.blobs[p.layers[0].Digest.String()] = func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusInternalServerError)
		endless(&sent)(w, r)
	}
	h.blobs[digest.FromBytes(mustJSON(t, p.config)).String()] = bytesOf(mustJSON(t, p.config), "")
	h.refuse("config", ErrUnavailable)

	drip := func(w http.ResponseWriter, r *http.Request) { // a byte now and then
		for r.Context().Err() == nil {
			_, _ = w.Write([]byte{0x1f})
			w.(http.Flusher).Flush()
			time.Sleep(100 * time.Millisecond)
		}
	}
	p = h.image([][]byte{tarOf(t, file("x", strings.Repeat("slow", 10000)))}, plainTar)
	h.offer("slow", p)
	h.blobs[p.layers[0].Digest.String()] = drip
	if text := h.refuse("slow", ErrUnavailable); !strings.Contains(text, "bytes in 1s") {
		t.Errorf("slow: %s", text)
	}
	h.manifests["slow:latest"] = drip
	if text := h.refuse("slow", ErrUnavailable); !strings.Contains(text, "no answer in 3s") {
		t.Errorf("slow manifest: %s", text)
	}
	// Slow, but not too slow.
	h.limits.minProgress = 1
	fine := h.image([][]byte{tarOf(t, file("x", "fine"))}, plainTar)
	h.offer("fine", fine)
	data := tarOf(t, file("x", "fine"))
	h.blobs[fine.layers[0].Digest.String()] = func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(data); i += 512 {
			_, _ = w.Write(data[i:min(i+512, len(data))])
			w.(http.Flusher).Flush()
			time.Sleep(400 * time.Millisecond)
		}
	}
	h.pull("registry.example/fine")
}

// IM-07: one reading of a manifest.
func TestIM07AmbiguousManifests(t *testing.T) {
	h := newHostile(t)
	p := h.image([][]byte{tarOf(t, file("x", "y"))}, gzipped)
	h.offer("good", p)
	honest := func() []byte {
		return mustJSON(t, map[string]any{"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageManifest,
			"config": h.blob(mustJSON(t, p.config), ocispec.MediaTypeImageConfig), "layers": p.layers})
	}
	edit := func(old, text string) []byte {
		m := strings.Replace(string(honest()), old, text, 1)
		if m == string(honest()) {
			t.Fatalf("no %q in %s", old, m)
		}
		return []byte(m)
	}
	const oci, docker, list = ocispec.MediaTypeImageManifest, "application/vnd.docker.distribution.manifest.v2+json", ocispec.MediaTypeImageIndex
	for name, c := range map[string]struct {
		body []byte
		kind string
	}{
		"both":               {edit(`"layers"`, `"manifests":[],"layers"`), oci},
		"both as index":      {edit(`"layers"`, `"manifests":[],"layers"`), list},
		"called an index":    {honest(), list},
		"called docker":      {honest(), docker},
		"schema 1":           {edit(`"layers"`, `"fsLayers":[],"layers"`), oci},
		"schema 3":           {edit(`"schemaVersion":2`, `"schemaVersion":3`), oci},
		"signed schema 1":    {edit(`"schemaVersion":2`, `"schemaVersion":1`), "application/vnd.docker.distribution.manifest.v1+prettyjws"},
		"unknown type":       {edit(oci, "application/x-evil"), oci},
		"layers twice":       {edit(`"layers"`, `"layers":[],"layers"`), oci},
		"Layers too":         {edit(`"layers"`, `"Layers":[],"layers"`), oci},
		"only Layers":        {edit(`"layers"`, `"Layers"`), oci},
		"digest twice":       {edit(`"digest"`, `"digest":"sha256:`+strings.Repeat("0", 64)+`","digest"`), oci},
		"more behind it":     {append(honest(), []byte("{}")...), oci},
		"an array":           {[]byte("[]"), oci},
		"null":               {[]byte("null"), oci},
		"nothing":            {nil, oci},
		"neither":            {[]byte(`{"schemaVersion":2}`), oci},
		"null in the layers": {edit(`"layers":[`, `"layers":[null,`), oci},
		"deep":               {edit(`"layers"`, `"annotations":`+strings.Repeat(`{"a":`, 100)+"1"+strings.Repeat("}", 100)+`,"layers"`), oci},
	} {
		repo := "im07-" + strings.ReplaceAll(strings.ToLower(name), " ", "-")
		h.manifest(repo, c.body, c.kind)
		h.refuse(repo, ErrUnsupported)
	}
	// The same bytes are the same image, whatever the header calls them.
	id := h.pull("registry.example/good")
	for i, kind := range []string{"application/json", "text/plain; charset=utf-8", "", oci + "; charset=utf-8"} {
		repo := fmt.Sprintf("good-%d", i)
		h.manifest(repo, honest(), kind)
		equal(t, kind, h.pull("registry.example/"+repo), id)
	}
	h.manifest("untyped", edit(`"mediaType":"`+oci+`",`, ""), "application/octet-stream")
	equal(t, "untyped", h.pull("registry.example/untyped"), id)
}

// IM-08: each digest is looked at, where it stands.
func TestIM08DigestMismatch(t *testing.T) {
	h := newHostile(t)
	one, two := tarOf(t, file("x", "1")), tarOf(t, file("x", "2"))
	flip := func(data []byte) []byte {
		data = bytes.Clone(data)
		data[len(data)/2] ^= 1
		return data
	}
	p := h.image([][]byte{one, two}, plainTar)
	top := h.offer("good", p)
	config := mustJSON(t, p.config)
	configDigest := digest.FromBytes(config)

	spoil := func(name string, d digest.Digest, data []byte, want error) {
		h.Helper()
		old := h.blobs[d.String()]
		h.blobs[d.String()] = bytesOf(data, "")
		h.refuse("good", want)
		h.blobs[d.String()] = old
	}
	spoil("layer", p.layers[1].Digest, flip(two), ErrCorrupt)
	spoil("config", configDigest, flip(config), ErrCorrupt)
	spoil("another config", configDigest, bytes.Replace(config, []byte(`"/x"`), []byte(`"/y"`), 1), ErrCorrupt)
	spoil("short", p.layers[0].Digest, one[:len(one)-512], ErrCorrupt)
	spoil("long", p.layers[0].Digest, append(bytes.Clone(one), 0), ErrCorrupt)
	spoil("swapped", p.layers[0].Digest, two, ErrCorrupt)

	// The manifest, under its digest.
	bad := h.manifests["good:"+top.String()]
	h.manifests["good:"+top.String()] = bytesOf(flip(mustJSON(t, map[string]any{"schemaVersion": 2})), ocispec.MediaTypeImageManifest)
	_, err := h.Pull(soon(t), "registry.example/good@"+top.String(), nil)
	if err == nil {
		t.Error("a manifest with another digest is taken")
	}
	h.clean("manifest")
	h.manifests["good:"+top.String()] = bad
	// The one that an index names.
	index := mustJSON(t, map[string]any{"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageIndex, "manifests": []any{map[string]any{
		"mediaType": ocispec.MediaTypeImageManifest, "digest": top, "size": 100, "platform": map[string]string{"os": "linux", "architecture": "amd64"}}}})
	h.manifest("index", index, ocispec.MediaTypeImageIndex)
	h.manifests["index:"+top.String()] = bytesOf([]byte("{}"), ocispec.MediaTypeImageManifest)
	if _, err := h.Pull(soon(t), "registry.example/index", nil); err == nil {
		t.Error("an instance with another digest is taken")
	}
	h.clean("instance")

	// The same tar, compressed in another way.
	other := h.image([][]byte{one}, gzipped)
	h.offer("repacked", other)
	packed := gzipped(t, one)
	packed[9] ^= 1 // the system that it was packed on
	h.blobs[other.layers[0].Digest.String()] = bytesOf(packed, "")
	h.refuse("repacked", ErrCorrupt)

	wrong := h.image([][]byte{one, two}, gzipped)
	wrong.config["rootfs"] = map[string]any{"type": "layers", "diff_ids": []digest.Digest{digest.FromBytes(two), digest.FromBytes(one)}}
	h.offer("exchanged", wrong)
	h.refuse("exchanged", ErrCorrupt)
	wrong.config["rootfs"] = map[string]any{"type": "layers", "diff_ids": []digest.Digest{digest.FromBytes(one)}}
	h.offer("fewer", wrong)
	h.refuse("fewer", ErrUnsupported)
	for name, d := range map[string]digest.Digest{
		"upper": digest.Digest(strings.ToUpper(configDigest.String())), "empty": "", "md5": "md5:d41d8cd98f00b204e9800998ecf8427e", "short": "sha256:00",
		"hex": digest.Digest("sha256:" + strings.Repeat("G", 64)),
	} {
		wrong := h.image([][]byte{one}, gzipped)
		wrong.layers[0].Digest = d
		h.offer("digest-"+name, wrong)
		h.refuse("digest-"+name, ErrUnsupported)
		wrong = h.image([][]byte{one}, gzipped)
		wrong.config["rootfs"] = map[string]any{"diff_ids": []digest.Digest{d}}
		h.offer("diff-"+name, wrong)
		h.refuse("diff-"+name, ErrUnsupported)
	}
	long := h.image([][]byte{one}, plainTar)
	long.layers[0].Digest = digest.SHA512.FromBytes(one)
	h.blobs[long.layers[0].Digest.String()] = bytesOf(flip(one), "")
	h.offer("sha512", long)
	h.refuse("sha512", ErrCorrupt)
	h.blobs[long.layers[0].Digest.String()] = bytesOf(one, "")
	h.remove(h.pull("registry.example/sha512"))

	// None of this is in the way of the right image.
	h.pull("registry.example/good")
}

// IM-09, CD-21 (b, c): a digest that is none never becomes part of a URL.
func TestIM09OddDigests(t *testing.T) {
	h := newHostile(t)
	asked := len(h.reg.log)
	for i, d := range []string{"sha256:", "sha256:zz", "md5:" + strings.Repeat("0", 32), "sha256:../../x", "sha256:" + strings.Repeat("0", 60) + "/../", "sha256:%2f%2e",
		"a b", "sha256: " + strings.Repeat("0", 63), "sha256:" + strings.Repeat("0", 64) + ":x", "../../../etc/passwd", "sha256:" + strings.Repeat("0", 64) + "?x=y"} {
		repo := fmt.Sprintf("layer-%d", i)
		p := h.image([][]byte{tarOf(t, file("x", "y"))}, gzipped)
		p.layers[0].Digest = digest.Digest(d)
		h.offer(repo, p)
		h.refuse(repo, ErrUnsupported)
		p = h.image([][]byte{tarOf(t, file("x", "y"))}, gzipped)
		p.manifest = map[string]any{"config": map[string]any{"mediaType": ocispec.MediaTypeImageConfig, "digest": d, "size": 10}}
		h.offer("c"+repo, p)
		h.refuse("c"+repo, ErrUnsupported)
		index := mustJSON(t, map[string]any{"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageIndex, "manifests": []any{map[string]any{
			"mediaType": ocispec.MediaTypeImageManifest, "digest": d, "size": 100, "platform": map[string]string{"os": "linux", "architecture": "amd64"}}}})
		h.manifest("i"+repo, index, ocispec.MediaTypeImageIndex)
		h.refuse("i"+repo, ErrUnsupported)
	}
	h.reg.mu.Lock()
	defer h.reg.mu.Unlock()
	for _, l := range h.reg.log[asked:] {
		if strings.Contains(l, "blobs") || strings.Contains(l, "..") || (strings.Contains(l, "manifests") && !strings.HasSuffix(l, "/latest")) {
			t.Errorf("asked for: %s", l)
		}
	}
}

// TestEncryptedLayers: B-117. A layer that is encrypted by its media type is refused by name.
func TestEncryptedLayers(t *testing.T) {
	h := newHostile(t)
	for _, kind := range []string{ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd} {
		p := h.image([][]byte{tarOf(t, file("x", "y")), tarOf(t, file("secret", "y"))}, gzipped)
		p.layers[1].MediaType = kind + "+encrypted"
		h.offer("encrypted", p)
		if text := h.refuse("encrypted", ErrUnsupported); !strings.Contains(text, "layer 2 is encrypted") {
			t.Errorf("%s: %s", kind, text)
		}
	}
}

// CD-21 (a, b, d, f), CD-16: sizes, annotations and labels that are settings elsewhere, and
// references that climb.
func TestCD21Descriptors(t *testing.T) {
	h := newHostile(t)
	for i, size := range []int64{-1, -1 << 63, 1<<63 - 1, h.limits.image + 1} {
		want := ErrUnsupported
		if size > 0 {
			want = ErrLimit
		}
		repo := fmt.Sprintf("size-%d", i)
		p := h.image([][]byte{tarOf(t, file("x", "y"))}, gzipped)
		p.layers[0].Size = size
		h.offer(repo, p)
		h.refuse(repo, want)
	}
	p := h.image([][]byte{tarOf(t, file("x", "y"))}, gzipped)
	labels := map[string]string{
		"containerd.io/snapshot/uidmapping": "0:1000:1", "containerd.io/restart.loguri": "binary:///bin/true", "vitrine.dev/writable-cgroup": "true",
		"io.github.containers.zstd-chunked.manifest-checksum": "sha256:" + strings.Repeat("0", 64), "io.kubernetes.cri-o.annotations.checkpoint.name": "x",
	}
	p.layers[0].Annotations = labels
	p.layers[0].URLs = []string{"http://" + h.reg.host + "/elsewhere"}
	p.manifest = map[string]any{"annotations": labels}
	p.config["config"] = map[string]any{"Labels": labels}
	h.offer("annotated", p)
	h.reg.setHook(h.serve)
	id := h.pull("registry.example/annotated")
	equal(t, "requests to a foreign URL", h.reg.requests("elsewhere"), 0)
	root := h.rootfs("c", id)
	var st unix.Stat_t
	must(t, unix.Fstatat(root.Int(), "x", &st, 0))
	equal(t, "owner", st.Uid, 0)
	for _, ref := range []string{"registry.example/../evil/x", "registry.example/a/../../x", "/etc/passwd", "/tmp/checkpoint.tar", "./x", "dir:/etc", "oci:/x"} {
		_, err := h.Pull(soon(t), ref, nil)
		wantErr(t, ref, err, ErrInvalidReference)
	}
}

// CD-09, CD-20: manifests, configs and indexes of any size and shape.
func TestCD20ManifestGraphs(t *testing.T) {
	h := newHostile(t)
	p := h.image([][]byte{tarOf(t, file("x", "y"))}, gzipped)
	good := h.offer("good", p)
	entry := func(d digest.Digest, kind string) map[string]any {
		return map[string]any{"mediaType": kind, "digest": d, "size": 100, "platform": map[string]string{"os": "linux", "architecture": "amd64"}}
	}
	index := func(entries ...any) []byte {
		return mustJSON(t, map[string]any{"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageIndex, "manifests": entries})
	}
	inner := h.manifest("nested", index(entry(good, ocispec.MediaTypeImageManifest)), ocispec.MediaTypeImageIndex)
	h.manifest("nested", index(entry(inner, ocispec.MediaTypeImageIndex)), ocispec.MediaTypeImageIndex)
	h.manifests["nested:"+inner.String()] = bytesOf(index(entry(good, ocispec.MediaTypeImageManifest)), ocispec.MediaTypeImageIndex)
	h.refuse("nested", ErrUnsupported)
	many := make([]any, maxInstances+1)
	for i := range many {
		many[i] = entry(good, ocispec.MediaTypeImageManifest)
	}
	h.manifest("many", index(many...), ocispec.MediaTypeImageIndex)
	h.refuse("many", ErrLimit)
	p.layers = nil
	ids := make([]string, maxLayers+1)
	for i := range ids {
		d := h.blob(gzipped(t, tarOf(t, file("x", "y"))), ocispec.MediaTypeImageLayerGzip)
		p.layers = append(p.layers, d)
		ids[i] = digest.FromBytes(tarOf(t, file("x", "y"))).String()
	}
	p.config["rootfs"] = map[string]any{"diff_ids": ids}
	h.offer("layers", p)
	h.refuse("layers", ErrLimit)
	before := forgetPeak(t)
	for repo, body := range map[string][]byte{
		"large":  append([]byte(`{"schemaVersion":2,"annotations":{"a":"`), bytes.Repeat([]byte("x"), 64<<20)...),
		"layers": []byte(`{"schemaVersion":2,"layers":[` + strings.Repeat(`{"digest":"`+good.String()+`"},`, 40000) + `{}],"config":{}}`),
	} {
		h.manifest(repo, body, ocispec.MediaTypeImageManifest)
		if _, err := h.Pull(soon(t), "registry.example/"+repo, nil); err == nil {
			t.Errorf("%s is taken", repo)
		}
		h.clean(repo)
	}
	config := h.image(nil, gzipped)
	h.offerConfig("config", config, append(mustJSON(t, config.config), bytes.Repeat([]byte(" "), maxConfig)...))
	h.refuse("config", ErrLimit)
	if p := peak(t) - before; p > 256<<20 { // the test's own 64 MiB come in several copies
		t.Errorf("%d MiB", p>>20)
	}
}

// IM-20: fields that are not there, or not what they should be.
func TestIM20NilFields(t *testing.T) {
	h := newHostile(t)
	tarball := tarOf(t, file("x", "y"))
	diff := fmt.Sprintf(`"rootfs":{"diff_ids":[%q]}`, digest.FromBytes(tarball))
	labels := make([]string, 100000)
	for i := range labels {
		labels[i] = fmt.Sprintf(`"l%d":"v"`, i)
	}
	for i, c := range []struct {
		config string
		want   error // nil: it is an image
	}{
		{`null`, ErrUnsupported}, {`{}`, ErrUnsupported}, {`[]`, ErrUnsupported}, {`{"rootfs":null}`, ErrUnsupported}, {`"x"`, ErrUnsupported},
		{`{` + diff + `,"history":[null]}`, nil}, {`{` + diff + `,"history":null,"config":null}`, nil},
		{`{` + diff + `,"config":{"Entrypoint":null,"Cmd":[""],"Env":["NOEQUALS","=x",""],"Volumes":null,"StopSignal":"garbage","ExposedPorts":{"x/y":{}}}}`, nil},
		{`{` + diff + `,"config":{"Labels":{` + strings.Join(labels, ",") + `}}}`, nil},
		{`{` + diff + `,"config":{"Entrypoint":"a string"}}`, ErrUnsupported}, {`{` + diff + `,"config":{"User":7}}`, ErrUnsupported},
		{`{` + diff + `,"created":"yesterday"}`, ErrUnsupported}, {`{` + diff + `,"os":"windows"}`, ErrUnsupported},
		{`{` + diff + `,"rootfs":{"diff_ids":[]}}`, ErrUnsupported}, {`{"rootfs":{"diff_ids":[null]}}`, ErrUnsupported},
	} {
		repo := fmt.Sprintf("im20-%d", i)
		p := h.image([][]byte{tarball}, gzipped)
		h.offerConfig(repo, p, []byte(c.config))
		if c.want != nil {
			h.refuse(repo, c.want)
			continue
		}
		id := h.pull("registry.example/" + repo)
		img := h.status(id)
		equal(t, repo, img.ID, id)
		h.rootfs(repo, id)
		h.removeRootfs(repo)
		h.remove(id)
		h.clean(repo)
	}
}

// IM-11: pulls that fail leave no lock behind for those that share their layers.
func TestIM11NoDeadlock(t *testing.T) {
	h := newHostile(t)
	base, second := tarOf(t, file("base", "1")), tarOf(t, file("x", "2"))
	good := h.image([][]byte{base, second}, gzipped)
	h.offer("good", good)
	bad := h.image([][]byte{base, tarOf(t, file("x", "3"))}, gzipped) // a layer that no other image brings
	bad.layers[1] = h.blob([]byte("not gzip"), ocispec.MediaTypeImageLayerGzip)
	h.offer("bad", bad)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			repo := []string{"good", "bad"}[i%2]
			_, err := h.Pull(soon(t), "registry.example/"+repo, nil)
			if (repo == "good") != (err == nil) {
				t.Errorf("%s: %v", repo, err)
			}
		})
	}
	wg.Wait()
	h.remove("registry.example/good")
	h.clean("all")
	h.pull("registry.example/good")
}

// trap is another site, with what was sent there.
type trap struct {
	*httptest.Server
	mu   sync.Mutex
	seen []string
}

func newTrap(t *testing.T) *trap {
	tr := &trap{}
	tr.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tr.mu.Lock()
		defer tr.mu.Unlock()
		_ = r.ParseForm()
		tr.seen = append(tr.seen, r.URL.String()+" "+r.Header.Get("Authorization")+" "+r.Form.Encode())
		fmt.Fprint(w, `{"token":"t"}`)
	}))
	t.Cleanup(tr.Close)
	return tr
}

func (tr *trap) secrets() (all []string) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	for _, s := range tr.seen {
		if strings.Contains(s, "Basic") || strings.Contains(s, testToken) || strings.Contains(s, testPassword) {
			all = append(all, s)
		}
	}
	return all
}

// IM-16, CD-02: a registry does not choose who else gets its credentials, nor makes us
// ask the node's own addresses.
func TestIM16Credentials(t *testing.T) {
	h := newHostile(t)
	p := h.image([][]byte{tarOf(t, file("x", "y"))}, gzipped)
	h.offer("x", p)
	elsewhere := newTrap(t)
	_, port, _ := strings.Cut(elsewhere.Listener.Addr().String(), ":")
	other := "http://localhost:" + port // another name than 127.0.0.1, so another site
	users := []*Auth{{Username: testUser, Password: testPassword}, {IdentityToken: testToken}}
	ask := func(scheme string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("WWW-Authenticate", scheme)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
	}
	h.reg.setHook(ask(`Bearer realm="` + other + `/token",service="s"`))
	for _, a := range users {
		_, err := h.Pull(soon(t), h.reg.host+"/x", a)
		wantErr(t, "realm elsewhere", err, ErrDenied)
	}
	h.reg.setHook(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" {
			http.Redirect(w, r, other+"/token", http.StatusTemporaryRedirect)
			return true
		}
		return ask(`Bearer realm="http://`+h.reg.host+`/token",service="s"`)(w, r)
	})
	for _, a := range users {
		_, err := h.Pull(soon(t), h.reg.host+"/x", a)
		if err == nil {
			t.Error("a redirected token is taken")
		}
	}
	basicAuth := "Basic " + basic(testUser, testPassword)
	for _, status := range []int{http.StatusMovedPermanently, http.StatusTemporaryRedirect, http.StatusPermanentRedirect} {
		h.reg.setHook(func(w http.ResponseWriter, r *http.Request) bool {
			if demand(`Basic realm="r"`, basicAuth)(w, r) {
				return true
			}
			if strings.Contains(r.URL.Path, "/manifests/") {
				http.Redirect(w, r, other+"/x", status)
				return true
			}
			return h.serve(w, r)
		})
		if _, err := h.Pull(soon(t), h.reg.host+"/x", users[0]); err == nil {
			t.Error("the trap's manifest is taken")
		}
	}
	if s := elsewhere.secrets(); len(s) > 0 {
		t.Errorf("credentials were sent elsewhere: %q", s)
	}
	// The one that is allowed, and the registry's own.
	h.conf.TokenHosts = []string{"localhost:" + port}
	h.restart()
	h.reg.setHook(ask(`Bearer realm="` + other + `/token",service="s"`))
	_, _ = h.Pull(soon(t), h.reg.host+"/x", users[0])
	if len(elsewhere.secrets()) == 0 {
		t.Error("an allowed host for tokens was not asked")
	}
}

// IM-16: redirects without end, to other schemes and to addresses of the node.
func TestIM16Redirects(t *testing.T) {
	h := newHostile(t)
	p := h.image([][]byte{tarOf(t, file("x", "y")), tarOf(t, file("z", "z"))}, gzipped)
	h.offer("x", p)
	bad := p.layers[1].Digest
	lower := h.blobs[p.layers[0].Digest.String()]
	// The layer below comes only when the download of the other one has failed: its reader finds it so.
	h.blobs[p.layers[0].Digest.String()] = func(w http.ResponseWriter, r *http.Request) {
		for begun := false; r.Context().Err() == nil; time.Sleep(time.Millisecond) {
			begun = begun || h.reg.requests("blobs/"+bad.String()) > 0
			h.Store.blobs.mu.Lock()
			_, running := h.Store.blobs.byDigest[bad]
			h.Store.blobs.mu.Unlock()
			if begun && !running {
				break
			}
		}
		lower(w, r)
	}
	for _, target := range []string{"file:///etc/passwd", "unix:///run/x", "ftp://example.com/x", "http://169.254.169.254/latest/meta-data", "http://[fe80::1]/x",
		"http://0.0.0.0/", "http://224.0.0.1/x", "/v2/x/blobs/again"} {
		h.blobs[bad.String()] = func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Location", target); w.WriteHeader(307) }
		h.blobs["again"] = h.blobs[bad.String()]
		h.reg.setHook(h.serve)
		_, err := h.Pull(soon(t), "registry.example/x", nil)
		if err == nil || strings.Contains(err.Error(), "deadline") {
			t.Errorf("%s: %v", target, err)
		}
		// The config, the two layers, and ten redirects.
		if n := h.reg.requests("blobs"); n > 13 {
			t.Errorf("%s: %d requests", target, n)
		}
		h.clean(target)
	}
}

// IM-10: nothing goes over plain HTTP to or from a registry with TLS. No TLS here:
// what is asked about each URL is asked before there is a connection.
func TestIM10PlainHTTP(t *testing.T) {
	secure := func() *guard {
		return &guard{endpoints: map[string]endpoint{"registry.example:443": {}}, secret: true, naming: map[string]bool{}, realms: map[string]bool{}}
	}
	for _, c := range []struct {
		urls []string
		good bool // the last one
	}{
		{[]string{"https://registry.example/v2/"}, true},
		{[]string{"http://registry.example/v2/"}, false},
		{[]string{"https://registry.example/v2/", "http://registry.example/token"}, false},
		{[]string{"https://registry.example/v2/", "http://auth.registry.example/token"}, false},
		{[]string{"https://registry.example/v2/", "https://auth.registry.example/token"}, true},
		{[]string{"https://registry.example/v2/", "https://evil.example/token"}, false},
		{[]string{"https://registry.example/v2/", "https://registry.example.evil.test/token"}, false},
		{[]string{"https://registry.example/v2/x/manifests/1", "https://cdn.test/blob"}, true},
		{[]string{"https://registry.example/v2/x/manifests/1", "http://cdn.test/blob"}, false},
		{[]string{"https://registry.example/v2/x/manifests/1", "https://169.254.169.254/x"}, false},
		{[]string{"https://registry.example/v2/x/manifests/1", "https://[::ffff:127.0.0.1]/x"}, false},
		{[]string{"https://registry.example/v2/x/manifests/1", "https://localhost/x"}, false},
		{[]string{"https://registry.example/v2/x/manifests/1", "https://10.0.0.1/x"}, true},
	} {
		g := secure()
		var err error
		for _, text := range c.urls {
			u, perr := url.Parse(text)
			must(t, perr)
			_, err = g.proxy(u)
		}
		if (err == nil) != c.good {
			t.Errorf("%v: %v", c.urls, err)
		}
	}
}
