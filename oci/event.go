package oci

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/oci/wire"
)

// ExitStatus is how a process ended.
type ExitStatus struct {
	Code   int         // of exit(2); 0 if it was killed
	Signal unix.Signal // that killed it; 0 if it exited
	At     time.Time
	// OOMKilled: it ended because the kernel's OOM killer took it, or one whose fate a
	// shell has passed on. Not for processes of Exec.
	OOMKilled bool
	// OOMKills is how many processes of the container the OOM killer took in all,
	// which it may have survived.
	OOMKills int
}

// ExitCode returns the code as shells and the CRI count: 128 plus the signal
// where one has killed it.
func (s ExitStatus) ExitCode() int {
	if s.Signal != 0 {
		return 128 + int(s.Signal)
	}
	return s.Code
}

func statusOf(s wire.Status) ExitStatus {
	return ExitStatus{Code: int(s.Code), Signal: unix.Signal(s.Signal), At: timeOf(s.At), OOMKilled: s.OOMKilled, OOMKills: int(s.OOMKills)}
}

// timeOf keeps "never" what it is: the zero time, and not 1970.
func timeOf(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns)
}

// EventKind says what an event tells.
type EventKind int

// Kinds of events. MonitorLost and Disconnected are the last of their channel.
const (
	// Exited: a container's main process is dead and its exit record on disk.
	Exited EventKind = iota
	// MonitorLost: the monitor has died. Its containers have no waiter and no log;
	// the receiver kills their cgroups.
	MonitorLost
	// Disconnected: the pod was stopped, or the monitor hung up on a daemon that
	// had not read for long. In that case the pod lives, and DialPod and List bring everything back.
	Disconnected
)

// Event is something that happened in the pod.
type Event struct {
	Kind   EventKind
	ID     string     // of the container, if Kind is Exited
	Status ExitStatus // if Kind is Exited
}

// Events returns the pod's channel of events. It is closed after the last one,
// when the connection is gone. Nothing is lost or held up when it is not read.
func (p *Pod) Events() <-chan Event { return p.queue.out }

// eventQueue is a channel without a bound: the reader of the connection must
// not wait for whoever reads events, who may be waiting for an answer.
type eventQueue struct {
	out  chan Event
	quit chan struct{} // closed by abandon: nobody reads any more
	once sync.Once

	mu       sync.Mutex
	wake     *sync.Cond
	waiting  []Event
	finished bool
	pumping  bool // the pump has an event in its hand
}

func newEventQueue() *eventQueue {
	q := &eventQueue{out: make(chan Event), quit: make(chan struct{})}
	q.wake = sync.NewCond(&q.mu)
	go q.pump() // ends after finish, when all is delivered or abandon was called
	return q
}

func (q *eventQueue) push(e Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) == 0 && !q.pumping && !q.finished {
		select {
		case q.out <- e: // somebody is there, and nothing to come before it
			return
		default:
		}
	}
	q.waiting = append(q.waiting, e)
	q.wake.Signal()
}

// finish adds the last event.
func (q *eventQueue) finish(e Event) {
	q.mu.Lock()
	q.waiting = append(q.waiting, e)
	q.finished = true
	q.wake.Signal()
	q.mu.Unlock()
}

func (q *eventQueue) abandon() { q.once.Do(func() { close(q.quit) }) }

func (q *eventQueue) pump() {
	defer close(q.out)
	for {
		q.mu.Lock()
		q.pumping = false
		for len(q.waiting) == 0 && !q.finished {
			q.wake.Wait()
		}
		if len(q.waiting) == 0 {
			q.mu.Unlock()
			return
		}
		e := q.waiting[0]
		q.waiting = q.waiting[1:]
		q.pumping = true
		q.mu.Unlock()
		select {
		case q.out <- e:
		case <-q.quit:
			return
		}
	}
}
