package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// plenty is an order that nothing in these tests comes near to.
var plenty = inflateOrder{Bytes: 1 << 30, Entries: 1000}

// windows is a tar of several windows that does not compress, with entries about the size of windows and blocks, and
// others that repeat what is long ago in the window.
func windows(tb testing.TB) []byte {
	tb.Helper()
	seed := rand.NewChaCha8([32]byte{1})
	var entries []tar.Header
	for i, size := range []int{64<<10 - 1, 64 << 10, 64<<10 + 1, 1, 511, 512, 513, 3 << 20, 100 << 10} {
		b := make([]byte, size)
		_, _ = seed.Read(b)
		entries = append(entries, file(fmt.Sprint("noise", i), string(b)), file(fmt.Sprint("again", i), string(b[size/2:])))
	}
	return tarOf(tb, entries...)
}

func zstdStream(tb testing.TB, parts [][]byte, o ...zstd.EOption) []byte {
	tb.Helper()
	var buf bytes.Buffer
	for _, part := range parts {
		w, err := zstd.NewWriter(&buf, o...)
		must(tb, err)
		_, err = w.Write(part)
		must(tb, err)
		must(tb, w.Close())
	}
	return buf.Bytes()
}

func gzipStream(tb testing.TB, parts [][]byte) []byte {
	tb.Helper()
	var buf bytes.Buffer
	for _, part := range parts {
		w := gzip.NewWriter(&buf)
		_, err := w.Write(part)
		must(tb, err)
		must(tb, w.Close())
	}
	return buf.Bytes()
}

// TestInflateIsExact: what a decompressor writes from its window is used before it is written over, whatever the window, the frames
// and members, and the borders between them.
func TestInflateIsExact(t *testing.T) {
	whole := windows(t)
	halves := [][]byte{whole[:len(whole)/2-77], whole[len(whole)/2-77:]}
	for name, blob := range map[string][]byte{
		"plain":                whole,
		"gzip":                 gzipStream(t, [][]byte{whole}),
		"gzip, two members":    gzipStream(t, halves),
		"zstd":                 zstdStream(t, [][]byte{whole}),
		"zstd, best":           zstdStream(t, [][]byte{whole}, zstd.WithEncoderLevel(zstd.SpeedBestCompression)),
		"zstd, small window":   zstdStream(t, [][]byte{whole}, zstd.WithWindowSize(128<<10)),
		"zstd, least window":   zstdStream(t, [][]byte{whole}, zstd.WithWindowSize(zstd.MinWindowSize)),
		"zstd, two frames":     zstdStream(t, halves, zstd.WithWindowSize(256<<10)),
		"zstd, without a sum":  zstdStream(t, [][]byte{whole}, zstd.WithEncoderCRC(false)),
		"zstd, with a skipped": append(skipped(100), zstdStream(t, [][]byte{whole})...),
	} {
		var out bytes.Buffer
		if err := inflate(&out, bytes.NewReader(blob), plenty); err != nil {
			t.Errorf("%s: %v", name, err)
		} else if !bytes.Equal(out.Bytes(), whole) {
			t.Errorf("%s: %d bytes are others than the %d that were compressed", name, out.Len(), len(whole))
		}
	}
}

// skipped is a frame that every decoder skips.
func skipped(n int) []byte {
	return append([]byte{0x50, 0x2a, 0x4d, 0x18, byte(n), byte(n >> 8), 0, 0}, make([]byte, n)...)
}

// TestInflateBrokenBehindTheTar: the tar is whole in all of these, and only the decompressor can say that something is wrong.
func TestInflateBrokenBehindTheTar(t *testing.T) {
	whole := tarOf(t, file("x", "y"))
	flip := func(b []byte, fromEnd int) []byte {
		b = bytes.Clone(b)
		b[len(b)-fromEnd] ^= 1
		return b
	}
	gz, zs := gzipStream(t, [][]byte{whole}), zstdStream(t, [][]byte{whole})
	second := gzipStream(t, [][]byte{make([]byte, 1000)})
	for name, blob := range map[string][]byte{
		"gzip without its length":       gz[:len(gz)-4],
		"gzip with another sum":         flip(gz, 5),
		"gzip with another length":      flip(gz, 1),
		"second member of gzip cut":     append(bytes.Clone(gz), second[:len(second)-9]...),
		"zstd without its last byte":    zs[:len(zs)-1],
		"zstd with another sum":         flip(zs, 1),
		"skipped frame of zstd cut":     append(bytes.Clone(zs), skipped(100)[:50]...),
		"second frame of zstd cut":      append(bytes.Clone(zs), zs[:len(zs)-10]...),
		"padding behind, and no zstd":   append(bytes.Clone(zs), make([]byte, 100)...),
		"padding behind, and no gzip":   append(bytes.Clone(gz), make([]byte, 100)...),
		"a header of gzip and no more":  append(bytes.Clone(gz), gz[:3]...),
		"a header of zstd and no more":  append(bytes.Clone(zs), zs[:4]...),
		"gzip with garbage of one byte": append(bytes.Clone(gz), 'x'),
	} {
		var out bytes.Buffer
		if err := inflate(&out, bytes.NewReader(blob), plenty); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, blob := range map[string][]byte{"gzip": gz, "zstd": zs} {
		var out bytes.Buffer
		if err := inflate(&out, bytes.NewReader(blob), plenty); err != nil || !bytes.Equal(out.Bytes(), whole) {
			t.Errorf("the legal case, %s: %v", name, err)
		}
	}
}
