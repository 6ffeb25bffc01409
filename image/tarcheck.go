package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"syscall"

	"github.com/klauspost/compress/zstd"
)

// tarChecker hands a tar on byte by byte, each header only when it was looked at.
// What was read of a header and not approved is in held.
type tarChecker struct {
	in      io.Reader
	out     io.Writer
	split   *splitter // may be nil
	order   inflateOrder
	held    bytes.Buffer
	pass    bool // what is read now has been approved
	total   int64
	entries int
	names   int
	buffer  []byte
}

// errHeader: see maxHeader.
var errHeader = limitError("description of an entry", maxHeader, "bytes")

// Read implements io.Reader for the tar reader.
func (c *tarChecker) Read(p []byte) (int, error) {
	n, err := c.in.Read(p)
	if c.total += int64(n); c.total > c.order.Bytes {
		return 0, limitError("unpacked layers", c.order.Bytes, "bytes")
	}
	switch {
	case c.pass:
		if werr := c.deliver(p[:n]); werr != nil {
			return n, werr
		}
	case c.held.Len()+n > maxHeader:
		return 0, errHeader
	default:
		c.held.Write(p[:n])
	}
	switch {
	case err == nil || errors.Is(err, io.EOF):
		return n, err
	case errors.Is(err, zstd.ErrWindowSizeExceeded) || errors.Is(err, zstd.ErrDecoderSizeExceeded):
		return n, limitError("window of a zstd frame", maxWindow>>20, "MiB")
	}
	return n, fmt.Errorf("%w: decompress: %w", ErrCorrupt, err)
}

func (c *tarChecker) check() error {
	r := tar.NewReader(c)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return tarError(err)
		}
		if c.entries++; c.entries > c.order.Entries {
			return limitError("entries of a layer", c.order.Entries, "")
		}
		if c.names += len(h.Name); c.names > maxNames {
			return limitError("names of a layer together", maxNames, "bytes")
		}
		if err := checkHeader(h); err != nil {
			return fmt.Errorf("entry %.200q: %w", h.Name, err)
		}
		if err := c.approve(); err != nil {
			return err
		}
		if err := c.content(h, r); err != nil {
			return err
		}
	}
	if err := c.approve(); err != nil {
		return err
	}
	c.pass = true
	return c.skim(c) // padding
}

// content hands on what is in an entry.
func (c *tarChecker) content(h *tar.Header, r io.Reader) error {
	c.split.begin()
	c.pass = true
	err := c.skim(r)
	c.pass = false
	if err != nil {
		return tarError(err)
	}
	return c.split.end(h.Name)
}

// skim reads r to its end. What it reads is handed on by Read.
func (c *tarChecker) skim(r io.Reader) error {
	if c.buffer == nil {
		c.buffer = make([]byte, 256<<10)
	}
	_, err := io.CopyBuffer(onlyWriter{io.Discard}, onlyReader{r}, c.buffer)
	return err
}

// onlyReader and onlyWriter hide everything else that one can do: small buffers of its own.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)

func (c *tarChecker) approve() error {
	err := c.deliver(c.held.Bytes())
	c.held.Reset()
	return err
}

func (c *tarChecker) deliver(p []byte) error {
	if err := c.split.data(p); err != nil {
		return err
	}
	_, err := c.out.Write(p)
	return err
}

// tarError keeps our own kinds of error and calls everything else corrupt.
func tarError(err error) error {
	for _, kind := range []error{ErrLimit, ErrCorrupt, ErrUnsupported, syscall.EPIPE} {
		if errors.Is(err, kind) {
			return err
		}
	}
	return fmt.Errorf("%w: %w", ErrCorrupt, err)
}

// checkHeader refuses what no layer needs and what is something else once it is on
// disk. Where a path leads is not its business: the unpacking child is in a chroot.
func checkHeader(h *tar.Header) error {
	for key := range h.PAXRecords {
		name, isXattr := strings.CutPrefix(key, "SCHILY.xattr.")
		switch {
		case strings.HasPrefix(key, "GNU.sparse."):
			return fmt.Errorf("%w: a sparse file", ErrUnsupported)
		case isXattr && (strings.HasPrefix(name, "trusted.") || strings.HasPrefix(name, "user.overlay.")):
			// The overlay's own language: a lower file could be another one's content.
			return fmt.Errorf("%w: extended attribute %.100q", ErrUnsupported, name)
		}
	}
	switch h.Typeflag {
	case tar.TypeGNUSparse:
		return fmt.Errorf("%w: a sparse file", ErrUnsupported)
	case tar.TypeChar, tar.TypeBlock:
		if h.Devmajor < 0 || h.Devmajor > 0xfff || h.Devminor < 0 || h.Devminor > 0xfffff {
			return fmt.Errorf("%w: device %d:%d", ErrUnsupported, h.Devmajor, h.Devminor)
		}
		if h.Typeflag == tar.TypeChar && h.Devmajor == 0 && h.Devminor == 0 {
			return fmt.Errorf("%w: device 0:0 means that a file is gone", ErrUnsupported)
		}
	case tar.TypeReg, tar.TypeDir, tar.TypeLink, tar.TypeSymlink, tar.TypeFifo, tar.TypeXGlobalHeader:
	default:
		return fmt.Errorf("%w: an entry of type %q", ErrUnsupported, h.Typeflag)
	}
	// The last number of 32 bits means "leave the owner as he is", that is root.
	if h.Uid < 0 || int64(h.Uid) >= 1<<32-1 || h.Gid < 0 || int64(h.Gid) >= 1<<32-1 {
		return fmt.Errorf("%w: owner %d:%d", ErrUnsupported, h.Uid, h.Gid)
	}
	if len(h.Name) > maxPathname || len(h.Linkname) > maxPathname {
		return limitError("length of a path", maxPathname, "bytes")
	}
	return checkWhiteout(h.Name)
}

// checkWhiteout refuses a whiteout of "." or "..", and of nothing.
func checkWhiteout(name string) error {
	base, ok := strings.CutPrefix(path.Base(path.Clean(name)), ".wh.")
	if ok && (base == "" || base == "." || base == "..") {
		return fmt.Errorf("%w: a whiteout of %q", ErrUnsupported, base)
	}
	return nil
}
