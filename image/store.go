package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"go.podman.io/storage"
	"go.podman.io/storage/pkg/reexec"

	"github.com/vitrine-runtime/vitrine/internal/atomicfile"
	"github.com/vitrine-runtime/vitrine/internal/sys"
	"golang.org/x/sys/unix"
)

// Init must be the first call of main in a binary that pulls images, also in
// test binaries. Layers are unpacked by a copy of the running binary in a
// chroot; in that copy Init does the work and returns true, and main must return
// at once.
func Init() bool {
	switch os.Args[0] {
	case inflateName:
		runInflate() // does not return
	case unpackName:
		runUnpack() // nor does this
	}
	return reexec.Init()
}

// Store is the image store of a node. There is one per daemon, and the daemon
// must be the only process that writes its directories: the library's file locks
// protect its files from others, not our snapshot of them.
//
// All methods may be called concurrently, until Close. Images, names and root
// filesystems survive a restart; running pulls do not. What a failed pull
// finished of an image's layers is used by the next one, until a Remove finds no
// pull running, or the store opens again.
type Store struct {
	config  Config
	store   storage.Store
	layers  *sys.FD // O_PATH, Root/overlay: the layers' directories
	roots   *sys.FD // Config.Containers
	disk    atomicfile.FS
	overlay overlayMode
	idmap   idmapMode
	boot    string // see rootfs.Boot

	limits    limits
	flights   flights // pulls, by reference and credentials
	unpacking flights // layers, by id
	blobs     blobs
	cores     chan struct{} // see layerWork.turn

	images   keyLocks // by image id: pin and record of one image change together
	locks    keyLocks // by container id
	refresh  sync.Mutex
	usage    usageCache
	progress progress
	permits  permits
	policies policies

	repaired []Problem // when the store was opened

	deleting  atomic.Int64  // calls of delete under way; see pull
	deletions atomic.Uint64 // and done

	mu       sync.RWMutex
	view     *view               // guarded by mu, replaced as a whole, never changed
	removing map[string]bool     // guarded by mu: image ids that are on their way out
	rootfses map[string]*rootfs  // guarded by mu: by container id
	users    map[string]int      // guarded by mu: image id -> rootfses
	broken   map[string]struct{} // guarded by mu: containers whose record cannot be read
}

// Open opens the store, making its directories (0700) where they are missing,
// and takes care of what a killed predecessor left: half-unpacked layers are
// deleted by the library; half-made pins are completed or deleted, layers and files of no image
// deleted, and so are images that could not run (see Repaired). Call Init first. The caller
// closes the store.
func Open(config Config) (*Store, error) {
	s, err := open(config)
	if err != nil {
		return nil, err
	}
	if err := s.load(); err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

// open opens the library's store and makes the directories.
func open(config Config) (*Store, error) {
	if err := config.check(); err != nil {
		return nil, err
	}
	if err := ignoreStorageConf(); err != nil {
		return nil, err
	}
	// What an interrupted pull had downloaded has no name that anybody could
	// resume from.
	if err := removeStaged(config.tmp()); err != nil {
		return nil, fmt.Errorf("empty download directory: %w", err)
	}
	for _, dir := range []string{config.Root, config.RunRoot, config.Containers, config.tmp(), config.Root + "/empty"} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	st, err := storage.GetStore(storage.StoreOptions{
		RunRoot:         config.RunRoot,
		GraphRoot:       config.Root,
		GraphDriverName: "overlay",
		// The library would bind-mount its home onto itself in the host's mount
		// namespace; we mount nothing there.
		GraphDriverOptions: []string{"overlay.skip_mount_home=true"},
		// A partly pulled layer makes the library give the image an id that is
		// not its config's digest.
		PullOptions: map[string]string{"enable_partial_images": "false", "convert_images": "false"},
	})
	if err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	s := &Store{
		config: config, store: st, disk: relaxedDisk{atomicfile.Disk},
		view: &view{}, removing: map[string]bool{}, rootfses: map[string]*rootfs{},
		users: map[string]int{}, broken: map[string]struct{}{}, limits: defaultLimits,
		cores: make(chan struct{}, runtime.NumCPU()),
	}
	s.blobs = blobs{dir: config.tmp(), limits: &s.limits, room: s.checkFree}
	return s, nil
}

// load reads what is there and repairs it.
func (s *Store) load() (err error) {
	if err := s.openDirs(); err != nil {
		return err
	}
	if err := s.recover(); err != nil {
		return err
	}
	if err := s.repairPins(); err != nil {
		return err
	}
	if err := s.sweep(); err != nil {
		return err
	}
	return s.reload()
}

// openDirs opens the directories and reads which containers use them.
func (s *Store) openDirs() (err error) {
	if s.layers, err = sys.OpenAt2(unix.AT_FDCWD, s.config.Root+"/overlay", unix.O_PATH|unix.O_DIRECTORY, 0); err != nil {
		return err
	}
	if s.roots, err = sys.OpenAt2(unix.AT_FDCWD, s.config.Containers, unix.O_RDONLY|unix.O_DIRECTORY, 0); err != nil {
		return err
	}
	if s.overlay, err = probeOverlay(s.config.Root+"/empty", s.config.tmp()); err != nil {
		return err
	}
	s.idmap = s.probeIDMap(s.config.Root+"/empty", s.config.tmp())
	if s.boot, err = bootID(); err != nil {
		return err
	}
	return s.loadRootfses()
}

// Close cancels running pulls, waits until they have ended, and lets go of the
// store. Mounts that were handed out stay. Nothing may be called afterwards.
func (s *Store) Close() error {
	s.flights.close()
	s.unpacking.close()
	s.blobs.close()
	s.usage.close()
	s.store.Free()
	return errors.Join(s.layers.Close(), s.roots.Close())
}

// ignoreStorageConf keeps storage.conf(5) out: the library reads it even for a
// caller that sets every option itself, fails on a broken one, and remembers the
// first reading for good. So the first reading is of an empty file.
var ignoreStorageConf = sync.OnceValue(func() error {
	const name = "CONTAINERS_STORAGE_CONF"
	for name, value := range map[string]string{name: os.DevNull, name + "_OVERRIDE": ""} {
		old, had := os.LookupEnv(name)
		if err := os.Setenv(name, value); err != nil {
			return err
		}
		defer func() { // the environment is handed on to CNI plugins and others
			if had {
				_ = os.Setenv(name, old)
			} else {
				_ = os.Unsetenv(name)
			}
		}()
	}
	if _, err := storage.DefaultStoreOptions(); err != nil {
		return fmt.Errorf("set up storage library: %w", err)
	}
	return nil
})

// List returns the images in order of their ids: all of them, or with ref the
// one that it names, if any. The slices of the result are shared and must not be
// changed.
func (s *Store) List(ctx context.Context, ref string) ([]Image, error) {
	if ref != "" {
		img, err := s.Status(ctx, ref)
		if img == nil {
			return nil, err
		}
		return []Image{*img}, nil
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	images := make([]Image, 0, len(s.view.images))
	for _, e := range s.view.images {
		if !s.removing[e.key] {
			images = append(images, e.Image)
		}
	}
	return images, nil
}

// Status returns the image that ref names: an id with or without "sha256:", at
// least four leading digits of one, a reference with tag or digest, or a short
// name as registries.conf resolves it. It returns nil for an unknown one. Errors
// match ErrInvalidReference: ref is empty, or an abbreviated id fits several
// images.
func (s *Store) Status(_ context.Context, ref string) (*Image, error) {
	e, err := s.find(ref)
	if e == nil {
		return nil, err
	}
	img := e.Image
	return &img, nil
}

// Resolve is Status for a caller that needs the image: an unknown one is
// ErrNotFound.
func (s *Store) Resolve(ctx context.Context, ref string) (*Image, error) {
	img, err := s.Status(ctx, ref)
	if err == nil && img == nil {
		err = fmt.Errorf("resolve %q: %w", ref, ErrNotFound)
	}
	return img, err
}

// find looks ref up in the snapshot. Names come before abbreviated ids: what was
// pulled as "cafe" is found as "cafe".
func (s *Store) find(ref string) (*entry, error) {
	if ref == "" {
		return nil, fmt.Errorf("%w: it is empty", ErrInvalidReference)
	}
	sysctx, err := s.config.systemContext()
	if err != nil {
		return nil, err
	}
	names := localCandidates(sysctx, ref) // may read files: not under the lock
	s.mu.RLock()
	defer s.mu.RUnlock()
	e, err := s.view.find(ref, names, func(id string) bool { return !s.removing[id] })
	if err != nil {
		return nil, fmt.Errorf("find image %q: %w", ref, err)
	}
	return e, nil
}
