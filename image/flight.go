package image

import (
	"context"
	"errors"
	"sync"
)

// errClosed is what pulls get while the store closes.
var errClosed = errors.New("image store is closed")

// flights joins pulls of the same thing. A caller waits only as long as its own
// context allows; the work goes on as long as anybody waits for it and is
// cancelled with the last one.
type flights struct {
	mu      sync.Mutex
	closed  bool
	byKey   map[string]*flight
	running int            // also cancelled ones that have not ended yet
	paused  chan struct{}  // not nil while idle's function runs; closed after it
	work    sync.WaitGroup // as running
}

// flight is one running pull. waiters is guarded by flights.mu; id and err are
// written before done is closed.
type flight struct {
	waiters int
	cancel  context.CancelFunc
	done    chan struct{}
	id      string
	err     error
}

// do returns what work returns, running it unless a caller with the same key
// does already. If ctx ends first, do returns its error at once.
func (g *flights) do(ctx context.Context, key string, work func(context.Context) (string, error)) (string, error) {
	return g.wait(ctx, key, false, work)
}

// doWhole is do, but where ctx ends and nobody else waits it returns when the work has ended, which is soon.
func (g *flights) doWhole(ctx context.Context, key string, work func(context.Context) (string, error)) (string, error) {
	return g.wait(ctx, key, true, work)
}

func (g *flights) wait(ctx context.Context, key string, whole bool, work func(context.Context) (string, error)) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	f, err := g.join(ctx, key, work)
	if err != nil {
		return "", err
	}
	defer func() {
		if g.leave(key, f) && whole {
			<-f.done
		}
	}()
	select {
	case <-f.done:
		// A caller whose own time is over is told so, not how the library
		// words a cancelled connection.
		if f.err != nil && ctx.Err() != nil {
			return "", ctx.Err()
		}
		return f.id, f.err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// join adds a waiter to the flight of key and starts it if there is none.
func (g *flights) join(ctx context.Context, key string, work func(context.Context) (string, error)) (*flight, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, errClosed
	}
	if f := g.byKey[key]; f != nil {
		f.waiters++
		return f, nil
	}
	// The first caller's values (trace) but not its end: others may join.
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	f := &flight{waiters: 1, cancel: cancel, done: make(chan struct{})}
	if g.byKey == nil {
		g.byKey = map[string]*flight{}
	}
	g.byKey[key] = f
	g.running++
	g.work.Add(1)
	go g.run(own, key, f, g.paused, work) // ends with work, which ends soon after own does
	return f, nil
}

func (g *flights) run(ctx context.Context, key string, f *flight, paused chan struct{}, work func(context.Context) (string, error)) {
	defer g.work.Done()
	if paused != nil {
		<-paused
	}
	f.id, f.err = work(ctx)
	g.mu.Lock()
	g.running--
	if g.byKey[key] == f {
		delete(g.byKey, key) // the next caller starts anew
	}
	g.mu.Unlock()
	close(f.done)
}

// idle calls f while no work runs; work that is asked for meanwhile begins
// after it. If work runs already, idle does nothing.
func (g *flights) idle(f func() error) error {
	g.mu.Lock()
	if g.running > 0 || g.paused != nil {
		g.mu.Unlock()
		return nil
	}
	paused := make(chan struct{})
	g.paused = paused
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		g.paused = nil
		g.mu.Unlock()
		close(paused)
	}()
	return f()
}

// leave takes a waiter away. The last one cancels the work, and nobody joins a
// cancelled flight any more: the next caller starts its own.
func (g *flights) leave(key string, f *flight) (last bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if f.waiters--; f.waiters > 0 {
		return false
	}
	f.cancel()
	if g.byKey[key] == f {
		delete(g.byKey, key)
	}
	return true
}

// close refuses new work, cancels what runs, and waits for its end.
func (g *flights) close() {
	g.mu.Lock()
	g.closed = true
	for _, f := range g.byKey {
		f.cancel()
	}
	g.mu.Unlock()
	g.work.Wait()
}

// keyLocks is one mutex per key. Entries exist only while somebody holds or
// wants them.
type keyLocks struct {
	mu    sync.Mutex
	byKey map[string]*keyLock
}

type keyLock struct {
	mu    sync.Mutex
	users int // guarded by keyLocks.mu
}

// lock waits for key and returns its unlock.
func (k *keyLocks) lock(key string) func() {
	k.mu.Lock()
	l := k.byKey[key]
	if l == nil {
		if k.byKey == nil {
			k.byKey = map[string]*keyLock{}
		}
		l = &keyLock{}
		k.byKey[key] = l
	}
	l.users++
	k.mu.Unlock()
	l.mu.Lock()
	return func() {
		l.mu.Unlock()
		k.mu.Lock()
		defer k.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(k.byKey, key)
		}
	}
}
