package image

import (
	"errors"
	"fmt"
	"time"
)

// ErrLimit: the image, or a node that would be full with it, is at one of the
// bounds of this file. The text names the bound.
var ErrLimit = errors.New("image limit reached")

// ErrCorrupt: what the registry sent is not what its digest, its size or its own
// format says. A retry helps where the network was at fault.
var ErrCorrupt = errors.New("image data is corrupt")

// What an image may ask of the node. Nothing that is larger is looked at in full:
// whoever can name an image in a pod chooses every byte of it.
const (
	// maxLayers is what overlayfs can stack.
	maxLayers = 500
	// maxInstances is the number of builds that an index may list.
	maxInstances = 1000
	// maxConfig bounds the config, as the library bounds manifests.
	maxConfig = 4 << 20
	// maxEntries bounds the entries of one layer: each costs an inode.
	maxEntries = 1 << 20
	// maxNames bounds the names of one layer together: they are in memory while it
	// is unpacked, to find one that is there twice.
	maxNames = 64 << 20
	// maxHeader bounds what describes one entry (long names, attributes).
	maxHeader = 2 << 20
	// maxPathname is the kernel's.
	maxPathname = 4096
	// maxWindow bounds the memory of a zstd frame; "zstd --long" uses it all.
	maxWindow = 128 << 20
)

// limits are the bounds that depend on the node. Tests make them small.
type limits struct {
	// image is what the unpacked layers of one image may take.
	image int64
	// reserve is what must stay free on the store's filesystem, or a twentieth of it
	// where that is less.
	reserve uint64
	// answer is how long a registry may take for anything but a blob, all of its
	// redirects, tokens and repetitions included.
	answer time.Duration
	// program is how long a credential program may take.
	program time.Duration
	// stall is how long a blob's data may take for minProgress bytes.
	stall time.Duration
	// minProgress over stall is the slowest rate of a download.
	minProgress int64
	// unpack is how long one layer may take once its data is here.
	unpack time.Duration
	// entries bounds the entries of one layer.
	entries int
}

// defaultLimits: a minute for a mebibyte is the rate of a modem; less than that is
// somebody who keeps connections open.
var defaultLimits = limits{
	image:       128 << 30,
	reserve:     256 << 20,
	answer:      3 * time.Minute,
	program:     30 * time.Second,
	stall:       time.Minute,
	minProgress: 1 << 20,
	unpack:      30 * time.Minute,
	entries:     maxEntries,
}

// limitError says which bound was hit.
func limitError(what string, bound any, unit string) error {
	return fmt.Errorf("%w: %s: at most %v %s", ErrLimit, what, bound, unit)
}
