package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
	cdispecs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/vitrine-runtime/vitrine/sandbox/cdi"
	"github.com/vitrine-runtime/vitrine/sandbox/spec"
)

// cdiParts are what a container gets for devices of the Container Device Interface. The spec that it is made from has
// all of it; whatever becomes of the devices' specs later, the container keeps what it has.
type cdiParts struct {
	names []string
	edits *cdispecs.ContainerEdits // nil without
	nodes []spec.HostDevice        // one for each of edits.DeviceNodes
}

// resolveCDI finds the devices that the container asks for.
func (c *Container) resolveCDI() error {
	asked, err := spec.CDIRequests(c.config)
	if err != nil {
		return err
	}
	c.cdi, err = c.findCDI("config.", asked)
	return err
}

// findCDI finds devices, beside those that the container has by its request. Where in is the path to CDI_devices in the message that asks.
func (c *Container) findCDI(in string, asked []spec.CDIRequest) (p cdiParts, err error) {
	if len(asked) == 0 {
		return p, nil
	}
	for _, r := range asked {
		p.names = append(p.names, r.Name)
	}
	p.edits, err = c.pod.m.cfg.CDI.Resolve(p.names, c.cdi.names...)
	var unknown *cdi.UnknownError
	if errors.As(err, &unknown) {
		return p, spec.Invalid(asked[unknown.Index].Field, unknown.Name, "%s", unknown.Problem)
	}
	if err != nil {
		return p, err
	}
	for i, n := range p.edits.DeviceNodes {
		d, err := cdiNode(n)
		if err != nil {
			return p, fmt.Errorf("%sCDI_devices.containerEdits.deviceNodes[%d]: %w: %w", in, i, err, ErrState)
		}
		p.nodes = append(p.nodes, *d)
	}
	return p, nil
}

// cdiNode describes the host's side of a device node: what its spec says, and what that leaves out from the node itself.
// The mode is the node's also where the numbers are given, if there is a node.
func cdiNode(n *cdispecs.DeviceNode) (*spec.HostDevice, error) {
	at := n.HostPath
	if at == "" {
		at = n.Path
	}
	d := &spec.HostDevice{Path: at, Type: n.Type, Major: n.Major, Minor: n.Minor, Mode: 0o666}
	if n.Type == "p" {
		if n.FileMode != nil {
			d.Mode = uint32(n.FileMode.Perm())
		}
		return d, nil
	}
	host, err := lstatDevice(at)
	switch {
	case err != nil && (n.Type == "" || n.Major == 0):
		return nil, err
	case err == nil:
		d.Mode = host.Mode
		if n.Type == "" {
			d.Type = host.Type
		}
		if n.Major == 0 {
			d.Major, d.Minor = host.Major, host.Minor
		}
		if n.Major == 0 && d.Type != host.Type && (d.Type != "u" || host.Type != "c") {
			return nil, fmt.Errorf("%s is of type %s and not %s", at, host.Type, d.Type)
		}
	}
	if n.FileMode != nil {
		d.Mode = uint32(n.FileMode.Perm())
	}
	return d, nil
}

// lstatDevice is deviceAt for a path that is the node itself.
func lstatDevice(at string) (*spec.HostDevice, error) {
	var st unix.Stat_t
	if err := unix.Lstat(at, &st); err != nil {
		return nil, &os.PathError{Op: "lstat", Path: at, Err: err}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return nil, fmt.Errorf("%s is a symbolic link", at)
	}
	return deviceAt(at)
}

// cdiSources are the files of the host that have to be there, for the request's devices and those of plugins.
func (c *Container) cdiSources() map[string]bool {
	there := map[string]bool{}
	for _, p := range []cdiParts{c.cdi, c.given} {
		if p.edits == nil {
			continue
		}
		for _, m := range p.edits.Mounts {
			there[filepath.Clean(m.HostPath)] = true
		}
	}
	return there
}

// prepareHooks makes the bundle of hooks: the spec, which is on its way into the container's directory, and the place where they find
// the root. In a user namespace a hook is its root, who may not look into our directories: a bundle of its own is lent to it.
func (c *Container) prepareHooks(s *specs.Spec, written chan error) (bundle string, err error) {
	err = <-written
	written <- err // for who waits for it later
	if err != nil {
		return "", err
	}
	u := c.pod.plan.UserNS
	if u == nil {
		return c.dir, os.Mkdir(filepath.Join(c.dir, s.Root.Path), 0o700)
	}
	all := c.pod.m.lentBundles()
	if err := os.MkdirAll(all, 0o711); err != nil {
		return "", err
	}
	bundle = filepath.Join(all, c.id)
	rootfs, root := filepath.Join(bundle, s.Root.Path), int(u.Outside(0))
	err = os.MkdirAll(rootfs, 0o700)
	if err == nil {
		err = c.pod.m.disk.write(bundle, "config.json", s)
	}
	for _, path := range []string{filepath.Join(bundle, "config.json"), rootfs, bundle} {
		if err == nil {
			err = os.Lchown(path, root, root)
		}
	}
	if err != nil {
		c.endHooks(bundle)
	}
	return bundle, err
}

// endHooks takes a bundle back that was lent.
func (c *Container) endHooks(bundle string) {
	if bundle == c.dir {
		return
	}
	if err := os.RemoveAll(bundle); err != nil {
		klog.ErrorS(err, "Bundle of hooks stays", "container", c.id)
	}
}

// lentBundles is the directory of bundles that are lent, each for the time of a creation. Others may go through it, which they may
// not through the run directory.
func (m *Manager) lentBundles() string { return m.cfg.RunDir + "-hooks" }
