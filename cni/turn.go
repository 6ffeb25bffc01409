package cni

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// endGrace is how long a caller waits beyond its context: for a plugin that was killed, and for the pipes of who it left.
const endGrace = 5 * time.Second

// ErrStuck is wrapped by an error that says which process keeps a pod's network: nobody waits for it any more, since it was killed and does
// not end, or, after a failed ADD, since the DEL of that takes longer than Add's caller was to wait.
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

// grant is one caller's having of a turn.
type grant struct {
	*turn
	key  string
	over bool // guarded by turns.mu
}

// take runs f when it is the pod's turn, and returns what f does. It waits for that until ctx ends and grace is over, and no longer.
// The kernel does not let go of a process in an uninterruptible call (a dead disk, a lock of the network that is not given back),
// whoever kills it, and a daemon that waited for it would not serve anybody else either. Such a plugin may still do what it was
// about to; so the turn stays with f until it has, and whoever wants it meanwhile is refused with the reason.
func take[T any](ctx context.Context, ts *turns, key string, grace time.Duration, f func(context.Context) (T, error)) (T, error) {
	var none T
	g, err := ts.take(ctx, key)
	if err != nil {
		return none, err
	}
	over := make(chan outcome[T], 1)
	go func() { // ends with f
		var o outcome[T]
		defer func() {
			o.panic = recover()
			ts.give(g)
			over <- o
		}()
		o.value, o.err = f(context.WithValue(ctx, turnKey{}, g.turn))
	}()
	late := make(chan struct{})
	defer context.AfterFunc(ctx, func() { time.AfterFunc(grace, func() { close(late) }) })()
	select {
	case o := <-over:
		return o.result()
	case <-late:
		if !ts.giveUp(g) { // just in time
			o := <-over
			return o.result()
		}
		return none, fmt.Errorf("network of %s: %w: %w", subject(key), context.Cause(ctx), g.reason())
	}
}

// result is what the caller of take gets; a panic is its own, too, who may know what to do about it.
func (o *outcome[T]) result() (T, error) {
	if o.panic != nil {
		panic(o.panic)
	}
	return o.value, o.err
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

// node is how the key of a turn begins that is not a pod's: of what is asked about the network itself. A pod's id has no such byte.
const node = "\x00"

// subject names what a turn is of.
func subject(key string) string {
	if strings.HasPrefix(key, node) {
		return "the node"
	}
	return "pod " + key
}

// take waits for the turn: until ctx ends, or somebody gives up on who has it.
func (ts *turns) take(ctx context.Context, key string) (*grant, error) {
	if ctx.Err() != nil { // select would toss a coin
		return nil, fmt.Errorf("wait for the network of %s: %w", subject(key), context.Cause(ctx))
	}
	t := ts.use(key)
	select {
	case t.held <- struct{}{}:
		return &grant{turn: t, key: key}, nil
	case <-t.stuck:
		defer ts.leave(key, t)
		return nil, fmt.Errorf("network of %s: %w", subject(key), t.reason())
	case <-ctx.Done():
		defer ts.leave(key, t)
		return nil, fmt.Errorf("wait for the network of %s: %w", subject(key), context.Cause(ctx))
	}
}

// giveUp lets nobody wait for a turn any more, unless it was given back meanwhile.
func (ts *turns) giveUp(g *grant) bool {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if g.over {
		return false
	}
	close(g.stuck)
	return true
}

// give ends a grant. A turn that was given up on is not taken again: whoever comes gets a new one.
func (ts *turns) give(g *grant) {
	ts.mu.Lock()
	g.over = true
	select {
	case <-g.stuck:
		delete(ts.m, g.key)
	default:
		g.at.Store(nil)
		<-g.held
	}
	ts.mu.Unlock()
	ts.leave(g.key, g.turn)
}

func (ts *turns) use(key string) *turn {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ts.m == nil {
		ts.m = map[string]*turn{}
	}
	t := ts.m[key]
	if t == nil {
		t = &turn{held: make(chan struct{}, 1), stuck: make(chan struct{})}
		ts.m[key] = t
	}
	t.users++
	return t
}

func (ts *turns) leave(key string, t *turn) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if t.users--; t.users == 0 && ts.m[key] == t {
		delete(ts.m, key)
	}
}
