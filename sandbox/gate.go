package sandbox

import (
	"context"
	"sync"
)

// gate lets operations into a pod until it is closed, and whoever closes it can wait for those inside. It
// is how a stop ends the creations that are on their way before it tears the pod down.
type gate struct {
	ctx    context.Context // ends when the gate is closed
	cancel context.CancelFunc

	mu     sync.Mutex
	inside int           // guarded by mu
	empty  chan struct{} // guarded by mu; closed when the gate is closed and inside is 0
	closed bool          // guarded by mu
}

func newGate() *gate {
	g := &gate{empty: make(chan struct{})}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	return g
}

// enter returns false if the gate is closed. After true the caller must leave.
func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.inside++
	return true
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside--; g.closed && g.inside == 0 {
		close(g.empty)
	}
}

// shut closes the gate, cancels those inside and waits until they have left, or until ctx ends. It may be
// called again.
func (g *gate) shut(ctx context.Context) error {
	g.mu.Lock()
	if !g.closed {
		g.closed = true
		g.cancel()
		if g.inside == 0 {
			close(g.empty)
		}
	}
	g.mu.Unlock()
	select {
	case <-g.empty:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
