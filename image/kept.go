package image

import (
	"context"
	"slices"
	"sync"
	"time"

	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/types"
)

// A pull that is cancelled, or fails, leaves its blobs for the next one, unless one is the reason: a download rests where it is, and one
// that has ended stays.
//
//	pull ──> download │ last reader leaves: it rests, and gives its place back
//	                  │ next pull of that registry: it goes on, behind what has come
//	                  └ keepTime is over, too many, the disk gets full, the store closes: it ends
//
// A download that rests has its connection still. When the registry has closed that meanwhile, the library notices at the next read, and
// asks for the rest (Range). Another registry's pull begins anew: it must not depend on what the first one has given, and on how fast
// it goes on. Nothing that is kept survives the daemon, as the files have no names.
const (
	// keepTime is longer than the kubelet waits at the most before it pulls again.
	keepTime = 15 * time.Minute
	// maxKept is how many blobs are kept, and maxKeptBytes what they may come to.
	maxKept      = 16
	maxKeptBytes = 4 << 30
)

// keep keeps a blob that the last reader leaves, and reports whether it does. Preconditions: blobs.mu is held.
func (g *blobs) keep(b *blob) bool {
	if b.registry == "" || b.info.Size > maxKeptBytes || b.ended && !b.proven() || !b.hasBegun() || g.byDigest[b.info.Digest] != b {
		return false
	}
	b.users++ // until drop or takeUp
	b.rests.Add(1)
	b.giveBack()
	b.expiry = time.AfterFunc(keepTime, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.isKept(b) {
			g.drop(b)
		}
	})
	g.kept = append(g.kept, b)
	for len(g.kept) > maxKept || g.keptBytes() > maxKeptBytes {
		g.drop(g.kept[0])
	}
	return true
}

// isWanted reports whether the next pull will want the blobs of one that has ended so: not of an image that is here, or is wrong.
func isWanted(err error) bool { return err != nil && !isFault(err) }

// hasBegun reports whether anything has come.
func (b *blob) hasBegun() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.size > 0
}

// keptBytes is what the kept blobs may come to. Preconditions: blobs.mu is held.
func (g *blobs) keptBytes() (sum int64) {
	for _, b := range g.kept {
		sum += b.info.Size
	}
	return sum
}

func (g *blobs) isKept(b *blob) bool { return slices.Contains(g.kept, b) }

// takeUp has a blob go on that was kept, if it was. Preconditions: blobs.mu is held, and it has a reader again.
func (g *blobs) takeUp(b *blob) {
	if !g.isKept(b) {
		return
	}
	g.unkeep(b)
	b.rests.Add(1)
	if b.wake != nil {
		close(b.wake)
		b.wake = nil
	}
}

func (g *blobs) unkeep(b *blob) {
	g.kept = slices.DeleteFunc(g.kept, func(other *blob) bool { return other == b })
	b.expiry.Stop()
	b.release()
}

// drop keeps others from joining a blob, and ends it if it was kept. Preconditions: blobs.mu is held.
func (g *blobs) drop(b *blob) {
	b.forget()
	if g.isKept(b) {
		b.cancel(errNobody)
		g.unkeep(b)
	}
}

// dropAll gives up all that is kept, waits for its end, and reports whether there was any.
func (g *blobs) dropAll() bool {
	g.mu.Lock()
	kept := slices.Clone(g.kept)
	for _, b := range kept {
		g.drop(b)
	}
	g.mu.Unlock()
	patience := time.NewTimer(time.Second) // a disk may hang
	defer patience.Stop()
	for _, b := range kept {
		select {
		case <-b.over:
		case <-patience.C:
			return true
		}
	}
	return len(kept) > 0
}

// turn waits until somebody reads the blob and the download has a place.
func (b *blob) turn(ctx context.Context) error {
	g := b.all
	for {
		g.mu.Lock()
		switch {
		case g.isKept(b):
			b.giveBack()
			wake := make(chan struct{})
			b.wake = wake
			g.mu.Unlock()
			select {
			case <-wake:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		case b.place == nil:
			g.mu.Unlock()
			b.waits.Add(1)
			free, err := g.places.take(ctx, b.registry, maxDownloads)
			b.waits.Add(1)
			if err != nil {
				return err
			}
			g.mu.Lock()
			b.place = free
			g.mu.Unlock()
		default:
			g.mu.Unlock()
			return nil
		}
	}
}

// giveBack gives the download's place to others. Preconditions: blobs.mu is held.
func (b *blob) giveBack() {
	if b.place != nil {
		b.place()
		b.place = nil
	}
}

// registryOf is where a source has its blobs from: the registry in the image's name, "" for an archive.
func registryOf(src types.ImageSource) string {
	if named := src.Reference().DockerReference(); named != nil {
		return reference.Domain(named)
	}
	return ""
}

// places bounds what is done at the same time under each of some keys. A key is remembered as long as somebody is there, or wants to be.
type places struct {
	mu    sync.Mutex
	byKey map[string]*queue
}

// queue is who is under a key, and who waits for that.
type queue struct {
	taken chan struct{}
	users int // guarded by places.mu
}

// take waits for a place under key. free gives it back.
func (p *places) take(ctx context.Context, key string, most int) (free func(), err error) {
	p.mu.Lock()
	in := p.byKey[key]
	if in == nil {
		if p.byKey == nil {
			p.byKey = map[string]*queue{}
		}
		in = &queue{taken: make(chan struct{}, most)}
		p.byKey[key] = in
	}
	in.users++
	p.mu.Unlock()
	select {
	case in.taken <- struct{}{}:
		return func() { <-in.taken; p.forget(key, in) }, nil
	case <-ctx.Done():
		p.forget(key, in)
		return nil, context.Cause(ctx)
	}
}

// forget takes away one who was in a queue.
func (p *places) forget(key string, in *queue) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if in.users--; in.users == 0 {
		delete(p.byKey, key)
	}
}
