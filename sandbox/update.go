package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/vitrine-runtime/vitrine/sandbox/spec"
)

// limits are those of a container or a pod. A value is never changed once it is published.
type limits struct {
	asked *runtimeapi.LinuxContainerResources // by the creation and all updates since, merged
	took  *runtimeapi.LinuxContainerResources // what the kernel made of it
	gaps  []string                            // what does not hold, by the name of its file
}

// limitsRecord is limits in a record.
type limitsRecord struct {
	Asked json.RawMessage `json:"asked"` // LinuxContainerResources
	Took  json.RawMessage `json:"took"`  // LinuxContainerResources
	Gaps  []string        `json:"notEnforced,omitempty"`
}

func (l *limits) record() (*limitsRecord, error) {
	asked, err := encodeMessage(l.asked)
	if err != nil {
		return nil, err
	}
	took, err := encodeMessage(l.took)
	return &limitsRecord{asked, took, l.gaps}, err
}

// limits is the way back. A record from before there were updates has none: what was asked for holds.
func (r *limitsRecord) limits(asked *runtimeapi.LinuxContainerResources) (*limits, error) {
	if r == nil {
		return &limits{asked: asked, took: asked}, nil
	}
	l := &limits{asked: &runtimeapi.LinuxContainerResources{}, took: &runtimeapi.LinuxContainerResources{}, gaps: r.Gaps}
	return l, errors.Join(decodeMessage(r.Asked, l.asked), decodeMessage(r.Took, l.took))
}

// notEnforced begins the note on a limit that does not hold.
const notEnforced = "not enforced: "

// of notes what the kernel made of r.
func (l *limits) of(r *specs.LinuxResources) {
	l.took = spec.ResourcesOf(r, l.asked.GetOomScoreAdj())
}

// turn is whose turn it is to change limits, one after the other.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

// take waits for the turn; giveBack is due.
func (t turn) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t turn) giveBack() { <-t }

// over waits until a change that is under way has ended. It is for who has seen to it that no other begins.
func (t turn) over(ctx context.Context) error {
	err := t.take(ctx)
	if err == nil {
		t.giveBack()
	}
	return err
}

// UpdateContainerResources changes limits of a container that is CREATED or RUNNING: all that change names, or
// none. What it leaves at zero stays. A memory limit below what is used is ErrState. The new limits are in
// ContainerStatus, in the records and in the spec on disk when it returns.
//
// It goes on when ctx ends. Updates of one container wait for each other.
func (m *Manager) UpdateContainerResources(ctx context.Context, id string, change *runtimeapi.LinuxContainerResources) error {
	c, err := m.container(id)
	if err != nil {
		return err
	}
	return m.updateContainer(ctx, c, func(ctx context.Context, op *operation) error {
		op.at("ask plugins") // without the token: they may update the container meanwhile
		change, err := c.askUpdate(ctx, change)
		if err != nil {
			return err
		}
		if err := c.change(ctx, op, change); err != nil {
			return err
		}
		m.tell(ctx, api.Event_POST_UPDATE_CONTAINER, c.pod, c, func() {})
		return nil
	})
}

// updateContainer runs an update as an operation. Two updates are never the same one, so each has a key of its own.
func (m *Manager) updateContainer(ctx context.Context, c *Container, f func(context.Context, *operation) error) error {
	_, err := m.flights.do(ctx, "update "+newID(), "update container "+c.id, m.cfg.OperationTimeout, func(ctx context.Context, op *operation) (string, error) {
		return "", f(ctx, op)
	})
	return err
}

// change changes the limits when nobody else does.
func (c *Container) change(ctx context.Context, op *operation, change *runtimeapi.LinuxContainerResources) error {
	op.at("wait for another update")
	if err := c.changing.take(ctx); err != nil {
		return err
	}
	defer c.changing.giveBack()
	op.at("write limits")
	return c.setLimits(ctx, change)
}

// setLimits changes the limits. c.changing is held.
func (c *Container) setLimits(ctx context.Context, change *runtimeapi.LinuxContainerResources) error {
	if s := c.facts.Load().state(); s != runtimeapi.ContainerState_CONTAINER_CREATED && s != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return fmt.Errorf("container %s is %s: %w", c.id, stateName(s), ErrState)
	}
	next := &limits{asked: spec.MergeResources(c.limits.Load().asked, change)}
	r, err := spec.Resources(next.asked, c.pod.m.host)
	if err != nil {
		return err
	}
	scope := c.pod.m.cfg.Cgroups.Load(c.record.Cgroup)
	err = scope.UpdateThen(ctx, r, func(took *specs.LinuxResources) error {
		next.of(took)
		next.gaps = scope.Unenforced()
		return c.commit(r, next)
	})
	if s := c.facts.Load().state(); err != nil && s == runtimeapi.ContainerState_CONTAINER_EXITED {
		return fmt.Errorf("container %s exited meanwhile: %w: %w", c.id, ErrState, err)
	}
	if err != nil {
		return fmt.Errorf("update container %s: %w", c.id, cgroupError(err))
	}
	klog.V(2).InfoS("Container updated", "pod", c.pod.id, "container", c.id, "resources", next.took)
	return nil
}

// commit writes new limits into the spec on disk and into the record, and publishes them. If one of it cannot be
// written the other one is as before.
func (c *Container) commit(r *specs.LinuxResources, next *limits) error {
	s, err := c.ociSpec()
	if err != nil {
		return err
	}
	changed, linux := *s, *s.Linux // an exec may be reading it
	res := *r
	if s.Linux.Resources != nil {
		res.Devices = s.Linux.Resources.Devices
	}
	linux.Resources, changed.Linux = &res, &linux
	if err := c.pod.m.disk.write(c.dir, "config.json", &changed); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.limits.Swap(next)
	if err := c.writeLocked(); err != nil {
		c.limits.Store(old)
		return errors.Join(err, c.pod.m.disk.write(c.dir, "config.json", s))
	}
	c.spec = &changed
	return nil
}

// firstLimits publishes the limits that a new container has. It comes after everybody has written who writes
// them.
func (c *Container) firstLimits(r *specs.LinuxResources) error {
	next := *c.limits.Load()
	took, err := c.pod.m.cfg.Cgroups.Load(c.record.Cgroup).ReadBack(r)
	if err != nil {
		return fmt.Errorf("read limits: %w", cgroupError(err))
	}
	next.of(took)
	c.limits.Store(&next)
	return nil
}

// reread brings the limits of a recovered pod's containers up to date: a daemon that was killed amidst an
// update has written some to the kernel and none to the records.
func (sb *Sandbox) reread() {
	if sb.record.OwnCG && sb.facts.Load().Stopped == 0 {
		resumeCgroup(sb.m.cfg.Cgroups, sb.record.Cgroup)
	}
	for _, c := range sb.containers() {
		if f := c.facts.Load(); f.Created == 0 || f.Finished != 0 {
			continue
		}
		resumeCgroup(sb.m.cfg.Cgroups, c.record.Cgroup)
		r, err := spec.Resources(c.limits.Load().asked, sb.m.host)
		if err == nil {
			err = c.firstLimits(r)
		}
		if err != nil {
			klog.ErrorS(err, "Limits of a container", "pod", sb.id, "container", c.id)
		}
	}
}
