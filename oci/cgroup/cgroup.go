// Package cgroup makes the cgroups of containers, writes their limits, and ends
// whatever runs in them.
//
//	/sys/fs/cgroup                       Tree: Config.Root, cgroup v2 only
//	└── kubepods/pod<uid>                the kubelet's, or ours by Slice
//	    ├── vitrine-<id>                 Scope: limits, device filter, Kill
//	    │   ├── (the container's processes)
//	    │   └── exec-<n>                 Leaf: one exec, killed as a whole
//	    └── vitrine-<id>
//
// The limits are in place before the cgroup holds a process: the executor clones
// the first one into it (CLONE_INTO_CGROUP), so there is no moment without them,
// and no migration, which costs an RCU grace period. A Leaf has no controllers of
// its own: what runs there is charged to the Scope.
//
// Every path is opened beneath the root's descriptor, and every component that
// comes from outside is checked, so that no request reaches another tree.
//
// There are two drivers. With cgroupfs the directory is all there is. With systemd it
// is also a unit:
//
//	kubepods.slice                           expandSlice: a name is a place
//	└── kubepods-pod<uid>.slice
//	    └── vitrine-<id>.scope               Create: directory, limits, device filter
//	        ├── init                         born in it, by the executor
//	        │                                Place: StartTransientUnit, the one message
//	        └── exec-<n>                     Leaf: systemd is not asked
//
//	last process ends -> systemd removes scope and directory (Remove waits for that)
//
// What systemd would write over with something else is put back (kept). Slices that
// are ours end by Remove. docs/architecture.md tells why all of this is so.
package cgroup

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// Sentinels for the callers' errors.Is.
var (
	// ErrHierarchy: Root is not a pure cgroup v2. The text names the kernel
	// argument to set.
	ErrHierarchy = errors.New("cgroup v2 is required")
	// ErrDriver: the driver that was asked for does not exist, or not here.
	ErrDriver = errors.New("no such cgroup driver")
	// ErrUnenforced: the kernel or the hierarchy cannot enforce a limit, and
	// Config.AllowUnenforced is not set.
	ErrUnenforced = errors.New("limit cannot be enforced")
	// ErrInvalid: a path, a limit or a file name that nobody may ask for.
	ErrInvalid = errors.New("invalid cgroup request")
)

// Driver says who makes cgroups, in the kubelet's spelling.
type Driver string

// The drivers of a Tree.
const (
	DriverCgroupfs Driver = "cgroupfs"
	DriverSystemd  Driver = "systemd"
)

// required are the controllers that a node must have; the kubelet wants the same
// ones. The others (io, hugetlb, rdma, misc) are used where they are.
var required = []string{"cpu", "cpuset", "memory", "pids"}

// Config says which hierarchy a Tree works in.
type Config struct {
	// Root is the mount point of cgroup v2, usually /sys/fs/cgroup, or a
	// directory in it that was delegated to us.
	Root string
	// Driver is auto, cgroupfs or systemd; empty means auto: systemd where it
	// runs, cgroupfs elsewhere.
	Driver string
	// AllowUnenforced accepts a hierarchy without the required controllers, for
	// trials. Tree.Unenforced and Scope.Unenforced then say what does not hold.
	AllowUnenforced bool
	// Partial accepts it as well, and refuses what would need them.
	Partial bool
	// Prefix stands before a container's id in the name of its cgroup, usually
	// vitrine-.
	Prefix string
}

// Tree is a cgroup hierarchy. It is safe for concurrent use and holds a few
// descriptors until Close. Everything else is in the kernel, or in systemd, and
// survives the daemon.
type Tree struct {
	root        *sys.FD
	path        string
	prefix      string
	controllers []string
	allow       bool
	filters     deviceFilters
	units       units             // nil for cgroupfs
	kept        *kept             // as well
	owe         func(name string) // as well; for a unit that systemd could not be asked to stop
	endAsking   func()            // ends what owe began
	patience    time.Duration     // unitPatience, or a test's
}

// Open checks the hierarchy at c.Root: it must be cgroup v2 (ErrHierarchy), a
// driver must exist for it (ErrDriver), and it must have the controllers that
// limits need (ErrUnenforced). It changes nothing, and asks systemd nothing.
func Open(c Config) (*Tree, error) { return open(c, "/run/systemd/system") }

// open is Open with the directory that exists where systemd runs.
func open(c Config, systemdDir string) (*Tree, error) {
	if err := checkHierarchy(c.Root); err != nil {
		return nil, err
	}
	driver, err := chooseDriver(c.Driver, systemdDir)
	if err != nil {
		return nil, err
	}
	if err := checkComponent(c.Prefix + "x"); err != nil {
		return nil, fmt.Errorf("check cgroup prefix: %w", err)
	}
	root, err := sys.OpenAt2(unix.AT_FDCWD, c.Root, unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	t := &Tree{root: root, path: c.Root, prefix: c.Prefix, allow: c.AllowUnenforced}
	if t.controllers, err = fields(root.Int(), "cgroup.controllers"); err != nil {
		root.Close()
		return nil, err
	}
	if missing := t.Unenforced(); len(missing) > 0 && !t.allow && !c.Partial {
		root.Close()
		return nil, fmt.Errorf("open cgroups at %s: controllers %v are missing: %w; "+
			"enable them, or accept containers without limits by --allow-unenforced-limits", c.Root, missing, ErrUnenforced)
	}
	if driver == DriverSystemd {
		if err := t.useUnits(newSystemd()); err != nil {
			root.Close()
			return nil, err
		}
	}
	return t, nil
}

// useUnits makes t a tree that is managed by u.
func (t *Tree) useUnits(u units) (err error) {
	if t.kept, err = newKept(t); err != nil {
		return err
	}
	t.units, t.owe, t.endAsking, t.patience = u, func(string) {}, func() {}, unitPatience
	return nil
}

// Close gives back the tree's descriptors and ends its goroutines. Cgroups stay as
// they are; those of a Tree that was opened after it can be resumed.
func (t *Tree) Close() error {
	var err error
	if t.units != nil {
		t.endAsking()
		t.units.close()
		err = t.kept.close()
	}
	return errors.Join(err, t.filters.close(), t.root.Close())
}

// Driver returns who makes cgroups in this tree.
func (t *Tree) Driver() Driver {
	if t.units == nil {
		return DriverCgroupfs
	}
	return DriverSystemd
}

// Controllers returns the controllers that this hierarchy has.
func (t *Tree) Controllers() []string { return slices.Clone(t.controllers) }

// Unenforced returns the required controllers that this hierarchy does not have.
// It is empty unless Config.AllowUnenforced is set.
func (t *Tree) Unenforced() []string {
	return slices.DeleteFunc(slices.Clone(required), func(c string) bool { return slices.Contains(t.controllers, c) })
}
