package stage

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is an OCI image in memory, ready to be pushed.
type Image struct {
	Manifest []byte            // application/vnd.oci.image.manifest.v1+json
	Blobs    map[string][]byte // by digest: the config and the layers
}

// Digest returns the digest of the manifest.
func (i *Image) Digest() string { return digest.FromBytes(i.Manifest).String() }

// ArtifactImage makes an OCI artifact: files by their titles, and no layers.
func ArtifactImage(files map[string][]byte) (*Image, error) {
	img := &Image{Blobs: map[string][]byte{}}
	put := func(data []byte, kind string) ocispec.Descriptor {
		d := digest.FromBytes(data)
		img.Blobs[d.String()] = data
		return ocispec.Descriptor{MediaType: kind, Digest: d, Size: int64(len(data))}
	}
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, ArtifactType: "application/vnd.vitrine.test", Config: put([]byte("{}"), ocispec.MediaTypeEmptyJSON)}
	m.SchemaVersion = 2
	for _, title := range slices.Sorted(maps.Keys(files)) {
		d := put(files[title], "application/octet-stream")
		d.Annotations = map[string]string{ocispec.AnnotationTitle: title}
		m.Layers = append(m.Layers, d)
	}
	var err error
	img.Manifest, err = json.Marshal(m)
	return img, err
}

// busyboxPaths are where Debian's busybox-static and others put a busybox. VITRINE_BUSYBOX names another one.
var busyboxPaths = []string{"/bin/busybox", "/usr/bin/busybox", "/sbin/busybox"}

// BusyboxImage makes an image from the host's static busybox: one layer with the program, its applets as hard links
// and a minimal /etc, and a second, small layer with marker in /etc/vitrine-image. The same busybox and marker give the
// same digest.
func BusyboxImage(marker string) (*Image, error) {
	program, err := readBusybox()
	if err != nil {
		return nil, err
	}
	out, err := exec.Command(busyboxPath(), "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("list applets of busybox: %w", err)
	}
	base, err := layer(func(w *layerWriter) {
		for _, d := range []string{"bin", "dev", "etc", "proc", "root", "run", "sys", "usr", "usr/bin", "var", "var/run"} {
			w.dir(d, 0o755)
		}
		w.dir("tmp", 0o1777)
		w.file("bin/busybox", 0o755, program)
		for _, applet := range strings.Fields(string(out)) {
			if applet != "busybox" {
				w.link("bin/"+applet, "bin/busybox")
			}
		}
		w.file("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/tmp:/bin/sh\nnobody:x:65534:65534:nobody:/tmp:/bin/sh\n"))
		w.file("etc/group", 0o644, []byte("root:x:0:\nwww-data:x:33:\nusers:x:100:www-data\nnogroup:x:65534:\n"))
	})
	if err != nil {
		return nil, err
	}
	top, err := layer(func(w *layerWriter) { w.file("etc/vitrine-image", 0o644, []byte(marker+"\n")) })
	if err != nil {
		return nil, err
	}
	return assemble(base, top)
}

// assemble puts layers (uncompressed tars) together to an image.
func assemble(layers ...[]byte) (*Image, error) {
	img := &Image{Blobs: map[string][]byte{}}
	created := time.Unix(0, 0).UTC()
	config := ocispec.Image{
		Created:  &created,
		Platform: ocispec.Platform{Architecture: runtime.GOARCH, OS: "linux"},
		Config:   ocispec.ImageConfig{Env: []string{"PATH=/bin:/usr/bin"}, Cmd: []string{"/bin/sh"}},
		RootFS:   ocispec.RootFS{Type: "layers"},
	}
	manifest := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest}
	manifest.SchemaVersion = 2
	for _, l := range layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(l))
		var packed bytes.Buffer
		z := gzip.NewWriter(&packed)
		if _, err := z.Write(l); err != nil {
			return nil, err
		}
		if err := z.Close(); err != nil {
			return nil, err
		}
		manifest.Layers = append(manifest.Layers, img.add(ocispec.MediaTypeImageLayerGzip, packed.Bytes()))
	}
	text, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	manifest.Config = img.add(ocispec.MediaTypeImageConfig, text)
	img.Manifest, err = json.Marshal(manifest)
	return img, err
}

// With returns the image with another layer on top, made of entries, and with another config. A
// regular file's content is its PAX record "content".
func (i *Image) With(entries []tar.Header, edit func(*ocispec.Image)) (*Image, error) {
	var m ocispec.Manifest
	if err := json.Unmarshal(i.Manifest, &m); err != nil {
		return nil, err
	}
	var c ocispec.Image
	if err := json.Unmarshal(i.Blobs[m.Config.Digest.String()], &c); err != nil {
		return nil, err
	}
	img := &Image{Blobs: maps.Clone(i.Blobs)}
	delete(img.Blobs, m.Config.Digest.String())
	if len(entries) > 0 {
		top, err := layer(func(w *layerWriter) {
			for _, e := range entries {
				content := e.PAXRecords["content"]
				e.PAXRecords = nil
				w.entry(e, []byte(content))
			}
		})
		if err != nil {
			return nil, err
		}
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, digest.FromBytes(top))
		m.Layers = append(m.Layers, img.add(ocispec.MediaTypeImageLayer, top))
	}
	if edit != nil {
		edit(&c)
	}
	text, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	m.Config = img.add(ocispec.MediaTypeImageConfig, text)
	img.Manifest, err = json.Marshal(m)
	return img, err
}

// add keeps a blob and describes it.
func (i *Image) add(mediaType string, blob []byte) ocispec.Descriptor {
	d := digest.FromBytes(blob)
	i.Blobs[d.String()] = blob
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(blob))}
}

// layerWriter writes a tar and keeps the first error.
type layerWriter struct {
	tar *tar.Writer
	err error
}

// layer runs fill and returns the tar that it wrote.
func layer(fill func(*layerWriter)) ([]byte, error) {
	var buf bytes.Buffer
	w := &layerWriter{tar: tar.NewWriter(&buf)}
	fill(w)
	return buf.Bytes(), errors.Join(w.err, w.tar.Close())
}

func (w *layerWriter) entry(h tar.Header, content []byte) {
	h.ModTime, h.Format = time.Unix(0, 0), tar.FormatPAX
	h.Size = int64(len(content))
	if w.err == nil {
		w.err = w.tar.WriteHeader(&h)
	}
	if w.err == nil {
		_, w.err = w.tar.Write(content)
	}
}

func (w *layerWriter) dir(name string, mode int64) {
	w.entry(tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode}, nil)
}

func (w *layerWriter) file(name string, mode int64, content []byte) {
	w.entry(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode}, content)
}

func (w *layerWriter) link(name, target string) {
	w.entry(tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o755}, nil)
}

// busyboxPath returns the first busybox that exists.
func busyboxPath() string {
	if p := os.Getenv("VITRINE_BUSYBOX"); p != "" {
		return p
	}
	for _, p := range busyboxPaths {
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	return busyboxPaths[0]
}

// readBusybox reads the host's busybox and refuses one that needs an interpreter: alone in an image it would not start.
func readBusybox() ([]byte, error) {
	program, err := os.ReadFile(busyboxPath())
	if err != nil {
		return nil, fmt.Errorf("%w (install busybox-static, or run make deps)", err)
	}
	if bytes.Contains(program[:min(len(program), 4096)], []byte("/ld-linux")) || bytes.Contains(program[:min(len(program), 4096)], []byte("/ld-musl")) {
		return nil, fmt.Errorf("%s is linked dynamically: install busybox-static", busyboxPath())
	}
	return program, nil
}

// unique returns a short name that depends on its parts only.
func unique(parts ...string) string {
	return fmt.Sprintf("%x", sha256.Sum256([]byte(strings.Join(parts, "\x00"))))[:12]
}
