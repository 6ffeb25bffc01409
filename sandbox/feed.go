package sandbox

import (
	"fmt"
	"slices"
	"sync"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// eventFeed tells subscribers what becomes of pods and containers.
//
//	facts change ──► tell ──┬─► queue of a subscriber ──► its stream
//	                        ├─► queue of a subscriber ──► its stream
//	                        '─► queue that is full: closed, its subscriber has to list again
//
// Whoever tells never waits. What is told is derived from the facts, as states are, and never goes back: an exit
// that was heard of before the start is told, and the start is not told after it.
type eventFeed struct {
	mu     sync.Mutex                                           // never held over a system call
	queues map[chan *runtimeapi.ContainerEventResponse]struct{} // guarded by mu
}

// feedQueue is how many events may wait for a subscriber. At the end of a node's drain a few hundred come at once.
const feedQueue = 1024

// maxSubscribers bounds what all queues hold together: some kilobytes for each event.
const maxSubscribers = 128

// stage is how far a pod's or container's life has been told; the values are in the order of that life.
type stage int

const (
	toldNothing stage = iota
	toldCreated
	toldStarted
	toldStopped
	toldDeleted
)

// kinds are the events that lead to a stage.
var kinds = map[stage]runtimeapi.ContainerEventType{
	toldCreated: runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT,
	toldStarted: runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT,
	toldStopped: runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT,
	toldDeleted: runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT,
}

// Subscribe returns a queue that gets an event for each change of a pod or container from now on, in the order in which
// they were noticed: created, started, stopped, deleted, some of them left out where they came too late to be true. A pod
// has events under its own id. What an event refers to can be asked for when it comes, unless that is gone again.
//
// A subscriber that does not read loses its queue: it is closed, and what happened must be listed. cancel ends the
// subscription and may be called more than once; it does not close the queue. ErrExhausted: there are too many subscribers.
// Nothing of it survives the daemon.
func (m *Manager) Subscribe() (queue <-chan *runtimeapi.ContainerEventResponse, cancel func(), err error) {
	q := make(chan *runtimeapi.ContainerEventResponse, feedQueue)
	f := &m.feed
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.queues) >= maxSubscribers {
		return nil, nil, fmt.Errorf("subscribe to events: %d subscribers are the most: %w", maxSubscribers, ErrExhausted)
	}
	if f.queues == nil {
		f.queues = map[chan *runtimeapi.ContainerEventResponse]struct{}{}
	}
	f.queues[q] = struct{}{}
	return q, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.queues, q)
	}, nil
}

// tell tells what is new of a container, if it can be seen already.
func (c *Container) tell() {
	m := c.pod.m
	m.feed.mu.Lock()
	defer m.feed.mu.Unlock()
	if m.index.Load().containers[c.id] == c {
		c.told = m.feed.advance(c.pod, c.id, c.told, c.facts.Load().stage())
	}
}

// tellDeleted tells that a container is gone, if anybody was told that it was there.
func (c *Container) tellDeleted() {
	f := &c.pod.m.feed
	f.mu.Lock()
	defer f.mu.Unlock()
	if c.told != toldNothing {
		c.told = f.advance(c.pod, c.id, c.told, toldDeleted)
	}
}

// tell tells what is new of a pod, if it can be seen already.
func (sb *Sandbox) tell() {
	sb.m.feed.mu.Lock()
	defer sb.m.feed.mu.Unlock()
	if sb.m.index.Load().pods[sb.id] == sb {
		sb.told = sb.m.feed.advance(sb, sb.id, sb.told, sb.facts.Load().stage())
	}
}

// tellDeleted tells that a pod is gone, if anybody was told that it was there.
func (sb *Sandbox) tellDeleted() {
	f := &sb.m.feed
	f.mu.Lock()
	defer f.mu.Unlock()
	if sb.told != toldNothing {
		sb.told = f.advance(sb, sb.id, sb.told, toldDeleted)
	}
}

// stage is how much of a container's life there is to tell. One that ended without a start has none to tell of.
func (f facts) stage() stage {
	switch {
	case f.Finished != 0:
		return toldStopped
	case f.Started != 0:
		return toldStarted
	case f.Created != 0:
		return toldCreated
	}
	return toldNothing
}

// stage is the same of a pod, which is started when it is created.
func (f podFacts) stage() stage {
	switch {
	case f.NotReady != 0:
		return toldStopped
	case f.Created != 0:
		return toldStarted
	}
	return toldNothing
}

// advance tells the stages between two and returns the one that was reached. A container that was never started is not
// told to have been.
//
// Preconditions: f.mu is held.
func (f *eventFeed) advance(sb *Sandbox, id string, from, to stage) stage {
	if to <= from {
		return from
	}
	if len(f.queues) == 0 {
		return to
	}
	status, containers := sb.eventStatuses()
	for s := from + 1; s <= to; s++ {
		if s == toldStarted && !sb.wasStarted(id) {
			continue
		}
		f.push(&runtimeapi.ContainerEventResponse{
			ContainerId: id, ContainerEventType: kinds[s], CreatedAt: now(), PodSandboxStatus: status, ContainersStatuses: containers,
		})
	}
	return to
}

// wasStarted tells whether a container, or the pod itself, has ever run.
func (sb *Sandbox) wasStarted(id string) bool {
	c, ok := sb.watched.Load(id)
	return id == sb.id || ok && c.(*Container).facts.Load().Started != 0
}

// push gives every subscriber an event. One whose queue is full loses it.
//
// Preconditions: f.mu is held.
func (f *eventFeed) push(e *runtimeapi.ContainerEventResponse) {
	for q := range f.queues {
		select {
		case q <- e:
		default:
			delete(f.queues, q)
			close(q)
		}
	}
}

// eventStatuses returns what an event says of a pod and of its containers, newest first. It reads memory only.
func (sb *Sandbox) eventStatuses() (*runtimeapi.PodSandboxStatus, []*runtimeapi.ContainerStatus) {
	var list []*runtimeapi.ContainerStatus
	seen := sb.m.index.Load().containers
	for _, c := range sb.containers() {
		if seen[c.id] == c {
			list = append(list, c.message())
		}
	}
	slices.SortFunc(list, func(a, b *runtimeapi.ContainerStatus) int { return newestFirst(a.CreatedAt, b.CreatedAt, a.Id, b.Id) })
	return sb.message(), list
}
