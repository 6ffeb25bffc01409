package image

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/types"
	"go.podman.io/storage"
	"go.podman.io/storage/pkg/archive"
	"golang.org/x/sys/unix"
)

// download is a blob that a pull has open. own says that it comes from the pull's own
// source: its failure is the pull's.
type download struct {
	*blob
	own bool
}

// layerWork is one pull's way through its layers. They are unpacked beside each other, each as soon as a core is free for it
// or it is the lowest that is missing, and come into the store from the lowest up.
type layerWork struct {
	s      *Store
	src    types.ImageSource
	layers []layerRef
	open   map[digest.Digest]download
	sizes  allowance
	done   []chan struct{} // by layer: closed when it is there, or this pull has given up on it
}

// fetchLayers makes all layers of an image. Their blobs come meanwhile, several at a time. A layer or a blob that another
// pull is at is not fetched again: that one's end is waited for.
func (s *Store) fetchLayers(ctx context.Context, src types.ImageSource, r *recipe) (err error) {
	w := &layerWork{s: s, src: src, layers: r.layers, open: map[digest.Digest]download{}, done: make([]chan struct{}, len(r.layers))}
	w.sizes = allowance{most: s.limits.image, used: make([]int64, len(r.layers))}
	defer func() {
		for _, d := range w.open {
			d.leave(isWanted(err))
		}
	}()
	for i, l := range r.layers {
		w.done[i] = make(chan struct{})
		if _, twice := w.open[l.blob.Digest]; twice || s.layerSource(l) != nil {
			continue
		}
		b, own, err := s.blobs.open(src, l.blob)
		if err != nil {
			return err
		}
		w.open[l.blob.Digest] = download{b, own}
	}
	return w.run(ctx)
}

// run returns when nothing of the pull is under way any more. The first error ends all.
func (w *layerWork) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var all sync.WaitGroup
	for i := range w.layers {
		free := w.turn(ctx, i)
		if ctx.Err() != nil {
			free()
			break
		}
		all.Go(func() { // ends with the layer or ctx
			defer free()
			defer close(w.done[i])
			if err := w.fetch(ctx, i, free); err != nil {
				cancel(fmt.Errorf("layer %d of %d: %w", i+1, len(w.layers), err))
			}
		})
	}
	all.Wait()
	return context.Cause(ctx)
}

// turn waits until a layer may be unpacked. The lowest that is missing always may, so that no pull waits for others; those
// above take one of the store's places. free gives it back, and may be called again.
func (w *layerWork) turn(ctx context.Context, i int) (free func()) {
	if i == 0 {
		return func() {}
	}
	select {
	case w.s.cores <- struct{}{}:
		return sync.OnceFunc(func() { <-w.s.cores })
	case <-w.done[i-1]:
	case <-ctx.Done():
	}
	return func() {}
}

// fetch makes one layer, unless it is there, and counts it.
func (w *layerWork) fetch(ctx context.Context, i int, free func()) error {
	if err := w.fetchOnce(ctx, i, free); err != nil {
		return err
	}
	size, err := w.s.layerSize(w.layers[i])
	if err != nil {
		return err
	}
	progressOf(ctx).finished(i)
	return w.sizes.set(i, size) // it may have been here already
}

// fetchOnce: two pulls do not make a layer at the same time, and one that another pull could not make is tried again on our
// own account.
func (w *layerWork) fetchOnce(ctx context.Context, i int, free func()) error {
	return w.s.makeOnce(ctx, w.layers[i].id, func(ctx context.Context) error { return w.makeLayer(ctx, i, free) })
}

// makeOnce makes a layer, or waits until another pull has made it.
func (s *Store) makeOnce(ctx context.Context, id string, work func(context.Context) error) error {
	for {
		var own atomic.Bool
		_, err := s.unpacking.doWhole(ctx, id, func(ctx context.Context) (string, error) {
			own.Store(true)
			return "", work(ctx)
		})
		if err == nil || own.Load() || ctx.Err() != nil {
			return err
		}
	}
}

// makeLayer is fetchOnce for whoever does it.
func (w *layerWork) makeLayer(ctx context.Context, i int, free func()) error {
	l := w.layers[i]
	switch twin := w.s.layerSource(l); {
	case twin == nil:
	case twin.ID == l.id:
		return nil
	case twin.UncompressedSize > w.sizes.left(i): // a manifest may name the same layer again and again
		return w.sizes.exceeded()
	default:
		st, err := w.copyLayer(ctx, i, twin.ID)
		if err == nil {
			return w.put(ctx, i, st, free)
		}
		if ctx.Err() != nil {
			return err
		}
		// Its tar cannot be put together again: fetch it.
	}
	st, err := w.unpackBlob(ctx, i)
	if err != nil {
		return err
	}
	return w.put(ctx, i, st, free)
}

// unpackBlob makes the files of a layer of its blob, from wherever that comes.
func (w *layerWork) unpackBlob(ctx context.Context, i int) (*staged, error) {
	l := w.layers[i]
	d := w.open[l.blob.Digest]
	for {
		if d.blob == nil || d.info.Size != l.blob.Size || !d.join() {
			var err error
			if d.blob, d.own, err = w.s.blobs.open(w.src, l.blob); err != nil {
				return nil, err
			}
		}
		st, err := w.unpack(ctx, i, d.blob)
		again := err != nil && ctx.Err() == nil && !d.isOurs(d.own, err)
		d.leave(isWanted(err))
		if !again {
			return st, err
		}
		d.blob = nil
	}
}

// put brings a layer into the store, when the one below it is there.
func (w *layerWork) put(ctx context.Context, i int, st *staged, free func()) error {
	free()
	err := w.sizes.set(i, st.got.Bytes)
	if i > 0 && err == nil {
		select {
		case <-w.done[i-1]:
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	if err == nil {
		err = w.s.commitLayer(w.layers[i], st)
	}
	return errors.Join(err, st.discard())
}

// layerSource returns the layer in the store, or one with the same content on top
// of others, or nil.
func (s *Store) layerSource(l layerRef) *storage.Layer {
	if have, err := s.store.Layer(l.id); err == nil && have.UncompressedDigest == l.diffID && s.hasDir(l.id) {
		return have
	}
	same, err := s.store.LayersByUncompressedDigest(l.diffID)
	if err != nil {
		return nil
	}
	for i := range same {
		if same[i].CompressedDigest == l.blob.Digest { // else the manifest's word for it is not proven
			return &same[i]
		}
	}
	return nil
}

func (s *Store) layerSize(l layerRef) (int64, error) {
	have, err := s.store.Layer(l.id)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errTakenAway, err)
	}
	return max(have.UncompressedSize, 0), nil
}

// allowance is what the layers of an image may take together, in bytes of their tars.
type allowance struct {
	most int64
	mu   sync.Mutex
	used []int64 // by layer
	sum  int64
}

// set says what a layer takes by now.
func (a *allowance) set(layer int, bytes int64) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sum += bytes - a.used[layer]
	a.used[layer] = bytes
	if a.sum > a.most {
		return a.exceeded()
	}
	return nil
}

// left is what the others leave for a layer.
func (a *allowance) left(layer int) int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.most - a.sum + a.used[layer]
}

func (a *allowance) exceeded() error { return limitError("unpacked layers", a.most, "bytes") }

// unpack makes the files of a layer of a blob while that comes. Its time begins when all of the blob is
// here: how long that takes is bounded by its rate.
func (w *layerWork) unpack(ctx context.Context, i int, b *blob) (*staged, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	most := w.s.limits.unpack
	go func() { // ends with ctx
		if b.reader(ctx).wait() != nil {
			return
		}
		late := time.NewTimer(most)
		defer late.Stop()
		select {
		case <-late.C:
			cancel(limitError("time to unpack a layer", most, ""))
		case <-ctx.Done():
		}
	}()
	st, err := w.unpackNow(ctx, i, b)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return nil, cause // what a killed child leaves looks like anything
	}
	return st, err
}

func (w *layerWork) unpackNow(ctx context.Context, i int, b *blob) (*staged, error) {
	in, err := startInflater(ctx, w.s.config.Root+"/empty", b.reader(ctx), w.order(i))
	if err != nil {
		return nil, err
	}
	st, err := w.stage(ctx, i, in.out)
	if err != nil {
		in.cancel() // it may wait for the network
	}
	if cause := in.end(); cause != nil && (err == nil || in.in.err() != nil || isFault(cause)) {
		err = cause // what the other child says then is that the tar ends
	}
	err = errors.Join(err, in.Close())
	if err != nil && st != nil {
		return nil, errors.Join(err, st.discard())
	}
	return st, err
}

// isFault reports whether a child found something wrong with what it was given.
func isFault(err error) bool {
	return errors.Is(err, ErrCorrupt) || errors.Is(err, ErrUnsupported) || errors.Is(err, ErrLimit)
}

func (w *layerWork) order(i int) inflateOrder {
	return inflateOrder{Bytes: w.sizes.left(i), Entries: w.s.limits.entries}
}

// copyLayer makes the files of a layer of another one with the same content.
func (w *layerWork) copyLayer(ctx context.Context, i int, from string) (*staged, error) {
	plain := archive.Uncompressed
	diff, err := w.s.store.Diff("", from, &storage.DiffOptions{Compression: &plain})
	if err != nil {
		return nil, err
	}
	// The library reads under a lock that writing needs: so by way of a file.
	b, err := w.s.blobs.spool(ctx, diff)
	if cerr := diff.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, err
	}
	return w.stage(ctx, i, b)
}

// freeEvery is how often the room on the disk is looked at, in bytes.
const freeEvery = 8 << 20

// checkFree fails when the store's filesystem is too full to go on, also without what is kept of blobs.
func (s *Store) checkFree() error {
	err := s.enoughFree()
	if err != nil && s.blobs.dropAll() {
		err = s.enoughFree()
	}
	return err
}

func (s *Store) enoughFree() error {
	var st unix.Statfs_t
	if err := unix.Statfs(s.config.Root, &st); err != nil {
		return fmt.Errorf("look for free space: %w", err)
	}
	free, keep := st.Bavail*uint64(st.Bsize), min(s.limits.reserve, st.Blocks*uint64(st.Bsize)/20)
	if free < keep {
		return fmt.Errorf("%w: free space: %d bytes are left and %d are kept free: %w", ErrLimit, free, keep, unix.ENOSPC)
	}
	return nil
}
