package bundle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/cgroup"
)

// cgroupRoot is where the hierarchy has to be mounted.
const cgroupRoot = "/sys/fs/cgroup"

// place is where a container's cgroup is, for state.json.
type place struct {
	Manager string `json:"manager"`
	Path    string `json:"path"` // below cgroupRoot; "" until it is known

	parent, prefix, name string
}

// plan says where a container's cgroup is to be. linux.cgroupsPath has two forms: a
// path for cgroupfs, and slice:prefix:name for systemd.
func (r *Runtime) plan(id, cgroupsPath string) (*place, error) {
	p := &place{Manager: r.Manager}
	bad := func(why string) error {
		return fmt.Errorf("linux.cgroupsPath: %.200q: %s: %w", cgroupsPath, why, ErrInvalid)
	}
	switch r.Manager {
	case ManagerDisabled:
		return nil, nil
	case ManagerCgroupfs:
		if cgroupsPath == "" {
			cgroupsPath = "/vitrine-" + id
		}
		p.parent, p.name = path.Split(strings.TrimRight(cgroupsPath, "/"))
		if p.name == "" {
			return nil, bad("is the root of all cgroups")
		}
		if strings.Count(cgroupsPath, ":") == 2 && !strings.Contains(cgroupsPath, "/") {
			return nil, bad("slice:prefix:name is for --systemd-cgroup")
		}
	case ManagerSystemd:
		if Stand() != Privileged {
			return nil, fmt.Errorf("cgroup manager systemd: %w: a user's own systemd is not asked; cgroupfs below a cgroup that is delegated to the user, or disabled", ErrNotRoot)
		}
		if cgroupsPath == "" {
			cgroupsPath = "system.slice:vitrine:" + id
		}
		f := strings.Split(cgroupsPath, ":")
		if len(f) != 3 || f[2] == "" {
			return nil, bad("with systemd it must be slice:prefix:name")
		}
		if p.parent, p.name = f[0], f[2]; p.parent == "" {
			p.parent = "system.slice"
		}
		if f[1] != "" {
			p.prefix = f[1] + "-"
		}
		p.name = strings.TrimSuffix(p.name, ".scope")
	default:
		return nil, fmt.Errorf("cgroup manager %q: %w: cgroupfs, systemd or disabled", r.Manager, ErrInvalid)
	}
	return p, nil
}

// tree opens the hierarchy for a container's cgroup.
func (p *place) tree() (*cgroup.Tree, error) {
	return cgroup.Open(cgroup.Config{Root: cgroupRoot, Driver: p.Manager, Partial: true, Prefix: p.prefix})
}

// group is a container's cgroup with what is open of it.
type group struct {
	tree  *cgroup.Tree
	scope *cgroup.Scope // nil until it is made
	dir   *sys.FD       // for the clone into it
}

func (g *group) close() {
	if g != nil {
		g.dir.Close()
		_ = g.tree.Close() // descriptors of directories
	}
}

// open opens the hierarchy for a new cgroup and says where that will be.
func (p *place) open() (*group, error) {
	if p == nil {
		return nil, nil
	}
	t, err := p.tree()
	if err != nil {
		return nil, err
	}
	if p.Path, err = t.ScopePath(p.parent, p.name); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return &group{tree: t}, nil
}

// ownerAttr is an attribute of a cgroup's directory: the id of the container that it
// was made for. Where a create was killed, it tells ours from one that was there before.
// Of who is not root it is one that a container could change that writes to its cgroup, as
// it could move its processes out of that.
func ownerAttr() string {
	if Stand() == Privileged {
		return "trusted.vitrine.container"
	}
	return "user.vitrine.container"
}

// unlimited says whether a container can do without a cgroup, which could not be made for
// that reason: one of a user who was not given any, if it asks for no limits.
func (m *maker) unlimited(why error) error {
	denied := errors.Is(why, fs.ErrPermission) || errors.Is(why, unix.EROFS) || errors.Is(why, cgroup.ErrHierarchy)
	if Stand() == Privileged || !denied {
		return why
	}
	if err := noLimits(m.bundle.spec.Linux.Resources); err != nil {
		return fmt.Errorf("%w: %w", err, why)
	}
	if m.bundle.spec.Linux.CgroupsPath != "" {
		m.r.warn("linux.cgroupsPath: the container has no cgroup: " + why.Error())
	}
	return nil
}

// noLimits is an error that names a limit which is asked for.
func noLimits(res *specs.LinuxResources) error {
	files, err := cgroup.Files(res)
	for _, f := range files {
		if f.Value != "max" {
			return fmt.Errorf("linux.resources: %s=%s without a cgroup: %w", f.Name, f.Value, cgroup.ErrUnenforced)
		}
	}
	return err
}

// checkDevices refuses rules about devices that do not hold without root: the kernel
// takes no filter. That there are no others than those given holds in a user namespace: nobody makes nodes.
func checkDevices(res *specs.LinuxResources) error {
	if res == nil || Stand() == Privileged {
		return nil
	}
	for i, d := range res.Devices {
		if !d.Allow && (d.Major != nil || d.Minor != nil || d.Type != "" && d.Type != "a" || len(d.Access) < 3) {
			return fmt.Errorf("linux.resources.devices[%d]: deny some devices: %w by who is not root", i, cgroup.ErrUnenforced)
		}
	}
	return nil
}

// make makes the cgroup with its limits. One that does not hold is an error.
func (g *group) make(p *place, id string, res *specs.LinuxResources) error {
	s, err := g.tree.Create(p.parent, p.name, withDevices(res))
	if err != nil {
		return err
	}
	if g.dir, err = s.OpenDir(); err == nil {
		err = unix.Fsetxattr(g.dir.Int(), ownerAttr(), []byte(id), 0)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("mark cgroup %s: %w", s.Path(), err), s.Remove(context.Background()))
	}
	g.scope = s
	return nil
}

// ours says whether a cgroup was made for the container of that id.
func ours(s *cgroup.Scope, id string) bool {
	dir, err := s.OpenDir()
	if err != nil {
		return false
	}
	defer dir.Close()
	b := make([]byte, maxID)
	n, err := unix.Fgetxattr(dir.Int(), ownerAttr(), b)
	return err == nil && string(b[:n]) == id
}

// group opens the container's cgroup; nil where it has none.
func (c *Container) group() (*group, error) {
	if c.rec.Cgroup == nil || c.rec.Cgroup.Path == "" {
		return nil, nil
	}
	t, err := c.rec.Cgroup.tree()
	if err != nil {
		return nil, err
	}
	return &group{tree: t, scope: t.Load(c.rec.Cgroup.Path)}, nil
}

// withGroup calls f with the container's cgroup, which must exist.
func (c *Container) withGroup(f func(s *cgroup.Scope) error) error {
	g, err := c.group()
	if err == nil && g == nil {
		err = fmt.Errorf("container %s has no cgroup: %w", c.rec.ID, fs.ErrNotExist)
	}
	if err != nil {
		return err
	}
	defer g.close()
	return f(g.scope)
}

// frozen says whether the container is paused.
func (c *Container) frozen() (bool, error) {
	g, err := c.group()
	if g == nil || err != nil {
		return false, err
	}
	defer g.close()
	frozen, err := g.scope.Frozen()
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return frozen, err
}

// cgroupOf opens the cgroup that a process is in.
func cgroupOf(pid int) (*sys.FD, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::/"); ok {
			root, err := sys.OpenAt2(unix.AT_FDCWD, cgroupRoot, unix.O_PATH|unix.O_DIRECTORY, 0)
			if err != nil {
				return nil, err
			}
			defer root.Close()
			return sys.OpenAt2(root.Int(), "./"+path, unix.O_DIRECTORY, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS)
		}
	}
	return nil, fmt.Errorf("find the cgroup of process %d: %w", pid, ErrInvalid)
}

// withDevices adds what every container may do with devices: make nodes, and use
// those that it is given. Without rules of its own it may use no others. Who is not root
// has no rules (checkDevices).
func withDevices(res *specs.LinuxResources) *specs.LinuxResources {
	r := specs.LinuxResources{}
	if res != nil {
		r = *res
	}
	if Stand() != Privileged {
		r.Devices = nil
		return &r
	}
	if len(r.Devices) == 0 {
		r.Devices = []specs.LinuxDeviceCgroup{{Access: "rwm"}} // no others
	}
	r.Devices = r.Devices[:len(r.Devices):len(r.Devices)]
	for _, kind := range []string{"c", "b"} {
		r.Devices = append(r.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: kind, Access: "m"})
	}
	for _, d := range [][2]int64{{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, {5, 0}, {5, 2}, {136, -1}} {
		rule := specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &d[0], Access: "rwm"}
		if d[1] >= 0 {
			rule.Minor = &d[1]
		}
		r.Devices = append(r.Devices, rule)
	}
	return &r
}
