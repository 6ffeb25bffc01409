package image

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"runtime/debug"

	"github.com/opencontainers/go-digest"
	"go.podman.io/storage/pkg/archive"
	"golang.org/x/sys/unix"
)

// unpackName is what a copy of this program is called that unpacks a layer.
const unpackName = "vitrine-unpack"

// unpackOrder is what it is told, in its second argument. Besides the tar it has three descriptors: unpackRoot, unpackSplit
// and unpackTalk.
type unpackOrder struct {
	inflateOrder
	Rootless bool // see archive.TarOptions.InUserNS
}

const (
	unpackRoot  = 3 + iota // the layer's directory, as a mount of its own
	unpackSplit            // a file for the tar-split
	unpackTalk             // a socket: what it says are unpackReports, the answers are single bytes
)

// unpackReport is what the child has to say: every freeEvery bytes, after which it waits for an answer, and at its end.
type unpackReport struct {
	Bytes  int64         // of the tar
	Digest digest.Digest `json:",omitempty"` // of the tar; at the end
	Root   bool          `json:",omitempty"` // the layer says how "/" is; at the end
}

// runUnpack is the child's main. The directory is all that it sees of the host.
func runUnpack() {
	var order unpackOrder
	err := json.Unmarshal([]byte(os.Args[1]), &order)
	if err == nil {
		err = confineUnpack()
	}
	debug.SetMemoryLimit(maxUnpackMemory / 2)
	if err == nil {
		talk := newTalker(os.NewFile(unpackTalk, "talk"))
		u := &unpacker{order: order, split: os.NewFile(unpackSplit, "tar-split"), report: talk.report}
		var end unpackReport
		if end, err = u.run(os.Stdin); err == nil {
			err = talk.send(end)
		}
	}
	exitWith(err)
}

// talker is the child's side of the socket.
type talker struct {
	socket  *os.File
	answers chan struct{}
}

// newTalker also ends the process with the daemon: nobody would want what it makes.
func newTalker(socket *os.File) *talker {
	t := &talker{socket: socket, answers: make(chan struct{})}
	go func() { // ends with the process
		for b := make([]byte, 1); ; {
			if n, err := t.socket.Read(b); n == 0 || err != nil {
				os.Exit(1)
			}
			t.answers <- struct{}{}
		}
	}()
	return t
}

func (t *talker) send(r unpackReport) error {
	text, err := json.Marshal(r)
	if err == nil {
		_, err = t.socket.Write(text)
	}
	return err
}

// report says how far the child is and waits until it may go on.
func (t *talker) report(bytes int64) error {
	if err := t.send(unpackReport{Bytes: bytes}); err != nil {
		return err
	}
	<-t.answers
	return nil
}

// unpacker makes the files of a layer of a tar, below "/". What comes is hashed, checked as the inflating child has checked
// it already, written down for the tar-split, and only then handed to the library.
//
//	tar ──> meter ──> tarChecker ──> archive.Unpack ──> files
//	        digest        └──> splitter ──> tar-split
type unpacker struct {
	order  unpackOrder
	split  io.Writer
	report func(bytes int64) error
}

func (u *unpacker) run(in io.Reader) (unpackReport, error) {
	m := &meter{in: in, digester: digest.Canonical.Digester(), report: u.report}
	buf := bufio.NewReaderSize(m, 256<<10)
	if err := refuseCompressed(buf); err != nil {
		return unpackReport{}, err
	}
	split := bufio.NewWriterSize(u.split, 64<<10)
	s := newSplitter(split)
	checked := newCheckedTar(&tarChecker{in: buf, split: s, order: u.order.inflateOrder})
	defer checked.stop()
	if err := u.makeFiles(checked); err != nil {
		return unpackReport{}, err
	}
	if err := split.Flush(); err != nil {
		return unpackReport{}, err
	}
	return unpackReport{Bytes: m.total, Digest: m.digester.Digest(), Root: s.root}, nil
}

// makeFiles has the library make the files of a tar. What is wrong with the tar counts more than what came of it.
func (u *unpacker) makeFiles(tar *checkedTar) error {
	err := archive.Unpack(tar, "/", &archive.TarOptions{WhiteoutFormat: archive.OverlayWhiteoutFormat, InUserNS: u.order.Rootless})
	if err == nil {
		_, err = io.Copy(io.Discard, tar) // padding
	}
	switch {
	case tar.err != nil:
		return tar.err
	case err != nil:
		return unpackError(err)
	}
	return nil
}

// checkedTar reads what a tarChecker lets through. The two take turns in one thread: neither waits for the other to be woken, and
// nothing is copied between them but into the reader's own buffer.
type checkedTar struct {
	next func() ([]byte, bool)
	stop func()
	rest []byte // of the last piece
	err  error  // what the checker says at its end
}

// newCheckedTar begins to check when it is first read from. The caller calls stop.
func newCheckedTar(c *tarChecker) *checkedTar {
	t := &checkedTar{}
	t.next, t.stop = iter.Pull(func(yield func([]byte) bool) {
		c.out = yielder(yield)
		if err := c.check(); !errors.Is(err, errFiles) {
			t.err = err
		}
	})
	return t
}

// Read implements io.Reader. It fails with what is wrong with the tar.
func (t *checkedTar) Read(p []byte) (int, error) {
	for len(t.rest) == 0 {
		piece, more := t.next()
		switch {
		case more:
			t.rest = piece
		case t.err != nil:
			return 0, t.err
		default:
			return 0, io.EOF
		}
	}
	n := copy(p, t.rest)
	t.rest = t.rest[n:]
	return n, nil
}

// errFiles is what writing a tar fails with when its files could not be made.
var errFiles = errors.New("files could not be made")

// yielder hands pieces on. Each is read before the call returns.
type yielder func([]byte) bool

// Write implements io.Writer.
func (y yielder) Write(p []byte) (int, error) {
	if len(p) > 0 && !y(p) {
		return 0, errFiles
	}
	return len(p), nil
}

// unpackError gives what the library ended with one of the kinds that a child can end with.
func unpackError(err error) error {
	for _, kind := range exitKinds {
		if errors.Is(err, kind) {
			return err
		}
	}
	if errors.Is(err, unix.EFBIG) {
		return fmt.Errorf("%w: size of a file: %w", ErrLimit, err)
	}
	return fmt.Errorf("%w: %w", ErrUnsupported, err)
}

// refuseCompressed fails where a tar could be taken for something else. It begins with the name of its first entry, and that
// can be made to look like gzip: whoever decompresses it (a tool that reads our store) has a tar that was never checked.
func refuseCompressed(tar *bufio.Reader) error {
	head, err := tar.Peek(32)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if archive.DetectCompression(bytes.Clone(head)) != archive.Uncompressed {
		return fmt.Errorf("%w: a layer whose first entry has a name that looks like compressed data", ErrUnsupported)
	}
	return nil
}

// meter hashes what is read of a tar, and says how far it is.
type meter struct {
	in       io.Reader
	digester digest.Digester
	report   func(bytes int64) error
	total    int64
	said     int64
}

// Read implements io.Reader.
func (m *meter) Read(p []byte) (int, error) {
	if m.total-m.said >= freeEvery {
		m.said = m.total
		if err := m.report(m.total); err != nil {
			return 0, err
		}
	}
	n, err := m.in.Read(p)
	m.digester.Hash().Write(p[:n])
	m.total += int64(n)
	return n, err
}
