package cgroup

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// Create makes the cgroup <Prefix><id> below parent, and parent where it is
// missing, with r's limits and device filter. Controllers are enabled on the way
// down. It holds no process yet; OpenDir gives the descriptor to clone into, and
// Place comes next. Under systemd its name ends in .scope and parent is a slice.
//
// A limit that cannot be enforced is an error (ErrUnenforced), or with
// Config.AllowUnenforced an entry of Scope.Unenforced. After an error nothing is
// left that was not there before. A cgroup of that name is fs.ErrExist.
func (t *Tree) Create(parent, id string, r *specs.LinuxResources) (*Scope, error) {
	parts, err := t.parentOf(parent)
	if err != nil {
		return nil, err
	}
	name := t.scopeName(id)
	if err := checkComponent(name); err != nil {
		return nil, err
	}
	limits, err := plan(r)
	if err != nil {
		return nil, err
	}
	filter, err := deviceProgram(r)
	if err != nil {
		return nil, err
	}
	made, dir, err := t.mkdirAll(parts)
	defer dir.Close()
	s := t.Load(path.Join(path.Join(parts...), name))
	if t.units != nil {
		s.limits, s.devices = limits, deviceProperties(r)
	}
	if err == nil {
		err = t.makeScope(s, parts, dir, limits, filter)
	}
	if err != nil {
		t.unmake(made)
		return nil, fmt.Errorf("make cgroup %s: %w", s.path, err)
	}
	return s, nil
}

// enableAgain is how often controllers are enabled anew for a scope that lost them.
const enableAgain = 20

// makeScope makes the last directory of a scope's path and fills it.
func (t *Tree) makeScope(s *Scope, parts []string, parent *sys.FD, limits []setting, filter []bpfInsn) (err error) {
	name := path.Base(s.path)
	blocked := t.enable(parent.Int())
	if err := mkdir(parent.Int(), name); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = unix.Unlinkat(parent.Int(), name, unix.AT_REMOVEDIR)
		}
	}()
	dir, err := sys.OpenAt2(parent.Int(), name, unix.O_DIRECTORY, beneath)
	if err != nil {
		return err
	}
	defer dir.Close()
	missing, err := applyAll(dir.Int(), limits)
	for try := 0; try < enableAgain && t.turnedOff(missing, err); try++ {
		// systemd, which does not know this scope yet, turns off what nobody in the
		// slices wants, such as when another scope there ends.
		time.Sleep(time.Duration(try+1) * time.Millisecond)
		if _, again, werr := t.mkdirAll(parts); werr == nil {
			again.Close()
		}
		blocked = t.enable(parent.Int())
		missing, err = applyAll(dir.Int(), limits)
	}
	if err != nil {
		return err
	}
	if filter != nil {
		if err := t.filters.attach(dir.Int(), filter); errors.Is(err, errNoDeviceFilter) {
			missing = append(missing, "devices")
			blocked = errors.Join(blocked, err)
		} else if err != nil {
			return err
		}
	}
	return s.accept(missing, blocked)
}

// turnedOff says whether a limit could not be written because systemd turned a
// controller off that there is.
func (t *Tree) turnedOff(missing []string, err error) bool {
	if t.units == nil || err != nil {
		return t.units != nil && errors.Is(err, unix.ENODEV)
	}
	return slices.ContainsFunc(missing, func(file string) bool {
		controller, _, _ := strings.Cut(file, ".")
		return slices.Contains(t.controllers, controller)
	})
}

// accept decides about limits that do not hold. Huge page limits are the one
// kind that never is an error: the kubelet sends a zero for every page size of
// the node, whether or not the controller is there.
func (s *Scope) accept(missing []string, why error) error {
	hard := slices.DeleteFunc(slices.Clone(missing), func(f string) bool { return strings.HasPrefix(f, "hugetlb.") })
	if len(hard) > 0 && !s.tree.allow {
		if why == nil {
			why = errors.New("the controller is not enabled here")
		}
		return fmt.Errorf("set %s: %w: %w", strings.Join(hard, ", "), ErrUnenforced, why)
	}
	s.unenforced = missing
	return nil
}

// Slice makes the cgroup at path, with all of its parents, and opens it. One
// that is there already is fine. The caller closes the descriptor.
func (t *Tree) Slice(p string) (*sys.FD, error) {
	parts, err := splitPath(p)
	if err != nil {
		return nil, err
	}
	made, dir, err := t.mkdirAll(parts)
	if err != nil {
		t.unmake(made)
		dir.Close()
		return nil, fmt.Errorf("make cgroup %s: %w", p, err)
	}
	return dir, nil
}

// mkdirAll walks down parts, making what is missing. It returns the paths that
// it made, top first, and the last directory, also after an error.
//
// Controllers are enabled in each cgroup above the last one, because a cgroup
// with processes may not enable any, and the last one may get some. Where that
// fails, the limit's file will be missing, which is reported by its name.
func (t *Tree) mkdirAll(parts []string) (made []string, dir *sys.FD, err error) {
	if dir, err = t.root.Dup(); err != nil {
		return nil, nil, err
	}
	for i, name := range parts {
		_ = t.enable(dir.Int())
		switch err = mkdir(dir.Int(), name); {
		case err == nil:
			made = append(made, path.Join(parts[:i+1]...))
		case !errors.Is(err, unix.EEXIST):
			return made, dir, err
		}
		next, err := sys.OpenAt2(dir.Int(), name, unix.O_DIRECTORY, beneath)
		if err != nil {
			return made, dir, err
		}
		dir.Close()
		dir = next
	}
	return made, dir, nil
}

// unmake takes back what mkdirAll made. A directory that somebody else began to
// use meanwhile stays: rmdir refuses it.
func (t *Tree) unmake(made []string) {
	for _, p := range slices.Backward(made) {
		_ = unix.Unlinkat(t.root.Int(), p, unix.AT_REMOVEDIR)
	}
}

// enable passes the controllers that a cgroup has on to its children, one by
// one, so that one which cannot be passed on does not keep the others back. The
// error says which, and why; it matters only to who asks for one of them.
func (t *Tree) enable(dir int) error {
	have, err := fields(dir, "cgroup.controllers")
	if err != nil {
		return err
	}
	on, err := fields(dir, "cgroup.subtree_control")
	if err != nil {
		return err
	}
	var errs []error
	for _, c := range have {
		if wanted(c) && !slices.Contains(on, c) {
			errs = append(errs, writeFile(dir, "cgroup.subtree_control", "+"+c))
		}
	}
	return errors.Join(errs...)
}

// wanted leaves out controllers without limits of ours, whose cost is not
// nothing (perf_event), or which others own.
func wanted(controller string) bool {
	switch controller {
	case "cpu", "cpuset", "io", "memory", "hugetlb", "pids", "rdma", "misc", "dmem":
		return true
	}
	return false
}

func mkdir(dir int, name string) error {
	for {
		err := unix.Mkdirat(dir, name, 0o755)
		switch err {
		case nil:
			return nil
		case unix.EINTR:
		case unix.EAGAIN: // cgroup.max.descendants or .max.depth of somebody above
			return fmt.Errorf("mkdir %s: limit on the number or depth of cgroups: %w", name, err)
		default:
			return fmt.Errorf("mkdir %s: %w", name, err)
		}
	}
}
