package stage

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Unpack writes the root filesystem of an image that BusyboxImage made below dir, for a runtime that wants a
// directory. It is for our own images only: it trusts the names in them.
func (i *Image) Unpack(dir string) error {
	var m ocispec.Manifest
	if err := json.Unmarshal(i.Manifest, &m); err != nil {
		return err
	}
	for _, l := range m.Layers {
		z, err := gzip.NewReader(bytes.NewReader(i.Blobs[l.Digest.String()]))
		if err != nil {
			return err
		}
		for r := tar.NewReader(z); ; {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err == nil {
				err = unpackEntry(dir, h, r)
			}
			if err != nil {
				return fmt.Errorf("unpack layer: %w", err)
			}
		}
	}
	return nil
}

// unpackEntry writes one directory, file or hard link.
func unpackEntry(dir string, h *tar.Header, content io.Reader) error {
	path := filepath.Join(dir, h.Name)
	mode := os.FileMode(h.Mode & 0o777)
	switch h.Typeflag {
	case tar.TypeDir:
		return os.MkdirAll(path, mode)
	case tar.TypeLink:
		return os.Link(filepath.Join(dir, h.Linkname), path)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	return errors.Join(err, f.Close())
}
