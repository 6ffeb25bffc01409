package sandbox

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// flights joins requests for the same thing. The first one starts the operation, detached from its own
// cancellation; later ones wait for the same result. The kubelet gives up on a slow request and asks again
// with the same name: without this its retry would meet a half-made object of its own.
//
// A key is held exactly as long as the operation runs. An operation ends by its own deadline at the latest,
// and then it has been rolled back; so no name is ever reserved by something that nobody works on.
type flights struct {
	base context.Context // ends with the manager
	mu   sync.Mutex
	m    map[string]*operation // guarded by mu
	wg   sync.WaitGroup        // one for each running operation
}

// operation is one running verb.
type operation struct {
	what  string // for messages
	stage atomic.Pointer[string]
	done  chan struct{} // closed when id and err are final
	id    string
	err   error
}

// at notes what the operation is doing, for the error of a caller that gives up on it.
func (o *operation) at(stage string) { o.stage.Store(&stage) }

// do runs fn under key, or joins it if it runs already, and waits for its end or the end of ctx. fn gets a
// context with the values of ctx, its own deadline, and an end with the manager's.
func (f *flights) do(ctx context.Context, key, what string, limit time.Duration, fn func(context.Context, *operation) (string, error)) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	f.mu.Lock()
	op := f.m[key]
	if op == nil {
		if err := f.base.Err(); err != nil {
			f.mu.Unlock()
			return "", fmt.Errorf("%s: the daemon is stopping: %w", what, ErrUnavailable)
		}
		op = &operation{what: what, done: make(chan struct{})}
		op.at("begin")
		f.m[key] = op
		f.wg.Add(1)
		go f.run(context.WithoutCancel(ctx), key, op, limit, fn) // ends with fn, which its deadline ends
	}
	f.mu.Unlock()
	select {
	case <-op.done:
		return op.id, op.err
	case <-ctx.Done():
		// The result may be there as well; it is worth more than the reason to stop waiting.
		select {
		case <-op.done:
			return op.id, op.err
		default:
		}
		return "", fmt.Errorf("%s: still at %q: %w", what, *op.stage.Load(), ctx.Err())
	}
}

func (f *flights) run(ctx context.Context, key string, op *operation, limit time.Duration, fn func(context.Context, *operation) (string, error)) {
	defer f.wg.Done()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	defer context.AfterFunc(f.base, cancel)()
	op.id, op.err = fn(ctx, op)
	if op.err != nil && ctx.Err() != nil {
		op.err = fmt.Errorf("%s: at %q: %w", op.what, *op.stage.Load(), op.err)
	}
	f.mu.Lock()
	delete(f.m, key)
	f.mu.Unlock()
	close(op.done)
}
