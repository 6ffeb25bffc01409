package cgroup

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// owedPause is between two rounds of questions to a systemd that is away.
const owedPause = time.Second

// owed are the units that systemd was to stop while it was away, as it is while it executes itself anew, for half a minute on a
// machine that is slow. Their cgroups were removed without it. It has not seen them become empty, so it would keep the units as
// active, and make their cgroups again, for as long as the node is up: it is asked until it answers, by one goroutine, which
// ends when nothing is owed, or with the tree. What a restart of the daemon forgets is a unit without a process.
//
// Names of units are those of containers, which nobody uses twice: a late stop hits nobody else.
type owed struct {
	stop func(ctx context.Context, name string) error

	ctx context.Context // ends with the tree
	end context.CancelFunc
	all sync.WaitGroup

	mu    sync.Mutex
	names []string
}

// KeepAsking has units stopped that systemd could not be asked to stop when their scopes were removed, as soon as it can be, until Close. It
// is for who lives long: a daemon. It is called once, before the first scope is removed; without systemd it does nothing.
func (t *Tree) KeepAsking() {
	if t.units != nil {
		o := newOwed(t.units.stop)
		t.owe, t.endAsking = o.add, o.close
	}
}

func newOwed(stop func(ctx context.Context, name string) error) *owed {
	o := &owed{stop: stop}
	o.ctx, o.end = context.WithCancel(context.Background())
	return o
}

// close ends the asking. Nothing may be added after it.
func (o *owed) close() {
	o.end()
	o.all.Wait()
}

// add has a unit stopped when systemd can be asked again.
func (o *owed) add(name string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if slices.Contains(o.names, name) {
		return
	}
	if o.names = append(o.names, name); len(o.names) == 1 {
		o.all.Add(1)
		go o.ask()
	}
}

// ask asks for all that is owed, in turn, until each was answered. An answer that is an error ends it too: it would be the same again.
func (o *owed) ask() {
	defer o.all.Done()
	for name := o.first(); name != ""; {
		err := o.stop(o.ctx, name)
		if !errors.Is(err, ErrUnavailable) {
			name = o.paid()
			continue
		}
		select {
		case <-o.ctx.Done():
			return
		case <-time.After(owedPause):
		}
	}
}

func (o *owed) first() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.names[0]
}

// paid takes the first away and returns the next one. Where there is none, whoever adds one begins anew.
func (o *owed) paid() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.names = o.names[1:]; len(o.names) == 0 {
		return ""
	}
	return o.names[0]
}
