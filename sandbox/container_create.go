package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/vitrine-runtime/vitrine/image"
	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci"
	"github.com/vitrine-runtime/vitrine/oci/cgroup"
	"github.com/vitrine-runtime/vitrine/sandbox/spec"
)

// CreateContainer makes a container in a READY pod; it is then CREATED, its first process blocked before
// execve. sbCfg is the pod's config as the caller has it and may be nil; its metadata must be the pod's.
//
// What RunPodSandbox says about an ending ctx, retries and errors holds here as well.
func (m *Manager) CreateContainer(ctx context.Context, podID string, cfg *runtimeapi.ContainerConfig, sbCfg *runtimeapi.PodSandboxConfig) (string, error) {
	sb, err := m.pod(podID)
	if err != nil {
		return "", err
	}
	if err := spec.CheckContainerMetadata(cfg.GetMetadata()); err != nil {
		return "", err
	}
	if sbCfg != nil && !proto.Equal(sbCfg.GetMetadata(), sb.config.GetMetadata()) {
		return "", spec.Invalid(whichDiffers(sbCfg.GetMetadata(), sb.config.GetMetadata()), podName(sbCfg.GetMetadata()),
			"is not the name, namespace, uid and attempt of pod sandbox %s", sb.id)
	}
	name := containerName(sb.id, cfg.GetMetadata())
	id, err := m.flights.do(ctx, name, "create "+name, m.cfg.OperationTimeout, func(ctx context.Context, op *operation) (string, error) {
		if c := m.containerNamed(name); c != nil {
			if c.taken.Load() || c.facts.Load().state() != runtimeapi.ContainerState_CONTAINER_CREATED {
				return "", fmt.Errorf("%s: is container %s: %w", name, c.id, ErrExists)
			}
			return c.id, nil
		}
		return sb.createContainer(ctx, op, name, cfg)
	})
	if err != nil {
		return "", err
	}
	c := m.index.Load().containers[id]
	switch {
	case c == nil:
		return "", fmt.Errorf("%s: removed meanwhile: %w", name, ErrState)
	case !proto.Equal(c.config, cfg):
		return "", fmt.Errorf("%s: is container %s, which was asked for with another config: %w", name, id, ErrExists)
	}
	c.taken.Store(true)
	return id, nil
}

func (m *Manager) containerNamed(name string) *Container {
	i := m.index.Load()
	return i.containers[i.names[name]]
}

// whichDiffers names the field by which the metadata of a request are not those of the pod.
func whichDiffers(asked, is *runtimeapi.PodSandboxMetadata) string {
	const field = "sandbox_config.metadata"
	switch {
	case asked.GetName() != is.GetName():
		return field + ".name"
	case asked.GetNamespace() != is.GetNamespace():
		return field + ".namespace"
	case asked.GetUid() != is.GetUid():
		return field + ".uid"
	case asked.GetAttempt() != is.GetAttempt():
		return field + ".attempt"
	}
	return field
}

// createContainer makes the container and takes everything back if a step fails.
func (sb *Sandbox) createContainer(ctx context.Context, op *operation, name string, cfg *runtimeapi.ContainerConfig) (string, error) {
	if sb.facts.Load().state() != runtimeapi.PodSandboxState_SANDBOX_READY || !sb.gate.enter() {
		return "", fmt.Errorf("pod sandbox %s is not ready: %w", sb.id, ErrState)
	}
	defer sb.gate.leave()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(sb.gate.ctx, cancel)()

	c, err := sb.newContainer(newID(), cfg)
	if err != nil {
		return "", err
	}
	err = spec.InConfig(c.bringUp(ctx, op))
	if err == nil && sb.facts.Load().NotReady != 0 {
		// The monitor died after it had answered, and before it could be noticed that this container is its.
		err = fmt.Errorf("pod sandbox %s is not ready any more: %w", sb.id, ErrState)
	}
	if err != nil {
		if rerr := sb.m.rollBack(ctx, c.id, c); rerr != nil {
			klog.ErrorS(rerr, "Container is half undone", "pod", sb.id, "container", c.id)
		}
		if sb.gate.ctx.Err() != nil {
			// Not what the steps met: that they were cancelled is no business of a client who waits.
			err = fmt.Errorf("pod sandbox %s was stopped: %w: %s", sb.id, ErrState, err.Error())
		}
		return "", err
	}
	sb.m.change(func(i *index) {
		i.containers[c.id] = c
		i.names[name] = c.id
	})
	c.tell()
	c.tellCreated(ctx)
	klog.V(2).InfoS("Container created", "pod", sb.id, "container", c.id, "name", cfg.GetMetadata().GetName())
	return c.id, nil
}

// parts are the descriptors that a container is made of. Each is owned by parts until it was handed over.
type parts struct {
	root   *sys.FD
	user   *sys.FD     // the pod's user namespace, nil without
	userns *oci.UserNS // with user, once it was handed to that
	mounts map[int]*sys.FD
	scope  *cgroup.Scope
	cgroup *sys.FD // of scope
}

func (p *parts) close() {
	p.root.Close()
	p.user.Close()
	p.userns.Close()
	p.cgroup.Close()
	for _, fd := range p.mounts {
		fd.Close()
	}
}

// bringUp makes what the container consists of. The record comes first; what the request can get wrong
// comes before what costs time.
func (c *Container) bringUp(ctx context.Context, op *operation) (err error) {
	m := c.pod.m
	op.at("resolve image")
	img, err := c.checkRequest(ctx)
	if err != nil {
		return err
	}
	op.at("write record")
	if err := c.makeDir(); err != nil {
		return err
	}
	c.pod.watched.Store(c.id, c)
	var p parts
	defer func() { p.close() }()

	op.at("mount root file system")
	if err := m.cfg.Images.NewRootfs(ctx, c.id, img.ID, c.volumeImages()...); err != nil {
		return fmt.Errorf("make root file system: %w", imageError(err))
	}
	if p.user, err = c.pod.openUserNS(ctx); err != nil {
		return err
	}
	// The program makes the root read-only itself, after the mount points were made in it.
	if p.root, err = c.mountRoot(ctx, p.user); err != nil {
		return fmt.Errorf("mount root file system: %w", imageError(err))
	}
	op.at("build spec")
	s, err := c.buildSpec(p.root, img)
	if err != nil {
		return err
	}
	op.at("ask plugins")
	if err := c.askCreate(ctx, s); err != nil {
		return err
	}
	if err := c.gather(ctx, op, s, &p); err != nil {
		return err
	}
	if err := c.relabelVolumes(ctx, op, s.Mounts, p.mounts); err != nil {
		return err
	}
	if err := c.gatherForUserNS(s, &p); err != nil {
		return err
	}
	op.at("fork")
	return c.fork(ctx, s, &p)
}

// gather makes the cgroup while it opens the volumes: both are waits for the kernel, and neither needs the
// other. What was made is in p, also after an error.
func (c *Container) gather(ctx context.Context, op *operation, s *specs.Spec, p *parts) error {
	made := make(chan error, 1)
	go func() { // ends before gather returns
		var err error
		p.scope, p.cgroup, err = c.makeCgroup(s)
		made <- err
	}()
	op.at("open volumes")
	mounts, err := c.pod.m.volumes.openAll(ctx, op, c.openers(p.user), s.Mounts)
	p.mounts = mounts
	op.at("make cgroup")
	return errors.Join(err, <-made)
}

// checkRequest judges what can be judged before anything exists, and finds the image.
func (c *Container) checkRequest(ctx context.Context) (*image.Image, error) {
	ref := c.config.GetImage().GetImage()
	if ref == "" {
		return nil, spec.Invalid("config.image.image", "", "empty")
	}
	img, err := c.pod.m.cfg.Images.Resolve(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("resolve image %.256q: %w", ref, imageError(err))
	}
	// The kubelet asks by id and says beside it what the pod's author wrote.
	asked := c.config.GetImage().GetUserSpecifiedImage()
	if asked == "" {
		asked = ref
	}
	if err := c.pod.m.cfg.Images.Permit(ctx, c.pod.config.GetMetadata().GetNamespace(), img.ID, asked); err != nil {
		return nil, imageError(err)
	}
	c.record.Image = imageRecord{ID: img.ID, Ref: img.ID, Name: ref}
	if len(img.RepoDigests) != 0 {
		c.record.Image.Ref = img.RepoDigests[0]
	}
	if len(img.RepoTags) != 0 {
		c.record.Image.Name = img.RepoTags[0]
	}
	if err := c.resolveVolumes(ctx); err != nil {
		return nil, err
	}
	if err := c.resolveCDI(); err != nil {
		return nil, err
	}
	if err := c.findTarget(); err != nil {
		return nil, err
	}
	if err := c.chooseLabels(); err != nil {
		return nil, err
	}
	if c.record.LogPath, err = spec.LogPath(c.pod.plan, c.config); err != nil {
		return nil, err
	}
	sig, cri, err := spec.StopSignal(c.config, img.Config.StopSignal)
	c.record.Signal, c.record.CRISig = int(sig), int32(cri)
	return img, err
}

// imageError gives the errors of the image store our kinds.
func imageError(err error) error {
	switch {
	case errors.Is(err, image.ErrNotFound):
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	case errors.Is(err, image.ErrInvalidReference):
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	case errors.Is(err, image.ErrNoIDMaps):
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	return err
}

func (c *Container) makeDir() error {
	if err := os.Mkdir(c.dir, 0o700); err != nil {
		return err
	}
	if c.record.LogPath != "" {
		if err := makeLogDir(c.record.LogPath); err != nil {
			return err
		}
	}
	return c.writeLocked()
}

// makeLogDir makes the directory of a log, and refuses what stands in the log's place and is none. The monitor follows and opens no
// such thing either, but its word for it would come late, and without the field.
func makeLogDir(log string) error {
	if err := os.MkdirAll(filepath.Dir(log), 0o755); err != nil {
		return fmt.Errorf("make log directory: %w", hostPathError("config.log_path", log, err))
	}
	st, err := os.Lstat(log)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return hostPathError("config.log_path", log, err)
	case !st.Mode().IsRegular():
		return spec.Invalid("config.log_path", log, "there is something that is not a regular file")
	}
	return nil
}

// buildSpec gathers what the rules want to know and applies them.
func (c *Container) buildSpec(root *sys.FD, img *image.Image) (*specs.Spec, error) {
	user, err := resolveUser(root, spec.UserRequest{Security: c.config.GetLinux().GetSecurityContext(), Image: img.Config.User})
	if err != nil {
		return nil, err
	}
	in := spec.Input{
		ID: c.id, Container: c.config, Pod: c.pod.plan, Image: img.Config, User: user,
		Files: c.pod.files(), Host: c.pod.m.host, CgroupsPath: c.record.Cgroup,
		Volumes: c.volumesByMount(), CDI: c.cdi.edits, CDINodes: c.cdi.nodes, PIDTarget: c.targetPath(), Labels: c.labels,
	}
	if in.AppArmor, err = c.pod.m.armor.profile(c.config, c.pod.m.host); err != nil {
		return nil, err
	}
	if in.Devices, err = lookUpDevices(c.config.GetDevices()); err != nil {
		return nil, err
	}
	s, err := spec.Build(in)
	if err != nil {
		return nil, err
	}
	if s.Linux.Seccomp, err = seccompProfile(c.config, c.pod.plan, s.Process.Capabilities.Bounding); err != nil {
		return nil, err
	}
	c.record.User = userRecord{UID: int64(user.UID), GID: int64(user.GID)}
	for _, g := range user.Groups {
		c.record.User.Groups = append(c.record.User.Groups, int64(g))
	}
	return s, nil
}

// makeCgroup makes the container's cgroup with its limits, before there is a process.
func (c *Container) makeCgroup(s *specs.Spec) (*cgroup.Scope, *sys.FD, error) {
	scope, err := c.pod.m.cfg.Cgroups.Create(c.pod.record.Cgroup, c.id, s.Linux.Resources)
	if err != nil {
		return nil, nil, fmt.Errorf("make cgroup: %w", cgroupError(err))
	}
	for _, u := range scope.Unenforced() {
		c.record.Notes = append(c.record.Notes, notEnforced+u)
	}
	fd, err := scope.OpenDir()
	return scope, fd, err
}

// fork hands everything to the monitor. When it returns, init is blocked before its execve, and the spec is
// on disk for whoever wants to execute something after a restart.
func (c *Container) fork(ctx context.Context, s *specs.Spec, p *parts) error {
	mon := c.pod.monitor()
	if mon == nil {
		return fmt.Errorf("pod sandbox %s: %w: %w", c.pod.id, errNoMonitor, ErrState)
	}
	above, err := c.podCgroup()
	if err != nil {
		return err
	}
	cfg := oci.ContainerConfig{
		ID: c.id, Spec: s, Dir: c.dir, Rootfs: p.root, Mounts: p.mounts, UserNS: p.userns, Cgroup: p.cgroup, PodCgroup: above, LogPath: c.record.LogPath,
		Stdin: c.config.GetStdin(), StdinOnce: c.config.GetStdinOnce(), TTY: c.config.GetTty(), Output: c.record.LogPath == "", OOMScoreAdj: s.Process.OOMScoreAdj,
		Target: c.targetID(),
	}
	scope := p.scope
	*p = parts{} // theirs from here on
	c.mu.Lock()  // a plugin's first look may come upon config.json as soon as it is there
	c.record.Env = beyondJSON(s.Process.Env)
	c.mu.Unlock()
	written := make(chan error, 1)
	go func() { written <- c.pod.m.disk.write(c.dir, "config.json", s) }() // ends before fork returns
	if s.Hooks != nil {
		if cfg.Bundle, err = c.prepareHooks(s, written); err != nil {
			cfg.Close()
			return err
		}
		defer c.endHooks(cfg.Bundle)
	}
	pr, err := mon.create(ctx, cfg)
	if werr := <-written; err == nil && werr != nil {
		return werr // the caller takes the process back
	}
	if err != nil {
		return fmt.Errorf("create process: %w", err)
	}
	// The caller's undo kills and removes the scope, placed or not.
	if err := scope.Place(ctx, pr.pid()); err != nil {
		return c.placeError(ctx, err)
	}
	if err := c.delegateCgroup(pr.pid()); err != nil {
		return err
	}
	c.mu.Lock()
	c.spec = s
	c.mu.Unlock()
	if n := pr.note(); n != "" {
		c.record.Notes = append(c.record.Notes, n)
	}
	if err := c.firstLimits(s.Linux.Resources); err != nil {
		return err
	}
	return c.update(event{what: created, at: now(), pid: pr.pid()})
}

// placeError tells a cgroup that cannot be had from a process that has died before it was in its own, as with the pid namespace of
// its target: systemd makes no scope for that.
func (c *Container) placeError(ctx context.Context, err error) error {
	err = cgroupError(err)
	for until := time.Now().Add(endNews); !errors.Is(err, ErrUnavailable) && ctx.Err() == nil && time.Now().Before(until); time.Sleep(5 * time.Millisecond) {
		c.mu.Lock()
		died := c.early != nil
		c.mu.Unlock()
		if died {
			return fmt.Errorf("the first process has died: %w: %w", ErrState, err)
		}
	}
	return err
}
