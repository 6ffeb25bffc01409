package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
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

// fetchLayers makes all layers of an image, the lowest first. Their blobs come
// meanwhile, several at a time. A layer or a blob that another pull is at is not
// fetched again: that one's end is waited for.
func (s *Store) fetchLayers(ctx context.Context, src types.ImageSource, r *recipe) error {
	open := map[digest.Digest]download{}
	defer func() {
		for _, d := range open {
			d.leave()
		}
	}()
	for _, l := range r.layers {
		if _, twice := open[l.blob.Digest]; twice || s.layerSource(l) != nil {
			continue
		}
		b, own, err := s.blobs.open(src, l.blob)
		if err != nil {
			return err
		}
		open[l.blob.Digest] = download{b, own}
	}
	left := s.limits.image
	for i, l := range r.layers {
		err := s.fetchLayer(ctx, src, l, left, open[l.blob.Digest])
		if err == nil {
			var size int64
			size, err = s.layerSize(l)
			if left -= size; left < 0 && err == nil { // it was here already
				err = s.imageLimit()
			}
			progressOf(ctx).finished(i)
		}
		if err != nil {
			return fmt.Errorf("layer %d of %d: %w", i+1, len(r.layers), err)
		}
	}
	return nil
}

// fetchLayer makes one layer, unless it is there. Two pulls do not make it at the same
// time, and one that another pull could not make is tried again on our own account.
func (s *Store) fetchLayer(ctx context.Context, src types.ImageSource, l layerRef, left int64, d download) error {
	for {
		var own atomic.Bool
		_, err := s.unpacking.do(ctx, l.id, func(ctx context.Context) (string, error) {
			own.Store(true)
			return "", s.makeLayer(ctx, src, l, left, d)
		})
		if err == nil || own.Load() || ctx.Err() != nil {
			return err
		}
	}
}

// makeLayer is fetchLayer for whoever does it. d is the pull's download of the blob, if
// it has one.
func (s *Store) makeLayer(ctx context.Context, src types.ImageSource, l layerRef, left int64, d download) error {
	switch twin := s.layerSource(l); {
	case twin == nil:
	case twin.ID == l.id:
		return nil
	case twin.UncompressedSize > left: // a manifest may name the same layer again and again
		return s.imageLimit()
	default:
		if err := s.copyLayer(ctx, l, twin.ID); err == nil || ctx.Err() != nil {
			return err
		}
		// Its tar cannot be put together again: fetch it.
	}
	for {
		if d.blob == nil || d.info.Size != l.blob.Size || !d.join() {
			var err error
			if d.blob, d.own, err = s.blobs.open(src, l.blob); err != nil {
				return err
			}
		}
		err := s.unpack(ctx, l, d.blob, left)
		d.leave()
		if err == nil || d.own || ctx.Err() != nil || !d.failed() {
			return err
		}
		d.blob = nil // another pull's registry failed it
	}
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

func (s *Store) imageLimit() error { return limitError("unpacked layers", s.limits.image, "bytes") }

// unpack makes a layer of a blob while that comes. Its time begins when all of the blob is
// here: how long that takes is bounded by its rate.
func (s *Store) unpack(ctx context.Context, l layerRef, b *blob, left int64) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() { // ends with ctx
		if b.reader(ctx).wait() != nil {
			return
		}
		late := time.NewTimer(s.limits.unpack)
		defer late.Stop()
		select {
		case <-late.C:
			cancel(limitError("time to unpack a layer", s.limits.unpack, ""))
		case <-ctx.Done():
		}
	}()
	err := s.unpackNow(ctx, l, b, left)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause // what a killed child leaves looks like anything
	}
	return err
}

func (s *Store) unpackNow(ctx context.Context, l layerRef, b *blob, left int64) error {
	in, err := startInflater(ctx, s.config.Root+"/empty", b.reader(ctx), inflateOrder{Bytes: left, Entries: s.limits.entries})
	if err != nil {
		return err
	}
	err = s.putLayer(ctx, l, in)
	return errors.Join(err, in.Close())
}

// copyLayer makes a layer of another one with the same content.
func (s *Store) copyLayer(ctx context.Context, l layerRef, from string) error {
	plain := archive.Uncompressed
	diff, err := s.store.Diff("", from, &storage.DiffOptions{Compression: &plain})
	if err != nil {
		return err
	}
	// The library reads under a lock that writing needs: so by way of a file.
	b, err := s.blobs.spool(ctx, diff)
	if cerr := diff.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	defer b.Close()
	return s.putLayer(ctx, l, b)
}

// putLayer unpacks a tar, which must be that of l to the last byte. Nothing of it
// stays otherwise.
func (s *Store) putLayer(ctx context.Context, l layerRef, tar io.Reader) error {
	failPoint()
	size := l.blob.Size
	options := &storage.LayerOptions{OriginalSize: &size, UncompressedDigest: l.diffID}
	if l.blob.Digest.Algorithm() == digest.Canonical {
		options.OriginalDigest = l.blob.Digest
	}
	tar, err := refuseCompressed(tar)
	if err != nil {
		return err
	}
	v := &verifier{ctx: ctx, in: tar, store: s, want: l.diffID, digester: digest.Canonical.Digester()}
	_, _, err = s.store.PutLayer(l.id, l.parent, nil, "", false, options, v)
	failPoint()
	switch {
	case errors.Is(err, storage.ErrDuplicateID):
		if have := s.layerSource(l); have == nil || have.ID != l.id {
			return fmt.Errorf("layer %s in the store has another content than its id says", l.id)
		}
		return nil
	case v.err != nil:
		return v.err // the cause of what the library says
	case errors.Is(err, storage.ErrLayerUnknown) || errors.Is(err, storage.ErrParentUnknown):
		return fmt.Errorf("%w: %w", errTakenAway, err)
	case err != nil:
		return s.unpackError(err, v.total)
	case !v.verified:
		return errors.Join(fmt.Errorf("%w: layer %s was not read to its end", ErrCorrupt, l.diffID), s.store.DeleteLayer(l.id))
	}
	return nil
}

// refuseCompressed fails where the library would decompress what it is given. A tar begins with the name of its first
// entry, and that can be made to look like gzip: what came out of it, here and in nobody's confinement, would be a
// tar that was never checked.
func refuseCompressed(tar io.Reader) (io.Reader, error) {
	head := make([]byte, 32)
	n, err := io.ReadFull(tar, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, err
	}
	if archive.DetectCompression(head[:n]) != archive.Uncompressed {
		return nil, fmt.Errorf("%w: a layer whose first entry has a name that looks like compressed data", ErrUnsupported)
	}
	return io.MultiReader(bytes.NewReader(head[:n]), tar), nil
}

// unpackError says what ended the unpacking child, which had got so many bytes.
func (s *Store) unpackError(err error, total uint64) error {
	text := err.Error()
	switch {
	case errors.Is(err, unix.ENOSPC):
		// The library takes any death by the Go runtime for a full disk. What was
		// unpacked is gone again: would it fit now?
		if s.hasRoom(total + freeEvery) {
			return limitError("memory to unpack a layer", maxUntarMemory>>20, "MiB")
		}
		return err
	case strings.Contains(text, "no space left on device"):
		return fmt.Errorf("%w: %w", unix.ENOSPC, err)
	case strings.Contains(text, "disk quota exceeded"):
		return fmt.Errorf("%w: %w", unix.EDQUOT, err)
	case strings.Contains(text, "file too large"):
		return fmt.Errorf("%w: size of a file: %w", ErrLimit, err)
	case strings.Contains(text, "unpacking failed (error: exit status 1"), strings.Contains(text, "duplicates of file paths"):
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	return err
}

// verifier lets the library read a tar to its end only if it has the right digest,
// and only while the disk has room.
type verifier struct {
	ctx      context.Context //nolint:containedctx // lives for one layer
	in       io.Reader
	store    *Store
	want     digest.Digest
	digester digest.Digester
	total    uint64
	since    int64 // bytes since the disk was looked at
	err      error
	verified bool
}

// freeEvery is how often the room on the disk is looked at, in bytes.
const freeEvery = 8 << 20

// Read implements io.Reader.
func (v *verifier) Read(p []byte) (int, error) {
	n, err := v.read(p)
	if err != nil && !errors.Is(err, io.EOF) && v.err == nil {
		v.err = err
	}
	return n, err
}

func (v *verifier) read(p []byte) (int, error) {
	if v.ctx.Err() != nil {
		return 0, context.Cause(v.ctx)
	}
	if v.since >= freeEvery {
		v.since = 0
		if err := v.store.checkFree(); err != nil {
			return 0, err
		}
	}
	n, err := v.in.Read(p)
	v.digester.Hash().Write(p[:n])
	v.since += int64(n)
	v.total += uint64(n)
	if !errors.Is(err, io.EOF) {
		return n, err
	}
	if got := v.digester.Digest(); got != v.want {
		return 0, fmt.Errorf("%w: unpacked it has the digest %s, the config says %s", ErrCorrupt, got, v.want)
	}
	failPoint()
	v.verified = true
	return n, err
}

// checkFree fails when the store's filesystem is too full to go on.
func (s *Store) checkFree() error {
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

// hasRoom reports whether so many bytes fit on the disk, and a file.
func (s *Store) hasRoom(bytes uint64) bool {
	var st unix.Statfs_t
	return unix.Statfs(s.config.Root, &st) == nil && (st.Files == 0 || st.Ffree > 100) && st.Bavail*uint64(st.Bsize) > bytes
}
