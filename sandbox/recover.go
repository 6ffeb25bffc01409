package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/vitrine-runtime/vitrine/sandbox/spec"
)

// recover brings the records and reality together. Pods are recovered beside each other, so that one whose
// monitor or network hangs holds nobody up but itself.
func (m *Manager) recover(ctx context.Context) error {
	ids, err := m.podDirs()
	if err != nil {
		return err
	}
	m.each(ctx, ids, func(ctx context.Context, id string) {
		if err := m.recoverPod(ctx, id); err != nil {
			klog.ErrorS(err, "Recovery of a pod sandbox", "pod", id)
		}
	})
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("recover pods: %w", err)
	}
	m.releaseStrays(ctx)
	return nil
}

// each calls f for all ids beside each other, each under StopTimeout, and waits for all.
func (m *Manager) each(ctx context.Context, ids []string, f func(context.Context, string)) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, 16)
	for _, id := range ids {
		wg.Add(1)
		go func() { // ends with f, which its context ends
			defer wg.Done()
			slots <- struct{}{}
			defer func() { <-slots }()
			ctx, cancel := context.WithTimeout(ctx, m.cfg.StopTimeout)
			defer cancel()
			f(ctx, id)
		}()
	}
	wg.Wait()
}

// podDirs lists the directories that are pods'.
func (m *Manager) podDirs() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(m.cfg.RunDir, "pods"))
	var ids []string
	for _, e := range entries {
		if e.IsDir() && isID(e.Name()) {
			ids = append(ids, e.Name())
		}
	}
	return ids, err
}

// recoverPod takes in one pod directory.
func (m *Manager) recoverPod(ctx context.Context, id string) error {
	sb, err := m.loadPod(id)
	if errors.Is(err, errNewer) {
		return err
	}
	if err != nil {
		klog.ErrorS(err, "Pod sandbox cannot be used any more and is erased", "pod", id)
	}
	sameBoot := sb.record.BootID == m.cfg.bootID
	cerr := sb.loadContainers()
	unanswered := false
	if sameBoot || err != nil {
		switch mon, derr := m.cfg.monitors.dial(ctx, sb.dir); {
		case derr == nil:
			sb.setMonitor(mon) // first: whoever exits after the list was made is reported
			cerr = errors.Join(cerr, sb.reconcile(ctx, mon))
		case !errors.Is(derr, errNoMonitor):
			unanswered = true
			cerr = errors.Join(cerr, derr)
		}
	}
	if err != nil || sb.facts.Load().Created == 0 {
		// Made only in part, by a daemon that was killed: whoever asked for it will ask again.
		if rerr := m.rollBack(ctx, id, sb); rerr != nil {
			return errors.Join(cerr, rerr)
		}
		return cerr
	}
	sb.reread()
	m.publish(sb)
	switch f := sb.facts.Load(); {
	case !sameBoot:
		sb.monitorLost("the node was restarted")
	case unanswered:
		// It may be stuck, or we are out of descriptors: not a reason to kill a pod. The sweeper asks again.
	case sb.monitor() == nil && f.Stopped == 0:
		sb.monitorLost("the pod's monitor died while no daemon ran")
	}
	sb.eraseHalfMade(ctx)
	return cerr
}

// publish makes a recovered pod and its containers visible. Plugins get to know of them by the state.
func (m *Manager) publish(sb *Sandbox) {
	sb.heard.made.Store(true)
	sb.heard.stopped.Store(sb.facts.Load().Stopped != 0)
	m.known.Store(sb.id, sb)
	for _, c := range sb.containers() {
		f := c.facts.Load()
		c.heard.made.Store(f.Created != 0)
		c.heard.stopped.Store(f.Finished != 0)
	}
	m.change(func(i *index) {
		i.pods[sb.id] = sb
		i.names[podName(sb.config.GetMetadata())] = sb.id
		for _, c := range sb.containers() {
			if c.facts.Load().Created != 0 {
				i.containers[c.id] = c
				i.names[containerName(sb.id, c.config.GetMetadata())] = c.id
			}
		}
	})
	sb.tell()
	for _, c := range sb.containers() {
		c.tell()
	}
}

// errNewer says that a record was written by a later version of this program.
var errNewer = errors.New("record of a newer version, left alone")

// loadPod reads the record of a pod. With an error other than errNewer the pod is one that can only be
// erased.
func (m *Manager) loadPod(id string) (*Sandbox, error) {
	sb := m.emptySandbox(id)
	if err := readRecord(sb.dir, "pod.json", &sb.record); err != nil {
		return sb, fmt.Errorf("%w: %w", errUnreadable, err)
	}
	m.labels.hold(sb.record.Labels)
	sb.levels = []spec.Labels{sb.record.Labels}
	if sb.record.Version > recordVersion {
		return sb, errNewer
	}
	if sb.record.ID != id {
		return sb, fmt.Errorf("%w: it is of pod %.80q", errUnreadable, sb.record.ID)
	}
	if err := decodeMessage(sb.record.Config, sb.config); err != nil {
		return sb, fmt.Errorf("%w: %w", errUnreadable, err)
	}
	plan, err := m.planOf(sb.config, m.rulesOf(&sb.record))
	if err != nil {
		return sb, fmt.Errorf("%w: %w", errUnreadable, err)
	}
	f := sb.record.Facts
	sb.plan = plan
	sb.facts.Store(&f)
	sb.limits.Store(sb.record.Limits.orNone())
	return sb, nil
}

// loadContainers reads the records of the pod's containers. A directory without a usable record is a
// container that was never made; its id is enough to erase it.
func (sb *Sandbox) loadContainers() error {
	entries, err := os.ReadDir(sb.dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if !e.IsDir() || !isID(e.Name()) {
			continue
		}
		c, err := sb.newContainer(e.Name(), &runtimeapi.ContainerConfig{})
		if err != nil {
			return err
		}
		if err := c.load(); err != nil {
			errs = append(errs, err)
			if c, err = sb.newContainer(e.Name(), &runtimeapi.ContainerConfig{}); err != nil {
				return err
			}
		}
		sb.watched.Store(c.id, c)
	}
	return errors.Join(errs...)
}

func (c *Container) load() error {
	r := &containerRecord{}
	if err := readRecord(c.dir, "container.json", r); err != nil {
		return err
	}
	if r.ID != c.id || r.Pod != c.pod.id || r.Version > recordVersion {
		return fmt.Errorf("record in %s is of container %.80q of pod %.80q, version %d", c.dir, r.ID, r.Pod, r.Version)
	}
	if err := decodeMessage(r.Config, c.config); err != nil {
		return err
	}
	for _, v := range r.Volumes {
		if v.Mount < 0 || v.Mount >= len(c.config.GetMounts()) || c.config.GetMounts()[v.Mount].GetImage() == nil {
			return fmt.Errorf("record in %s has an image for mount %d, which is of none", c.dir, v.Mount)
		}
	}
	c.record = *r
	if l, err := spec.ContainerLabels(c.config, c.pod.record.Labels, c.pod.m.host); err == nil { // else it has none
		c.labels = l
		c.holdLabels()
	}
	f := r.Facts
	c.facts.Store(&f)
	l, err := r.Limits.limits(c.config.GetLinux().GetResources())
	if err != nil {
		return err
	}
	c.limits.Store(l)
	if f.Finished != 0 {
		close(c.done)
	}
	return nil
}

// reconcile takes in what the monitor knows: it is the authority on life.
func (sb *Sandbox) reconcile(ctx context.Context, mon monitor) error {
	list, err := mon.list(ctx)
	if err != nil {
		return err
	}
	known := map[string]processState{}
	for _, s := range list {
		known[s.id] = s
	}
	var errs []error
	for _, c := range sb.containers() {
		f := c.facts.Load()
		if f.Created == 0 || f.Finished != 0 {
			continue
		}
		s, ok := known[c.id]
		if !ok {
			errs = append(errs, c.lost(ctx, "the monitor does not know the container"))
			continue
		}
		if s.started != 0 && f.Started == 0 {
			errs = append(errs, c.update(event{what: started, at: s.started}))
		}
		if s.dead {
			c.ended(s.exit)
		}
	}
	return errors.Join(errs...)
}

// eraseHalfMade takes back what a killed daemon was about to create in this pod.
func (sb *Sandbox) eraseHalfMade(ctx context.Context) {
	for _, c := range sb.containers() {
		if c.facts.Load().Created != 0 {
			continue
		}
		if err := sb.m.rollBack(ctx, c.id, c); err != nil {
			klog.ErrorS(err, "Half-made container", "pod", sb.id, "container", c.id)
		}
	}
}

// releaseStrays gives back what belongs to no pod: addresses, root file systems, pins. They are left when
// the run directory was emptied by a reboot, or when the daemon was killed at the very end of a removal.
func (m *Manager) releaseStrays(ctx context.Context) {
	// Directories, not pods: one that could not be erased, or is not ours to touch, keeps what belongs to it.
	pods, err := m.podDirs()
	if err != nil {
		klog.ErrorS(err, "List of pod directories")
		return
	}
	ids, err := m.cfg.Network.Pending()
	if err != nil {
		klog.ErrorS(err, "List of network intents")
	}
	ids = slices.DeleteFunc(ids, func(id string) bool { return slices.Contains(pods, id) })
	m.each(ctx, ids, func(ctx context.Context, id string) {
		if err := m.rollBack(ctx, id, strayNetwork{m, id}); err != nil {
			klog.ErrorS(err, "Network of a pod that is gone", "pod", id)
		}
	})
	m.releaseRootfses(ctx)
	pins, err := strayPins(m.cfg.NetNSDir, pods)
	if err != nil {
		klog.ErrorS(err, "List of pinned network namespaces")
	}
	for _, p := range pins {
		if err := unpinNetNS(p); err != nil {
			klog.ErrorS(err, "Pin of a pod that is gone", "path", p)
		}
	}
}

// releaseRootfses removes the root file systems of containers that have no directory.
func (m *Manager) releaseRootfses(ctx context.Context) {
	ids, err := m.cfg.Images.Rootfses()
	if err != nil {
		klog.ErrorS(err, "List of root file systems")
		return
	}
	for _, id := range ids {
		dirs, err := filepath.Glob(filepath.Join(m.cfg.RunDir, "pods", "*", id))
		if err != nil || len(dirs) != 0 {
			continue
		}
		if err := m.cfg.Images.RemoveRootfs(ctx, id); err != nil {
			klog.ErrorS(err, "Root file system of a container that is gone", "container", id)
		}
	}
}

// strayNetwork is an address that belongs to no pod.
type strayNetwork struct {
	m  *Manager
	id string
}

// erase has the plugins release it; the namespace is gone.
func (s strayNetwork) erase(ctx context.Context) error { return s.m.cfg.Network.Del(ctx, s.id) }
