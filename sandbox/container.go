package sandbox

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/vitrine-runtime/vitrine/oci"
	"github.com/vitrine-runtime/vitrine/sandbox/spec"
)

// Container is one container of a pod. It is made by Manager.CreateContainer or found again by Open, and
// ends with RemoveContainer or with its pod. It runs once: a restart is a new container.
//
// The fields above mu never change once the container can be seen. What a reader may ask for comes from
// them and from facts.
type Container struct {
	pod    *Sandbox
	id     string
	dir    string
	config *runtimeapi.ContainerConfig
	record containerRecord // without facts
	facts  atomic.Pointer[facts]
	done   chan struct{} // closed when facts.Finished is set
	taken  atomic.Bool   // somebody was told the id
	stats  containerStats
	cdi    cdiParts    // set before the container is made, and not kept
	given  cdiParts    // by plugins, as cdi
	labels spec.Labels // as cdi
	target *Container  // whose pid namespace it is to be in, nil for none; like cdi

	stdin stdinEnd

	limits   atomic.Pointer[limits]
	changing turn // whose it is to change the limits

	told  stage // guarded by Manager.feed.mu
	heard heard

	mu       sync.Mutex
	spec     *specs.Spec   // guarded by mu; read from config.json when an exec wants it after a restart
	deadline time.Time     // guarded by mu; when a stop turns to force; zero while nobody stops it
	sooner   chan struct{} // guarded by mu; closed and replaced when the deadline was lowered
	erased   bool          // guarded by mu: the directory is on its way out, no record is written any more
	early    *event        // guarded by mu; an exit that was reported before the creation was
}

// newContainer prepares a container; nothing exists of it yet.
func (sb *Sandbox) newContainer(id string, cfg *runtimeapi.ContainerConfig) (*Container, error) {
	raw, err := encodeMessage(cfg)
	if err != nil {
		return nil, err
	}
	c := &Container{pod: sb, id: id, dir: filepath.Join(sb.dir, id), config: cfg, done: make(chan struct{}), sooner: make(chan struct{}), changing: newTurn()}
	c.stdin.c = make(chan struct{})
	c.record = containerRecord{Version: recordVersion, ID: id, Pod: sb.id, Config: raw}
	if c.record.Cgroup, err = sb.m.cfg.Cgroups.ScopePath(sb.record.Cgroup, id); err != nil {
		return nil, cgroupError(err)
	}
	c.facts.Store(&facts{})
	c.limits.Store(&limits{asked: cfg.GetLinux().GetResources()})
	return c, nil
}

// ID returns the container's id: 64 hex digits.
func (c *Container) ID() string { return c.id }

// containerName is the key by which a container is idempotent.
func containerName(pod string, md *runtimeapi.ContainerMetadata) string {
	return fmt.Sprintf("container %s/%s %d", pod, md.GetName(), md.GetAttempt())
}

// update takes an event in. It is the only writer of facts; the record is written under the same lock, so
// that what is on disk never goes back. An error of the record does not undo the fact: the kernel's state has
// changed already.
func (c *Container) update(e event) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := *c.facts.Load()
	if e.what == exited && old.Created == 0 {
		c.early = &e // by another way than the answer to the creation, and faster
		return nil
	}
	n, err := old.next(e)
	if err == nil && e.what == created && c.early != nil {
		n, err = n.next(*c.early)
	}
	if err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	if n == old {
		return nil
	}
	c.facts.Store(&n)
	err = c.writeLocked()
	if n.Finished != 0 && old.Finished == 0 {
		c.stats.end(c.pod.m.stats.fds)
		close(c.done)
		c.tellEnd()
	}
	c.tell()
	return err
}

// writeLocked writes the record. Preconditions: c.mu is held, or nobody else knows c.
func (c *Container) writeLocked() error {
	if c.erased {
		return nil
	}
	r := c.record
	r.Facts = *c.facts.Load()
	var err error
	if r.Limits, err = c.limits.Load().record(); err != nil {
		return err
	}
	return c.pod.m.disk.write(c.dir, "container.json", &r)
}

// process returns the handle of the main process; errNoMonitor if the pod has nobody to ask.
func (c *Container) process() (process, error) {
	mon := c.pod.monitor()
	if mon == nil {
		return nil, c.orEnded(fmt.Errorf("container %s: %w: %w", c.id, errNoMonitor, ErrUnavailable))
	}
	return mon.process(c.id), nil
}

// orEnded is err, but that a monitor which does not answer any more, since its pod was stopped while the verb was on its way, says of
// the container that it has ended: ErrState. To come again later, as after ErrUnavailable, is of no use then.
func (c *Container) orEnded(err error) error {
	if errors.Is(err, errNoMonitor) && c.facts.Load().Finished != 0 {
		return fmt.Errorf("the container has ended: %w: %v", ErrState, err) //nolint:errorlint // unavailable no more
	}
	return err
}

// killCgroup kills all processes of the container, without asking the monitor.
func (c *Container) killCgroup(ctx context.Context) error {
	if f := c.facts.Load(); f.Created != 0 && f.Finished == 0 {
		if err := oci.NoteKill(c.dir, f.Pid); err != nil {
			klog.ErrorS(err, "Note of a kill, which may be taken for the OOM killer's", "container", c.id)
		}
	}
	s := c.pod.m.cfg.Cgroups.Load(c.record.Cgroup)
	if err := s.Kill(); err != nil {
		return fmt.Errorf("kill container %s: %w", c.id, err)
	}
	if err := s.WaitEmpty(ctx); err != nil {
		return fmt.Errorf("wait for the processes of container %s: %w", c.id, err)
	}
	return nil
}

// kill ends a container by force and waits until its exit is known.
func (c *Container) kill(ctx context.Context) error {
	f := c.facts.Load()
	if err := c.killCgroup(ctx); err != nil {
		return err
	}
	if f.Created == 0 || f.Finished != 0 {
		return nil
	}
	if c.pod.reach(ctx); c.pod.monitor() == nil {
		return c.lost(ctx, "the pod has no monitor")
	}
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the exit of container %s: %w", c.id, ctx.Err())
	}
}

// remove erases the container and takes it out of sight.
func (c *Container) remove(ctx context.Context) error {
	if err := c.erase(ctx); err != nil {
		return err
	}
	c.pod.m.change(func(i *index) {
		delete(i.containers, c.id)
		if name := containerName(c.pod.id, c.config.GetMetadata()); i.names[name] == c.id {
			delete(i.names, name)
		}
	})
	c.tellDeleted()
	return nil
}

// erase takes away everything that this container is or was about to be, from any point of its life, and
// the record last.
func (c *Container) erase(ctx context.Context) error {
	if err := c.kill(ctx); err != nil {
		return err
	}
	// It has ended, so nobody begins a change any more; one under way writes into the directory.
	if err := c.changing.over(ctx); err != nil {
		return fmt.Errorf("wait for an update of container %s: %w", c.id, err)
	}
	c.tellRemoved(ctx)
	if err := c.forget(ctx); err != nil {
		return fmt.Errorf("forget container %s: %w", c.id, err)
	}
	if err := c.pod.m.cfg.Images.RemoveRootfs(ctx, c.id); err != nil {
		return fmt.Errorf("remove root file system of container %s: %w", c.id, err)
	}
	if err := removeCgroup(ctx, c.pod.m.cfg.Cgroups, c.record.Cgroup); err != nil {
		return err
	}
	c.mu.Lock()
	c.erased = true
	c.mu.Unlock()
	if err := oci.RemoveDir(c.dir, "config.json", "container.json"); err != nil {
		return err
	}
	c.pod.watched.Delete(c.id)
	return nil
}

// forget makes the monitor forget the container. Its processes are gone, but the monitor may still have to
// reap the first one.
func (c *Container) forget(ctx context.Context) error {
	for {
		mon := c.pod.monitor()
		if mon == nil {
			return nil
		}
		err := mon.process(c.id).remove(ctx)
		switch {
		case err == nil, errors.Is(err, ErrNotFound), errors.Is(err, errNoMonitor):
			return nil
		case !errors.Is(err, ErrState):
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// stopSignal returns what asks the container to end.
func (c *Container) stopSignal() unix.Signal { return unix.Signal(c.record.Signal) }
