package sandbox

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/image"
	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci"
	"github.com/vitrine-runtime/vitrine/oci/program"
	"github.com/vitrine-runtime/vitrine/sandbox/spec"
)

// openUserNS returns the pod's user namespace, nil if it has none. The monitor's namespaces belong to it, so that
// nothing has to be kept of it, by a daemon or on disk.
func (sb *Sandbox) openUserNS(ctx context.Context) (*sys.FD, error) {
	if sb.plan.UserNS == nil {
		return nil, nil
	}
	mon := sb.monitor()
	if mon == nil {
		return nil, fmt.Errorf("pod sandbox %s: %w: %w", sb.id, errNoMonitor, ErrState)
	}
	return mon.userns(ctx)
}

// mountRoot mounts the container's root, in a user namespace with the ids of its pod.
func (c *Container) mountRoot(ctx context.Context, user *sys.FD) (*sys.FD, error) {
	v := image.View{Label: c.labels.Mount}
	if user != nil {
		v.IDs = c.idMap(user)
	}
	return c.pod.m.cfg.Images.Mount(ctx, c.id, v)
}

// idMap is who the ids of an image are for a container in the user namespace.
func (c *Container) idMap(user *sys.FD) *image.IDMap {
	m := c.pod.plan.UserNS.Maps()
	return &image.IDMap{UserNS: user, UIDs: m.UIDs, GIDs: m.GIDs}
}

// volumeView is how the container sees an image that it mounts; with mapped ids if that was asked for.
func (c *Container) volumeView(user *sys.FD, m specs.Mount) image.View {
	v := image.View{Label: c.labels.Mount}
	if user != nil && len(m.UIDMappings) != 0 {
		v.IDs = c.idMap(user)
	}
	return v
}

// gatherForUserNS hands the user namespace over, with what a container in one needs beside.
func (c *Container) gatherForUserNS(s *specs.Spec, p *parts) error {
	if p.user == nil {
		return nil
	}
	devices, err := lookUpDevices(c.config.GetDevices())
	if err != nil {
		return err
	}
	user := p.user
	p.user = nil
	p.userns, err = userNSParts(user, s, slices.Concat(devices, c.cdi.nodes, c.given.nodes))
	return err
}

// userNSParts opens what a container in a user namespace needs of the host. The namespace moves into it.
func userNSParts(user *sys.FD, s *specs.Spec, asked []spec.HostDevice) (_ *oci.UserNS, err error) {
	u := &oci.UserNS{Namespace: user, Devices: map[string]*sys.FD{}}
	defer func() {
		if err != nil {
			u.Close()
		}
	}()
	for _, fstype := range []string{"proc", "sysfs"} {
		fd, err := kernelFiles(fstype)
		if err != nil {
			return nil, err
		}
		u.Visible = append(u.Visible, fd)
	}
	for _, d := range program.Devices(s) {
		fd, err := hostNode(&d, asked)
		if err != nil {
			return nil, fmt.Errorf("open device %s: %w", d.Path, err)
		}
		u.Devices[path.Clean(d.Path)] = fd
	}
	return u, nil
}

// kernelFiles returns a mount of a filesystem of the kernel's that is attached nowhere.
func kernelFiles(fstype string) (*sys.FD, error) {
	ctx, err := sys.FSOpen(fstype)
	if err != nil {
		return nil, err
	}
	defer ctx.Close()
	if err := sys.FSConfigCreate(ctx); err != nil {
		return nil, err
	}
	return sys.FSMount(ctx, 0)
}

// hostNode returns the host's node of a device. It keeps its owner, who is nobody in the user namespace: a node of our
// own would have one there, and the disk of the host with it.
func hostNode(d *specs.LinuxDevice, asked []spec.HostDevice) (*sys.FD, error) {
	at := d.Path
	for i := range asked {
		if asked[i].Type == d.Type && asked[i].Major == d.Major && asked[i].Minor == d.Minor {
			at = asked[i].Path
		}
	}
	fd, err := sys.OpenTree(unix.AT_FDCWD, at, unix.OPEN_TREE_CLONE)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	kind := map[string]uint32{"c": unix.S_IFCHR, "u": unix.S_IFCHR, "b": unix.S_IFBLK}[d.Type]
	err = unix.Fstat(fd.Int(), &st)
	if err == nil && (st.Mode&unix.S_IFMT != kind || st.Rdev != unix.Mkdev(uint32(d.Major), uint32(d.Minor))) {
		err = fmt.Errorf("%s is another device: %w", at, unix.ENODEV)
	}
	if err == nil { // as the container's /dev, whatever the host's is mounted with
		err = sys.MountSetattr(fd.Int(), "", unix.AT_EMPTY_PATH, &unix.MountAttr{
			Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_RELATIME, Attr_clr: unix.MOUNT_ATTR__ATIME | unix.MOUNT_ATTR_NOEXEC})
	}
	if err != nil {
		return nil, errors.Join(err, fd.Close())
	}
	return fd, nil
}

// mapVolume gives a volume the ids of its pod. What is mounted below it gets them, too, if it all can; else what is there
// belongs to nobody, as with other runtimes.
func mapVolume(fd *sys.FD, m specs.Mount, user *sys.FD) error {
	if len(m.UIDMappings) == 0 {
		return nil
	}
	if user == nil {
		return spec.Invalid("config.mounts.uidMappings", m.Source, "in a pod without a user namespace")
	}
	if sys.MountIDMap(fd, user, true) == nil {
		return nil
	}
	err := sys.MountIDMap(fd, user, false)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) {
		return fmt.Errorf("config.mounts.uidMappings: the filesystem of the volume cannot map ids: %w: %w", ErrState, err)
	}
	return err
}
