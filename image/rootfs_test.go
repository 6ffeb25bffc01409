package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// readAt reads a file of a mount, without following links out of it.
func readAt(root *sys.FD, path string) (string, error) {
	fd, err := sys.OpenAt2(root.Int(), path, unix.O_RDONLY, unix.RESOLVE_IN_ROOT)
	if err != nil {
		return "", err
	}
	f := fd.File(path)
	defer f.Close()
	data, err := io.ReadAll(f)
	return string(data), err
}

func writeAt(tb testing.TB, root *sys.FD, path, text string) {
	tb.Helper()
	fd, err := unix.Openat(root.Int(), path, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC, 0o644)
	must(tb, err)
	f := os.NewFile(uintptr(fd), path)
	_, err = io.WriteString(f, text)
	must(tb, err)
	must(tb, f.Close())
}

func (e *env) rootfs(container, id string, volumes ...string) *sys.FD {
	e.Helper()
	must(e.TB, e.NewRootfs(soon(e.TB), container, id, volumes...))
	fd, err := e.Mount(soon(e.TB), container, View{})
	must(e.TB, err)
	e.Cleanup(func() { _ = fd.Close() })
	return fd
}

func (e *env) removeRootfs(container string) {
	e.Helper()
	must(e.TB, e.RemoveRootfs(soon(e.TB), container))
}

func wantFile(t *testing.T, root *sys.FD, path, want string) {
	t.Helper()
	got, err := readAt(root, path)
	must(t, err)
	equal(t, path, got, want)
}

func wantNoFile(t *testing.T, root *sys.FD, path string) {
	t.Helper()
	_, err := readAt(root, path)
	wantErr(t, path, err, fs.ErrNotExist)
}

// layered has whiteouts of every kind and a "/" of its own.
func layered(t *testing.T) v1.Image {
	return image(t, "layered", nil,
		layer(t, tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o751, Uid: 7, Gid: 8}, dir("d"), file("d/one", "1"), file("d/two", "1"),
			dir("o"), file("o/old", "1"), file("gone", "1"), file("kept", "1"), tar.Header{Typeflag: tar.TypeSymlink, Name: "link", Linkname: "/d"}),
		layer(t, file("d/two", "2"), file("d/.wh.one", ""), file("o/.wh..wh..opq", ""), file("o/new", "2"), file(".wh.gone", "")),
	)
}

func TestRootfs(t *testing.T) {
	for name, mode := range map[string]overlayMode{"by descriptor": layersByFD, "by path": layersByPath, "by mount(2)": layersByMount} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			if e.overlay > mode {
				t.Skipf("needs a newer kernel: it takes layers by mode %d only", e.overlay)
			}
			e.overlay = mode
			e.reg.push(t, "layered", layered(t))
			id := e.pull("registry.example/layered")
			root := e.rootfs("c1", id)
			wantFile(t, root, "d/two", "2")
			wantFile(t, root, "link/two", "2")
			wantFile(t, root, "o/new", "2")
			wantFile(t, root, "kept", "1")
			for _, p := range []string{"d/one", "o/old", "gone"} {
				wantNoFile(t, root, p)
			}
			var st unix.Stat_t
			must(t, unix.Fstat(root.Int(), &st))
			equal(t, "mode of /", st.Mode&0o7777, 0o751)
			equal(t, "owner of /", [2]uint32{st.Uid, st.Gid}, [2]uint32{7, 8})

			// What one container writes is its own.
			writeAt(t, root, "kept", "mine")
			writeAt(t, root, "d/three", "mine")
			other := e.rootfs("c2", id)
			wantFile(t, other, "kept", "1")
			wantNoFile(t, other, "d/three")
			got, err := os.ReadFile(filepath.Join(e.conf.Containers, "c1", upperDir, "kept"))
			must(t, err)
			equal(t, "upper", string(got), "mine")

			// Mounted again (a retried create): same files, no refusal for
			// the volatile mark.
			must(t, root.Close())
			again, err := e.Mount(soon(t), "c1", View{Readonly: true})
			must(t, err)
			wantFile(t, again, "kept", "mine")
			_, err = unix.Openat(again.Int(), "x", unix.O_WRONLY|unix.O_CREAT, 0o644)
			wantErr(t, "write to a read-only mount", err, unix.EROFS)
			must(t, again.Close())
			e.checkOverlayOptions(t)
		})
	}
}

// checkOverlayOptions attaches a root filesystem and reads what the kernel says.
func (e *env) checkOverlayOptions(t *testing.T) {
	t.Helper()
	fd, err := e.Mount(soon(t), "c2", View{})
	must(t, err)
	defer fd.Close()
	at := t.TempDir()
	to, err := sys.OpenAt2(unix.AT_FDCWD, at, unix.O_PATH, 0)
	must(t, err)
	defer to.Close()
	must(t, sys.MoveMount(fd, to))
	defer unix.Unmount(at, unix.MNT_DETACH) //nolint:errcheck // of a test
	info, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	for line := range strings.Lines(string(info)) {
		if !strings.Contains(line, " "+at+" ") {
			continue
		}
		for _, want := range []string{" - overlay ", "volatile", "redirect_dir=nofollow"} {
			if !strings.Contains(line, want) {
				t.Fatalf("no %q in %s", want, line)
			}
		}
		if strings.Contains(line, "metacopy=on") || strings.Contains(line, "index=on") || strings.Contains(line, "xino=on") {
			t.Fatal(line)
		}
		return
	}
	t.Fatal("not in mountinfo")
}

func TestProbeOverlay(t *testing.T) {
	e := newEnv(t)
	if e.overlay != layersByFD {
		var name unix.Utsname
		must(t, unix.Uname(&name))
		t.Logf("kernel %s takes layers by mode %d", unix.ByteSliceToString(name.Release[:]), e.overlay)
	}
	// A mode that does not work must not be chosen, even if every key is taken.
	mode, err := probeOverlay(e.conf.Root+"/empty", e.conf.Root+"/empty") // overlapping: ELOOP
	must(t, err)
	equal(t, "mode", mode, layersByMount)
}

func TestNewRootfsIsIdempotent(t *testing.T) {
	e := newEnv(t)
	e.reg.push(t, "a", simple(t, "a"))
	e.reg.push(t, "b", simple(t, "b"))
	a, b := e.pull("registry.example/a"), e.pull("registry.example/b")
	root := e.rootfs("c", a)
	writeAt(t, root, "mine", "x")
	must(t, root.Close())
	must(t, e.NewRootfs(soon(t), "c", a))
	e.restart()
	must(t, e.NewRootfs(soon(t), "c", a))
	wantFile(t, e.rootfs("c", a), "mine", "x")
	equalSlices(t, "users", e.usersOf(), []string{a[7:]})
	if err := e.NewRootfs(soon(t), "c", b); err == nil {
		t.Fatal("a container changed its image")
	}
	wantErr(t, "unknown image", e.NewRootfs(soon(t), "d", "sha256:"+strings.Repeat("0", 64)), ErrNotFound)
	for _, id := range []string{"", ".", "..", "a/b", "../x", ".x", strings.Repeat("a", 129), "a b", "a\x00"} {
		wantErr(t, "NewRootfs "+id, e.NewRootfs(soon(t), id, a), fs.ErrInvalid)
		wantErr(t, "RemoveRootfs "+id, e.RemoveRootfs(soon(t), id), fs.ErrInvalid)
	}
	ids, err := e.Rootfses()
	must(t, err)
	equalSlices(t, "Rootfses", ids, []string{"c"})
	_, err = e.Mount(soon(t), "d", View{})
	wantErr(t, "Mount of an unknown container", err, fs.ErrNotExist)
	e.removeRootfs("c")
	e.removeRootfs("c")
	equalSlices(t, "users", e.usersOf(), nil)
	st, err := os.Stat(e.conf.Containers)
	must(t, err)
	equal(t, "mode", st.Mode().Perm(), 0o700)
}

func TestLayersInUseStay(t *testing.T) {
	e := newEnv(t)
	base := layer(t, file("base", "base"))
	e.reg.push(t, "x", image(t, "x", nil, base, layer(t, file("x", "x"))))
	e.reg.push(t, "y", image(t, "y", nil, base))
	id := e.pull("registry.example/x")
	e.pull("registry.example/y")
	must(t, e.NewRootfs(soon(t), "c1", id))
	must(t, e.NewRootfs(soon(t), "c2", id))
	e.remove("registry.example/x")
	if e.status(id) != nil {
		t.Fatal("a removed image is listed because a container uses it")
	}
	wantErr(t, "new container", e.NewRootfs(soon(t), "c3", id), ErrNotFound)
	e.removeRootfs("c3")
	e.remove("registry.example/y")
	e.wantLayers(2)
	e.restart()
	e.wantLayers(2)
	wantFile(t, e.rootfs("c1", id), "x", "x") // NewRootfs of a container that has it

	// Pulled again, removed again: still in use.
	equal(t, "id", e.pull("registry.example/x"), id)
	must(t, e.NewRootfs(soon(t), "c4", id))
	e.remove(id)
	e.removeRootfs("c4")
	e.removeRootfs("c1")
	wantFile(t, e.rootfs("c2", id), "base", "base")
	e.removeRootfs("c2")
	e.wantLayers(0)
}

// The library deletes an image on its own account when a pull fails late; the
// pin must hold the layers then, too.
func TestLayersOutliveTheLibrarysImage(t *testing.T) {
	e := newEnv(t)
	e.reg.push(t, "x", simple(t, "x"))
	id := e.pull("registry.example/x")
	must(t, e.NewRootfs(soon(t), "c", id))
	_, err := e.store.DeleteImage(id[7:], true)
	must(t, err)
	wantFile(t, e.rootfs("c", id), "file", "x")
	e.restart()
	e.wantLayers(1)
	e.removeRootfs("c")
	e.wantLayers(0)
}

func TestPinsAreRepaired(t *testing.T) {
	e := newEnv(t)
	e.reg.push(t, "x", simple(t, "x"))
	id := e.pull("registry.example/x")
	_, err := e.store.DeleteImage(pinID(id[7:]), true) // killed between image and pin
	must(t, err)
	must(t, e.reload())
	if e.status(id) != nil {
		t.Fatal("an image is shown before its layers are pinned")
	}
	e.restart()
	if !e.store.Exists(pinID(id[7:])) || e.status(id) == nil {
		t.Fatal("the pin is not back")
	}
	_, err = e.store.DeleteImage(id[7:], true) // killed between image and pin, removing
	must(t, err)
	e.restart()
	e.wantLayers(0)
}

func TestBrokenRecordKeepsLayers(t *testing.T) {
	e := newEnv(t)
	e.reg.push(t, "x", simple(t, "x"))
	id := e.pull("registry.example/x")
	must(t, e.NewRootfs(soon(t), "c", id))
	for _, text := range []string{"", "{", `{"version":2}`, `{"version":1,"image":"../../x"}`, `{"version":1,"image":"` + id[7:] + `","layers":["../x"]}`} {
		e.write(filepath.Join(e.conf.Containers, "c", recordFile), text)
		e.restart()
		if err := e.NewRootfs(soon(t), "c", id); err == nil {
			t.Fatal("a broken record is used")
		}
	}
	e.remove(id)
	e.wantLayers(1)
	ids, err := e.Rootfses()
	must(t, err)
	equalSlices(t, "Rootfses", ids, []string{"c"})
	e.removeRootfs("c")
	e.restart()
	e.wantLayers(0)
}

func TestForeignBoot(t *testing.T) {
	e := newEnv(t)
	e.reg.push(t, "x", simple(t, "x"))
	id := e.pull("registry.example/x")
	must(t, e.NewRootfs(soon(t), "c", id))
	path := filepath.Join(e.conf.Containers, "c", recordFile)
	data, err := os.ReadFile(path)
	must(t, err)
	var rec rootfs
	must(t, json.Unmarshal(data, &rec))
	rec.Boot = "another"
	data, err = json.Marshal(rec)
	must(t, err)
	e.write(path, string(data))
	e.restart()
	_, err = e.Mount(soon(t), "c", View{})
	wantErr(t, "Mount", err, errForeignBoot)
	e.removeRootfs("c")
}

func TestImageWithoutLayers(t *testing.T) {
	e := newEnv(t)
	e.reg.push(t, "empty", image(t, "empty", nil))
	root := e.rootfs("c", e.pull("registry.example/empty"))
	writeAt(t, root, "x", "y")
	wantFile(t, root, "x", "y")
	e.removeRootfs("c")
}

// TestManyLayers: B-96. As many layers as overlayfs can stack are mounted, in the right order; one more is refused before any of it is
// downloaded.
func TestManyLayers(t *testing.T) {
	e, n := newEnv(t), maxLayers
	switch {
	case testing.Short():
		n = 50 // the library writes a list of all layers for each: 500 take half a minute
	case os.Getenv("VITRINE_VM") != "":
		n = 150 // which are more than the options of a mount have room for
	}
	layers := []v1.Layer{layer(t, file("first", "1"), file("gone", "1"))}
	for i := 1; i < n; i++ {
		entries := []tar.Header{file("last", strconv.Itoa(i)), file(fmt.Sprintf("of-%d", i), "")}
		if i == n/2 {
			entries = append(entries, file(".wh.gone", ""))
		}
		layers = append(layers, layer(t, entries...))
	}
	e.reg.push(t, "many", image(t, "many", nil, layers...))
	root := e.rootfs("c", e.pull("registry.example/many"))
	wantFile(t, root, "first", "1")
	wantFile(t, root, "last", strconv.Itoa(n-1))
	wantNoFile(t, root, "gone")
	for i := 1; i < n; i++ {
		wantFile(t, root, fmt.Sprintf("of-%d", i), "")
	}
	writeAt(t, root, "x", "y")
	wantFile(t, root, "x", "y")
	must(t, root.Close())
	e.removeRootfs("c")
	for len(layers) <= maxLayers {
		layers = append(layers, layer(t, file("x", "y")))
	}
	e.reg.push(t, "more", image(t, "more", nil, layers...))
	_, err := e.Pull(soon(t), "registry.example/more", nil)
	wantErr(t, "one more", err, ErrLimit)
}

// TestOnlyWhiteouts: B-96. A layer may be of nothing but whiteouts, also of what there is not, and also where it is the only one.
func TestOnlyWhiteouts(t *testing.T) {
	e := newEnv(t)
	whiteouts := layer(t, file(".wh.gone", ""), dir("d"), file("d/.wh..wh..opq", ""), file("d/.wh.none", ""))
	e.reg.push(t, "over", image(t, "over", nil, layer(t, file("gone", "1"), file("kept", "1"), dir("d"), file("d/x", "1")), whiteouts))
	e.reg.push(t, "alone", image(t, "alone", nil, whiteouts))
	root := e.rootfs("c", e.pull("registry.example/over"))
	wantFile(t, root, "kept", "1")
	alone := e.rootfs("c2", e.pull("registry.example/alone"))
	for _, r := range []*sys.FD{root, alone} {
		wantNoFile(t, r, "gone")
		wantNoFile(t, r, "d/x")
		wantNoFile(t, r, ".wh.gone")
		writeAt(t, r, "gone", "mine")
		wantFile(t, r, "gone", "mine")
	}
	must(t, root.Close())
	must(t, alone.Close())
	e.removeRootfs("c")
	e.removeRootfs("c2")
}

// runHelper opens the store in another process and then, by verb, does nothing
// or runs what the verb says until it dies at the n-th fail point.
func runHelper(verb string) int {
	switch verb {
	case "filter":
		return filterProbe()
	case "layer":
		return layerProbe(os.Args[1])
	}
	var conf Config
	if err := json.Unmarshal([]byte(os.Getenv(helperConfig)), &conf); err != nil {
		return 2
	}
	s, err := Open(conf)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	if verb == "open" {
		fmt.Println(s.store.GraphRoot(), s.store.RunRoot(), s.store.GraphDriverName(), s.store.GraphOptions(), os.Getenv("CONTAINERS_STORAGE_CONF"))
		return 0
	}
	n, _ := strconv.Atoi(os.Args[1])
	failPoint = func() {
		if n--; n < 0 {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		}
	}
	switch verb {
	case "new":
		err = s.NewRootfs(context.Background(), "c", os.Args[2])
	case "pull":
		_, err = s.Pull(context.Background(), os.Args[2], nil)
	case "rmi":
		err = s.Remove(context.Background(), os.Args[2])
	default:
		err = s.RemoveRootfs(context.Background(), "c")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	return 0
}

// storage.conf is somebody else's: it may be broken, and it must not add image
// stores to ours.
func TestStorageConfIsIgnored(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	conf := Config{Root: dir + "/root", RunRoot: dir + "/run", Containers: dir + "/upper"}
	data, err := json.Marshal(conf)
	must(t, err)
	for name, text := range map[string]string{"broken": "[storage", "other": "[storage]\ndriver = \"vfs\"\ngraphroot = \"/nowhere\"\n"} {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, []byte(text), 0o600))
		cmd := helperCommand("open", string(data))
		cmd.Env = append(cmd.Env, "CONTAINERS_STORAGE_CONF="+path, "CONTAINERS_STORAGE_CONF_OVERRIDE="+path, "HOME=")
		out, err := cmd.Output()
		must(t, err)
		equal(t, "options", strings.TrimSpace(string(out)), fmt.Sprintf("%s %s overlay [overlay.skip_mount_home=true] %s", conf.Root, conf.RunRoot, path))
	}
}

// openDescriptors counts this process's descriptors.
func openDescriptors(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(d)
}

func TestNoDescriptorsAndMountsAreLeft(t *testing.T) {
	e := newEnv(t)
	e.reg.push(t, "layered", layered(t))
	id := e.pull("registry.example/layered")
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	before := openDescriptors(t)
	for still := 0; still < 25; still++ { // what the pull had open is closed a moment later
		time.Sleep(10 * time.Millisecond)
		if n := openDescriptors(t); n != before {
			before, still = n, 0
		}
	}
	newest := e.overlay
	for _, e.overlay = range []overlayMode{layersByFD, layersByPath, layersByMount} {
		if e.overlay < newest {
			continue // this kernel does not have it
		}
		for range 5 {
			must(t, e.NewRootfs(soon(t), "c", id))
			fd, err := e.Mount(soon(t), "c", View{Readonly: true})
			must(t, err)
			must(t, fd.Close())
			// And of a mount that fails.
			must(t, os.RemoveAll(filepath.Join(e.conf.Containers, "c", workDir)))
			if fd, err := e.Mount(soon(t), "c", View{}); err == nil {
				t.Fatal("mounted without a work directory", fd.Close())
			}
			_, _, err = e.FsInfo(soon(t))
			must(t, err)
			e.removeRootfs("c")
		}
	}
	equal(t, "descriptors", openDescriptors(t), before)
	after, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	equal(t, "mounts", string(after), string(mounts))
}

// helper runs verb until its n-th step, or to its end, and reports which.
func (e *env) helper(verb string, n int, id string) (killed bool) {
	e.Helper()
	conf, err := json.Marshal(e.conf)
	must(e.TB, err)
	err = helperCommand(verb, string(conf), strconv.Itoa(n), id).Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == -1 {
		return true
	}
	must(e.TB, err)
	return false
}

func (e *env) exists(container, name string) bool {
	_, err := os.Lstat(filepath.Join(e.conf.Containers, container, name))
	return err == nil
}

func TestKilledAtEveryStep(t *testing.T) {
	e := newEnv(t)
	e.reg.push(t, "x", simple(t, "x"))
	id := e.pull("registry.example/x")
	for _, verb := range []string{"new", "remove"} {
		n := 0
		for ; ; n++ {
			if verb == "remove" {
				root := e.rootfs("c", id)
				must(t, unix.Mkdirat(root.Int(), "d", 0o755))
				must(t, root.Close())
			}
			must(t, e.Store.Close())
			killed := e.helper(verb, n, id)
			if e.exists("c", upperDir) && !e.exists("c", recordFile) {
				t.Fatalf("%s killed at step %d: there are files, and no record of whose layers they need", verb, n)
			}
			e.open()
			e.remove(id) // whatever is there, the image's end comes first
			e.removeRootfs("c")
			ids, err := e.Rootfses()
			must(t, err)
			equalSlices(t, fmt.Sprintf("left after %s was killed at step %d", verb, n), ids, nil)
			e.wantLayers(0)
			equal(t, "id", e.pull("registry.example/x"), id)
			if !killed {
				break
			}
		}
		if n < 4 {
			t.Fatalf("%s has %d steps only", verb, n)
		}
	}
}

// What a container may leave behind to trip the one who cleans up.
func TestRemoveHostileTree(t *testing.T) {
	e := newEnv(t)
	e.reg.push(t, "x", simple(t, "x"))
	id := e.pull("registry.example/x")
	must(t, e.NewRootfs(soon(t), "c", id))
	canary := filepath.Join(t.TempDir(), "canary")
	e.write(canary, "alive")
	upper := filepath.Join(e.conf.Containers, "c", upperDir)
	must(t, os.Symlink(filepath.Dir(canary), filepath.Join(upper, "out")))
	must(t, os.Symlink("..", filepath.Join(upper, "up")))
	must(t, unix.Mkfifo(filepath.Join(upper, "fifo"), 0o600))
	must(t, unix.Mknod(filepath.Join(upper, "whiteout"), unix.S_IFCHR, 0))
	must(t, os.WriteFile(filepath.Join(upper, "\xff\n"), nil, 0))
	deepDir(t, upper, 3000)
	var before unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &before))
	low := before
	low.Cur = 256 // a descriptor per level would not do
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &low))
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &before) //nolint:errcheck // raises a soft limit
	_, _, err := e.FsInfo(soon(t))
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	wantErr(t, "cancelled", e.RemoveRootfs(ctx, "c"), context.Canceled)
	e.removeRootfs("c")
	if _, err := os.Stat(canary); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(e.conf.Containers, "c")); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
}

// deepDir makes n directories, one in the other.
func deepDir(t *testing.T, at string, n int) {
	t.Helper()
	dir, err := unix.Open(at, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	for range n {
		must(t, unix.Mkdirat(dir, "deep", 0o700))
		next, err := unix.Openat(dir, "deep", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		must(t, err)
		must(t, unix.Close(dir))
		dir = next
	}
	must(t, unix.Close(dir))
}

func TestFsInfo(t *testing.T) {
	e := newEnv(t)
	body := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB
	e.Store.usage.age = 1                                   // each call anew
	e.reg.push(t, "x", image(t, "x", nil, layer(t, file("big", string(body)), dir("d"))))
	img0, ctr0, err := e.FsInfo(soon(t))
	must(t, err)
	equal(t, "mount point", img0.Mountpoint, e.conf.Root)
	equal(t, "mount point", ctr0.Mountpoint, e.conf.Containers)
	id := e.pull("registry.example/x")
	img1, ctr1, err := e.FsInfo(soon(t))
	must(t, err)
	if d := img1.UsedBytes - img0.UsedBytes; d < 1<<20 || d > 2<<20 {
		t.Fatalf("a layer of 1 MiB occupies %d bytes", d)
	}
	if d := img1.Inodes - img0.Inodes; d < 3 || d > 30 {
		t.Fatalf("a layer of two files occupies %d inodes", d)
	}
	equal(t, "containers", ctr1.FsUsage, ctr0.FsUsage)
	root := e.rootfs("c", id)
	writeAt(t, root, "mine", string(body))
	must(t, unix.Linkat(root.Int(), "mine", root.Int(), "link", 0))
	img2, ctr2, err := e.FsInfo(soon(t))
	must(t, err)
	equal(t, "images", img2.FsUsage, img1.FsUsage)
	if d := ctr2.UsedBytes - ctr1.UsedBytes; d < 1<<20 || d > 2<<20 {
		t.Fatalf("a file of 1 MiB with two names occupies %d bytes", d)
	}
	must(t, root.Close())
	e.removeRootfs("c")
	e.remove(id)
	img3, ctr3, err := e.FsInfo(soon(t))
	must(t, err)
	equal(t, "containers at the end", ctr3.Inodes, ctr0.Inodes)
	if img3.UsedBytes > img0.UsedBytes+64<<10 {
		t.Fatalf("images at the end: %+v, at the beginning: %+v", img3, img0)
	}
	must(t, os.Rename(e.conf.Root+"/overlay", e.conf.Root+"/moved"))
	_, _, err = e.FsInfo(soon(t))
	wantErr(t, "without the store", err, ErrUnmeasured)
	must(t, os.Rename(e.conf.Root+"/moved", e.conf.Root+"/overlay"))
}

func BenchmarkMount20Layers(b *testing.B) {
	e := newEnv(b)
	var layers []v1.Layer
	for i := range 20 {
		layers = append(layers, layer(b, file(fmt.Sprintf("f%d", i), "x")))
	}
	e.reg.push(b, "x", image(b, "x", nil, layers...))
	id := e.pull("registry.example/x")
	for _, mode := range []overlayMode{layersByFD, layersByPath, layersByMount} {
		if e.overlay > mode {
			continue
		}
		e.Store.overlay = mode
		b.Run(map[overlayMode]string{layersByFD: "fd", layersByPath: "path", layersByMount: "scratch"}[mode], func(b *testing.B) {
			must(b, e.NewRootfs(context.Background(), "c", id))
			for b.Loop() {
				fd, err := e.Mount(context.Background(), "c", View{})
				must(b, err)
				must(b, fd.Close())
			}
			must(b, e.RemoveRootfs(context.Background(), "c"))
		})
	}
	// What the kernel takes for the bare sequence, with the layers open.
	b.Run("bare", func(b *testing.B) {
		must(b, e.NewRootfs(context.Background(), "c", id))
		l, err := openLayers(e.roots, e.layers, "c", e.Store.rootfses["c"].Layers)
		must(b, err)
		defer l.close()
		for b.Loop() {
			must(b, e.clearVolatile("c"))
			ctx, err := sys.FSOpen("overlay")
			must(b, err)
			must(b, configureOverlay(ctx, l, layersByFD))
			fd, err := sys.FSMount(ctx, 0)
			must(b, err)
			must(b, ctx.Close())
			must(b, fd.Close())
		}
		must(b, e.RemoveRootfs(context.Background(), "c"))
	})
	b.Run("new+mount+remove", func(b *testing.B) {
		e.Store.overlay = layersByFD
		for b.Loop() {
			must(b, e.NewRootfs(context.Background(), "c", id))
			fd, err := e.Mount(context.Background(), "c", View{})
			must(b, err)
			must(b, fd.Close())
			must(b, e.RemoveRootfs(context.Background(), "c"))
		}
	})
}
