package image

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// inflateName is what a copy of this program is called that inflates a layer.
const inflateName = "vitrine-inflate"

// inflateOrder is what it is told, in its second argument.
type inflateOrder struct {
	Bytes   int64 // of the tar
	Entries int   // in it
}

// childEnv is the environment of the children. Each does one thing after the other: a scheduler for more processors would only wake
// threads that find nothing. And their heaps are small, so they may grow more before they are collected.
var childEnv = []string{"GOMAXPROCS=1", "GOGC=400"}

// exitKinds are how the children end, besides 0. The text is on their standard error.
var exitKinds = map[int]error{10: ErrCorrupt, 11: ErrUnsupported, 12: ErrLimit, 13: unix.ENOSPC, 14: unix.EDQUOT}

// inflater is a layer's blob on its way to being a tar: a process without files,
// network or privileges decompresses it and looks at each header before the
// unpacking child gets to see it.
//
//	blob ──> [vitrine-inflate] ──> tar ──> [vitrine-unpack] ──> layer, tar-split, digest
//
// end fails with ErrCorrupt, ErrUnsupported or ErrLimit, and returns nil only
// when the blob was the right one to its last byte. The caller closes it.
type inflater struct {
	in     *blobReader
	out    *os.File // the tar, for another process to read
	cmd    *exec.Cmd
	cancel context.CancelFunc
	pumped chan struct{} // closed when in is read no more
	stderr fewWords
	ended  sync.Once
	err    error
}

// startInflater begins. dir is an empty directory, the only one that the child sees.
func startInflater(ctx context.Context, dir string, in *blobReader, order inflateOrder) (*inflater, error) {
	text, err := json.Marshal(order)
	if err != nil {
		return nil, err
	}
	stdin, feed, err := bigPipe()
	if err != nil {
		return nil, err
	}
	defer stdin.Close()
	out, stdout, err := bigPipe()
	if err != nil {
		return nil, errors.Join(err, feed.Close())
	}
	defer stdout.Close()
	ctx, cancel := context.WithCancel(ctx)
	in.ctx = ctx
	f := &inflater{in: in, out: out, cancel: cancel, pumped: make(chan struct{})}
	f.cmd = exec.CommandContext(ctx, "/proc/self/exe")
	f.cmd.Args = []string{inflateName, string(text)}
	f.cmd.Env = childEnv
	f.cmd.Dir = dir
	f.cmd.Stdin, f.cmd.Stdout, f.cmd.Stderr = stdin, stdout, &f.stderr
	f.cmd.WaitDelay = time.Second
	if err := f.cmd.Start(); err != nil {
		cancel()
		return nil, errors.Join(fmt.Errorf("start inflating child: %w", err), feed.Close(), out.Close())
	}
	go f.pump(feed) // ends with the blob, the child or ctx
	return f, nil
}

// pump feeds the child. What ends it is in f.in.
func (f *inflater) pump(feed *os.File) {
	defer close(f.pumped)
	defer feed.Close()
	_ = f.in.pour(feed)
}

// bigPipe makes a pipe that takes fewer switches between two processes.
func bigPipe() (r, w *os.File, err error) {
	if r, w, err = os.Pipe(); err == nil {
		_, _ = unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 1<<20)
	}
	return r, w, err
}

// errNoReader: the other end of the tar went away first, and knows why.
var errNoReader = errors.New("the unpacking child reads no more")

// end waits for the child and says what it found: errNoReader if nobody wanted its output.
func (f *inflater) end() error {
	f.ended.Do(func() {
		err := f.cmd.Wait()
		if err != nil {
			f.cancel() // or its input goes on waiting for the network
		}
		<-f.pumped
		switch {
		case f.in.err() != nil:
			f.err = f.in.err()
		case err != nil && f.cmd.ProcessState != nil:
			f.err = inflateVerdict.of(f.cmd.ProcessState, f.stderr.String())
		case err != nil:
			f.err = err
		default:
			f.err = f.in.wait()
		}
		f.cancel()
	})
	return f.err
}

// fewWords keeps the beginning of what the child has to say.
type fewWords struct{ bytes.Buffer }

// Write never fails.
func (w *fewWords) Write(p []byte) (int, error) {
	w.Buffer.Write(p[:min(len(p), max(0, 64<<10-w.Len()))])
	return len(p), nil
}

// verdict turns the end of a child into an error.
type verdict struct {
	verb        string // "inflate", for the errors
	memory, cpu int    // its limits: MiB, seconds
}

var inflateVerdict = verdict{"inflate", maxInflateMemory >> 20, maxInflateCPU}

// of reads the status of a child that failed, and what it had to say.
func (v verdict) of(state *os.ProcessState, text string) error {
	text = strings.ToValidUTF8(strings.TrimSpace(text), "?")
	if len(text) > 300 {
		text = text[:300]
	}
	signal := state.Sys().(syscall.WaitStatus).Signal()
	kind := exitKinds[state.ExitCode()]
	switch {
	case kind != nil:
		return fmt.Errorf("%w: %s", kind, strings.Replace(text, kind.Error()+": ", "", 1))
	case strings.Contains(text, "out of memory") || strings.Contains(text, "cannot allocate memory"):
		return limitError("memory to "+v.verb+" a layer", v.memory, "MiB")
	case signal == syscall.SIGXCPU || strings.Contains(text, "SIGXCPU"):
		return limitError("processor time to "+v.verb+" a layer", v.cpu, "s")
	case signal == syscall.SIGPIPE || strings.Contains(text, syscall.EPIPE.Error()):
		return errNoReader
	}
	return fmt.Errorf("%s layer: %v: %s", v.verb, state, text)
}

// Close ends the child, wherever it is.
func (f *inflater) Close() error {
	f.cancel()
	_ = f.end()
	if err := f.out.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// runInflate is the child's main.
func runInflate() {
	var order inflateOrder
	err := json.Unmarshal([]byte(os.Args[1]), &order)
	if err == nil {
		err = confineInflate()
	}
	debug.SetMemoryLimit(maxInflateMemory / 2)
	if err == nil {
		out := bufio.NewWriterSize(os.Stdout, 256<<10)
		if err = inflate(out, os.Stdin, order); err == nil {
			err = out.Flush()
		}
	}
	exitWith(err)
}

// exitWith ends a child.
func exitWith(err error) {
	if err == nil {
		os.Exit(0)
	}
	fmt.Fprintln(os.Stderr, err)
	for code, kind := range exitKinds {
		if errors.Is(err, kind) {
			os.Exit(code)
		}
	}
	os.Exit(1)
}

// inflate writes the tar that in holds, gzipped, as zstd or as it is, to out, and
// fails at the first byte that should not be unpacked. It reads in to its end.
func inflate(out io.Writer, in io.Reader, order inflateOrder) error {
	buf := bufio.NewReaderSize(in, 256<<10)
	r, err := decompress(buf)
	if err != nil {
		return err
	}
	c := &tarChecker{in: r, out: out, order: order}
	if err := c.check(); err != nil {
		return err
	}
	// A decompressor may stop at the end of its format.
	if _, err := buf.ReadByte(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: there is something behind the compressed data", ErrCorrupt)
	}
	return nil
}

func decompress(buf *bufio.Reader) (io.Reader, error) {
	magic, err := buf.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		r, err := gzip.NewReader(buf)
		if err != nil {
			return nil, fmt.Errorf("%w: gzip: %w", ErrCorrupt, err)
		}
		return r, nil
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}), len(magic) >= 4 && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:4], []byte{0x2a, 0x4d, 0x18}):
		return zstd.NewReader(buf, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true), zstd.WithDecoderConcurrency(1))
	case bytes.HasPrefix(magic, []byte("BZh")), bytes.HasPrefix(magic, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return nil, fmt.Errorf("%w: a layer in bzip2 or xz; layers are tar, gzip or zstd", ErrUnsupported)
	}
	return buf, nil
}
