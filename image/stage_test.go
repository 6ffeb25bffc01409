package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// layerProbe is what a copy of this program tries that has a layer as its root and all capabilities still.
func layerProbe(dir string) int {
	m, err := layerMount(dir)
	if err == nil {
		err = errors.Join(unix.Fchdir(int(m.Fd())), unix.Chroot("."), m.Close())
	}
	var inside, now unix.Stat_t
	err = errors.Join(err, unix.Stat("/", &inside))
	err = errors.Join(err, unix.Mknod("/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	if err != nil {
		fmt.Println(err)
		return 1
	}
	if _, err := unix.Open("/null", unix.O_RDWR, 0); !errors.Is(err, unix.EACCES) {
		fmt.Println("open a device:", err)
		return 1
	}
	// The way out of any other chroot.
	err = errors.Join(unix.Mkdir("/deeper", 0o700), unix.Chroot("/deeper"))
	for range 20 {
		err = errors.Join(err, unix.Chdir(".."))
	}
	if err = errors.Join(err, unix.Stat(".", &now)); err != nil || now.Ino != inside.Ino || now.Dev != inside.Dev {
		fmt.Println("upwards:", err, now.Ino, inside.Ino)
		return 1
	}
	return 0
}

// TestLayerIsAllThereIs: root in the unpacking child opens no device and finds no way out of the layer's directory.
func TestLayerIsAllThereIs(t *testing.T) {
	needRoot(t)
	cmd := helperCommand("layer", "", t.TempDir())
	if out, err := cmd.Output(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// stagedFile waits until a file of a layer is there that is not in the store yet.
func (e *env) stagedFile(t *testing.T, name string) string {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if found, _ := filepath.Glob(filepath.Join(e.conf.Root, "tmp", "layer-*", "diff", name)); len(found) > 0 {
			return found[0]
		}
	}
	t.Fatalf("no layer with %s is unpacked", name)
	return ""
}

// TestLayersBesideEachOther: an upper layer is unpacked while the lower one still comes, comes into the store after it, and leaves
// nothing when the pull ends.
func TestLayersBesideEachOther(t *testing.T) {
	h := newHostile(t)
	lower := tarOf(t, tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o711, Uid: 7, Gid: 8}, file("lower", "1"))
	p := h.image([][]byte{lower, tarOf(t, file("upper", "2"))}, plainTar)
	gate := make(chan struct{})
	late := p.layers[0].Digest.String()
	whole := h.blobs[late]
	h.blobs[late] = func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-gate:
		case <-r.Context().Done():
		}
		whole(w, r)
	}
	h.offer("x", p)
	ctx, cancel := context.WithCancel(soon(t))
	c := h.pullLater(ctx, "registry.example/x", nil)
	h.stagedFile(t, "upper")
	h.wantLayers(0)
	cancel()
	wantErr(t, "cancelled", (<-c).err, context.Canceled)
	h.flights.work.Wait()
	h.unpacking.work.Wait()
	h.clean("cancelled")

	c = h.pullLater(soon(t), "registry.example/x", nil)
	h.stagedFile(t, "upper")
	close(gate)
	must(t, (<-c).err)
	root := h.rootfs("c", h.status("registry.example/x").ID)
	wantFile(t, root, "lower", "1")
	wantFile(t, root, "upper", "2")
	var st unix.Stat_t
	must(t, unix.Fstat(root.Int(), &st))
	equal(t, "/", fmt.Sprintf("%o %d:%d", st.Mode&0o7777, st.Uid, st.Gid), "711 7:8")
}

// TestTarIsPutTogetherAgain: whatever shape a tar has, its bytes come out of the store again.
func TestTarIsPutTogetherAgain(t *testing.T) {
	h := newHostile(t)
	long := strings.Repeat("long/", 60) + "name"
	odd := tarOf(t, dir("d"), file("d/file", strings.Repeat("content", 1000)), hard("again", "d/file"), link("l", "d/file"), file("d/empty", ""),
		file(long, "x"), withXattr(file("attr", ""), "user.mine"), tar.Header{Typeflag: tar.TypeReg, Name: "bytes-\xff\xfe", Format: tar.FormatGNU})
	cut := tarOf(t, file("cut", "without the end that it should have"))
	p := h.image([][]byte{odd, append(tarOf(t, file("a", "b")), make([]byte, 3<<20)...), cut[:len(cut)-1024], {}}, gzipped)
	h.offer("x", p)
	h.pull("registry.example/x")
	h.wantLayers(4)
	must(t, h.Store.Close())
	h.Store = nil
	problems, err := Check(soon(t), h.conf, CheckOptions{Deep: true})
	must(t, err)
	if len(problems) > 0 {
		t.Error(problems)
	}
	h.open()
}

// TestAllowance: layers that come beside each other have one bound together, and one that starts over is counted once.
func TestAllowance(t *testing.T) {
	a := allowance{most: 10, used: make([]int64, 3)}
	for _, c := range []struct {
		layer int
		bytes int64
		ok    bool
		left  int64
	}{{0, 4, true, 10}, {1, 4, true, 6}, {2, 3, false, 2}, {2, 0, true, 2}, {1, 6, true, 6}, {0, 5, false, 4}} {
		if err := a.set(c.layer, c.bytes); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c, err)
		}
		equal(t, fmt.Sprintf("left after %+v", c), a.left(c.layer), c.left)
	}
}

// TestRemoveStaged: what a killed daemon was at is taken away, also where its child still works for a moment.
func TestRemoveStaged(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tmp")
	must(t, os.MkdirAll(dir+"/layer-1/diff/a/b", 0o700))
	must(t, removeStaged(dir))
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
