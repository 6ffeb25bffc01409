package image

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// The states of a layer during a pull, in their order.
const (
	LayerWaits       = "waiting"     // for one of the downloads to end
	LayerComes       = "downloading" // and is unpacked meanwhile, as long as there is a core for it
	LayerIsUnpacked  = "unpacking"   // all of it has come; or it waits for the one below
	LayerIsAvailable = "done"
)

// PullProgress is what a pull under way is at.
type PullProgress struct {
	// Ref is what was asked for, Since when.
	Ref   string    `json:"ref"`
	Since time.Time `json:"since"`
	// Layers are those of the image, bottom first; none as long as the registry has not said
	// what there is.
	Layers []LayerProgress `json:"layers"`
}

// LayerProgress is how much of one layer's blob has come.
type LayerProgress struct {
	Digest   string `json:"digest"`
	State    string `json:"state"`
	Size     int64  `json:"size"`
	Received int64  `json:"received"`
}

// Received adds up what has come of all layers, and what there is to come.
func (p *PullProgress) Received() (received, size int64) {
	for _, l := range p.Layers {
		received, size = received+l.Received, size+l.Size
	}
	return received, size
}

// progress knows the pulls under way. What a download has got is read from the download itself, so
// that nothing is written for the sake of who may look.
type progress struct {
	mu    sync.Mutex
	pulls map[*pullState]bool
}

// pullState is one pull, guarded by progress.mu.
type pullState struct {
	all    *progress
	ref    string
	since  time.Time
	layers []layerRef
	done   []bool // by layer
}

type progressKey struct{}

// begin makes a pull known until end is called. Its context finds it.
func (g *progress) begin(ctx context.Context, ref string) (_ context.Context, end func()) {
	p := &pullState{all: g, ref: ref, since: time.Now()}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.pulls == nil {
		g.pulls = map[*pullState]bool{}
	}
	g.pulls[p] = true
	return context.WithValue(ctx, progressKey{}, p), func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.pulls, p)
	}
}

// progressOf returns the pull that ctx belongs to, or nil, which is one that nobody looks at.
func progressOf(ctx context.Context) *pullState {
	p, _ := ctx.Value(progressKey{}).(*pullState)
	return p
}

// plan says which layers there are. A pull that starts over says it again.
func (p *pullState) plan(layers []layerRef) {
	if p == nil {
		return
	}
	p.all.mu.Lock()
	defer p.all.mu.Unlock()
	p.layers, p.done = layers, make([]bool, len(layers))
}

// finished says that a layer is there.
func (p *pullState) finished(layer int) {
	if p == nil {
		return
	}
	p.all.mu.Lock()
	defer p.all.mu.Unlock()
	p.done[layer] = true
}

// Pulls returns the pulls under way, the oldest first. It reads memory only.
func (s *Store) Pulls() []PullProgress {
	coming := s.blobs.coming()
	s.progress.mu.Lock()
	defer s.progress.mu.Unlock()
	all := make([]PullProgress, 0, len(s.progress.pulls))
	for p := range s.progress.pulls {
		one := PullProgress{Ref: p.ref, Since: p.since, Layers: make([]LayerProgress, len(p.layers))}
		for i, l := range p.layers {
			one.Layers[i] = layerProgress(l, p.done[i], coming)
		}
		all = append(all, one)
	}
	slices.SortFunc(all, func(a, b PullProgress) int {
		return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.Ref, b.Ref))
	})
	return all
}

func layerProgress(l layerRef, done bool, coming map[digest.Digest]int64) LayerProgress {
	p := LayerProgress{Digest: l.blob.Digest.String(), Size: l.blob.Size, State: LayerWaits}
	got, known := coming[l.blob.Digest]
	switch {
	case done:
		p.State, p.Received = LayerIsAvailable, l.blob.Size
	case known && got == l.blob.Size:
		p.State, p.Received = LayerIsUnpacked, got
	case got > 0:
		p.State, p.Received = LayerComes, got
	}
	return p
}

// coming returns how many bytes have come of each blob that somebody wants.
func (g *blobs) coming() map[digest.Digest]int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	sizes := make(map[digest.Digest]int64, len(g.byDigest))
	for d, b := range g.byDigest {
		b.mu.Lock()
		sizes[d] = b.size
		b.mu.Unlock()
	}
	return sizes
}
