package crilog

import (
	"bytes"
	"errors"
	"io/fs"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

const (
	// writeSize bounds one write(2), so that a slow disk shows progress often
	// enough to be told from a hung one.
	writeSize = 128 << 10

	// quiet is for how long a container must write nothing before the queue's
	// memory is given back.
	quiet = time.Second

	firstPause = 50 * time.Millisecond
	lastPause  = time.Second
)

// flush moves records from the queue to the file until the Writer is closed,
// and then closes the descriptors.
func (w *Writer) flush() {
	defer close(w.done)
	defer w.dir.Close()
	defer func() {
		w.file <- struct{}{} // for a Reopen that is under way; never given back
		w.fd.Close()
	}()
	var spare []byte
	small := 0 // batches in a row for which the buffer was far too large
	for {
		batch, over := w.take(spare)
		if len(batch) > 0 {
			w.flushBatch(batch)
			spare = batch[:0]
			if small++; len(batch) >= cap(batch)/8 {
				small = 0
			}
			if small > 100 { // a burst long ago; its other buffer goes the same way
				spare, small = nil, 0
			}
			continue
		}
		if over {
			return
		}
		select {
		case <-w.data:
			continue
		case <-time.After(quiet):
		}
		spare = nil
		w.release()
		<-w.data
	}
}

// release gives back the memory that a burst needed.
func (w *Writer) release() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.pending) == 0 {
		w.pending = nil
	}
}

// take swaps the queue for an empty buffer.
func (w *Writer) take(spare []byte) (batch []byte, over bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.pending) == 0 {
		w.busy = false
		return nil, w.over
	}
	batch, w.pending = w.pending, spare
	w.inflight = len(batch)
	return batch, w.over
}

// flushBatch writes records until all are in the file, pausing after an error.
// Once the Writer is closing, one more error ends it.
func (w *Writer) flushBatch(batch []byte) {
	pause := firstPause
	for len(batch) > 0 {
		w.mu.Lock()
		last := w.closing
		w.mu.Unlock()

		n, err := w.writeRecords(batch[:wholeRecords(batch)])
		w.reportWrite(batch[:n], err)
		batch = batch[n:]
		if err == nil {
			pause = firstPause
			continue
		}
		if last {
			w.abandon(batch)
			return
		}
		timer := time.NewTimer(pause)
		select {
		case <-w.retry:
		case <-timer.C:
		}
		timer.Stop()
		pause = min(2*pause, lastPause)
	}
}

// wholeRecords returns how much of batch one write takes: as many records as
// fit writeSize, but at least one.
func wholeRecords(batch []byte) int {
	if len(batch) <= writeSize {
		return len(batch)
	}
	if i := bytes.LastIndexByte(batch[:writeSize], '\n'); i >= 0 {
		return i + 1
	}
	return bytes.IndexByte(batch, '\n') + 1
}

// reportWrite counts what a write did and lets those know who wait for it.
func (w *Writer) reportWrite(written []byte, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.inflight -= len(written)
	w.stats.Bytes += uint64(len(written))
	w.stats.Lines += uint64(bytes.Count(written, []byte{'\n'}))
	w.progress = time.Now()
	w.failing = err != nil
	if err != nil {
		w.stats.WriteErrors++
		w.lastErr = err
	}
	w.changed.Broadcast()
}

// abandon counts records that will never be written.
func (w *Writer) abandon(batch []byte) {
	n := bytes.Count(batch, []byte{'\n'})
	w.mu.Lock()
	defer w.mu.Unlock()
	w.inflight = 0
	w.stats.DroppedLines += uint64(n)
	w.stats.DroppedBytes += uint64(len(batch) - n*headerLen)
	w.changed.Broadcast()
}

// writeRecords appends p, which is made of whole records, and returns how many
// bytes of whole records are in the file.
func (w *Writer) writeRecords(p []byte) (int, error) {
	w.file <- struct{}{}
	defer func() { <-w.file }()
	if err := w.mend(); err != nil {
		return 0, err
	}
	off := 0
	for off < len(p) {
		n, err := w.write(w.fd.Int(), p[off:])
		off += max(n, 0)
		if n == 0 && err == nil {
			err = unix.EIO // write(2) never does this for a file; do not spin on one that does
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			whole := bytes.LastIndexByte(p[:off], '\n') + 1
			w.torn = int64(off - whole)
			_ = w.mend() // at once for the readers' sake; tried again before the next write
			return whole, err
		}
	}
	return off, nil
}

// mend takes a torn record off the end of the file. It counts from the size of
// this moment and not from what was ever written, because somebody may have
// truncated the file.
// Preconditions: w.file is held.
func (w *Writer) mend() error {
	if w.torn == 0 {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(w.fd.Int(), &st); err != nil {
		return err
	}
	if err := unix.Ftruncate(w.fd.Int(), max(0, st.Size-w.torn)); err != nil {
		return err
	}
	w.torn = 0
	return nil
}

// Reopen opens the log file anew after somebody renamed it, and moves over to
// it: when Reopen has returned, nothing is written to the old file any more, and
// no record was lost or written twice. If it fails, no file was made and the
// Writer keeps the old one. A write that hangs is waited for Config.Stall long
// (ErrStalled); open(2) itself may hang with the disk, so do not call this from
// a goroutine that others depend on.
func (w *Writer) Reopen() error {
	timer := time.NewTimer(w.stall)
	defer timer.Stop()
	select {
	case w.file <- struct{}{}:
		defer func() { <-w.file }()
	case <-w.done:
		return logError("reopen", w.name, fs.ErrClosed)
	case <-timer.C:
		return logError("reopen", w.name, ErrStalled)
	}
	fd, err := openLog(w.dir.Int(), w.name)
	if err != nil {
		return err
	}
	_ = w.mend() // of the old file; its readers get no second chance
	w.fd.Close()
	w.fd, w.torn = fd, 0
	poke(w.retry) // the new file may be on a disk with space
	return nil
}

// openLog opens a log for appending. The look before the open keeps the open
// from having an effect on a device or a FIFO; the look after it is the one that
// counts.
func openLog(dir int, name string) (*sys.FD, error) {
	var st unix.Stat_t
	switch err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); {
	case err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, logError("open", name, notRegular(st.Mode))
	case err != nil && err != unix.ENOENT:
		return nil, logError("open", name, err)
	}
	const flags = unix.O_RDWR | unix.O_APPEND | unix.O_CREAT | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC
	n, err := unix.Openat(dir, name, flags, 0o640)
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Openat(dir, name, flags, 0o640)
	}
	if err != nil {
		return nil, logError("open", name, err)
	}
	fd := sys.NewFD(n)
	err = unix.Fstat(n, &st)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = notRegular(st.Mode)
	}
	if err == nil {
		err = mendTail(n, st.Size)
	}
	if err != nil {
		fd.Close()
		return nil, logError("open", name, err)
	}
	return fd, nil
}

func notRegular(mode uint32) error {
	switch mode & unix.S_IFMT {
	case unix.S_IFLNK:
		return unix.ELOOP
	case unix.S_IFDIR:
		return unix.EISDIR
	}
	return unix.EINVAL
}

// mendTail takes out a record without a newline at the end of a file that an
// earlier monitor left. If it is longer than any record of ours, somebody else
// wrote it: it stays and is ended by a newline.
func mendTail(fd int, size int64) error {
	buf := make([]byte, min(size, defaultMaxLine+int64(headerLen)))
	n, err := unix.Pread(fd, buf, size-int64(len(buf)))
	if err != nil {
		return err
	}
	end := bytes.LastIndexByte(buf[:n], '\n') + 1
	if end == n { // also the empty file
		return nil
	}
	if end > 0 || size == int64(n) {
		return unix.Ftruncate(fd, size-int64(n-end))
	}
	_, err = unix.Write(fd, []byte{'\n'})
	return err
}
