package atomicfile_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/atomicfile"
	"github.com/vitrine-runtime/vitrine/internal/atomicfile/faulty"
)

func TestWriteReplacesOnDisk(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state.json")
	for _, data := range []string{"one", strings.Repeat("two", 100_000), ""} {
		if err := atomicfile.Write(atomicfile.Disk, path, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := atomicfile.Read(unix.AT_FDCWD, path, 1<<20)
		if err != nil || string(got) != data {
			t.Fatalf("read back %d bytes, %v; want %d", len(got), err, len(data))
		}
	}
	names(t, dir, "state.json")
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", st.Mode(), err)
	}
}

// A crash between create and rename leaves the temporary file; the next Write
// must neither fail on it nor mix its bytes in.
func TestWriteTakesOverALeftTemporaryFile(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, ".a.tmp"), []byte("torn garbage that is longer"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := atomicfile.Write(atomicfile.Disk, filepath.Join(dir, "a"), []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	names(t, dir, "a")
	st, _ := os.Stat(filepath.Join(dir, "a"))
	if st.Size() != 3 || st.Mode().Perm() != 0o600 {
		t.Fatalf("size %d mode %v", st.Size(), st.Mode())
	}
}

func TestWriteBelowADescriptor(t *testing.T) {
	dir := t.TempDir()
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	fsys := atomicfile.At(int(d.Fd()))
	if err := atomicfile.Mkdir(fsys, "sub", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := atomicfile.Write(fsys, "top", []byte("1"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := atomicfile.Write(fsys, "sub/x", []byte("2"), 0o600); err != nil {
		t.Fatal(err)
	}
	names(t, dir, "sub", "top")
	names(t, filepath.Join(dir, "sub"), "x")
	if err := atomicfile.Mkdir(fsys, "sub", 0o700); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("second mkdir: %v", err)
	}
	for range 2 { // the second finds nothing
		if err := atomicfile.Remove(fsys, "top"); err != nil {
			t.Fatal(err)
		}
	}
	names(t, dir, "sub")
}

// Every call fails once: what a reader sees is the old content, or the new one
// when only the sync of the directory failed; no temporary file is left unless
// taking it away was what failed.
func TestEveryFailingCall(t *testing.T) {
	boom := syscall.EIO
	for n := 1; ; n++ {
		d := &faulty.Disk{FailAt: n, Err: boom}
		d.Put("/s/a", "old")
		err := atomicfile.Write(d, "/s/a", []byte("new!"), 0o600)
		if d.Calls() < n {
			if n < 6 {
				t.Fatalf("Write made %d calls only", n-1)
			}
			return // ran through: the n-th call does not exist
		}
		if !errors.Is(err, boom) {
			t.Fatalf("call %d failed and Write returned %v", n, err)
		}
		files := d.Files()
		want := "old"
		if n == 6 { // create write fsync close rename SYNCDIR
			want = "new!"
		}
		if files["/s/a"] != want || len(files) != 1 {
			t.Fatalf("after failing call %d: %v", n, files)
		}
	}
}

// The power is cut after every call, and every state that the disk may be left
// in is looked at: a is old or new, never torn; after Write returned, new.
func TestPowerCutAtEveryCall(t *testing.T) {
	for n := 1; n <= 7; n++ {
		d := &faulty.Disk{FailAt: n, Err: errStop}
		d.Put("/s/a", "old")
		err := writeUntilStop(d)
		for _, state := range d.Crashes() {
			got, ok := state["/s/a"]
			if !ok || got != "old" && got != "new!" {
				t.Fatalf("cut after %d calls leaves %q", n-1, state)
			}
			if err == nil && got != "new!" {
				t.Fatalf("Write returned and %q is left", got)
			}
		}
	}
}

var errStop = errors.New("power cut")

// writeUntilStop runs Write and takes a snapshot of nothing more after the
// failing call: the undo of Write would run on a machine that is off.
func writeUntilStop(d *faulty.Disk) (err error) {
	return atomicfile.Write(stopper{d}, "/s/a", []byte("new!"), 0o600)
}

// stopper lets no undo through: after a power cut there is none.
type stopper struct{ *faulty.Disk }

func (s stopper) Unlink(string) error { return errStop }

func TestReadRefusesWhatIsNoStateFile(t *testing.T) {
	dir := t.TempDir()
	p := func(n string) string { return filepath.Join(dir, n) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(p("big"), make([]byte, 11), 0o600))
	must(os.WriteFile(p("fits"), make([]byte, 10), 0o600))
	must(os.Symlink("fits", p("link")))
	must(os.Mkdir(p("dir"), 0o700))
	must(unix.Mkfifo(p("fifo"), 0o600))
	for name, want := range map[string]error{
		"big": syscall.EFBIG, "fits": nil, "link": syscall.ELOOP,
		"dir": syscall.EINVAL, "fifo": syscall.EINVAL, "none": fs.ErrNotExist,
	} {
		done := make(chan error, 1)
		go func() {
			_, err := atomicfile.Read(unix.AT_FDCWD, p(name), 10)
			done <- err
		}()
		select {
		case err := <-done:
			if !errors.Is(err, want) {
				t.Errorf("%s: %v, want %v", name, err, want)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("%s: Read waits", name)
		}
	}
}

func names(t *testing.T, dir string, want ...string) {
	t.Helper()
	es, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range es {
		got = append(got, e.Name())
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Fatalf("%s holds %v, want %v", dir, got, want)
	}
}
