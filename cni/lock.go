package cni

import (
	"context"
	"fmt"
	"sync"
)

// locks has a lock per pod, for as long as somebody holds or wants it.
type locks struct {
	mu sync.Mutex
	m  map[string]*podLock
}

type podLock struct {
	held  chan struct{} // full while somebody holds the lock
	users int           // guarded by locks.mu
}

// lock takes the pod's lock and returns what gives it back. It waits no longer
// than ctx: the holder may be a plugin that hangs.
func (l *locks) lock(ctx context.Context, id string) (unlock func(), err error) {
	if ctx.Err() != nil { // select would toss a coin
		return nil, fmt.Errorf("wait for the network of pod %s: %w", id, context.Cause(ctx))
	}
	p := l.use(id)
	select {
	case p.held <- struct{}{}:
	case <-ctx.Done():
		l.leave(id, p)
		return nil, fmt.Errorf("wait for the network of pod %s: %w", id, context.Cause(ctx))
	}
	return func() {
		<-p.held
		l.leave(id, p)
	}, nil
}

func (l *locks) use(id string) *podLock {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.m == nil {
		l.m = map[string]*podLock{}
	}
	p := l.m[id]
	if p == nil {
		p = &podLock{held: make(chan struct{}, 1)}
		l.m[id] = p
	}
	p.users++
	return p
}

func (l *locks) leave(id string, p *podLock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p.users--; p.users == 0 {
		delete(l.m, id)
	}
}
