package image

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestFlightsJoin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flights
		runs := 0
		work := func(ctx context.Context) (string, error) {
			runs++
			select {
			case <-time.After(time.Minute):
				return "done", nil
			case <-ctx.Done():
				return "", ctx.Err()
			}
		}
		results := make(chan error, 4)
		call := func(ctx context.Context, want error) {
			id, err := g.do(ctx, "k", work)
			if want == nil && id != "done" {
				err = errors.New("id " + id)
			}
			if !errors.Is(err, want) {
				results <- err
				return
			}
			results <- nil
		}
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		go call(short, context.DeadlineExceeded) // the one who started it leaves first
		synctest.Wait()
		go call(t.Context(), nil)
		go call(t.Context(), nil)
		must(t, <-results)
		equal(t, "wait of the impatient", time.Since(start), time.Second)
		must(t, <-results)
		must(t, <-results)
		equal(t, "wait of the others", time.Since(start), time.Minute)
		equal(t, "runs", runs, 1)
		equal(t, "kept", len(g.byKey), 0)
	})
}

func TestFlightsLastCancels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flights
		var ended atomic.Int32
		work := func(ctx context.Context) (string, error) {
			<-ctx.Done()
			time.Sleep(time.Hour) // does not stop at once
			ended.Add(1)
			return "", ctx.Err()
		}
		for range 2 { // the second one does not join the dying first
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			start := time.Now()
			_, err := g.do(ctx, "k", work)
			wantErr(t, "do", err, context.DeadlineExceeded)
			equal(t, "wait", time.Since(start), time.Second)
			cancel()
		}
		equal(t, "kept", len(g.byKey), 0)
		g.close()
		equal(t, "ended at close", ended.Load(), 2)
		_, err := g.do(t.Context(), "k", work)
		wantErr(t, "after close", err, errClosed)
	})
}

// lateContext has ended without having told so yet, as a context has for a
// moment when work and deadline end together.
type lateContext struct {
	context.Context
	ended atomic.Bool
}

func (c *lateContext) Done() <-chan struct{} { return nil }

func (c *lateContext) Err() error {
	if c.ended.Load() {
		return context.DeadlineExceeded
	}
	return nil
}

func TestFlightsContextErrorWins(t *testing.T) {
	var g flights
	ctx := &lateContext{Context: t.Context()}
	_, err := g.do(ctx, "k", func(context.Context) (string, error) {
		ctx.ended.Store(true)
		return "", errors.New("connection reset")
	})
	wantErr(t, "do", err, context.DeadlineExceeded)
}

func TestFlightsCloseCancels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flights
		got := make(chan error)
		go func() {
			_, err := g.do(t.Context(), "k", func(ctx context.Context) (string, error) { <-ctx.Done(); return "", ctx.Err() })
			got <- err
		}()
		synctest.Wait()
		g.close()
		wantErr(t, "caller", <-got, context.Canceled)
	})
}

func TestKeyLocks(t *testing.T) {
	var k keyLocks
	unlock := k.lock("a")
	other := k.lock("b") // does not wait
	got := make(chan struct{})
	go func() { k.lock("a")(); close(got) }()
	select {
	case <-got:
		t.Fatal("two hold one lock")
	case <-time.After(20 * time.Millisecond):
	}
	unlock()
	<-got
	other()
	k.mu.Lock()
	defer k.mu.Unlock()
	equal(t, "kept", len(k.byKey), 0)
}
