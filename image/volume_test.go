package image

import (
	"archive/tar"
	"context"
	"os"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// withVolumes makes a container that has images as volumes.
func (e *env) withVolumes(container, id string, volumes ...string) {
	e.Helper()
	must(e.TB, e.NewRootfs(soon(e.TB), container, id, volumes...))
}

func (e *env) volume(container, id, sub string) *sys.FD {
	e.Helper()
	fd, err := e.MountVolume(soon(e.TB), container, id, sub, View{})
	must(e.TB, err)
	e.Cleanup(func() { _ = fd.Close() })
	return fd
}

// ways is an image with whiteouts and with all that a sub path could meet.
func ways(t *testing.T) v1.Image {
	link := func(name, to string) tar.Header {
		return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
	}
	return image(t, "ways", nil,
		layer(t, tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o751, Uid: 7, Gid: 8}, dir("d"), file("d/one", "1"), file("gone", "1"), file("etc/passwd", "of the image"),
			dir("data"), dir("data/sub"), file("data/sub/f", "data")),
		layer(t, file("d/two", "2"), file(".wh.gone", ""), link("absolute", "/data/sub"), link("relative", "data/../data/sub"),
			link("out", "../../../../../etc"), link("host", "/proc/self/root/etc"), link("loop", "loop"), link("nowhere", "/missing"),
			tar.Header{Typeflag: tar.TypeFifo, Name: "fifo", Mode: 0o666}, tar.Header{Typeflag: tar.TypeChar, Name: "null", Mode: 0o666, Devmajor: 1, Devminor: 3},
			tar.Header{Typeflag: tar.TypeReg, Name: "suid", Mode: 0o4755}))
}

func TestVolume(t *testing.T) {
	for name, mode := range map[string]overlayMode{"by descriptor": layersByFD, "by path": layersByPath, "by mount(2)": layersByMount} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			if e.overlay > mode {
				t.Skipf("needs a newer kernel: it takes layers by mode %d only", e.overlay)
			}
			e.overlay = mode
			e.reg.push(t, "ways", ways(t))
			e.reg.push(t, "own", simple(t, "own"))
			vol, own := e.pull("registry.example/ways"), e.pull("registry.example/own")
			e.withVolumes("c1", own, vol, own)
			e.withVolumes("c2", own, vol)
			for _, c := range []string{"c1", "c2"} { // beside each other
				root := e.volume(c, vol, "")
				wantFile(t, root, "d/one", "1")
				wantFile(t, root, "d/two", "2")
				wantNoFile(t, root, "gone")
				wantVolumeFlags(t, root)
				var st unix.Stat_t
				must(t, unix.Fstat(root.Int(), &st))
				equal(t, "mode of /", st.Mode&0o7777, 0o751)
			}
			wantFile(t, e.volume("c1", own, ""), "file", "own") // of one layer, and what the container runs as well

			for sub, want := range map[string]string{"data/sub": "data", "absolute": "data", "relative": "data", "data/../data//sub/.": "data"} {
				part := e.volume("c1", vol, sub)
				wantFile(t, part, "f", want)
				wantNoFile(t, part, "data")
				wantVolumeFlags(t, part)
			}
			for _, sub := range []string{"out/passwd", "etc/passwd", "../../etc/passwd", "/etc/passwd"} {
				got, err := os.ReadFile(sys.ProcPath(e.volume("c1", vol, sub).Int()))
				must(t, err)
				equal(t, sub, string(got), "of the image")
			}
			for _, sub := range []string{"missing", "data/missing/x", "etc/passwd/x", "host", "loop", "nowhere", "fifo", "null", "gone"} {
				_, err := e.MountVolume(soon(t), "c1", vol, sub, View{})
				wantErr(t, sub, err, ErrSubPath)
			}
		})
	}
}

// wantVolumeFlags checks that nothing can be written, and the flags of the mount.
func wantVolumeFlags(t *testing.T, root *sys.FD) {
	t.Helper()
	_, err := unix.Openat(root.Int(), "x", unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC, 0o644)
	wantErr(t, "write", err, unix.EROFS)
	var st unix.Statfs_t
	must(t, unix.Fstatfs(root.Int(), &st))
	const flags = unix.ST_RDONLY | unix.ST_NOSUID | unix.ST_NODEV
	equal(t, "flags", st.Flags&(flags|unix.ST_NOEXEC), flags)
}

// What a container has mounted stays, whatever happens to the image and the daemon, and goes with the container.
func TestVolumeKeepsLayers(t *testing.T) {
	e := newEnv(t)
	e.reg.push(t, "own", simple(t, "own"))
	e.reg.push(t, "vol", image(t, "vol", nil, layer(t, file("a", "a")), layer(t, file("b", "b"))))
	own, vol := e.pull("registry.example/own"), e.pull("registry.example/vol")
	e.withVolumes("c1", own, vol)
	e.withVolumes("c2", own, vol)
	e.remove(vol)
	e.remove(own)
	e.wantLayers(3)
	e.restart()
	e.wantLayers(3)
	wantFile(t, e.volume("c1", vol, ""), "b", "b")
	problems, err := Check(soon(t), e.conf, CheckOptions{})
	must(t, err)
	equal(t, "problems", len(problems), 0)
	e.removeRootfs("c1")
	e.wantLayers(3)
	e.removeRootfs("c2")
	e.wantLayers(0)
	equalSlices(t, "users", e.usersOf(), nil)
}

func TestVolumeRefusals(t *testing.T) {
	e := newEnv(t)
	e.reg.push(t, "own", simple(t, "own"))
	e.reg.push(t, "none", image(t, "none", nil))
	own, none := e.pull("registry.example/own"), e.pull("registry.example/none")
	unknown := idPrefix + pinID("unknown")
	wantErr(t, "unknown image", e.NewRootfs(soon(t), "c", own, unknown), ErrNotFound)
	equalSlices(t, "users", e.usersOf(), nil)
	if _, err := os.Stat(filepath.Join(e.conf.Containers, "c")); err == nil {
		t.Error("a directory is left")
	}
	e.withVolumes("c", own, none)
	e.withVolumes("c", own, none) // again
	if err := e.NewRootfs(soon(t), "c", own); err == nil {
		t.Error("the same container with other volumes")
	}
	_, err := e.MountVolume(soon(t), "c", none, "", View{})
	wantErr(t, "no layers", err, ErrUnsupported)
	if _, err := e.MountVolume(soon(t), "c", own, "", View{}); err == nil {
		t.Error("mounted what is no volume of the container")
	}
	if _, err := e.MountVolume(soon(t), "other", none, "", View{}); err == nil {
		t.Error("mounted for an unknown container")
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = e.MountVolume(ended, "c", none, "", View{})
	wantErr(t, "ended context", err, context.Canceled)
	e.removeRootfs("c")
}
