package sandbox

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// Reads of the kernel's statistics cannot be interrupted: one for a large memory cgroup can take long, and a bug or
// a dead disk can make one take forever. Nobody who asks for the statistics of a node is to wait for that. So each
// reading is somebody's who may be left behind, and who asks is served with the last reading that was finished.

// source is what a gauge reads: files that stay open.
type source[T any] interface {
	// Read takes the present figures into v, which holds the last ones, taken before.
	Read(v *T, before, now int64) error
	Close() error
	files() int // descriptors that it holds
}

// reading is what was read, and when. It is never changed.
type reading[T any] struct {
	at    int64 // ns since 1970, from before the reading
	value T
}

// gauge keeps the last reading of one source, and the source open for the next one. Its zero value is one that has
// read nothing. Whoever has a gauge ends it.
type gauge[T any] struct {
	last atomic.Pointer[reading[T]]

	mu    sync.Mutex    // never held over a system call that may take long
	src   source[T]     // guarded by mu, and its reader's while busy is there; nil while it is not open
	busy  chan struct{} // guarded by mu; nil if nobody reads, else closed when the reading ends
	since time.Time     // guarded by mu; when the reading began
	ended bool          // guarded by mu
}

// refresh takes a new reading, or waits for the one that somebody else is taking, but not for one that has taken
// longer than patience already. An error is logged only: last tells by its age.
func (g *gauge[T]) refresh(b *fdBudget, patience time.Duration, open func() (source[T], error)) {
	g.mu.Lock()
	if g.ended {
		g.mu.Unlock()
		return
	}
	if busy := g.busy; busy != nil {
		left := patience - time.Since(g.since)
		g.mu.Unlock()
		await(busy, left)
		return
	}
	busy, src := make(chan struct{}), g.src
	g.busy, g.since = busy, time.Now()
	g.mu.Unlock()

	src, err := g.read(src, b, open)

	g.mu.Lock()
	g.busy, g.src = nil, src
	if err != nil || g.ended || b.used.Load() > b.most {
		g.closeLocked(b)
	}
	g.mu.Unlock()
	close(busy)
	if err != nil {
		klog.V(4).InfoS("Statistics cannot be read", "err", err)
	}
}

// await waits for a channel's end, and not longer than patience.
func await(done <-chan struct{}, patience time.Duration) {
	if patience <= 0 {
		return
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}

// read reads the source, opening it if it is not open or not what it was: a slice may be removed and made again. The
// source is the caller's also after an error.
func (g *gauge[T]) read(src source[T], b *fdBudget, open func() (source[T], error)) (source[T], error) {
	if src != nil {
		if err := g.take(src); err == nil {
			return src, nil
		}
		if err := b.close(src); err != nil {
			return nil, err
		}
	}
	src, err := open()
	if err != nil {
		return nil, err
	}
	b.used.Add(int64(src.files()))
	return src, g.take(src)
}

// take publishes a reading of the source.
func (g *gauge[T]) take(src source[T]) error {
	r := &reading[T]{}
	var before int64
	if old := g.last.Load(); old != nil {
		before, r.value = old.at, old.value
	}
	r.at = now()
	if err := src.Read(&r.value, before, r.at); err != nil {
		return err
	}
	g.last.Store(r)
	return nil
}

// end closes the source for good. If it is being read, whoever reads it closes it. The last reading stays.
func (g *gauge[T]) end(b *fdBudget) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ended = true
	if g.busy == nil {
		g.closeLocked(b)
	}
}

// closeLocked closes the source if it is open. Preconditions: g.mu is held, nobody reads.
func (g *gauge[T]) closeLocked(b *fdBudget) {
	if g.src == nil {
		return
	}
	if err := b.close(g.src); err != nil {
		klog.ErrorS(err, "Files of statistics")
	}
	g.src = nil
}

// fdBudget counts the descriptors that gauges hold. Where they are too many, gauges work without keeping theirs: slower,
// but a crowded node must not run out of descriptors because somebody looks at it.
type fdBudget struct {
	most int64
	used atomic.Int64
}

// newFDBudget allows half of what the process may have.
func newFDBudget() *fdBudget {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		r.Cur = 1024
	}
	return &fdBudget{most: int64(min(r.Cur, 1<<20)) / 2}
}

// close closes a source and counts what it gives back.
func (b *fdBudget) close(src interface {
	files() int
	Close() error
}) error {
	b.used.Add(-int64(src.files()))
	return src.Close()
}

// collect calls all jobs, a few at a time. It returns when all have ended, when ctx ends, or when those that are left
// have not ended for longer than patience; those go on by themselves. A job that takes long does not keep the others
// waiting: it is given a companion.
func collect(ctx context.Context, patience time.Duration, jobs []func()) {
	if len(jobs) == 0 {
		return
	}
	c := &collection{jobs: jobs, done: make(chan struct{})}
	for range min(collectors, len(jobs)) {
		go c.work() // ends with the jobs
	}
	tick := time.NewTicker(patience)
	defer tick.Stop()
	for ended := int64(0); ; {
		select {
		case <-c.done:
			return
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		n := c.ended.Load()
		if n != ended {
			ended = n
			continue
		}
		if c.next.Load() >= int64(len(jobs)) {
			return
		}
		go c.work() // in place of one that hangs; ends with the jobs
	}
}

// collectors is how many jobs collect calls at a time. Most are done in microseconds: more would be in each other's way.
const collectors = 2

// collection is one run of collect.
type collection struct {
	jobs  []func()
	next  atomic.Int64 // the next job to be called
	ended atomic.Int64
	done  chan struct{} // closed when all have ended
}

func (c *collection) work() {
	for {
		i := c.next.Add(1) - 1
		if i >= int64(len(c.jobs)) {
			return
		}
		c.jobs[i]()
		if c.ended.Add(1) == int64(len(c.jobs)) {
			close(c.done)
		}
	}
}
