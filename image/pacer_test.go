package image

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestPacerRests(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	p := NewPacer(ctx)
	time.Sleep(20 * time.Millisecond)
	begin := time.Now()
	if err := p.Pause(); err != nil || time.Since(begin) < 60*time.Millisecond {
		t.Errorf("%v after %v", err, time.Since(begin))
	}
	cancel()
	if err := p.Pause(); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
