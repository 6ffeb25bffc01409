package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
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

// How the child ends, besides 0. Its standard error has the text.
const (
	exitCorrupt     = 10
	exitUnsupported = 11
	exitLimit       = 12
)

// inflater is a layer's blob on its way to being a tar: a process without files,
// network or privileges decompresses it and looks at each header before the daemon
// and the unpacking child get to see it.
//
//	blob ──> [vitrine-inflate] ──> tar ──> daemon: digest, tar-split ──> [storage-untar] ──> layer
//
// Read fails with ErrCorrupt, ErrUnsupported or ErrLimit, and returns io.EOF only
// when the blob was the right one to its last byte. The caller closes it.
type inflater struct {
	in     *blobReader
	out    *os.File
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
	f.cmd.Env = []string{}
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
	_, _ = io.CopyBuffer(struct{ io.Writer }{feed}, f.in, make([]byte, 256<<10))
}

// bigPipe makes a pipe that takes fewer switches between two processes.
func bigPipe() (r, w *os.File, err error) {
	if r, w, err = os.Pipe(); err == nil {
		_, _ = unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 1<<20)
	}
	return r, w, err
}

// Read implements io.Reader.
func (f *inflater) Read(p []byte) (int, error) {
	n, err := f.out.Read(p)
	if n > 0 || err == nil {
		return n, nil
	}
	if !errors.Is(err, io.EOF) {
		return 0, err
	}
	if err := f.end(); err != nil {
		return 0, err
	}
	return 0, io.EOF
}

// end waits for the child, which has closed its output, and says what it found.
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
			f.err = f.verdict(f.cmd.ProcessState)
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

// verdict turns the end of the child into an error.
func (f *inflater) verdict(state *os.ProcessState) error {
	text := strings.ToValidUTF8(strings.TrimSpace(f.stderr.String()), "?")
	if len(text) > 300 {
		text = text[:300]
	}
	kind := map[int]error{exitCorrupt: ErrCorrupt, exitUnsupported: ErrUnsupported, exitLimit: ErrLimit}[state.ExitCode()]
	switch {
	case kind != nil:
		return fmt.Errorf("%w: %s", kind, strings.Replace(text, kind.Error()+": ", "", 1))
	case strings.Contains(text, "out of memory") || strings.Contains(text, "cannot allocate memory"):
		return limitError("memory to inflate a layer", maxInflateMemory>>20, "MiB")
	case state.Sys().(syscall.WaitStatus).Signal() == syscall.SIGXCPU || strings.Contains(text, "SIGXCPU"):
		return limitError("processor time to inflate a layer", maxInflateCPU, "s")
	}
	return fmt.Errorf("inflate layer: %v: %s", state, text)
}

// Close ends the child, wherever it is.
func (f *inflater) Close() error {
	f.cancel()
	_ = f.end()
	return f.out.Close()
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
	if err == nil {
		os.Exit(0)
	}
	fmt.Fprintln(os.Stderr, err)
	for code, kind := range map[int]error{exitCorrupt: ErrCorrupt, exitUnsupported: ErrUnsupported, exitLimit: ErrLimit} {
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

// tarChecker hands a tar on byte by byte, each header only when it was looked at.
// What was read of a header and not approved is in held.
type tarChecker struct {
	in      io.Reader
	out     io.Writer
	order   inflateOrder
	held    bytes.Buffer
	pass    bool // what is read now has been approved
	total   int64
	entries int
	names   int
}

// errHeader: see maxHeader.
var errHeader = limitError("description of an entry", maxHeader, "bytes")

// Read implements io.Reader for the tar reader.
func (c *tarChecker) Read(p []byte) (int, error) {
	n, err := c.in.Read(p)
	if c.total += int64(n); c.total > c.order.Bytes {
		return 0, limitError("unpacked layers", c.order.Bytes, "bytes")
	}
	switch {
	case c.pass:
		if _, werr := c.out.Write(p[:n]); werr != nil {
			return n, werr
		}
	case c.held.Len()+n > maxHeader:
		return 0, errHeader
	default:
		c.held.Write(p[:n])
	}
	switch {
	case err == nil || errors.Is(err, io.EOF):
		return n, err
	case errors.Is(err, zstd.ErrWindowSizeExceeded) || errors.Is(err, zstd.ErrDecoderSizeExceeded):
		return n, limitError("window of a zstd frame", maxWindow>>20, "MiB")
	}
	return n, fmt.Errorf("%w: decompress: %w", ErrCorrupt, err)
}

func (c *tarChecker) check() error {
	r := tar.NewReader(c)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return tarError(err)
		}
		if c.entries++; c.entries > c.order.Entries {
			return limitError("entries of a layer", c.order.Entries, "")
		}
		if c.names += len(h.Name); c.names > maxNames {
			return limitError("names of a layer together", maxNames, "bytes")
		}
		if err := checkHeader(h); err != nil {
			return fmt.Errorf("entry %.200q: %w", h.Name, err)
		}
		if err := c.approve(); err != nil {
			return err
		}
		c.pass = true
		if _, err := io.Copy(io.Discard, r); err != nil {
			return tarError(err)
		}
		c.pass = false
	}
	if err := c.approve(); err != nil {
		return err
	}
	c.pass = true
	_, err := io.Copy(io.Discard, onlyReader{c}) // padding
	return err
}

// onlyReader hides everything else that a reader can do.
type onlyReader struct{ io.Reader }

func (c *tarChecker) approve() error {
	_, err := c.held.WriteTo(c.out)
	return err
}

// tarError keeps our own kinds of error and calls everything else corrupt.
func tarError(err error) error {
	for _, kind := range []error{ErrLimit, ErrCorrupt, ErrUnsupported, syscall.EPIPE} {
		if errors.Is(err, kind) {
			return err
		}
	}
	return fmt.Errorf("%w: %w", ErrCorrupt, err)
}

// checkHeader refuses what no layer needs and what is something else once it is on
// disk. Where a path leads is not its business: the unpacking child is in a chroot.
func checkHeader(h *tar.Header) error {
	for key := range h.PAXRecords {
		name, isXattr := strings.CutPrefix(key, "SCHILY.xattr.")
		switch {
		case strings.HasPrefix(key, "GNU.sparse."):
			return fmt.Errorf("%w: a sparse file", ErrUnsupported)
		case isXattr && (strings.HasPrefix(name, "trusted.") || strings.HasPrefix(name, "user.overlay.")):
			// The overlay's own language: a lower file could be another one's content.
			return fmt.Errorf("%w: extended attribute %.100q", ErrUnsupported, name)
		}
	}
	switch h.Typeflag {
	case tar.TypeGNUSparse:
		return fmt.Errorf("%w: a sparse file", ErrUnsupported)
	case tar.TypeChar, tar.TypeBlock:
		if h.Devmajor < 0 || h.Devmajor > 0xfff || h.Devminor < 0 || h.Devminor > 0xfffff {
			return fmt.Errorf("%w: device %d:%d", ErrUnsupported, h.Devmajor, h.Devminor)
		}
		if h.Typeflag == tar.TypeChar && h.Devmajor == 0 && h.Devminor == 0 {
			return fmt.Errorf("%w: device 0:0 means that a file is gone", ErrUnsupported)
		}
	case tar.TypeReg, tar.TypeDir, tar.TypeLink, tar.TypeSymlink, tar.TypeFifo, tar.TypeXGlobalHeader:
	default:
		return fmt.Errorf("%w: an entry of type %q", ErrUnsupported, h.Typeflag)
	}
	// The last number of 32 bits means "leave the owner as he is", that is root.
	if h.Uid < 0 || int64(h.Uid) >= 1<<32-1 || h.Gid < 0 || int64(h.Gid) >= 1<<32-1 {
		return fmt.Errorf("%w: owner %d:%d", ErrUnsupported, h.Uid, h.Gid)
	}
	if len(h.Name) > maxPathname || len(h.Linkname) > maxPathname {
		return limitError("length of a path", maxPathname, "bytes")
	}
	return checkWhiteout(h.Name)
}

// checkWhiteout refuses a whiteout of "." or "..", and of nothing.
func checkWhiteout(name string) error {
	base, ok := strings.CutPrefix(path.Base(path.Clean(name)), ".wh.")
	if ok && (base == "" || base == "." || base == "..") {
		return fmt.Errorf("%w: a whiteout of %q", ErrUnsupported, base)
	}
	return nil
}
