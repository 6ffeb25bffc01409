package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// Containers write what they like below their upper directories: links, deep
// directories, and, where RemoveRootfs or FsInfo meet a live one, a different
// tree from one moment to the next. So these walks go by descriptor, follow no
// link, and hold a bounded number of descriptors.

// maxDepth is how many directories a walk holds open at once.
const maxDepth = 64

// removeTree deletes name below the directory dir, whatever it is. ctx is looked
// at between directories.
func removeTree(ctx context.Context, dir int, name string) error {
	r := remover{ctx: ctx, top: dir}
	if err := r.remove(dir, name, 0); err != nil {
		return err
	}
	// Directories that were too deep hang below dir now.
	for r.moved > r.done {
		deep := r.deepName(r.done)
		r.done++
		if err := r.remove(dir, deep, 0); err != nil {
			return err
		}
	}
	return nil
}

type remover struct {
	ctx         context.Context //nolint:containedctx // lives for one call
	top         int
	moved, done int
}

// deepName is the name of the nth directory that was moved up. It begins with a
// dot, as no name in a container's directory does.
func (r *remover) deepName(n int) string { return fmt.Sprintf(".deep-%d", n) }

func (r *remover) remove(dir int, name string, depth int) error {
	err := unix.Unlinkat(dir, name, 0)
	switch {
	case err == nil || errors.Is(err, unix.ENOENT):
		return nil
	case !errors.Is(err, unix.EISDIR):
		return &fs.PathError{Op: "unlink", Path: name, Err: err}
	}
	if r.ctx.Err() != nil {
		return r.ctx.Err()
	}
	if depth == maxDepth {
		return r.moveUp(dir, name)
	}
	sub, err := sys.OpenAt2(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer sub.Close()
	names, err := readNames(sub.Int())
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := r.remove(sub.Int(), n, depth+1); err != nil {
			return err
		}
	}
	if err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "rmdir", Path: name, Err: err}
	}
	return nil
}

// moveUp puts a directory that is too deep beside the tree, for later. Names
// that a killed predecessor used are taken by RENAME_NOREPLACE's word.
func (r *remover) moveUp(dir int, name string) error {
	for {
		err := unix.Renameat2(dir, name, r.top, r.deepName(r.moved), unix.RENAME_NOREPLACE)
		r.moved++
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if err != nil {
			return &fs.PathError{Op: "rename", Path: name, Err: err}
		}
		return nil
	}
}

// readNames returns the names in the directory dir, which stays open.
func readNames(dir int) ([]string, error) {
	fd, err := sys.OpenAt2(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	f := fd.File("directory")
	defer f.Close()
	return f.Readdirnames(-1)
}

// diskUsage is what a tree occupies.
type diskUsage struct{ bytes, inodes uint64 }

func (u *diskUsage) add(o diskUsage) {
	u.bytes += o.bytes
	u.inodes += o.inodes
}

// measure returns what the directory name below dir occupies, itself included.
// Files with several links count once per call. What vanishes meanwhile is not
// counted.
//
// pace: see RootfsUsage.
func measure(ctx context.Context, dir int, name string, pace func() error) (diskUsage, error) {
	m := measurer{ctx: ctx, pace: pace}
	err := m.all(dir, name)
	return m.sum, err
}

// paceEntries is after how many entries a measurer calls pace: some milliseconds
// with a disk that answers from memory.
const paceEntries = 1024

// maxDeep bounds the directories that wait to be looked into because they are too
// deep, in memory some megabytes. Those beyond are not counted.
const maxDeep = 1 << 16

type measurer struct {
	ctx    context.Context //nolint:containedctx // lives for one call
	sum    diskUsage
	seen   map[[2]uint64]bool
	pace   func() error // see RootfsUsage; nil: as fast as it goes
	looked int          // entries since pace was called

	// Directories below maxDepth, by handles, which need no descriptor: a container
	// must not hide what it wrote from the kubelet by writing it far down.
	deep  []unix.FileHandle
	mount *sys.FD // something on their filesystem; nil as long as there are none
}

// all measures name below dir, and then what was too deep on the way. Called again, it adds to
// the sum what it has not seen yet.
func (m *measurer) all(dir int, name string) error {
	if m.seen == nil {
		m.seen = map[[2]uint64]bool{}
	}
	defer func() { m.mount.Close(); m.mount = nil }()
	if err := m.measure(dir, name, 0); err != nil {
		return err
	}
	for len(m.deep) > 0 {
		h := m.deep[len(m.deep)-1]
		m.deep = m.deep[:len(m.deep)-1]
		n, err := unix.OpenByHandleAt(m.mount.Int(), h, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC)
		if errors.Is(err, unix.ESTALE) {
			continue // removed meanwhile
		}
		if err == nil {
			err = m.list(n, 0)
		}
		if err != nil {
			return ignoreGone(err, "a deep directory")
		}
	}
	return nil
}

func (m *measurer) measure(dir int, name string, depth int) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return ignoreGone(err, name)
	}
	if isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR; !isDir && st.Nlink > 1 {
		key := [2]uint64{st.Dev, st.Ino}
		if m.seen[key] {
			return nil
		}
		m.seen[key] = true
	} else if isDir {
		if err := m.children(dir, name, depth); err != nil {
			return err
		}
	}
	m.sum.add(diskUsage{bytes: uint64(st.Blocks) * 512, inodes: 1})
	if m.looked++; m.looked < paceEntries || m.pace == nil {
		return nil
	}
	m.looked = 0
	return m.pace()
}

func (m *measurer) children(dir int, name string, depth int) error {
	if err := m.ctx.Err(); err != nil {
		return err
	}
	if depth == maxDepth {
		return m.later(dir, name)
	}
	n, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return ignoreGone(err, name)
	}
	return m.list(n, depth)
}

// list measures what is in the directory behind the descriptor n, and closes it.
func (m *measurer) list(n, depth int) error {
	f := os.NewFile(uintptr(n), "directory")
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil { // also of a directory that was removed after it was opened
		return ignoreGone(err, "a directory")
	}
	for _, child := range names {
		if err := m.measure(n, child, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// later keeps a directory that is too deep for after the rest. A filesystem without
// handles has none that is counted.
func (m *measurer) later(dir int, name string) error {
	h, _, err := unix.NameToHandleAt(dir, name, 0)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return nil
	case err != nil:
		return ignoreGone(err, name)
	}
	if m.mount == nil {
		n, err := unix.FcntlInt(uintptr(dir), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return os.NewSyscallError("fcntl", err)
		}
		m.mount = sys.NewFD(n)
	}
	if len(m.deep) < maxDeep {
		m.deep = append(m.deep, h)
	}
	return nil
}

// ignoreGone drops the errors of a tree that changes while it is walked.
func ignoreGone(err error, name string) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	return &fs.PathError{Op: "measure", Path: name, Err: err}
}
