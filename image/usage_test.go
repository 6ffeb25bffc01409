package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestRootfsUsage(t *testing.T) {
	e := newEnv(t)
	body := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB
	e.reg.push(t, "x", image(t, "x", nil, layer(t, file("big", string(body)))))
	id := e.pull("registry.example/x")
	root := e.rootfs("c", id)
	none, err := e.RootfsUsage(soon(t), "c", nil)
	must(t, err)
	equal(t, "mount point", none.Mountpoint, e.conf.Containers)
	equal(t, "inodes of an empty layer", none.Inodes, 1)
	if none.UsedBytes > 64<<10 {
		t.Fatalf("an empty layer occupies %d bytes: is it the image's?", none.UsedBytes)
	}
	writeAt(t, root, "mine", string(body))
	must(t, unix.Linkat(root.Int(), "mine", root.Int(), "link", 0))
	must(t, unix.Symlinkat("/", root.Int(), "way-out"))
	must(t, unix.Unlinkat(root.Int(), "big", 0)) // a whiteout
	some, err := e.RootfsUsage(soon(t), "c", nil)
	must(t, err)
	equal(t, "inodes", some.Inodes, 4) // itself, mine, way-out, big
	if d := some.UsedBytes - none.UsedBytes; d < 1<<20 || d > 1<<20+64<<10 {
		t.Fatalf("a file of 1 MiB with two names occupies %d bytes", d)
	}
	must(t, root.Close())
	e.removeRootfs("c")
	if _, err := e.RootfsUsage(soon(t), "c", nil); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("a container without a root filesystem: %v", err)
	}
	if _, err := e.RootfsUsage(soon(t), "../"+id, nil); !errors.Is(err, fs.ErrInvalid) {
		t.Fatalf("an id that is a path: %v", err)
	}
}

// A million files must not keep a disk busy: whoever measures is asked again and
// again whether to go on.
func TestRootfsUsageIsPaced(t *testing.T) {
	e := newEnv(t)
	e.reg.push(t, "x", image(t, "x", nil, layer(t, file("f", ""))))
	id := e.pull("registry.example/x")
	must(t, e.NewRootfs(soon(t), "c", id))
	upper := e.conf.Containers + "/c/" + upperDir
	const files = 5000
	for i := range files {
		must(t, os.WriteFile(fmt.Sprintf("%s/%d", upper, i), nil, 0o600))
	}
	calls := 0
	got, err := e.RootfsUsage(soon(t), "c", func() error { calls++; return nil })
	must(t, err)
	equal(t, "inodes", got.Inodes, files+1)
	equal(t, "pauses", calls, files/paceEntries)
	enough := errors.New("enough")
	calls = 0
	_, err = e.RootfsUsage(soon(t), "c", func() error { calls++; return enough })
	if !errors.Is(err, enough) || calls != 1 {
		t.Fatalf("pace refused: %v after %d calls", err, calls)
	}
	e.removeRootfs("c")
}

// What is far down is counted as well, without a descriptor for each level.
func TestRootfsUsageIsDeep(t *testing.T) {
	e := newEnv(t)
	e.reg.push(t, "x", image(t, "x", nil, layer(t, file("f", ""))))
	id := e.pull("registry.example/x")
	must(t, e.NewRootfs(soon(t), "c", id))
	upper := e.conf.Containers + "/c/" + upperDir
	const levels = 3*maxDepth + 7
	deepDir(t, upper, levels)
	bottom := upper + strings.Repeat("/deep", levels)
	must(t, os.WriteFile(bottom+"/hidden", bytes.Repeat([]byte("x"), 1<<20), 0o600))
	must(t, os.Symlink("/", upper+strings.Repeat("/deep", maxDepth)+"/deep-link"))
	var before unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &before))
	low := before
	low.Cur = 256
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &low))
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &before) //nolint:errcheck // raises a soft limit
	got, err := e.RootfsUsage(soon(t), "c", nil)
	must(t, err)
	equal(t, "inodes", got.Inodes, 1+levels+1+1)
	if got.UsedBytes < 1<<20 {
		t.Fatalf("%d bytes: the file is not counted", got.UsedBytes)
	}
	e.removeRootfs("c")
}

// usedBelow walks a directory by other means than the store.
func usedBelow(t *testing.T, dir string) (u FsUsage) {
	t.Helper()
	u.Mountpoint = dir
	seen := map[uint64]bool{}
	must(t, filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok || seen[st.Ino] {
			return nil
		}
		seen[st.Ino] = true
		u.UsedBytes += uint64(st.Blocks) * 512
		u.Inodes++
		return nil
	}))
	return u
}

// wantExact compares with what is really there.
func (e *env) wantExact(t *testing.T, when string) (images, containers Measured) {
	t.Helper()
	images, containers, err := e.FsInfo(soon(t))
	must(t, err)
	equal(t, "images "+when, images.FsUsage, usedBelow(t, e.conf.Root))
	equal(t, "containers "+when, containers.FsUsage, usedBelow(t, e.conf.Containers))
	return images, containers
}

func TestFsInfoIsExact(t *testing.T) {
	e := newEnv(t)
	e.Store.usage.age = 1
	e.wantExact(t, "at the beginning")
	shared := layer(t, file("shared", strings.Repeat("x", 100<<10)), tar.Header{Typeflag: tar.TypeLink, Name: "again", Linkname: "shared"})
	e.reg.push(t, "a", image(t, "a", nil, shared, layer(t, file("a", "a"), dir("d"))))
	e.reg.push(t, "b", image(t, "b", nil, shared, layer(t, file("b", "b"))))
	a, b := e.pull("registry.example/a"), e.pull("registry.example/b")
	e.wantExact(t, "after two pulls")
	e.withVolumes("c", a, b)
	root := e.rootfs("c", a, b)
	writeAt(t, root, "mine", strings.Repeat("y", 50<<10))
	must(t, unix.Unlinkat(root.Int(), "a", 0))
	e.wantExact(t, "with a container")
	must(t, root.Close())
	e.remove(a)
	e.wantExact(t, "after the removal of an image in use")
	e.removeRootfs("c")
	e.wantExact(t, "after the removal of the container")
	e.restart()
	e.wantExact(t, "after a restart")
	e.remove(b)
	e.wantExact(t, "at the end")
}

// What has not changed is not walked again, and what containers write only after a while.
func TestFsInfoIsPaced(t *testing.T) {
	e := newEnv(t)
	e.Store.usage.age = time.Hour
	e.reg.push(t, "x", simple(t, "x"))
	e.reg.push(t, "y", simple(t, "y"))
	id := e.pull("registry.example/x")
	root := e.rootfs("c", id)
	img0, ctr0 := e.wantExact(t, "at first")
	// Behind the store's back: whoever walks sees it.
	must(t, os.WriteFile(filepath.Join(e.conf.Root, "overlay", e.layerDirs()[0], "diff", "secret"), []byte("x"), 0o600))
	writeAt(t, root, "mine", "x")
	img1, ctr1, err := e.FsInfo(soon(t))
	must(t, err)
	equal(t, "images", img1.FsUsage, img0.FsUsage)
	equal(t, "containers", ctr1, ctr0)
	if !img1.At.After(img0.At) {
		t.Errorf("images that did not change: as of %v, then of %v", img0.At, img1.At)
	}
	// A change is seen at once, and costs the new layer only.
	e.pull("registry.example/y")
	img2, _, err := e.FsInfo(soon(t))
	must(t, err)
	now := usedBelow(t, e.conf.Root)
	equal(t, "inodes with another image", img2.Inodes, now.Inodes-1)
	// Whoever measures the container for its own sake spares us the walk.
	_, err = e.RootfsUsage(soon(t), "c", nil)
	must(t, err)
	_, ctr3, err := e.FsInfo(soon(t))
	must(t, err)
	equal(t, "containers, measured by somebody else", ctr3.FsUsage, usedBelow(t, e.conf.Containers))
	must(t, root.Close())
	e.removeRootfs("c")
	_, ctr4, err := e.FsInfo(soon(t))
	must(t, err)
	equal(t, "containers that are gone", ctr4.Inodes, 1)
}

// A disk that does not answer holds nobody up.
func TestFsInfoOfADeadDisk(t *testing.T) {
	e := newEnv(t)
	stuck := func() {
		e.Store.usage.mu.Lock()
		e.Store.usage.busy, e.Store.usage.stop = make(chan struct{}), func() {}
		e.Store.usage.mu.Unlock()
	}
	free := func() {
		e.Store.usage.mu.Lock()
		close(e.Store.usage.busy)
		e.Store.usage.busy = nil
		e.Store.usage.mu.Unlock()
	}
	stuck()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, _, err := e.FsInfo(ctx)
	wantErr(t, "before the first figures", err, context.DeadlineExceeded)
	_, _, err = e.FsInfo(soon(t))
	wantErr(t, "without figures", err, ErrUnmeasured)
	free()
	img0, ctr0 := e.wantExact(t, "when it answers again")
	stuck()
	img1, ctr1, err := e.FsInfo(soon(t))
	must(t, err)
	equal(t, "images", img1, img0)
	equal(t, "containers", ctr1, ctr0)
	free()
}

// TestMeasureWhatGoes: a directory that was removed after it was opened has nothing in it, and is no error.
func TestMeasureWhatGoes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	must(t, os.Mkdir(dir, 0o755))
	n, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	must(t, os.Remove(dir))
	m := measurer{ctx: soon(t)}
	must(t, m.list(n, 0))
	equal(t, "files", m.sum.inodes, 0)
}
