package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// ErrFrozen: the scope is frozen. Who is cloned into it stops before its first
// instruction, and its parent with it.
var ErrFrozen = errors.New("cgroup is frozen")

// Place gives the scope, in which pid lives already, to whoever manages cgroups on
// this node. It belongs after the first process was cloned into the scope and
// before that process may run, and is called once. For cgroupfs there is nothing to
// do.
//
// systemd is asked for a transient scope unit around pid, by one message. It finds
// the directory, writes the limits that are properties into the files that hold
// them, and "moves" pid to where it is. What it writes otherwise than we did is put
// back, before Place returns and from then on (see Resume).
//
// If systemd does not do that in time the error is ErrUnavailable. After any error
// the caller kills the scope and removes it; a unit that comes into being later
// finds no process, and ends.
func (s *Scope) Place(ctx context.Context, pid int) error {
	if s.tree.units == nil {
		return nil
	}
	if err := s.place(ctx, pid); err != nil {
		return fmt.Errorf("place process %d in cgroup %s: %w", pid, s.path, err)
	}
	return nil
}

func (s *Scope) place(ctx context.Context, pid int) error {
	dir, err := s.OpenDir()
	if err != nil {
		return err
	}
	defer dir.Close()
	limits, keep, err := s.tree.describe(ctx, dir.Int(), s.limits)
	if err != nil {
		return err
	}
	u := unit{name: unitOf(path.Base(s.path)), path: s.path, props: append(scopeProperties(s.path, pid), limits...)}
	if !slices.ContainsFunc(limits, func(p property) bool { return p.Name == "TasksMax" }) {
		u.props = append(u.props, prop("TasksMax", uint64(math.MaxUint64))) // or it is 15 % of the node's
	}
	u.props = append(u.props, s.devices...)
	if err := unix.Fsetxattr(dir.Int(), placedAttr, nil, 0); err != nil {
		return fmt.Errorf("set attribute %s: %w", placedAttr, err)
	}
	if err := s.tree.units.start(ctx, u); err != nil {
		if !errors.Is(err, ErrUnavailable) && !errors.Is(err, context.Canceled) { // an answer: there is no unit
			_ = unix.Fremovexattr(dir.Int(), placedAttr)
		}
		return err
	}
	if err := s.checkPlaced(dir, pid); err != nil {
		return err
	}
	if err := restoreAll(dir.Int(), s.limits); err != nil {
		return err
	}
	return s.tree.kept.set(s.path, dir, keep)
}

// placedAttr marks a scope that systemd was asked to make a unit of.
const placedAttr = "trusted.vitrine.placed"

// unitPatience is how long systemd may take to notice that a scope is empty.
const unitPatience = 5 * time.Second

// leaveToUnit waits until systemd has removed the cgroup of a unit that is empty, or
// ends the unit. A cgroup that never became one is not touched.
func (s *Scope) leaveToUnit(ctx context.Context) error {
	s.tree.kept.drop(s.path)
	name := unitOf(path.Base(s.path))
	if strings.HasSuffix(name, sliceSuffix) {
		return s.tree.units.stop(ctx, name)
	}
	if !strings.HasSuffix(name, scopeSuffix) {
		return nil
	}
	since := time.Now()
	return retry(ctx, func() (done bool, err error) {
		dir, err := s.OpenDir()
		if gone(err) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		defer dir.Close()
		_, err = unix.Fgetxattr(dir.Int(), placedAttr, nil)
		if errors.Is(err, unix.ENODATA) {
			return true, nil
		}
		if busy, err := s.Populated(); busy || err != nil || time.Since(since) < s.tree.patience {
			return false, err
		}
		// Without systemd we do it ourselves, and it is told of the unit, if there is one, when it is there again.
		asking, cancel := context.WithTimeout(ctx, s.tree.patience)
		defer cancel()
		err = s.tree.units.stop(asking, name)
		if errors.Is(err, ErrUnavailable) {
			s.tree.owe(name)
			err = nil
		}
		return err == nil, err
	})
}

// scopeProperties are those of every scope of ours. Delegate: what is below it is
// ours alone, such as the leaves of execs; it also makes OOMPolicy, which 252 does not
// have for scopes, mean continue: that one of several processes was killed is not the
// end of the others. CollectMode: one that failed is forgotten
// like one that ended. DefaultDependencies: a shutdown does not stop it in an order
// of its own; the kubelet does that.
func scopeProperties(p string, pid int) []property {
	return []property{
		prop("Description", "Vitrine "+path.Base(p)),
		prop("Slice", sliceUnit(p)),
		prop("PIDs", []uint32{uint32(pid)}),
		prop("Delegate", true),
		prop("CollectMode", "inactive-or-failed"),
		prop("DefaultDependencies", false),
	}
}

// checkPlaced makes sure that systemd means the same cgroup: it would have moved
// the process to another one.
func (s *Scope) checkPlaced(dir *sys.FD, pid int) error {
	pids, err := fields(dir.Int(), "cgroup.procs")
	if err != nil {
		return err
	}
	if !slices.Contains(pids, strconv.Itoa(pid)) {
		return fmt.Errorf("it is not there, or has died: %w", fs.ErrNotExist)
	}
	return nil
}

// restoreAll writes those limits again that a file does not hold any more. Besides
// what systemd rounds, these are the limits of a controller that it had not counted
// as wanted in the slice until now, and may have turned off meanwhile.
func restoreAll(dir int, limits []setting) error {
	for _, l := range limits {
		_, err := restoreFile(dir, l)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // was accepted as missing when it was made
			return err
		}
	}
	return nil
}

// Resume goes on with what Place began, for a scope from before a restart of the
// daemon: limits that systemd cannot keep are put back when it writes over them. A
// scope that is gone needs none: nil.
func (s *Scope) Resume() error {
	if s.tree.units == nil {
		return nil
	}
	dir, err := s.OpenDir()
	if gone(err) {
		return nil
	}
	if err == nil {
		defer dir.Close()
		err = s.tree.kept.resume(s.path, dir)
	}
	if err != nil && !gone(err) {
		return fmt.Errorf("resume cgroup %s: %w", s.path, err)
	}
	return nil
}

// changing stops the keeping while limits change, and returns what makes it go on.
func (s *Scope) changing() func() {
	if s.tree.units == nil {
		return func() {}
	}
	s.letGo()
	return func() { _ = s.Resume() } // the limits are as they should be now; a later one may suffer
}

// letGo stops the keeping until the next publish or Resume.
func (s *Scope) letGo() {
	if s.tree.units != nil {
		s.tree.kept.drop(s.path)
	}
}

// publish tells systemd about limits that the files hold already. What it cannot
// keep is kept.
func (s *Scope) publish(ctx context.Context, limits []setting) error {
	if s.tree.units == nil {
		return nil
	}
	dir, err := s.OpenDir()
	if err != nil {
		return err
	}
	defer dir.Close()
	props, keep, err := s.tree.describe(ctx, dir.Int(), limits)
	if err != nil {
		return err
	}
	old, err := readKept(dir)
	if err != nil {
		return err
	}
	for _, o := range old {
		if !slices.ContainsFunc(limits, func(l setting) bool { return l.file == o.file }) {
			keep = append(keep, o)
		}
	}
	// What is kept comes first: where systemd does not hear of it, it is what the files hold now all the same. And systemd hears of
	// the rest also where not all can be kept.
	err = s.tree.kept.set(s.path, dir, keep)
	if len(props) > 0 {
		err = errors.Join(err, s.setProperties(ctx, props))
	}
	return err
}

// setProperties sets those of a scope, or of a slice, which it makes if there is
// none yet.
func (s *Scope) setProperties(ctx context.Context, props []property) error {
	name := unitOf(path.Base(s.path))
	err := s.tree.units.set(ctx, name, props)
	if errors.Is(err, fs.ErrNotExist) && strings.HasSuffix(name, sliceSuffix) {
		return s.tree.units.start(ctx, unit{name: name, path: s.path, props: append([]property{prop("DefaultDependencies", false)}, props...)})
	}
	return err
}
