package image

import (
	"errors"
	"fmt"
	"io"
	"path"

	"github.com/vbatts/tar-split/tar/storage"
)

// splitter writes down what a tar has besides the content of its files, and a sum of each content, in the library's form
// (tar-split): with it and the files the tar can be put together again to the byte. All methods do nothing for nil.
type splitter struct {
	packer storage.Packer
	sum    contentSum
	size   int64 // of the content so far
	inside bool  // of an entry's content
	root   bool  // there was an entry for "/"
}

func newSplitter(out io.Writer) *splitter {
	return &splitter{packer: storage.NewJSONPacker(out)}
}

// begin says that content follows, data what comes.
func (s *splitter) begin() {
	if s != nil {
		s.sum, s.size, s.inside = 0, 0, true
	}
}

func (s *splitter) data(p []byte) error {
	switch {
	case s == nil || len(p) == 0:
		return nil
	case s.inside:
		s.size += int64(len(p))
		s.sum.add(p)
		return nil
	}
	return s.add(storage.Entry{Type: storage.SegmentType, Payload: p})
}

// end says whose content that was. No path may be there twice: the file would be the last one's.
func (s *splitter) end(name string) error {
	if s == nil {
		return nil
	}
	s.inside = false
	if clean := path.Clean(name); clean == "." || clean == "/" {
		s.root = true
	}
	e := storage.Entry{Type: storage.FileType, Size: s.size}
	if s.size > 0 {
		e.Payload = s.sum.bytes()
	}
	e.SetName(name)
	return s.add(e)
}

func (s *splitter) add(e storage.Entry) error {
	_, err := s.packer.AddEntry(e)
	if errors.Is(err, storage.ErrDuplicatePath) {
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	if err != nil {
		return fmt.Errorf("write tar-split: %w", err)
	}
	return nil
}
