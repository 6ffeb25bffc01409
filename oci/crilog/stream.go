package crilog

import (
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	readSize = 64 << 10 // a pipe's default capacity: one read empties it

	// reserve is the part of the queue that only the records which end a
	// dropped line may use: one for each of two streams.
	reserve = 2 * headerLen

	// terminalReads is how often an EIO of a terminal's master is doubted. The kernel looks for
	// input first, and then whether the other side has closed: what was written and closed between the
	// two is behind an EIO, and the next read has it.
	terminalReads = 2
)

// buffers are shared by all streams of the monitor, because most containers are
// quiet most of the time: a stream holds one only between a read that returned
// something and the last record made of it.
var buffers = sync.Pool{New: func() any { b := make([]byte, readSize+defaultMaxLine); return &b }}

// stream is one pipe of the container.
type stream struct {
	name string
	file *os.File

	rest []byte // the beginning of a line whose end was not read yet, at most MaxLine
	open bool   // the last record was P
	skip bool   // the rest of this line is dropped
}

// Stream starts to copy r, under the name stdout or stderr, until r ends. It
// takes ownership of r. A terminal's end (EIO on its master) is an end like any
// other. r should be non-blocking, as the ends of os.Pipe are: otherwise each
// stream costs a thread and Close may have to leave it behind.
func (w *Writer) Stream(name string, r *os.File) {
	s := &stream{name: name, file: r}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closing {
		r.Close()
		return
	}
	w.streams[s] = struct{}{}
	go w.copy(s) // ends with the stream, or when Close closes it
}

// Tap has everything that is read from now on shown to f as well, as it comes: f is called by the
// streams' copiers, which wait for it, and must keep nothing of the content. It takes the place of
// an earlier one.
func (w *Writer) Tap(f func(stream string, content []byte)) { w.tap.Store(&f) }

// Copy reads r to its end, as Stream would, for an output without a log, and closes it. f is as that
// of Tap.
func Copy(r *os.File, f func(content []byte)) { (&stream{file: r}).read(readSize, f) }

// copy runs a stream to its end.
func (w *Writer) copy(s *stream) {
	s.read(readSize+w.maxLine, func(b []byte) {
		if tap := w.tap.Load(); tap != nil {
			(*tap)(s.name, b[len(s.rest):])
		}
		w.consume(s, b)
	})

	w.mu.Lock()
	defer w.mu.Unlock()
	if len(s.rest) > 0 {
		w.putLocked(s, s.rest, tagFull, w.clock())
		w.announceLocked()
	}
	s.rest = nil
	delete(w.streams, s)
	w.changed.Broadcast()
}

// read shows f what comes, behind the rest of what came before, until the end, and closes the file.
func (s *stream) read(need int, f func(content []byte)) {
	defer s.file.Close()
	conn, err := s.file.SyscallConn()
	if err != nil {
		return
	}
	in := &input{s: s, need: need}
	for read := in.read; conn.Read(read) == nil && !in.eof; buffers.Put(in.buf) {
		f((*in.buf)[:in.n])
	}
}

// input reads a stream into a shared buffer, behind the rest of the last read.
type input struct {
	s    *stream
	need int
	buf  *[]byte
	n    int
	eof  bool
}

// read is called when the descriptor may be readable, and says false when it
// was not: it is then called again, and meanwhile the buffer serves others.
func (in *input) read(fd uintptr) bool {
	in.buf = buffers.Get().(*[]byte)
	if len(*in.buf) < in.need {
		*in.buf = make([]byte, in.need)
	}
	k := copy(*in.buf, in.s.rest)
	for tries := terminalReads; ; tries-- {
		n, err := unix.Read(int(fd), (*in.buf)[k:k+readSize])
		if err == unix.EINTR || err == unix.EIO && tries > 0 {
			continue
		}
		if in.n = k + n; n > 0 {
			return true
		}
		buffers.Put(in.buf)
		in.eof = err != unix.EAGAIN
		return in.eof
	}
}

// consume queues the records that data holds and keeps the rest of it.
func (w *Writer) consume(s *stream, data []byte) {
	now := w.clock()
	w.mu.Lock()
	for {
		content, tag, rest := cut(data, w.maxLine)
		data = rest
		if tag == 0 {
			break
		}
		w.putLocked(s, content, tag, now)
	}
	w.announceLocked()
	w.mu.Unlock()
	if len(data) == 0 && cap(s.rest) > 4<<10 {
		s.rest = nil
	}
	s.rest = append(s.rest[:0], data...)
}

// putLocked queues one record, or drops it and what it takes to keep lines
// whole.
// Preconditions: w.mu is held; it may be let go of for a while.
func (w *Writer) putLocked(s *stream, content []byte, tag byte, now int64) {
	if s.skip {
		w.stats.DroppedBytes += uint64(len(content))
		s.skip = tag == tagPartial
		return
	}
	if w.roomLocked(headerLen + len(content)) {
		w.appendLocked(s, content, tag, now)
		s.open = tag == tagPartial
		return
	}
	w.stats.DroppedLines++
	w.stats.DroppedBytes += uint64(len(content))
	s.skip = tag == tagPartial
	if s.open { // its head is in the queue: end it, from the reserve
		w.appendLocked(s, nil, tagFull, now)
		s.open = false
	}
}

// appendLocked adds a record to the queue, which grows by doubling.
// Preconditions: w.mu is held and there is room.
func (w *Writer) appendLocked(s *stream, content []byte, tag byte, now int64) {
	if need := len(w.pending) + headerLen + len(content); need > cap(w.pending) {
		grown := make([]byte, len(w.pending), min(max(4<<10, need, 2*cap(w.pending)), max(w.limit, need)))
		copy(grown, w.pending)
		w.pending = grown
	}
	w.pending = appendRecord(w.pending, &w.stamp, w.stamp.next(now), s.name, tag, content)
}

// roomLocked says whether n more bytes may be queued. If the disk keeps up it
// waits for space; if the disk failed or hangs it does not.
// Preconditions: w.mu is held; it may be let go of for a while.
func (w *Writer) roomLocked(n int) bool {
	fits := func() bool { return w.queued()+n+reserve <= w.limit }
	for !fits() {
		w.announceLocked()
		left := w.stall - time.Since(w.progress)
		if w.failing || w.closing || left <= 0 {
			return false
		}
		w.waitLocked(left, func() bool { return fits() || w.failing || w.closing })
	}
	return true
}

// announceLocked tells the flusher that there are records.
// Preconditions: w.mu is held.
func (w *Writer) announceLocked() {
	if w.busy || len(w.pending) == 0 {
		return
	}
	w.busy, w.progress = true, time.Now()
	poke(w.data)
}

func (w *Writer) queued() int { return len(w.pending) + w.inflight }
