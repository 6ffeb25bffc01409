package sandbox

import (
	"context"
	"errors"
	"io/fs"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/vitrine-runtime/vitrine/image"
)

// How often and how fast writable layers are measured. A walk takes its time in proportion to what the container has
// written, and on a disk that others use as well: it may use a quarter of the time it takes, and a layer is walked again
// only after twenty times that.
const (
	layerAge   = 10 * time.Second // the kubelet's interval
	layerPatch = 20               // the age at which a layer is measured again, in walks
)

// layerUse is what a container has written.
type layerUse struct {
	at   int64         // when the walk began, ns since 1970
	took time.Duration // the walk, pauses included
	use  image.FsUsage
	room fsRoom
}

// fsRoom is what the file system of a writable layer has.
type fsRoom struct {
	known                   bool
	bytes, inodes, freeNode uint64
	device                  string
}

// roomAt asks the file system. It may hang with its disk, as the walk before it.
func roomAt(dir string) (r fsRoom) {
	var fs unix.Statfs_t
	var st unix.Stat_t
	if unix.Statfs(dir, &fs) != nil || unix.Stat(dir, &st) != nil {
		return fsRoom{}
	}
	return fsRoom{true, fs.Blocks * uint64(fs.Bsize), fs.Files, fs.Ffree, deviceName(uint64(unix.Major(st.Dev)), uint64(unix.Minor(st.Dev)))}
}

// layers measures writable layers, one after the other, in the background and on demand: where nobody asks, nothing
// is walked.
type layers struct {
	images ImageStore
	ctx    context.Context //nolint:containedctx // the manager's: walks end with it

	mu      sync.Mutex
	queue   []*Container        // guarded by mu: to be measured, in this order
	queued  map[*Container]bool // guarded by mu: those in queue, and the one being measured
	running bool                // guarded by mu
	step    chan struct{}       // guarded by mu: closed and replaced when one was measured
}

func newLayers(ctx context.Context, images ImageStore) *layers {
	return &layers{images: images, ctx: ctx, queued: map[*Container]bool{}, step: make(chan struct{})}
}

// want has the layers measured whose last measuring is too old. It does not wait for that.
func (l *layers) want(list []*Container) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range list {
		if !l.queued[c] && c.layerIsOld() {
			l.queued[c] = true
			l.queue = append(l.queue, c)
		}
	}
	if len(l.queue) != 0 && !l.running && l.ctx.Err() == nil {
		l.running = true
		// Ends when the queue is empty, with the manager, or never where the disk does not answer: nobody waits for it.
		go l.walk()
	}
}

// layerIsOld says whether the layer should be measured again. That of a container that has ended does not change.
func (c *Container) layerIsOld() bool {
	last := c.stats.layer.Load()
	if last == nil {
		return true
	}
	if end := c.facts.Load().Finished; end != 0 && last.at > end {
		return false
	}
	age := time.Duration(now() - last.at)
	return age < 0 || age >= max(layerAge, layerPatch*last.took)
}

func (l *layers) walk() {
	for {
		l.mu.Lock()
		if len(l.queue) == 0 || l.ctx.Err() != nil {
			l.running, l.queue = false, nil
			clear(l.queued)
			l.mu.Unlock()
			return
		}
		c := l.queue[0]
		l.queue = l.queue[1:]
		l.mu.Unlock()
		l.measure(c)
		l.mu.Lock()
		delete(l.queued, c)
		close(l.step)
		l.step = make(chan struct{})
		l.mu.Unlock()
	}
}

// first waits until those that were never measured have been, or could not be, and not longer than patience.
func (l *layers) first(ctx context.Context, list []*Container, patience time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		l.mu.Lock()
		step, left := l.step, false
		for _, c := range list {
			left = left || l.queued[c] && c.stats.layer.Load() == nil
		}
		l.mu.Unlock()
		if !left {
			return
		}
		select {
		case <-step:
		case <-ctx.Done():
			return
		}
	}
}

// measure walks one layer.
func (l *layers) measure(c *Container) {
	begin := now()
	use, err := l.images.RootfsUsage(l.ctx, c.id, image.NewPacer(l.ctx).Pause)
	switch {
	case err == nil:
		c.stats.layer.Store(&layerUse{at: begin, took: time.Duration(now() - begin), use: use, room: roomAt(use.Mountpoint)})
	case !errors.Is(err, fs.ErrNotExist) && l.ctx.Err() == nil:
		klog.ErrorS(err, "Measuring of a writable layer", "container", c.id)
	}
}
