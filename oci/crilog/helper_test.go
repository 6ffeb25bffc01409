package crilog

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// open makes a Writer on a log called 0.log and closes it with the test.
func open(t testing.TB, dir int, change func(*Config)) *Writer {
	t.Helper()
	c := Config{Dir: dir, Name: "0.log"}
	if change != nil {
		change(&c)
	}
	w, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

// tempDir returns a directory and a descriptor of it.
func tempDir(t testing.TB) (string, int) {
	t.Helper()
	dir := t.TempDir()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return dir, int(f.Fd())
}

// tmpfs returns a descriptor of a detached tmpfs of its own: the host sees no
// mount, and it is gone with the test.
func tmpfs(t testing.TB, size string) *sys.FD {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts a small tmpfs")
	}
	ctx, err := sys.FSOpen("tmpfs")
	if err != nil {
		t.Fatal(err)
	}
	defer ctx.Close()
	if err := sys.FSConfigString(ctx, "size", size); err != nil {
		t.Fatal(err)
	}
	if err := sys.FSConfigCreate(ctx); err != nil {
		t.Fatal(err)
	}
	m, err := sys.FSMount(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// slurp reads a file below a directory descriptor.
func slurp(t testing.TB, dir int, name string) []byte {
	t.Helper()
	return readAll(t, openAt(t, dir, name))
}

// openAt opens a file below a directory descriptor for reading; readAll closes it.
func openAt(t testing.TB, dir int, name string) *os.File {
	t.Helper()
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), name)
}

func readAll(t testing.TB, f *os.File) []byte {
	t.Helper()
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// pipe starts a stream and returns the container's end of it.
func pipe(t testing.TB, w *Writer, name string) *os.File {
	t.Helper()
	r, p, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	w.Stream(name, r)
	t.Cleanup(func() { p.Close() })
	return p
}

func drain(t testing.TB, w *Writer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := w.Drain(ctx); err != nil {
		t.Fatalf("drain: %v; %+v", err, w.Stats())
	}
}

// setWrite puts f in the place of write(2).
func setWrite(w *Writer, f func(int, []byte) (int, error)) {
	w.file <- struct{}{}
	w.write = f
	<-w.file
}

type record struct {
	time    time.Time
	stream  string
	tag     byte
	content []byte
}

var format = regexp.MustCompile(`(?s)^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z) (stdout|stderr) ([FP]) (.*)$`)

// parse reads a log with a parser that shares nothing with the writer, and fails
// on the first line that is not CRI's format or whose time does not increase.
func parse(t testing.TB, log []byte) []record {
	t.Helper()
	var out []record
	for i, line := range bytes.SplitAfter(log, []byte{'\n'}) {
		if len(line) == 0 {
			continue
		}
		if line[len(line)-1] != '\n' {
			t.Fatalf("line %d has no end: %.80q", i, line)
		}
		m := format.FindSubmatch(line[:len(line)-1])
		if m == nil {
			t.Fatalf("line %d is garbled: %.120q", i, line)
		}
		at, err := time.Parse(time.RFC3339Nano, string(m[1]))
		if err != nil {
			t.Fatalf("line %d: %v", i, err)
		}
		if n := len(out); n > 0 && !at.After(out[n-1].time) {
			t.Fatalf("line %d: time %v is not after %v", i, at, out[n-1].time)
		}
		out = append(out, record{at, string(m[2]), m[3][0], m[4]})
	}
	return out
}

// joined is what the container wrote to one stream, according to the log.
func joined(rs []record, stream string) []byte {
	var b bytes.Buffer
	for _, r := range rs {
		if r.stream == stream {
			b.Write(r.content)
			if r.tag == tagFull {
				b.WriteByte('\n')
			}
		}
	}
	return b.Bytes()
}

// checkLeaks fails the test if descriptors or goroutines are left at its end.
// It is called first, so that its cleanup runs last.
func checkLeaks(t *testing.T) {
	t.Helper()
	count := func() (int, int) {
		es, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(es), runtime.NumGoroutine()
	}
	probe, _ := os.Open(filepath.Join("/proc", "self", "fd")) // the poller's own descriptors exist from now on
	probe.Close()
	r, p, _ := os.Pipe()
	r.Close()
	p.Close()
	fds, routines := count()
	t.Cleanup(func() {
		for range 100 {
			f, r := count()
			if f <= fds && r <= routines {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		f, r := count()
		buf := make([]byte, 64<<10)
		t.Errorf("descriptors %d -> %d, goroutines %d -> %d\n%s", fds, f, routines, r, buf[:runtime.Stack(buf, true)])
	})
}
