package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// FsUsage is what the store occupies on a filesystem.
type FsUsage struct {
	// Mountpoint is the directory that was measured. The kubelet asks statfs
	// about it.
	Mountpoint string
	// UsedBytes counts allocated blocks, Inodes files and directories.
	UsedBytes, Inodes uint64
}

// Measured is a usage, and when it was so.
type Measured struct {
	FsUsage
	At time.Time
}

// How often and how fast directories are measured. A walk takes its time in proportion
// to what there is, on a disk that containers work with: it rests three times as
// long as it works, and what a container wrote is walked again only after twenty
// times what the walk took. Layers never change and are walked once.
const (
	usageAge   = 10 * time.Second // the kubelet's interval
	usagePatch = 20
	// usagePatience is how long a caller waits for new figures where there are older ones.
	usagePatience = time.Second
	// usageFirst is how long the first caller waits, for all layers.
	usageFirst = 10 * time.Second
)

// usageCache remembers what was measured. There may be a million files in a layer, while the
// kubelet asks every ten seconds.
type usageCache struct {
	age time.Duration // a test's; else usageAge

	mu         sync.Mutex
	busy       chan struct{}        // closed when the measuring under way ends; nil if there is none
	stop       context.CancelFunc   // ends it
	images     *Measured            // nil before the first measuring
	containers *Measured            // as images
	err        error                // of the last measuring
	of         map[string]upperUse  // by container
	layer      map[string]diskUsage // layers; the measuring's alone

	stamp usageStamp // of images; the measuring's alone
	half  bool       // as stamp: there was a layer that was not finished
}

// usageStamp changes with the images: what was measured at the same stamp holds.
type usageStamp struct {
	view      *view
	deletions uint64
	dirs      [3][2]int64 // inode, time of change
}

// upperUse is what a container's directory occupied.
type upperUse struct {
	at          time.Time
	took        time.Duration
	upper, rest diskUsage
}

func (u upperUse) isOld(age time.Duration) bool {
	since := time.Since(u.at)
	return since < 0 || since >= max(age, usagePatch*u.took)
}

// FsInfo says what images and containers occupy, to the block and the inode: all that is in the
// two directories, but for downloads under way, whose files have no names.
//
// Nothing is measured that has not changed since the last call, as far as that can be known
// without a walk: images not at all, what a container wrote not before its age is ten seconds, or
// twenty times what the walk took. Measuring goes on in the background where it takes more than a
// second, and the figures from before are returned, with their time. Errors match ErrUnmeasured
// if the directories cannot be read, or have not been measured for the first time yet.
func (s *Store) FsInfo(ctx context.Context) (images, containers Measured, err error) {
	done, first := s.usage.begin(s)
	patience := usagePatience
	if first {
		patience = usageFirst
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	case <-ctx.Done():
		return images, containers, ctx.Err()
	}
	s.usage.mu.Lock()
	defer s.usage.mu.Unlock()
	switch u := &s.usage; {
	case u.err != nil:
		return images, containers, u.err
	case u.images == nil || u.containers == nil:
		return images, containers, fmt.Errorf("measure %s: %w: the first measuring goes on", s.config.Root, ErrUnmeasured)
	default:
		return *u.images, *u.containers, nil
	}
}

// begin starts a measuring, or joins the one that is there. first says that there are no
// figures yet.
func (u *usageCache) begin(s *Store) (done <-chan struct{}, first bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	first = u.images == nil && u.err == nil
	if u.busy != nil {
		return u.busy, first
	}
	ctx, stop := context.WithCancel(context.Background())
	busy := make(chan struct{})
	u.busy, u.stop = busy, stop
	go func() { // ends with the measuring, or with Close, or never where the disk does not answer: nobody waits for it
		err := s.measureAll(ctx)
		stop()
		u.mu.Lock()
		defer u.mu.Unlock()
		u.busy, u.err = nil, err
		close(busy)
	}()
	return busy, first
}

// close ends the measuring under way, and waits a moment for its end.
func (u *usageCache) close() {
	u.mu.Lock()
	busy, stop := u.busy, u.stop
	u.mu.Unlock()
	if busy == nil {
		return
	}
	stop()
	select {
	case <-busy:
	case <-time.After(time.Second):
	}
}

// measureAll renews the figures that are too old.
func (s *Store) measureAll(ctx context.Context) error {
	p := NewPacer(ctx)
	images, err := s.measureImages(ctx, p)
	if err != nil {
		return measureError(s.config.Root, err)
	}
	s.usage.mu.Lock()
	s.usage.images = images
	s.usage.mu.Unlock()
	containers, err := s.measureContainers(ctx, p)
	if err != nil {
		return measureError(s.config.Containers, err)
	}
	s.usage.mu.Lock()
	s.usage.containers = containers
	s.usage.mu.Unlock()
	return nil
}

// RootfsUsage measures what a container wrote: its own directory, without the
// image's layers. Files with several links count once.
//
// The directory is the container's, and may hold millions of files: pace is called
// after about every thousandth entry, and may sleep; its error, or the end of ctx,
// ends the measuring. A container without a root filesystem is fs.ErrNotExist.
func (s *Store) RootfsUsage(ctx context.Context, containerID string, pace func() error) (FsUsage, error) {
	if err := checkContainerID(containerID); err != nil {
		return FsUsage{}, err
	}
	var st unix.Stat_t
	if err := unix.Lstat(path.Join(s.config.Containers, containerID, upperDir), &st); err != nil {
		return FsUsage{}, fmt.Errorf("measure root filesystem of container %s: %w", containerID, err)
	}
	u, err := s.measureContainer(ctx, containerID, pace)
	if err != nil {
		return FsUsage{}, fmt.Errorf("measure root filesystem of container %s: %w", containerID, err)
	}
	return FsUsage{s.config.Containers, u.upper.bytes, u.upper.inodes}, nil
}

func measureError(dir string, err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("measure %s: %w: %w", dir, ErrUnmeasured, err)
}

// measureContainer walks a container's directory and remembers what there is.
func (s *Store) measureContainer(ctx context.Context, id string, pace func() error) (upperUse, error) {
	u := upperUse{at: time.Now()}
	dir := path.Join(s.config.Containers, id)
	// overlayfs keeps a link to a whiteout of the upper directory in the other one.
	m := measurer{ctx: ctx, pace: pace}
	if err := m.all(unix.AT_FDCWD, path.Join(dir, upperDir)); err != nil {
		return u, err
	}
	u.upper = m.sum
	for _, name := range []string{recordFile, workDir} {
		if err := m.all(unix.AT_FDCWD, path.Join(dir, name)); err != nil {
			return u, err
		}
	}
	u.rest = diskUsage{m.sum.bytes - u.upper.bytes, m.sum.inodes - u.upper.inodes}
	u.took = time.Since(u.at)
	s.usage.mu.Lock()
	defer s.usage.mu.Unlock()
	if s.usage.of == nil {
		s.usage.of = map[string]upperUse{}
	}
	s.usage.of[id] = u
	return u, nil
}

// measureContainers adds up all containers, each as it was when it was looked at last.
func (s *Store) measureContainers(ctx context.Context, p *Pacer) (*Measured, error) {
	now := time.Now()
	m := &Measured{FsUsage: FsUsage{Mountpoint: s.config.Containers}}
	sum, names, err := measureDir(s.config.Containers)
	if err != nil {
		return nil, err
	}
	here := map[string]bool{}
	for _, name := range names {
		here[name] = true
		s.usage.mu.Lock()
		u, known := s.usage.of[name]
		s.usage.mu.Unlock()
		if !known || u.isOld(s.usageAge()) {
			if u, err = s.measureContainer(ctx, name, p.Pause); err != nil {
				return nil, err
			}
		}
		own, err := measureOne(path.Join(s.config.Containers, name))
		if err != nil {
			return nil, err
		}
		sum.add(own)
		sum.add(u.upper)
		sum.add(u.rest)
		if m.At.IsZero() || u.at.Before(m.At) {
			m.At = u.at // as old as the oldest part
		}
	}
	if m.At.IsZero() {
		m.At = now
	}
	s.usage.mu.Lock()
	defer s.usage.mu.Unlock()
	for name := range s.usage.of {
		if !here[name] {
			delete(s.usage.of, name)
		}
	}
	m.UsedBytes, m.Inodes = sum.bytes, sum.inodes
	return m, nil
}

func (s *Store) usageAge() time.Duration {
	if s.usage.age != 0 {
		return s.usage.age
	}
	return usageAge
}

// measureImages adds up the layers and all that the library has beside them, unless it is what it was.
func (s *Store) measureImages(ctx context.Context, p *Pacer) (*Measured, error) {
	begin := time.Now()
	stamp, err := s.usageStamp()
	if err != nil {
		return nil, err
	}
	s.usage.mu.Lock()
	last := s.usage.images
	s.usage.mu.Unlock()
	if last != nil && s.usage.stamp == stamp {
		if !s.usage.half {
			return &Measured{last.FsUsage, begin}, nil
		}
		if time.Since(last.At) < s.usageAge() {
			return last, nil
		}
	}
	sum, names, err := measureDir(s.config.Root)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if name == layersDir {
			continue
		}
		u, err := measure(ctx, unix.AT_FDCWD, path.Join(s.config.Root, name), p.Pause)
		if err != nil {
			return nil, err
		}
		sum.add(u)
	}
	layers, half, err := s.measureLayers(ctx, p)
	if err != nil {
		return nil, err
	}
	sum.add(layers)
	s.usage.stamp, s.usage.half = stamp, half
	return &Measured{FsUsage{s.config.Root, sum.bytes, sum.inodes}, begin}, nil
}

// layersDir is the library's directory of layers.
const layersDir = "overlay"

// usageStamp looks at what changes with the images: layers come and go in their directory, and
// records in theirs.
func (s *Store) usageStamp() (u usageStamp, err error) {
	u.view, u.deletions = s.current(), s.deletions.Load()
	for i, name := range []string{layersDir, "overlay-images", "overlay-layers"} {
		var st unix.Stat_t
		if err := unix.Lstat(path.Join(s.config.Root, name), &st); err != nil {
			return u, &os.PathError{Op: "stat", Path: name, Err: err}
		}
		u.dirs[i] = [2]int64{int64(st.Ino), st.Mtim.Nano()}
	}
	return u, nil
}

// measureLayers adds up the layers, each finished one as it was measured once. half says that
// there are others.
func (s *Store) measureLayers(ctx context.Context, p *Pacer) (sum diskUsage, half bool, err error) {
	dir, err := sys.OpenAt2(unix.AT_FDCWD, path.Join(s.config.Root, layersDir), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return sum, false, err
	}
	defer dir.Close()
	if sum, err = measureOne(path.Join(s.config.Root, layersDir)); err != nil {
		return sum, false, err
	}
	done := s.finished() // before the names: what is finished meanwhile counts as half
	names, err := readNames(dir.Int())
	if err != nil {
		return sum, false, err
	}
	next := map[string]diskUsage{} // forgets layers that are gone
	for _, name := range names {
		u, known := s.usage.layer[name]
		if !known {
			if u, err = measure(ctx, dir.Int(), name, p.Pause); err != nil {
				return sum, false, err
			}
		}
		if done[name] {
			next[name] = u
		} else if len(name) == idDigits && isHex(name) {
			half = true
		}
		sum.add(u)
	}
	s.usage.layer = next
	return sum, half, nil
}

// measureDir returns what a directory itself occupies, and the names in it.
func measureDir(dir string) (diskUsage, []string, error) {
	own, err := measureOne(dir)
	if err != nil {
		return own, nil, err
	}
	fd, err := sys.OpenAt2(unix.AT_FDCWD, dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return own, nil, err
	}
	defer fd.Close()
	names, err := readNames(fd.Int())
	return own, names, err
}

// measureOne returns what a file or directory itself occupies, nothing if it is gone.
func measureOne(name string) (diskUsage, error) {
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err != nil {
		return diskUsage{}, ignoreGone(err, name)
	}
	return diskUsage{bytes: uint64(st.Blocks) * 512, inodes: 1}, nil
}

// finished returns the layers that will not change any more.
func (s *Store) finished() map[string]bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	done := map[string]bool{}
	for _, e := range s.view.images {
		for _, l := range e.layers {
			done[l] = true
		}
	}
	for _, rec := range s.rootfses { // of images that were removed
		for _, l := range rec.layers() {
			done[l] = true
		}
	}
	return done
}
