package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	"go.podman.io/storage"
	graphdriver "go.podman.io/storage/drivers"
	"go.podman.io/storage/pkg/unshare"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// staged is a layer whose files are made and checked, in a directory below tmp, where a start of the daemon would take them
// away. Whoever has it calls discard, also after it has come into the store.
type staged struct {
	dir   string
	split *os.File // its tar-split
	got   unpackReport
}

func (s *Store) newStaged() (*staged, error) {
	fd, err := unix.Open(s.config.tmp(), unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make file for tar-split: %w", err)
	}
	st := &staged{split: os.NewFile(uintptr(fd), "tar-split")}
	if st.dir, err = os.MkdirTemp(s.config.tmp(), "layer-"); err != nil {
		return nil, errors.Join(err, st.split.Close())
	}
	if err := os.Mkdir(st.files(), 0o555); err != nil { // the library's mode for "/" of a layer that has none
		return nil, errors.Join(err, st.discard())
	}
	return st, nil
}

func (st *staged) files() string { return filepath.Join(st.dir, "diff") }

func (st *staged) discard() error {
	_ = st.split.Close() // the library has closed it, if it came that far
	return os.RemoveAll(st.dir)
}

// removeStaged empties the directory of a daemon that was killed. Its children end with it, but take a moment.
func removeStaged(dir string) (err error) {
	for range 100 {
		if err = os.RemoveAll(dir); err == nil || !errors.Is(err, unix.ENOTEMPTY) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return err
}

// stage makes the files of a layer of a tar, which must be that of the layer to the last byte. It closes tar.
func (w *layerWork) stage(ctx context.Context, i int, tar *os.File) (_ *staged, err error) {
	defer tar.Close()
	failPoint()
	st, err := w.s.newStaged()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, st.discard())
		}
	}()
	each := func(bytes int64) error { return errors.Join(w.s.checkFree(), w.sizes.set(i, bytes)) }
	if err := st.unpack(ctx, tar, unpackOrder{w.order(i), unshare.IsRootless()}, each); err != nil {
		return nil, err
	}
	if want := w.layers[i].diffID; st.got.Digest != want {
		return nil, fmt.Errorf("%w: unpacked it has the digest %s, the config says %s", ErrCorrupt, st.got.Digest, want)
	}
	failPoint()
	return st, nil
}

// unpack runs the child. Every freeEvery bytes it waits until each has looked.
func (st *staged) unpack(ctx context.Context, tar *os.File, order unpackOrder, each func(bytes int64) error) error {
	text, err := json.Marshal(order)
	if err != nil {
		return err
	}
	root, err := layerMount(st.files())
	if err != nil {
		return err
	}
	defer root.Close()
	ours, theirs, err := socketPair()
	if err != nil {
		return err
	}
	defer ours.Close()
	defer theirs.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var words fewWords
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args, cmd.Env, cmd.Dir = []string{unpackName, string(text)}, childEnv, "/"
	cmd.Stdin, cmd.Stderr, cmd.ExtraFiles = tar, &words, []*os.File{root, st.split, theirs}
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start unpacking child: %w", err)
	}
	_, _ = theirs.Close(), tar.Close() // else nobody would see its end
	refused := st.listen(ours, each)
	if refused != nil {
		cancel()
	}
	err = cmd.Wait()
	switch {
	case refused != nil:
		return refused
	case err != nil && cmd.ProcessState != nil:
		return unpackVerdict.of(cmd.ProcessState, words.String())
	case err != nil:
		return err
	case st.got.Digest == "":
		return errors.New("unpack layer: the child has not said what it has got")
	}
	return nil
}

var unpackVerdict = verdict{"unpack", maxUnpackMemory >> 20, maxUnpackCPU}

// listen answers the child until it is done or goes away, which its status tells.
func (st *staged) listen(talk *os.File, each func(bytes int64) error) error {
	for buf := make([]byte, 4096); ; {
		n, err := talk.Read(buf)
		if err != nil {
			return nil //nolint:nilerr // see above
		}
		var r unpackReport
		if err := json.Unmarshal(buf[:n], &r); err != nil {
			return fmt.Errorf("unpack layer: what the child says: %w", err)
		}
		if r.Digest != "" {
			st.got = r
			return nil
		}
		if err := each(r.Bytes); err != nil {
			return err
		}
		if _, err := talk.Write([]byte{0}); err != nil {
			return nil //nolint:nilerr // see above
		}
	}
}

// layerMount returns a directory as a mount that nothing is above of: whoever has it as the root has nowhere to go. Devices in
// it cannot be opened, and programs not run.
func layerMount(dir string) (*os.File, error) {
	fd, err := sys.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE)
	if err != nil {
		return nil, err
	}
	defer fd.Close()
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC, Propagation: unix.MS_PRIVATE}
	if err := sys.MountSetattr(fd.Int(), "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return nil, err
	}
	own, err := unix.FcntlInt(uintptr(fd.Int()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate descriptor of layer: %w", err)
	}
	return os.NewFile(uintptr(own), dir), nil
}

// socketPair returns the two ends of a line on which messages stay whole.
func socketPair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make sockets for unpacking child: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "talk"), os.NewFile(uintptr(fds[1]), "talk"), nil
}

// commitLayer brings a layer into the store, whole or not at all. The one below it is there.
func (s *Store) commitLayer(l layerRef, st *staged) error {
	failPoint()
	if _, err := s.store.Layer(l.id); err == nil { // the library would exchange its files
		if have := s.layerSource(l); have == nil || have.ID != l.id {
			return fmt.Errorf("layer %s in the store has another content than its id says", l.id)
		}
		return nil
	}
	mode, err := s.ownRoot(l, st)
	if err != nil {
		return err
	}
	out := &graphdriver.DriverWithDifferOutput{
		Target: st.files(), Size: st.got.Bytes, UncompressedDigest: l.diffID, TarSplit: st.split, RootDirMode: &mode,
	}
	if l.blob.Digest.Algorithm() == digest.Canonical {
		out.CompressedDigest = l.blob.Digest
	}
	_, err = s.store.ApplyStagedLayer(storage.ApplyStagedLayerOptions{
		ID: l.id, ParentLayer: l.parent, DiffOutput: out, DiffOptions: &graphdriver.ApplyDiffWithDifferOpts{},
	})
	failPoint()
	if errors.Is(err, storage.ErrLayerUnknown) || errors.Is(err, storage.ErrParentUnknown) {
		return fmt.Errorf("%w: %w", errTakenAway, err)
	}
	return err
}

// ownRoot gives a layer that says nothing of its "/" that of the layer below, and returns its mode.
func (s *Store) ownRoot(l layerRef, st *staged) (os.FileMode, error) {
	like := st.files()
	if !st.got.Root && l.parent != "" {
		like = filepath.Join(s.config.Root, layersDir, l.parent, "diff")
	}
	var stat unix.Stat_t
	if err := unix.Lstat(like, &stat); err != nil {
		if errors.Is(err, unix.ENOENT) {
			err = fmt.Errorf("%w: %w", errTakenAway, err)
		}
		return 0, fmt.Errorf("stat %s: %w", like, err)
	}
	if like != st.files() {
		err := errors.Join(unix.Lchown(st.files(), int(stat.Uid), int(stat.Gid)), unix.Chmod(st.files(), stat.Mode&0o7777))
		if err != nil {
			return 0, fmt.Errorf("own /: %w", err)
		}
	}
	return os.FileMode(stat.Mode & 0o777), nil
}
