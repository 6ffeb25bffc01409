package image

import (
	"context"
	"time"
)

// rest is how often a walk rests as long as it has worked: it has a quarter of the time.
const rest = 3

// Pacer lets a walk through a directory rest in proportion to its work, on a disk that
// others use as well. Not for concurrent use.
type Pacer struct {
	ctx    context.Context //nolint:containedctx // lives for one walk
	worked time.Time       // since when
}

// NewPacer begins a walk that ends with ctx.
func NewPacer(ctx context.Context) *Pacer { return &Pacer{ctx: ctx, worked: time.Now()} }

// Pause rests three times as long as has passed since the one before, or since the
// beginning, and a second at most. Its error is that of the context.
func (p *Pacer) Pause() error {
	timer := time.NewTimer(min(rest*time.Since(p.worked), time.Second))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-p.ctx.Done():
		return p.ctx.Err()
	}
	p.worked = time.Now()
	return nil
}
