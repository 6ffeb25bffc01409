package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/pkg/blobinfocache/none"
	"go.podman.io/image/v5/types"
	"golang.org/x/sys/unix"
)

// blobs are the downloads under way, each once for all pulls that want it. A file
// without a name holds the data, so that a killed daemon leaves nothing.
//
//	registry ──> file ──> reader of one pull
//	              └─────> reader of another, at its own pace, from the beginning
//
// Readers need not wait for the end: what they have read before the digest turns
// out to be wrong is an error at the end, and nothing was made of it by then.
type blobs struct {
	dir    string
	limits *limits
	places places       // one per download
	room   func() error // whether the disk has some

	mu       sync.Mutex
	byDigest map[digest.Digest]*blob
	kept     []*blob // the latest last, see keep
	work     sync.WaitGroup
}

// maxDownloads is how many blobs come at a time from one registry, for all pulls together. One that is slow keeps nobody from others.
const maxDownloads = 6

// blob is one download. Its file is closed by whoever leaves last.
type blob struct {
	all      *blobs
	info     types.BlobInfo
	registry string // where it comes from
	file     *os.File
	cancel   context.CancelCauseFunc
	over     chan struct{} // closed when the download has ended
	rests    atomic.Int32  // odd while nobody wants it to go on
	waits    atomic.Int32  // odd while it waits for its place

	// Guarded by blobs.mu. The download itself is a user and no reader.
	users, readers int
	ended          bool          // the download has
	place          func()        // gives the download's place back; nil without one
	wake           chan struct{} // closed when somebody reads again; nil while the download does not wait for that
	expiry         *time.Timer   // of what is kept

	mu      sync.Mutex
	size    int64         // bytes in file
	done    bool          // no more will come
	err     error         // and why, unless it is all there and is what it should be
	changed chan struct{} // closed at the next change of these
}

// errNobody cancels a download that nobody waits for.
var errNobody = errors.New("nobody wants the blob any more")

// open joins the download of a blob or begins it. own says whether it comes from
// src: a failure of another registry is no reason to give up on this one. The
// caller calls leave.
func (g *blobs) open(src types.ImageSource, info types.BlobInfo) (b *blob, own bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	registry := registryOf(src)
	if b := g.byDigest[info.Digest]; b != nil && b.info.Size == info.Size {
		if b.readers > 0 || b.registry == registry {
			b.users++
			b.readers++
			g.takeUp(b)
			return b, false, nil
		}
		g.drop(b)
	}
	fd, err := unix.Open(g.dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, false, fmt.Errorf("make file for blob: %w", err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	b = &blob{
		all: g, info: info, registry: registry, file: os.NewFile(uintptr(fd), "blob"), cancel: cancel, over: make(chan struct{}), users: 2, readers: 1, changed: make(chan struct{}),
	}
	if g.byDigest == nil {
		g.byDigest = map[digest.Digest]*blob{}
	}
	g.byDigest[info.Digest] = b
	g.work.Add(1)
	go b.run(ctx, src) // ends with the download, or when the last reader leaves
	return b, true, nil
}

// join adds a reader, also to a download that has ended, unless the last one has
// left. The caller calls leave.
func (b *blob) join() bool {
	b.all.mu.Lock()
	defer b.all.mu.Unlock()
	if b.readers == 0 {
		return false
	}
	b.users++
	b.readers++
	return true
}

// leave must be called once for each open and join. wanted says that the next pull will want the blob, too: then it may be kept, where
// otherwise the last reader ends the download.
func (b *blob) leave(wanted bool) {
	b.all.mu.Lock()
	defer b.all.mu.Unlock()
	b.readers--
	if b.readers == 0 && !(wanted && b.all.keep(b)) {
		b.cancel(errNobody)
		b.forget()
	}
	b.release()
}

// forget keeps others from joining. Preconditions: blobs.mu is held.
func (b *blob) forget() {
	if b.all.byDigest[b.info.Digest] == b {
		delete(b.all.byDigest, b.info.Digest)
	}
}

// spoil is called where what has come turns out to be wrong: nobody joins any more, and it is not kept.
func (b *blob) spoil() {
	b.all.mu.Lock()
	defer b.all.mu.Unlock()
	b.forget()
}

func (b *blob) run(ctx context.Context, src types.ImageSource) {
	defer b.all.work.Done()
	failPoint()
	err := b.fetch(ctx, src)
	failPoint()
	b.publish(0, true, err)
	b.cancel(nil)
	b.all.mu.Lock()
	defer b.all.mu.Unlock()
	b.ended = true
	if err != nil {
		b.all.drop(b) // the next one tries again
	}
	b.release()
	close(b.over)
}

// release takes one user away. Preconditions: blobs.mu is held.
func (b *blob) release() {
	if b.users--; b.users == 0 {
		_ = b.file.Close()
	}
}

// failed reports whether the download ended without success.
func (b *blob) failed() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.done && b.err != nil
}

// proven reports whether the whole blob is here and is what it should be.
func (b *blob) proven() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.done && b.err == nil
}

// isOurs reports whether an error is the fault of the pull that meets it, and its end. own says whether the blob comes from the pull's own
// source. Where another pull's registry failed it, or has given something wrong, this one asks its own.
func (b *blob) isOurs(own bool, err error) bool {
	if b.proven() {
		return true // it is the image that is wrong
	}
	wrong := isFault(err)
	if wrong {
		b.spoil()
	}
	return own || !wrong && !b.failed()
}

// publish tells the readers what has come.
func (b *blob) publish(n int, done bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.size += int64(n)
	b.done, b.err = done, err
	close(b.changed)
	b.changed = make(chan struct{})
}

// fetch downloads the blob. It takes at most one byte more than it should have.
func (b *blob) fetch(ctx context.Context, src types.ImageSource) error {
	if err := b.turn(ctx); err != nil {
		return err
	}
	defer func() {
		b.all.mu.Lock()
		defer b.all.mu.Unlock()
		b.giveBack()
	}()
	ctx, stop := b.watch(ctx)
	defer stop()
	body, _, err := src.GetBlob(ctx, b.info, none.NoCache)
	if err == nil {
		err = b.receive(ctx, body)
		if cerr := body.Close(); err == nil && cerr != nil && !errors.Is(cerr, context.Canceled) {
			err = cerr
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// watch cancels a download that is too slow. It looks at what was written, so that
// a disk that hangs is noticed, too. A time in which it rested, or waited for its
// place, says nothing about that.
func (b *blob) watch(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	l := b.all.limits
	go func() { // ends with the download
		tick := time.NewTicker(l.stall)
		defer tick.Stop()
		for last, rests, waits := int64(0), int32(0), int32(0); ; {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			b.mu.Lock()
			now := b.size
			b.mu.Unlock()
			rested, waited := rests, waits
			rests, waits = b.rests.Load(), b.waits.Load()
			busy := rests == rested && waits == waited && rests%2 == 0 && waits%2 == 0
			if busy && now-last < l.minProgress {
				cancel(fmt.Errorf("%w: blob %s: %d bytes in %v", ErrUnavailable, b.info.Digest, now-last, l.stall))
				return
			}
			last = now
		}
	}()
	return ctx, func() { cancel(nil) }
}

func (b *blob) receive(ctx context.Context, body io.Reader) error {
	digester := b.info.Digest.Algorithm().Digester()
	buf := make([]byte, 256<<10)
	for total, looked := int64(0), int64(0); ; {
		if total-looked >= freeEvery {
			looked = total
			if err := b.all.room(); err != nil {
				return err
			}
		}
		if err := b.turn(ctx); err != nil {
			return err
		}
		n, err := body.Read(buf[:min(int64(len(buf)), b.info.Size-total+1)])
		if total += int64(n); total > b.info.Size {
			return fmt.Errorf("%w: blob %s is longer than the %d bytes of the manifest", ErrCorrupt, b.info.Digest, b.info.Size)
		}
		if n > 0 {
			digester.Hash().Write(buf[:n])
			if _, err := b.file.WriteAt(buf[:n], total-int64(n)); err != nil {
				return fmt.Errorf("store blob: %w", err)
			}
			b.publish(n, false, nil)
		}
		switch {
		case errors.Is(err, io.EOF) && total < b.info.Size:
			return fmt.Errorf("%w: blob %s ends after %d of %d bytes", ErrCorrupt, b.info.Digest, total, b.info.Size)
		case errors.Is(err, io.EOF) && digester.Digest() != b.info.Digest:
			return fmt.Errorf("%w: the data of blob %s has the digest %s", ErrCorrupt, b.info.Digest, digester.Digest())
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// reader returns a reader of the blob from its beginning, which waits for what has
// not come yet until ctx ends.
func (b *blob) reader(ctx context.Context) *blobReader { return &blobReader{ctx: ctx, b: b} }

// blobReader reads a blob while it comes. Not for concurrent use, but err.
type blobReader struct {
	ctx context.Context //nolint:containedctx // lives for one layer
	b   *blob
	off int64

	mu     sync.Mutex
	failed error
}

// Read implements io.Reader.
func (r *blobReader) Read(p []byte) (int, error) {
	size, err := r.come()
	if size == 0 {
		return 0, err
	}
	n, err := r.b.file.ReadAt(p[:min(int64(len(p)), size)], r.off)
	r.off += int64(n)
	return n, r.note(err)
}

// come waits until there is something to read, and returns how much. It is io.EOF where nothing more will come.
func (r *blobReader) come() (size int64, err error) {
	for {
		r.b.mu.Lock()
		size, done, err, changed := r.b.size-r.off, r.b.done, r.b.err, r.b.changed
		r.b.mu.Unlock()
		switch {
		case size > 0:
			return size, nil
		case done && err == nil:
			return 0, io.EOF
		case done:
			return 0, r.note(err)
		}
		select {
		case <-changed:
		case <-r.ctx.Done():
			return 0, io.EOF // the reader's own end is no fault of the blob
		}
	}
}

// note keeps what is wrong with the blob.
func (r *blobReader) note(err error) error {
	if err != nil && !errors.Is(err, io.EOF) {
		r.mu.Lock()
		if r.failed == nil {
			r.failed = err
		}
		r.mu.Unlock()
	}
	return err
}

// pour writes the blob into a pipe, until its end or the pipe's. What is in the file gets there as the pages that it is in, which nobody
// changes any more, and not as copies, where the filesystem lets them.
func (r *blobReader) pour(pipe *os.File) error {
	raw, err := pipe.SyscallConn()
	if err != nil {
		return err
	}
	for {
		size, err := r.come()
		if size == 0 {
			return err
		}
		var n int64
		werr := raw.Write(func(fd uintptr) bool {
			n, err = unix.Splice(int(r.b.file.Fd()), &r.off, int(fd), nil, int(size), unix.SPLICE_F_NONBLOCK)
			return !errors.Is(err, unix.EAGAIN)
		})
		switch {
		case werr != nil:
			return werr
		case errors.Is(err, unix.EINVAL): // it does not
			_, err := io.CopyBuffer(struct{ io.Writer }{pipe}, struct{ io.Reader }{r}, make([]byte, 256<<10))
			return err
		case errors.Is(err, unix.EPIPE):
			return err
		case err != nil:
			return r.note(os.NewSyscallError("splice", err))
		case n == 0:
			return r.note(io.ErrUnexpectedEOF) // the file is shorter than it was
		}
	}
}

// wait returns nil when the whole blob is here and is what it should be.
func (r *blobReader) wait() error {
	for {
		r.b.mu.Lock()
		done, err, changed := r.b.done, r.b.err, r.b.changed
		r.b.mu.Unlock()
		if done {
			return err
		}
		select {
		case <-changed:
		case <-r.ctx.Done():
			return context.Cause(r.ctx)
		}
	}
}

// err returns what Read failed with.
func (r *blobReader) err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failed
}

// close waits until no download runs. Preconditions: nobody reads any more.
func (g *blobs) close() {
	g.dropAll()
	g.work.Wait()
}

// spool puts a stream into a file without a name, rewound. The caller closes it.
func (g *blobs) spool(ctx context.Context, in io.Reader) (*os.File, error) {
	fd, err := unix.Open(g.dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make file for layer: %w", err)
	}
	f := os.NewFile(uintptr(fd), "layer")
	_, err = io.CopyBuffer(struct{ io.Writer }{f}, &contextReader{ctx: ctx, in: in, room: g.room}, make([]byte, 256<<10))
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// contextReader ends with ctx, and where what is read is written down with the room on the disk.
type contextReader struct {
	ctx   context.Context //nolint:containedctx // lives for one copy
	in    io.Reader
	room  func() error // may be nil
	since int64        // bytes since it was looked at
}

// Read implements io.Reader.
func (r *contextReader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	if r.room != nil && r.since >= freeEvery {
		r.since = 0
		if err := r.room(); err != nil {
			return 0, err
		}
	}
	n, err := r.in.Read(p)
	r.since += int64(n)
	return n, err
}
