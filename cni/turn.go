package cni

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// endGrace is how long a caller waits beyond its context: for a plugin that was killed, and for the pipes of who it left.
const endGrace = 5 * time.Second

// ErrStuck is wrapped by an error that says which process keeps a pod's network: it was killed and does not end.
var ErrStuck = errors.New("a process does not end")

// turns has a turn per pod, for as long as somebody has or wants it.
type turns struct {
	mu sync.Mutex
	m  map[string]*turn
}

// turn is the right to run plugins for a pod. It is kept until the last of them has ended, also by one that
// nobody waits for any more.
type turn struct {
	held  chan struct{}          // full while somebody has the turn
	stuck chan struct{}          // closed, by turns.giveUp, when who has it was waited for in vain
	users int                    // guarded by turns.mu
	at    atomic.Pointer[string] // what the plugins are at, for who gives up waiting; nil between two
}

// outcome is what a turn came to.
type outcome[T any] struct {
	value T
	err   error
	panic any // what the library panicked with
}

// take runs f when it is the pod's turn, and returns what f does. It waits for that until ctx ends and grace is over, and no longer.
// The kernel does not let go of a process in an uninterruptible call (a dead disk, a lock of the network that is not given back),
// whoever kills it, and a daemon that waited for it would not serve anybody else either. Such a plugin may still do what it was
// about to; so the turn stays with f until it has, and whoever wants it meanwhile is refused with the reason.
func take[T any](ctx context.Context, ts *turns, id string, grace time.Duration, f func(context.Context) (T, error)) (T, error) {
	var none T
	t, err := ts.take(ctx, id)
	if err != nil {
		return none, err
	}
	over := make(chan outcome[T], 1)
	go func() { // ends with f
		var o outcome[T]
		defer func() {
			o.panic = recover()
			ts.give(id, t)
			over <- o
		}()
		o.value, o.err = f(context.WithValue(ctx, turnKey{}, t))
	}()
	late := make(chan struct{})
	defer context.AfterFunc(ctx, func() { time.AfterFunc(grace, func() { close(late) }) })()
	select {
	case o := <-over:
		if o.panic != nil {
			panic(o.panic) // of the caller, who may know what to do about it
		}
		return o.value, o.err
	case <-late:
		ts.giveUp(t)
		return none, fmt.Errorf("network of %s: %w: %w", subject(id), context.Cause(ctx), t.reason())
	}
}

// turnKey is the key of a turn in the context of what runs in it: the library hands that to the plugins' executor, and nothing else.
type turnKey struct{}

// note says what the turn of ctx is at, and returns what ends that. Without a turn it does nothing.
func note(ctx context.Context, format string, args ...any) (end func()) {
	t, ok := ctx.Value(turnKey{}).(*turn)
	if !ok {
		return func() {}
	}
	t.note(format, args...)
	return func() { t.at.Store(nil) }
}

func (t *turn) note(format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	t.at.Store(&s)
}

// reason says what keeps a turn whose caller gave up on it.
func (t *turn) reason() error {
	if at := t.at.Load(); at != nil {
		return fmt.Errorf("%w: %s", ErrStuck, *at)
	}
	return ErrStuck
}

// subject names what a turn is of: the network's own has no pod.
func subject(id string) string {
	if id == "" {
		return "the node"
	}
	return "pod " + id
}

// take waits for the turn: until ctx ends, or somebody gives up on who has it.
func (ts *turns) take(ctx context.Context, id string) (*turn, error) {
	if ctx.Err() != nil { // select would toss a coin
		return nil, fmt.Errorf("wait for the network of %s: %w", subject(id), context.Cause(ctx))
	}
	t := ts.use(id)
	select {
	case t.held <- struct{}{}:
		return t, nil
	case <-t.stuck:
		defer ts.leave(id, t)
		return nil, fmt.Errorf("network of %s: %w", subject(id), t.reason())
	case <-ctx.Done():
		defer ts.leave(id, t)
		return nil, fmt.Errorf("wait for the network of %s: %w", subject(id), context.Cause(ctx))
	}
}

// giveUp lets nobody wait for a turn any more.
func (ts *turns) giveUp(t *turn) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	select {
	case <-t.stuck:
	default:
		close(t.stuck)
	}
}

// give ends a turn. One that was given up on is not taken again: whoever comes gets a new one.
func (ts *turns) give(id string, t *turn) {
	ts.mu.Lock()
	select {
	case <-t.stuck:
		delete(ts.m, id)
	default:
		t.at.Store(nil)
		<-t.held
	}
	ts.mu.Unlock()
	ts.leave(id, t)
}

func (ts *turns) use(id string) *turn {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ts.m == nil {
		ts.m = map[string]*turn{}
	}
	t := ts.m[id]
	if t == nil {
		t = &turn{held: make(chan struct{}, 1), stuck: make(chan struct{})}
		ts.m[id] = t
	}
	t.users++
	return t
}

func (ts *turns) leave(id string, t *turn) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if t.users--; t.users == 0 && ts.m[id] == t {
		delete(ts.m, id)
	}
}
