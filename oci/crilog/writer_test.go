package crilog

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestLineLengths(t *testing.T) {
	checkLeaks(t)
	const k = 16 << 10
	for _, n := range []int{0, 1, k - 1, k, k + 1, 2 * k, 2*k + 1, 5*k - 1} {
		for _, end := range []string{"\n", ""} {
			t.Run(fmt.Sprintf("%d%q", n, end), func(t *testing.T) {
				_, dir := tempDir(t)
				w := open(t, dir, nil)
				p := pipe(t, w, "stdout")
				line := bytes.Repeat([]byte{'x', 0, 0xff, '\r'}, n/4+1)[:n]
				fmt.Fprintf(p, "%s%s", line, end)
				p.Close()
				drain(t, w)
				recs := parse(t, slurp(t, dir, "0.log"))
				want := max(1, (n+k-1)/k)
				if n == 0 && end == "" {
					want = 0
				}
				if len(recs) != want {
					t.Fatalf("%d records, want %d", len(recs), want)
				}
				for i, r := range recs {
					if last := i == want-1; last != (r.tag == tagFull) || !last && len(r.content) != k {
						t.Fatalf("record %d of %d: %c with %d bytes", i, want, r.tag, len(r.content))
					}
				}
				if got := joined(recs, "stdout"); !bytes.Equal(bytes.TrimSuffix(got, []byte{'\n'}), line) {
					t.Fatalf("content changed: %d bytes, want %d", len(got), n)
				}
			})
		}
	}
}

func TestInterleaving(t *testing.T) {
	checkLeaks(t)
	_, dir := tempDir(t)
	w := open(t, dir, nil)
	var wg sync.WaitGroup
	for _, name := range []string{"stdout", "stderr"} {
		p := pipe(t, w, name)
		wg.Go(func() {
			defer p.Close()
			for i := range 5000 {
				fmt.Fprintf(p, "%s %d\n", name, i)
			}
		})
	}
	wg.Wait()
	drain(t, w)
	recs := parse(t, slurp(t, dir, "0.log")) // also: times increase over both streams
	next := map[string]int{}
	for _, r := range recs {
		if want := fmt.Sprintf("%s %d", r.stream, next[r.stream]); string(r.content) != want || r.tag != tagFull {
			t.Fatalf("got %q, want %q", r.content, want)
		}
		next[r.stream]++
	}
	if next["stdout"] != 5000 || next["stderr"] != 5000 {
		t.Fatalf("counts %v", next)
	}
	if s := w.Stats(); s.Lines != 10000 || s.DroppedLines != 0 || s.Queued != 0 || s.Bytes != uint64(len(slurp(t, dir, "0.log"))) {
		t.Fatalf("stats %+v", s)
	}
}

// One byte per write(2), the worst that a container can do to a line reader.
func TestSingleBytes(t *testing.T) {
	_, dir := tempDir(t)
	w := open(t, dir, nil)
	p := pipe(t, w, "stdout")
	text := []byte(strings.Repeat("some words\n", 500))
	for i := range text {
		p.Write(text[i : i+1])
	}
	p.Close()
	drain(t, w)
	if got := joined(parse(t, slurp(t, dir, "0.log")), "stdout"); !bytes.Equal(got, text) {
		t.Fatalf("got %d bytes, want %d", len(got), len(text))
	}
}

// A flood into a disk that is slow but alive is slowed down and loses nothing,
// even with lines that grow forty times by their header.
func TestSlowDiskLosesNothing(t *testing.T) {
	checkLeaks(t)
	_, dir := tempDir(t)
	w := open(t, dir, func(c *Config) { c.Buffer, c.Stall = 128<<10, time.Minute })
	setWrite(w, func(fd int, p []byte) (int, error) {
		time.Sleep(time.Millisecond)
		return unix.Write(fd, p[:min(len(p), 32<<10)])
	})
	p := pipe(t, w, "stdout")
	text := bytes.Repeat([]byte{'\n'}, 100_000)
	p.Write(text)
	p.Close()
	drain(t, w)
	if s := w.Stats(); s.DroppedLines != 0 || s.Lines != 100_000 {
		t.Fatalf("stats %+v", s)
	}
	if got := joined(parse(t, slurp(t, dir, "0.log")), "stdout"); !bytes.Equal(got, text) {
		t.Fatalf("got %d bytes", len(got))
	}
}

// chatter writes numbered lines with a checksum, long ones among them, until
// stop is closed or n are written; it returns how many, and the longest that a
// single write took.
func chatter(p *os.File, from, n int, stop <-chan struct{}) (wrote int, longest time.Duration) {
	rnd := rand.New(rand.NewPCG(uint64(from), 7))
	for i := range n {
		select {
		case <-stop:
			return i, longest
		default:
		}
		body := strings.Repeat("z", rnd.IntN(200))
		if rnd.IntN(20) == 0 {
			body = strings.Repeat("long", rnd.IntN(12<<10))
		}
		line := fmt.Sprintf("%08d %s", from+i, body)
		line = fmt.Sprintf("%s %x\n", line, sha256.Sum256([]byte(line)))
		start := time.Now()
		p.WriteString(line)
		longest = max(longest, time.Since(start))
	}
	return n, longest
}

// whole checks lines of chatter: every one is intact, or was cut at a record's
// end and ended by an empty record. It returns the intact ones' numbers.
func whole(t *testing.T, recs []record) []int {
	t.Helper()
	var out []int
	var line []byte
	for _, r := range recs {
		line = append(line, r.content...)
		if r.tag == tagPartial {
			continue
		}
		if len(r.content) == 0 { // chatter has no empty line: the tail was dropped
			line = nil
			continue
		}
		i := bytes.LastIndexByte(line, ' ')
		var n int
		if i < 0 || fmt.Sprintf("%x", sha256.Sum256(line[:i])) != string(line[i+1:]) {
			t.Fatalf("a line is merged or garbled: %.60q ... %.80q", line, line[max(0, len(line)-80):])
		}
		fmt.Sscanf(string(line), "%d", &n)
		if len(out) > 0 && n <= out[len(out)-1] {
			t.Fatalf("line %d comes after %d", n, out[len(out)-1])
		}
		out, line = append(out, n), nil
	}
	if line != nil {
		t.Fatalf("the log ends inside of a line: %.60q", line)
	}
	return out
}

// The disk of the log is full for a while: the producer goes on, what is lost is
// counted, and afterwards the log goes on with whole lines.
func TestFullDisk(t *testing.T) {
	checkLeaks(t)
	m := tmpfs(t, "512k")
	dir := m.Int()
	filler, err := unix.Openat(dir, "filler", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(filler)
	if _, err := unix.Write(filler, make([]byte, 300<<10)); err != nil {
		t.Fatal(err)
	}
	w := open(t, dir, func(c *Config) { c.Buffer = 100 << 10 })
	p := pipe(t, w, "stdout")
	wrote, longest := chatter(p, 0, 2000, nil) // some 2.5 MB into 200 KB
	full := w.Stats()
	if full.WriteErrors == 0 || full.DroppedLines == 0 || !strings.Contains(full.LastError, "no space") {
		t.Fatalf("the disk never was full: %+v", full)
	}
	if longest > 500*time.Millisecond {
		t.Fatalf("the producer was stopped for %v", longest)
	}
	torn := slurp(t, dir, "0.log")
	for end := time.Now().Add(time.Minute); !bytes.HasSuffix(torn, []byte{'\n'}) && time.Now().Before(end); torn = slurp(t, dir, "0.log") {
		time.Sleep(time.Millisecond) // the writer may be about to take a part of a record back
	}
	whole(t, closeOpenLine(parse(t, torn))) // whole records even while the disk is full
	var recs []record
	for i := range 3 { // space comes, goes and comes back
		if err := unix.Ftruncate(filler, 0); err != nil {
			t.Fatal(err)
		}
		time.Sleep(200 * time.Millisecond)
		n, l := chatter(p, wrote, 20, nil)
		wrote, longest = wrote+n, max(longest, l)
		if i < 2 {
			unix.Pwrite(filler, make([]byte, 512<<10), 0)
			n, l = chatter(p, wrote, 300, nil)
			wrote, longest = wrote+n, max(longest, l)
			unix.Ftruncate(filler, 0)
			recs = append(recs, freeLog(t, w, dir)...)
		}
	}
	p.Close()
	drain(t, w)
	got := whole(t, append(recs, parse(t, slurp(t, dir, "0.log"))...))
	s := w.Stats()
	if last := got[len(got)-1]; last != wrote-1 {
		t.Fatalf("the last line in the log is %d of %d", last, wrote)
	}
	t.Logf("%d lines written, longest write %v, %+v", wrote, longest, s)
	if longest > 500*time.Millisecond {
		t.Fatalf("the producer was stopped for %v", longest)
	}
}

// freeLog does what the kubelet does about a log that became too large, and returns the old one's
// records. A line may begin in the old log and go on in the new one.
func freeLog(t *testing.T, w *Writer, dir int) []record {
	t.Helper()
	old := openAt(t, dir, "0.log")
	if err := unix.Unlinkat(dir, "0.log", 0); err != nil {
		t.Fatal(err)
	}
	if err := w.Reopen(); err != nil {
		t.Fatal(err)
	}
	return parse(t, readAll(t, old)) // what is not in it now never will be
}

// closeOpenLine ends a line at the end of a log that is still being written.
func closeOpenLine(rs []record) []record {
	if len(rs) > 0 && rs[len(rs)-1].tag == tagPartial {
		rs = append(rs, record{tag: tagFull})
	}
	return rs
}

// Every line that went in is in the log or was counted.
func TestFullDiskCounts(t *testing.T) {
	m := tmpfs(t, "128k")
	w := open(t, m.Int(), func(c *Config) { c.Buffer = 80 << 10 })
	p := pipe(t, w, "stdout")
	wrote, _ := chatter(p, 0, 3000, nil)
	p.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := w.Drain(ctx); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("drain: %v", err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	recs := closeOpenLine(parse(t, slurp(t, m.Int(), "0.log")))
	n, s := len(whole(t, recs)), w.Stats()
	if s.Queued != 0 || int(s.DroppedLines) < wrote-n {
		t.Fatalf("%d written, %d in the log, %+v", wrote, n, s)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(m.Int(), "0.log", &st, 0); err != nil || uint64(st.Size) != s.Bytes {
		t.Fatalf("file has %d bytes, counted %d (%v)", st.Size, s.Bytes, err)
	}
}

// A disk that does not answer at all: the producer waits once, for Stall, and
// then never again until the disk comes back.
func TestHungDisk(t *testing.T) {
	checkLeaks(t)
	_, dir := tempDir(t)
	w := open(t, dir, func(c *Config) { c.Stall = 100 * time.Millisecond; c.Buffer = 128 << 10 })
	hang := make(chan struct{})
	setWrite(w, func(fd int, p []byte) (int, error) { <-hang; return unix.Write(fd, p) })
	p := pipe(t, w, "stdout")
	start := time.Now()
	wrote, longest := chatter(p, 0, 5000, nil)
	if took := time.Since(start); longest > time.Second || took > 5*time.Second {
		t.Fatalf("longest write %v, all took %v", longest, took)
	}
	if s := w.Stats(); s.DroppedLines == 0 || s.Queued > 128<<10 {
		t.Fatalf("stats %+v", s)
	}
	if err := w.Reopen(); !errors.Is(err, ErrStalled) {
		t.Fatalf("reopen: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := w.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("drain: %v", err)
	}
	close(hang)
	time.Sleep(200 * time.Millisecond)
	n, _ := chatter(p, wrote, 100, nil)
	p.Close()
	drain(t, w)
	got := whole(t, parse(t, slurp(t, dir, "0.log")))
	s := w.Stats()
	if got[len(got)-1] != wrote+n-1 || len(got)+int(s.DroppedLines) != wrote+n {
		t.Fatalf("%d lines written, %d in the log, last %d, %+v", wrote+n, len(got), got[len(got)-1], s)
	}
	t.Logf("longest write %v, %+v", longest, s)
}

func TestCloseOnAHungDisk(t *testing.T) {
	checkLeaks(t)
	_, dir := tempDir(t)
	w := open(t, dir, func(c *Config) { c.Stall = 50 * time.Millisecond })
	hang := make(chan struct{})
	setWrite(w, func(int, []byte) (int, error) { <-hang; return 0, unix.EIO })
	p := pipe(t, w, "stdout")
	p.WriteString("lost\nlost, too\n")
	time.Sleep(20 * time.Millisecond)
	start := time.Now()
	if err := w.Close(); !errors.Is(err, ErrStalled) || time.Since(start) > time.Second {
		t.Fatalf("close: %v after %v", err, time.Since(start))
	}
	if err := w.Close(); err != nil {
		t.Fatalf("second close: %v", err)
	}
	close(hang) // checkLeaks: now the descriptors and the goroutine go
	<-w.done
	if s := w.Stats(); s.DroppedLines != 2 || s.DroppedBytes != uint64(len("lostlost, too")) {
		t.Fatalf("stats %+v", s)
	}
}

// A wait that nobody else wakes ends with its time, always: its timer must not come before the end
// that the wait looks for, for it comes once. A writer that misses it hangs with its disk, and the
// container with it.
func TestWaitEnds(t *testing.T) {
	_, dir := tempDir(t)
	w := open(t, dir, nil)
	done := make(chan struct{})
	go func() { // left behind by a wait that does not end
		defer close(done)
		for i := range 2_000 {
			w.mu.Lock()
			w.waitLocked(time.Duration(i%40)*time.Microsecond, func() bool { return false })
			w.mu.Unlock()
		}
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("a wait did not end")
	}
}

// Close with a pipe that somebody still holds: its copier ends, and what was
// read of a last line is in the log.
func TestCloseEndsStreams(t *testing.T) {
	checkLeaks(t)
	_, dir := tempDir(t)
	w := open(t, dir, nil)
	p := pipe(t, w, "stderr")
	p.WriteString("whole\nunfinished")
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if err := w.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("drain: %v", err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if got := string(joined(parse(t, slurp(t, dir, "0.log")), "stderr")); got != "whole\nunfinished\n" {
		t.Fatalf("log holds %q", got)
	}
	r, p2, _ := os.Pipe()
	defer p2.Close()
	w.Stream("stdout", r) // too late: closed at once
	if _, err := p2.WriteString("x"); !errors.Is(err, unix.EPIPE) {
		t.Fatalf("write to a stream after Close: %v", err)
	}
	if err := w.Reopen(); !errors.Is(err, fs.ErrClosed) {
		t.Fatalf("reopen after close: %v", err)
	}
}

// Close with two pipes that somebody still holds: the flusher does not end between the last line of the one and that of the other.
func TestCloseEndsBothStreams(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // as on a small node: who was woken goes first
	for range 50 {
		_, dir := tempDir(t)
		w := open(t, dir, nil)
		out, errs := pipe(t, w, "stdout"), pipe(t, w, "stderr")
		heard := make(chan int, 2)
		w.Tap(func(_ string, content []byte) { heard <- len(content) })
		out.WriteString("unfinished")
		errs.WriteString("too")
		for n := 0; n < len("unfinished"+"too"); { // what nobody has read yet is not in question
			n += <-heard
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		log := parse(t, slurp(t, dir, "0.log"))
		if o, e := string(joined(log, "stdout")), string(joined(log, "stderr")); o != "unfinished\n" || e != "too\n" {
			t.Fatalf("log holds %q and %q, %+v", o, e, w.Stats())
		}
		out.Close()
		errs.Close()
	}
}

func TestRotationUnderLoad(t *testing.T) {
	checkLeaks(t)
	path, dir := tempDir(t)
	w := open(t, dir, func(c *Config) { c.Buffer, c.Stall = 256<<10, time.Minute })
	want := map[string]*bytes.Buffer{"stdout": {}, "stderr": {}}
	var wg sync.WaitGroup
	for name, b := range want {
		p := pipe(t, w, name)
		wg.Go(func() {
			defer p.Close()
			rnd := rand.New(rand.NewPCG(1, uint64(len(name))))
			noise := make([]byte, 64<<10)
			for i := range noise {
				noise[i] = byte(rnd.Uint32())
			}
			words := bytes.ReplaceAll(noise, []byte{'\n'}, []byte{'.'}) // a line of any length
			for b.Len() < 24<<20 {
				from := noise
				if rnd.IntN(3) > 0 {
					from = words
				}
				at := rnd.IntN(len(from))
				chunk := from[at:min(len(from), at+1+rnd.IntN(30<<10))]
				b.Write(chunk)
				p.Write(chunk)
			}
		})
	}
	ended := make(chan struct{})
	go func() { wg.Wait(); close(ended) }()
	var log []byte
	rotations := 0
	for load := true; load; rotations++ {
		old := fmt.Sprintf("0.log.%d", rotations)
		if err := os.Rename(filepath.Join(path, "0.log"), filepath.Join(path, old)); err != nil {
			t.Fatal(err)
		}
		if err := w.Reopen(); err != nil {
			t.Fatal(err)
		}
		part := slurp(t, dir, old) // what is not in it now never will be
		if n := len(part); n > 0 && part[n-1] != '\n' {
			t.Fatalf("%s ends inside of a record", old)
		}
		log = append(log, part...)
		select {
		case <-ended:
			load = false
		case <-time.After(100 * time.Microsecond):
		}
	}
	drain(t, w)
	recs := parse(t, append(log, slurp(t, dir, "0.log")...))
	if rotations < 5 {
		t.Errorf("only %d rotations under load", rotations)
	}
	for name, b := range want {
		if b.Bytes()[b.Len()-1] != '\n' {
			b.WriteByte('\n')
		}
		if got := joined(recs, name); !bytes.Equal(got, b.Bytes()) {
			t.Errorf("%s: %d bytes in %d files, want %d", name, len(got), rotations+1, b.Len())
		}
	}
	t.Logf("%+v", w.Stats())
}

func TestRefusesWhatIsNoFile(t *testing.T) {
	checkLeaks(t)
	path := filepath.Join(t.TempDir(), "logs")
	file := filepath.Join(path, "0.log")
	target := filepath.Join(path, "target")
	for name, tt := range map[string]struct {
		make func() error
		want error
	}{
		"link":    {func() error { return os.Symlink("target", file) }, unix.ELOOP},
		"fifo":    {func() error { return unix.Mkfifo(file, 0o600) }, unix.EINVAL},
		"dir":     {func() error { return os.Mkdir(file, 0o700) }, unix.EISDIR},
		"removed": {func() error { return os.RemoveAll(path) }, unix.ENOENT},
	} {
		t.Run(name, func(t *testing.T) {
			os.MkdirAll(path, 0o700)
			d, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			dir := int(d.Fd())
			w := open(t, dir, nil)
			defer w.Close()
			p := pipe(t, w, "stdout")
			p.WriteString("before\n")
			keep, err := os.Open(file) // of the old file, wherever it goes
			if err != nil {
				t.Fatal(err)
			}
			defer keep.Close()
			if name != "removed" {
				if err := os.Rename(file, file+".1"); err != nil {
					t.Fatal(err)
				}
			}
			if err := tt.make(); err != nil {
				t.Fatal(err)
			}
			if err := w.Reopen(); !errors.Is(err, tt.want) {
				t.Fatalf("reopen: %v, want %v", err, tt.want)
			}
			if _, err := Open(Config{Dir: dir, Name: "0.log"}); !errors.Is(err, tt.want) {
				t.Fatalf("open: %v, want %v", err, tt.want)
			}
			if _, err := os.Lstat(target); err == nil {
				t.Fatal("the link's target was made")
			}
			p.WriteString("after\n")
			p.Close()
			drain(t, w)
			got := make([]byte, 4096)
			n, _ := keep.ReadAt(got, 0)
			if s := string(joined(parse(t, got[:n]), "stdout")); s != "before\nafter\n" {
				t.Fatalf("the old file holds %q", s)
			}
			os.RemoveAll(path)
		})
	}
}

func TestOpenChecksItsConfig(t *testing.T) {
	_, dir := tempDir(t)
	for _, c := range []Config{
		{Dir: dir}, {Dir: dir, Name: ".."}, {Dir: dir, Name: "a/b"}, {Dir: dir, Name: "a\x00"},
		{Dir: dir, Name: "l", MaxLine: -1}, {Dir: dir, Name: "l", MaxLine: 2 << 20}, {Dir: dir, Name: "l", Buffer: 1000},
	} {
		if w, err := Open(c); !errors.Is(err, unix.EINVAL) {
			t.Errorf("%+v: %v, %v", c, w, err)
		}
	}
	if _, err := Open(Config{Dir: -1, Name: "l"}); !errors.Is(err, unix.EBADF) {
		t.Errorf("bad descriptor: %v", err)
	}
	if es, _ := os.ReadDir(fmt.Sprintf("/proc/self/fd/%d", dir)); len(es) > 0 {
		t.Errorf("left behind: %v", es)
	}
}

// A monitor that was killed in the middle of a write leaves a torn record.
func TestOpenMendsATornTail(t *testing.T) {
	path, dir := tempDir(t)
	const rec = "2026-03-01T12:00:00.000000001Z stdout F kept\n"
	for name, tt := range map[string]struct{ have, want string }{
		"torn":    {rec + "2026-03-01T12:00:00.0000", rec},
		"only":    {"2026-03-01T12", ""},
		"whole":   {rec, rec},
		"empty":   {"", ""},
		"foreign": {rec + strings.Repeat("x", 40<<10), rec + strings.Repeat("x", 40<<10) + "\n"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(filepath.Join(path, "0.log"), []byte(tt.have), 0o640); err != nil {
				t.Fatal(err)
			}
			w := open(t, dir, nil)
			p := pipe(t, w, "stdout")
			p.WriteString("new\n")
			p.Close()
			drain(t, w)
			got := string(slurp(t, dir, "0.log"))
			added, ok := strings.CutPrefix(got, tt.want)
			if !ok || len(parse(t, []byte(added))) != 1 {
				t.Fatalf("got %.200q", got)
			}
		})
	}
}

// Somebody empties the file behind our back while a record is torn.
func TestTruncatedFromOutside(t *testing.T) {
	path, dir := tempDir(t)
	w := open(t, dir, nil)
	var calls int
	setWrite(w, func(fd int, p []byte) (int, error) {
		if calls++; calls == 1 {
			n, _ := unix.Write(fd, p[:len(p)-3])
			os.Truncate(filepath.Join(path, "0.log"), 2)
			return n, unix.ENOSPC
		}
		return unix.Write(fd, p)
	})
	p := pipe(t, w, "stdout")
	p.WriteString("one\n")
	for w.Stats().Lines == 0 {
		time.Sleep(time.Millisecond)
	}
	p.WriteString("two\n")
	p.Close()
	drain(t, w)
	if got := string(joined(parse(t, slurp(t, dir, "0.log")), "stdout")); got != "one\ntwo\n" {
		t.Fatalf("log holds %q", got)
	}
}

// A terminal ends with EIO on its master.
func TestTerminal(t *testing.T) {
	checkLeaks(t)
	m, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Skip("needs a pty: ", err)
	}
	n, err := unix.IoctlGetInt(m, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(m, unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	s, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, dir := tempDir(t)
	w := open(t, dir, nil)
	w.Stream("stdout", os.NewFile(uintptr(m), "ptmx"))
	s.WriteString("on a terminal\n")
	s.Close()
	drain(t, w)
	if got := string(joined(parse(t, slurp(t, dir, "0.log")), "stdout")); got != "on a terminal\r\n" {
		t.Fatalf("log holds %q", got)
	}
}
