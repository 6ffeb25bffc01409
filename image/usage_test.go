package image

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"

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
