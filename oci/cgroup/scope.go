package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// Scope is a handle on one cgroup below a Tree: a container's, or an exec's leaf
// in it. It holds no descriptor and no state of the kernel's, so it may be
// dropped at any time and made again by Tree.Load from Path, also by the next
// daemon. Verbs of a cgroup that is gone succeed where that is what they want,
// and are fs.ErrNotExist elsewhere.
type Scope struct {
	tree       *Tree
	path       string
	unenforced []string
	limits     []setting  // from Create to Place, for systemd
	devices    []property // as well
}

// Load returns the handle on the cgroup at path, which is relative to
// Config.Root as Path returned it. Nothing is looked at yet.
func (t *Tree) Load(path string) *Scope { return &Scope{tree: t, path: path} }

// Path returns the scope's path relative to Config.Root, for records.
func (s *Scope) Path() string { return s.path }

// Unenforced returns the limits that were asked for in Create or Update and do
// not hold, by the name of their file, or "devices". A loaded Scope does not know
// them; the caller keeps them with the record.
func (s *Scope) Unenforced() []string { return slices.Clone(s.unenforced) }

// OpenDir opens the cgroup's directory, for CLONE_INTO_CGROUP. The caller closes
// it.
func (s *Scope) OpenDir() (*sys.FD, error) {
	parts, err := splitPath(s.path)
	if err != nil {
		return nil, err
	}
	if len(parts) == 0 {
		// A record that lost its path must not make us kill the node.
		return nil, fmt.Errorf("open cgroup: the path is empty: %w", ErrInvalid)
	}
	fd, err := sys.OpenAt2(s.tree.root.Int(), path.Join(parts...), unix.O_DIRECTORY, beneath)
	if err != nil {
		return nil, fmt.Errorf("open cgroup: %w", err)
	}
	return fd, nil
}

// Leaf makes the cgroup name in the scope, for one exec. Its processes are bound
// by the scope's limits. Taken names are fs.ErrExist, and a frozen scope is
// ErrFrozen. systemd is not asked: the scope was delegated to us.
func (s *Scope) Leaf(name string) (*Scope, error) {
	if err := checkComponent(name); err != nil {
		return nil, err
	}
	dir, err := s.OpenDir()
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	if frozen(dir.Int()) {
		return nil, fmt.Errorf("make leaf of cgroup %s: %w", s.path, ErrFrozen)
	}
	if err := mkdir(dir.Int(), name); err != nil {
		return nil, fmt.Errorf("make leaf of cgroup %s: %w", s.path, err)
	}
	return s.tree.Load(path.Join(s.path, name)), nil
}

// frozen says whether a cgroup is, by itself or by one above it.
func frozen(dir int) bool {
	own, err := fields(dir, "cgroup.freeze")
	if err == nil && len(own) == 1 && own[0] == "1" {
		return true
	}
	n, err := keyed(dir, "cgroup.events", "frozen")
	return err == nil && n != 0
}

// Kill sends SIGKILL to every process in the scope and its leaves, also to those
// that are frozen or are being forked at this moment. It does not wait. The scope is
// thawed: the dead do not mind, but whoever was cloned into it at that moment, or
// would be later, stops in the kernel where no signal reaches, and its parent with
// it. A scope that is gone has nobody to kill: nil.
func (s *Scope) Kill() error {
	if err := s.write("kill", "cgroup.kill", "1", true); err != nil {
		return err
	}
	return s.Thaw()
}

// Freeze stops every process in the scope and returns when all have stopped. If
// ctx ends first the scope is thawed again.
func (s *Scope) Freeze(ctx context.Context) error {
	if err := s.write("freeze", "cgroup.freeze", "1", false); err != nil {
		return err
	}
	err := s.waitEvent(ctx, "frozen", 1)
	if err != nil {
		_ = s.Thaw()
		return fmt.Errorf("freeze cgroup %s: %w", s.path, err)
	}
	return nil
}

// Thaw lets the processes of a frozen scope go on. One that is gone needs none:
// nil.
func (s *Scope) Thaw() error {
	return s.write("thaw", "cgroup.freeze", "0", true)
}

// Frozen says whether Freeze was called without Thaw: an exec into such a scope
// would stop, too. fs.ErrNotExist: there is no such scope, or it has gone meanwhile.
func (s *Scope) Frozen() (bool, error) {
	dir, err := s.OpenDir()
	if err != nil {
		return false, err
	}
	defer dir.Close()
	return frozenIn(dir)
}

func frozenIn(dir *sys.FD) (bool, error) {
	v, err := fields(dir.Int(), "cgroup.freeze")
	if gone(err) {
		err = fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	return len(v) == 1 && v[0] == "1", err
}

func (s *Scope) write(verb, file, value string, goneOK bool) error {
	dir, err := s.OpenDir()
	if err == nil {
		defer dir.Close()
		err = writeFile(dir.Int(), file, value)
	}
	if err == nil || goneOK && gone(err) {
		return nil
	}
	return fmt.Errorf("%s cgroup %s: %w", verb, s.path, err)
}

// Procs returns the processes of the scope and its leaves. Those of a PID
// namespace that we cannot see are left out.
func (s *Scope) Procs() ([]int, error) {
	dir, err := s.OpenDir()
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	var pids []int
	err = walk(dir, func(dir int) error {
		list, err := fields(dir, "cgroup.procs")
		if gone(err) {
			return nil
		}
		for _, f := range list {
			if pid, aerr := strconv.Atoi(f); aerr == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list cgroup %s: %w", s.path, err)
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

// walk calls f for the cgroup behind dir and every one below it.
func walk(dir *sys.FD, f func(dir int) error) error {
	if err := f(dir.Int()); err != nil {
		return err
	}
	names, err := subdirs(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		sub, err := sys.OpenAt2(dir.Int(), name, unix.O_DIRECTORY, beneath)
		if gone(err) {
			continue
		}
		if err != nil {
			return err
		}
		err = walk(sub, f)
		sub.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// subdirs lists the cgroups directly below one.
func subdirs(dir *sys.FD) ([]string, error) {
	// A descriptor of its own: reading a directory moves the offset of a shared
	// one.
	own, err := sys.OpenAt2(dir.Int(), ".", unix.O_DIRECTORY, beneath)
	if err != nil {
		if gone(err) {
			return nil, nil
		}
		return nil, err
	}
	f := own.File("cgroup")
	defer f.Close()
	entries, err := f.ReadDir(-1)
	if err != nil && !gone(err) {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Populated says whether there is a live process in the scope or below it. A
// scope that is gone holds none.
func (s *Scope) Populated() (bool, error) {
	n, err := s.event("populated")
	if gone(err) {
		return false, nil
	}
	return n != 0, err
}

func (s *Scope) event(key string) (uint64, error) {
	dir, err := s.OpenDir()
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	return keyed(dir.Int(), "cgroup.events", key)
}

// WaitEmpty waits until no process lives in the scope and below it, or until ctx
// ends. A scope that is gone is empty.
func (s *Scope) WaitEmpty(ctx context.Context) error {
	err := s.waitEvent(ctx, "populated", 0)
	if gone(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("wait for the end of cgroup %s: %w", s.path, err)
	}
	return nil
}

// waitEvent waits until a number in cgroup.events is want. What is waited for
// here follows a kill or a freeze within a millisecond or never, so it is looked
// at again and again, ever more slowly, which costs neither a thread nor a watch.
func (s *Scope) waitEvent(ctx context.Context, key string, want uint64) error {
	return retry(ctx, func() (bool, error) {
		n, err := s.event(key)
		return n == want, err
	})
}

// retry calls f until it is done, fails, or ctx ends.
func retry(ctx context.Context, f func() (done bool, err error)) error {
	for pause := 200 * time.Microsecond; ; pause = min(2*pause, 50*time.Millisecond) {
		done, err := f()
		if done || err != nil {
			return err
		}
		timer := time.NewTimer(pause) // not before: mostly it is done at once
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
}

// Remove removes the scope and its leaves, which must hold no live process. The
// kernel may need a moment to forget the dead ones; Remove waits for that until
// ctx ends and is then EBUSY. A scope that is gone is removed: nil.
//
// Under systemd a scope that was placed is left to systemd, which removes it when
// it notices that it is empty, and then the unit. It must not find the directory
// gone: a notice that finds no file is lost, and the unit stays for ever. Only where
// systemd takes too long is it told. A slice it keeps until it is told to stop it.
func (s *Scope) Remove(ctx context.Context) error {
	var err error
	if s.tree.units != nil {
		err = s.leaveToUnit(ctx)
	}
	if err == nil {
		err = retry(ctx, func() (bool, error) {
			err := s.remove()
			if errors.Is(err, unix.EBUSY) {
				return false, nil
			}
			return true, err
		})
	}
	if errors.Is(err, ctx.Err()) && err != nil {
		err = fmt.Errorf("%w: %w", unix.EBUSY, err)
	}
	if err != nil {
		return fmt.Errorf("remove cgroup %s: %w", s.path, err)
	}
	return nil
}

// RemoveIdle removes a scope in which no process lives and nothing was made, in one call, and says whether it has. It is
// for where most are so, and never for those of systemd, which has the last word on them.
func (s *Scope) RemoveIdle() bool {
	parts, err := splitPath(s.path)
	return err == nil && len(parts) > 0 && s.tree.units == nil && unix.Unlinkat(s.tree.root.Int(), path.Join(parts...), unix.AT_REMOVEDIR) == nil
}

func (s *Scope) remove() error {
	dir, err := s.OpenDir()
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := removeBelow(dir); err != nil {
		return err
	}
	return rmdir(s.tree.root.Int(), path.Join("./", s.path))
}

func removeBelow(dir *sys.FD) error {
	names, err := subdirs(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		sub, err := sys.OpenAt2(dir.Int(), name, unix.O_DIRECTORY, beneath)
		if gone(err) {
			continue
		}
		if err != nil {
			return err
		}
		err = removeBelow(sub)
		sub.Close()
		if err == nil {
			err = rmdir(dir.Int(), name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func rmdir(dir int, name string) error {
	err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
	if err == nil || gone(err) {
		return nil
	}
	return &os.PathError{Op: "rmdir", Path: name, Err: err}
}

// OOMKills returns how many processes of the scope, leaves included, the kernel
// killed for want of memory. It is zero where the memory controller is missing,
// and fs.ErrNotExist or ENODEV once the scope is gone.
func (s *Scope) OOMKills() (uint64, error) {
	dir, err := s.OpenDir()
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	n, err := keyed(dir.Int(), "memory.events", "oom_kill")
	if errors.Is(err, fs.ErrNotExist) {
		if _, perr := readFile(dir.Int(), "cgroup.events"); perr == nil {
			return 0, nil
		}
	}
	if err != nil {
		return 0, fmt.Errorf("read OOM kills of cgroup %s: %w", s.path, err)
	}
	return n, nil
}
