// Package crilog writes a container's output to the log file that the kubelet
// and log collectors read. It runs in the monitor, one Writer per container.
//
//	stdout ── copier ──┐  records   ┌────────────┐  whole     ┌──────┐
//	                   ├──────────> │ queue, at  │ ─────────> │ 0.log│
//	stderr ── copier ──┘  in order  │ most 1 MiB │  records   └──────┘
//	                                └────────────┘
//	       never waits on a disk         │           rename + Reopen: the next
//	       that is full or hung          └ full?     record goes to the new file
//	                                       see below
//
// A record is one line of CRI's format, in UTC and with nine digits always:
//
//	2026-03-01T12:00:00.000000001Z stdout F hello
//
// F ends a line of the container, also the last one when the stream ended
// without a newline. P says that the line was longer than MaxLine and goes on
// in the stream's next record. Content is copied byte for byte; nothing but the
// newline has a meaning. The time is that of the read, made to increase from
// record to record so that collectors which know a record by its time and text
// drop none.
//
// What happens when the queue is full depends on the disk. As long as it makes
// progress the copier waits, so a container that writes faster than the disk is
// slowed down and loses nothing. When a write failed (ENOSPC, EIO) or took
// longer than Stall, lines are dropped and counted until it works again; the
// container is never stopped by its log. Lines are dropped as a whole: one that
// lost its head loses its tail too, and one that lost its tail is ended by an
// empty F record, so that readers who join P records join no two lines.
//
// The file holds whole records only. A write that was cut short is taken back
// by truncating the file, and repeated; a torn record that an earlier monitor
// left is taken out when the file is opened.
package crilog

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

const (
	defaultMaxLine = 16 << 10 // what containerd and CRI-O use, and readers expect
	defaultBuffer  = 1 << 20
	defaultStall   = time.Second
	maxMaxLine     = 1 << 20
)

// ErrStalled says that the disk did not finish a write within Config.Stall.
var ErrStalled = errors.New("log disk does not answer")

// Config says where a log goes and how much of it may wait in memory. Zero
// values take the defaults.
type Config struct {
	// Dir is a descriptor of the directory that holds the log. It is borrowed:
	// the Writer keeps a duplicate. Name is a single component in it.
	Dir  int
	Name string
	// MaxLine is the most bytes of content in one record; 16 KiB by default,
	// at most 1 MiB.
	MaxLine int
	// Buffer is the most bytes of records that wait for the disk; 1 MiB by
	// default, at least four times MaxLine. Memory is taken as it is needed
	// and given back when the container is quiet.
	Buffer int
	// Stall is how long one write may take before the disk counts as hung; one
	// second by default. It bounds what Reopen and Close wait for, too.
	Stall time.Duration
}

// Stats counts since Open; rotation does not reset it.
type Stats struct {
	// Lines and Bytes count records in the file and their size there.
	Lines, Bytes uint64
	// DroppedLines counts lines of the container of which something is
	// missing, DroppedBytes the missing content without newlines.
	DroppedLines, DroppedBytes uint64
	// WriteErrors counts failed writes and LastError is the latest of them,
	// empty if there was none. A hung disk gives no error.
	WriteErrors uint64
	LastError   string
	// Queued is how many bytes of records wait for the disk at this moment.
	Queued int
}

// Writer copies streams to a log file. Open makes it, Stream is called for each
// pipe of the container, Drain after the container's end, Close once at the
// very end. Methods may be called from several goroutines. Nothing of a Writer
// survives the monitor except for the file.
type Writer struct {
	dir     *sys.FD
	name    string
	maxLine int
	limit   int
	stall   time.Duration
	clock   func() int64                        // ns since 1970; tests set it
	write   func(fd int, p []byte) (int, error) // write(2); tests put a bad disk here

	file chan struct{} // a mutex that can be waited for with a bound; guards fd and torn
	fd   *sys.FD
	torn int64 // bytes of an incomplete record at the end of the file

	data  chan struct{} // 1 deep: the queue is not empty
	retry chan struct{} // 1 deep: do not wait out the pause after an error
	done  chan struct{} // closed when the flusher has ended

	tap atomic.Pointer[func(stream string, content []byte)] // nil until somebody listens

	mu       sync.Mutex
	changed  *sync.Cond // space, streams or the disk's state changed
	pending  []byte     // whole records
	inflight int        // bytes of the records that the flusher holds
	busy     bool       // the flusher has something to do
	progress time.Time  // when it last got something done, or began
	failing  bool       // the last write failed
	lastErr  error      // what the last write that failed met
	closing  bool
	over     bool // no stream puts anything any more, or it was waited for long enough
	streams  map[*stream]struct{}
	stamp    stamp
	stats    Stats
}

// Open opens or creates the log file, for appending and mode 0640, and starts
// the Writer. Anything but a regular file is refused without being opened, and
// a symbolic link is not followed.
func Open(c Config) (*Writer, error) {
	if c.MaxLine == 0 {
		c.MaxLine = defaultMaxLine
	}
	if c.Buffer == 0 {
		c.Buffer = max(defaultBuffer, 4*c.MaxLine)
	}
	if c.Stall == 0 {
		c.Stall = defaultStall
	}
	if c.Name == "" || c.Name == "." || c.Name == ".." || strings.ContainsAny(c.Name, "/\x00") ||
		c.MaxLine < 1 || c.MaxLine > maxMaxLine || c.Buffer < 4*c.MaxLine+reserve {
		return nil, logError("open", c.Name, unix.EINVAL)
	}
	dir, err := unix.FcntlInt(uintptr(c.Dir), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, logError("open", c.Name, err)
	}
	w := &Writer{
		dir: sys.NewFD(dir), name: c.Name, maxLine: c.MaxLine, limit: c.Buffer, stall: c.Stall,
		clock:   func() int64 { return time.Now().UnixNano() },
		write:   unix.Write,
		file:    make(chan struct{}, 1),
		data:    make(chan struct{}, 1),
		retry:   make(chan struct{}, 1),
		done:    make(chan struct{}),
		streams: map[*stream]struct{}{},
	}
	w.changed = sync.NewCond(&w.mu)
	if w.fd, err = openLog(dir, c.Name); err != nil {
		w.dir.Close()
		return nil, err
	}
	go w.flush() // ends after Close, at the end of the write that it is in
	return w, nil
}

// Drain waits until every stream has ended and its last record is in the file,
// or until ctx ends; a child that the container left behind may hold a pipe
// open for ever. If the disk fails by then, Drain does not wait for it but
// returns what the last write met. The Writer goes on in any case.
func (w *Writer) Drain(ctx context.Context) error {
	defer context.AfterFunc(ctx, w.wake)()
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.streams) > 0 || w.queued() > 0 && !w.failing {
		if err := ctx.Err(); err != nil {
			return err
		}
		w.changed.Wait()
	}
	if w.queued() > 0 {
		return logError("write", w.name, w.lastErr)
	}
	return nil
}

// Stats returns the counters of this moment. It never waits for the disk.
func (w *Writer) Stats() Stats {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.stats
	s.Queued = w.queued()
	if w.lastErr != nil {
		s.LastError = w.lastErr.Error()
	}
	return s
}

// Close ends streams that are still open, tries once more to write what is
// queued, drops and counts the rest, and closes the file. If a write hangs,
// Close returns ErrStalled after Config.Stall, and the descriptors are closed
// when the kernel lets go of it. Closing again does nothing.
func (w *Writer) Close() error {
	w.mu.Lock()
	if w.closing {
		w.mu.Unlock()
		return nil
	}
	w.closing = true
	var open []*os.File
	for s := range w.streams {
		open = append(open, s.file)
	}
	w.changed.Broadcast()
	w.mu.Unlock()

	for _, f := range open {
		f.Close() // its copier sees fs.ErrClosed and ends
	}
	w.mu.Lock()
	w.waitLocked(w.stall, func() bool { return len(w.streams) == 0 })
	w.over = true
	w.mu.Unlock()
	poke(w.retry)
	poke(w.data)
	select {
	case <-w.done:
		return nil
	case <-time.After(w.stall):
		return logError("close", w.name, ErrStalled)
	}
}

// wake makes everybody who waits look again.
func (w *Writer) wake() {
	w.mu.Lock()
	w.changed.Broadcast()
	w.mu.Unlock()
}

// waitLocked waits until ok holds or d has passed.
// Preconditions: w.mu is held.
func (w *Writer) waitLocked(d time.Duration, ok func() bool) {
	end := time.Now().Add(d) // taken before the timer is set, which wakes once: before end would be for nothing, and the last time
	timer := time.AfterFunc(d, w.wake)
	defer timer.Stop()
	for ; !ok(); w.changed.Wait() {
		if !time.Now().Before(end) {
			return
		}
	}
}

// poke leaves a token in a channel of one.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func logError(op, name string, err error) error {
	return &fs.PathError{Op: op + " log", Path: name, Err: err}
}
