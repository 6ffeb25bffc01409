package sandbox

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"k8s.io/klog/v2"
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
	steps steps
	done  chan struct{} // closed when id and err are final
	id    string
	err   error
}

// at notes what the operation is doing, for the error of a caller that gives up on it, and for the log.
func (o *operation) at(step string) { o.steps.begin(step) }

// steps is what an operation did and how long each step took. Steps follow one another; where an operation
// does two things at once, the later one takes over.
type steps struct {
	mu   sync.Mutex
	done strings.Builder // guarded by mu
	now  string          // guarded by mu
	at   time.Time       // guarded by mu: when now began
}

func (s *steps) begin(step string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := time.Now()
	if s.now != "" {
		s.done.WriteString(s.line(t) + ", ")
	}
	s.now, s.at = step, t
}

// line is the running step with its time until t. Preconditions: s.mu is held.
func (s *steps) line(t time.Time) string {
	return fmt.Sprintf("%s %.2f", s.now, float64(t.Sub(s.at))/float64(time.Millisecond))
}

// current is the step that the operation is at.
func (s *steps) current() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

// String lists the steps so far with their milliseconds: "write record 0.12, fork 2.30".
func (s *steps) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.done.String() + s.line(time.Now())
}

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
		return "", fmt.Errorf("%s: still at %q: %w", what, op.steps.current(), ctx.Err())
	}
}

func (f *flights) run(ctx context.Context, key string, op *operation, limit time.Duration, fn func(context.Context, *operation) (string, error)) {
	defer f.wg.Done()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	defer context.AfterFunc(f.base, cancel)()
	op.id, op.err = fn(ctx, op)
	klog.V(4).InfoS("Steps in milliseconds", "of", op.what, "steps", &op.steps)
	if op.err != nil && ctx.Err() != nil {
		op.err = fmt.Errorf("%s: at %q: %w", op.what, op.steps.current(), op.err)
	}
	f.mu.Lock()
	delete(f.m, key)
	f.mu.Unlock()
	close(op.done)
}
