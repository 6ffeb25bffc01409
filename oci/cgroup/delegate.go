package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// ErrDelegation: the hierarchy is mounted without nsdelegate, so that whoever may
// write to a cgroup could raise its own limits.
var ErrDelegation = errors.New("cgroups cannot be delegated")

// initLeaf is where the first process of a delegated scope lives. A cgroup that
// passes controllers on may hold no process itself.
const initLeaf = "init"

// A delegated scope may hold so many cgroups, so deep. Each costs the kernel some
// kilobytes, and everybody who walks the tree time.
const (
	maxDescendants = 1000
	maxDepth       = 16
)

// delegatable are the files that a cgroup's new owner is to own, as the kernel's
// list in /sys/kernel/cgroup/delegate has them for the management of children.
// Limits are not among them, and memory.reclaim, memory.oom.group are left out: they
// act on the whole, which is the node's.
var delegatable = []string{"cgroup.procs", "cgroup.threads", "cgroup.subtree_control"}

// Delegate hands the scope to the container in it: pid, which must be alive and
// blocked, and have its cgroup namespace already, moves to the leaf init, and uid
// and gid own what is needed to make cgroups below the scope, to move processes
// between them and to pass controllers on. The scope's own limits stay out of
// reach, since the hierarchy must be mounted with nsdelegate (ErrDelegation) and
// the scope is the root of the container's cgroup namespace.
//
//	vitrine-<id>.scope      cgroup.subtree_control: the container's to set
//	├── init                pid, and what it forks
//	├── exec-<n>            as ever
//	└── ...                 the container's own
//
// The move costs an RCU grace period, once. Under systemd it comes after Place,
// which moves pid to the scope itself. All of this goes with the scope.
func (s *Scope) Delegate(pid int, uid, gid uint32) error {
	err := checkDelegation("/proc/self/mountinfo")
	if err == nil {
		err = s.delegate(pid, int(uid), int(gid))
	}
	if err != nil {
		return fmt.Errorf("delegate cgroup %s: %w", s.path, err)
	}
	return nil
}

func (s *Scope) delegate(pid, uid, gid int) error {
	dir, err := s.OpenDir()
	if err != nil {
		return err
	}
	defer dir.Close()
	for _, f := range []setting{
		{file: "cgroup.max.descendants", value: strconv.Itoa(maxDescendants)}, {file: "cgroup.max.depth", value: strconv.Itoa(maxDepth)},
	} {
		if err := writeFile(dir.Int(), f.file, f.value); err != nil {
			return err
		}
	}
	if err := mkdir(dir.Int(), initLeaf); err != nil {
		return err
	}
	leaf, err := sys.OpenAt2(dir.Int(), initLeaf, unix.O_DIRECTORY, beneath)
	if err != nil {
		return err
	}
	defer leaf.Close()
	if err := writeFile(leaf.Int(), "cgroup.procs", strconv.Itoa(pid)); err != nil {
		return err
	}
	return errors.Join(give(dir.Int(), uid, gid), give(leaf.Int(), uid, gid))
}

// give makes somebody the owner of a cgroup, as far as it is for children.
func give(dir, uid, gid int) error {
	if uid == 0 && gid == 0 {
		return nil // theirs already
	}
	for _, name := range append([]string{"."}, delegatable...) {
		if err := unix.Fchownat(dir, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return &os.PathError{Op: "chown", Path: path.Join("/", name), Err: err}
		}
	}
	return nil
}

// checkDelegation looks whether the hierarchy has the option nsdelegate. It is the
// hierarchy's and not a mount's, so any mount of it tells.
func checkDelegation(mountinfo string) error {
	f, err := os.Open(mountinfo)
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		_, after, found := strings.Cut(lines.Text(), " - ")
		fs := strings.Fields(after) // type, source, options of the file system
		if found && len(fs) == 3 && fs[0] == "cgroup2" && slices.Contains(strings.Split(fs[2], ","), "nsdelegate") {
			return nil
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return fmt.Errorf("%w: cgroup2 is not mounted with nsdelegate; mount -o remount,nsdelegate /sys/fs/cgroup", ErrDelegation)
}
