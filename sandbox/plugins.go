package sandbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"k8s.io/klog/v2"

	"github.com/vitrine-runtime/vitrine/nri"
	"github.com/vitrine-runtime/vitrine/sandbox/spec"
)

// heard is what the node's plugins were told of a pod or container, so that they hear everything once and in order:
// made, stopped, removed. What a daemon before us has told counts as told: its plugins are told the state anew.
type heard struct {
	mu                     sync.Mutex // held while they are told, so that one thing comes after the other
	made, stopped, removed atomic.Bool
}

// present tells whether plugins know of it.
func (h *heard) present() bool { return h.made.Load() && !h.removed.Load() }

// pluginError gives the errors of plugins our kinds.
func pluginError(err error) error {
	switch {
	case errors.Is(err, nri.ErrNoAnswer):
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	case errors.Is(err, nri.ErrRefused):
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	return err
}

// askRun asks whether the pod, which has its network, may run.
func (sb *Sandbox) askRun(ctx context.Context, ips []string) error {
	if sb.m.cfg.Plugins == nil {
		return nil
	}
	sb.heard.mu.Lock()
	defer sb.heard.mu.Unlock()
	return pluginError(sb.m.cfg.Plugins.RunPodSandbox(ctx, sb.forPlugins(ips), func() {
		sb.heard.made.Store(true)
		sb.m.known.Store(sb.id, sb)
	}))
}

// tellStopped tells plugins that the pod's containers have ended and its network is about to go.
func (sb *Sandbox) tellStopped(ctx context.Context) {
	for _, c := range sb.containers() {
		c.tellStopped(ctx)
	}
	sb.heard.mu.Lock()
	defer sb.heard.mu.Unlock()
	if !sb.heard.made.Load() || sb.heard.stopped.Load() {
		return
	}
	sb.m.tell(ctx, api.Event_STOP_POD_SANDBOX, sb, nil, func() { sb.heard.stopped.Store(true) })
}

// tellRemoved tells plugins that the pod is about to be gone.
func (sb *Sandbox) tellRemoved(ctx context.Context) {
	sb.heard.mu.Lock()
	defer sb.heard.mu.Unlock()
	if !sb.heard.present() {
		return
	}
	sb.m.tell(ctx, api.Event_REMOVE_POD_SANDBOX, sb, nil, func() {
		sb.heard.removed.Store(true)
		sb.m.known.Delete(sb.id)
	})
}

// tell tells plugins what cannot be undone, and logs what they say to it. Nothing is told without plugins.
func (m *Manager) tell(ctx context.Context, event api.Event, sb *Sandbox, c *Container, begun func()) {
	if m.cfg.Plugins == nil {
		return
	}
	var ctr *api.Container
	if c != nil {
		ctr = c.forPlugins()
	}
	if err := m.cfg.Plugins.Tell(ctx, event, sb.forPlugins(sb.facts.Load().IPs), ctr, begun); err != nil {
		klog.ErrorS(err, "Plugins", "pod", sb.id, "container", ctr.GetId())
	}
}

// askCreate asks plugins what is to be changed in the container, and changes its spec and limits.
func (c *Container) askCreate(ctx context.Context, s *specs.Spec) error {
	m := c.pod.m
	if m.cfg.Plugins == nil {
		return nil
	}
	c.heard.mu.Lock()
	defer c.heard.mu.Unlock()
	answer, err := m.cfg.Plugins.CreateContainer(ctx, c.pod.forPlugins(c.pod.facts.Load().IPs), c.describe(s), func() { c.heard.made.Store(true) })
	if err != nil {
		return pluginError(err)
	}
	if answer.Adjust != nil {
		if err := c.adjust(s, answer.Adjust); err != nil {
			// Not the request is wrong, but what was made of it.
			return fmt.Errorf("adjustment by plugins: %s: %w", err, ErrState) //nolint:errorlint // its kind is the caller's fault
		}
	}
	return m.follow(ctx, answer)
}

// adjust changes the spec and the limits.
func (c *Container) adjust(s *specs.Spec, a *api.ContainerAdjustment) error {
	devices, err := spec.PluginCDIRequests(a)
	if err != nil {
		return err
	}
	if c.given, err = c.findCDI("", devices); err != nil {
		return err
	}
	change, err := spec.Adjust(s, a, spec.Input{Pod: c.pod.plan, CDI: c.given.edits, CDINodes: c.given.nodes})
	if err != nil {
		return err
	}
	asked := spec.MergeResources(c.limits.Load().asked, change)
	if adj := s.Process.OOMScoreAdj; adj != nil {
		asked.OomScoreAdj = int64(*adj)
	}
	r, err := spec.Resources(asked, c.pod.m.host)
	if err != nil {
		return err
	}
	r.Devices = s.Linux.Resources.Devices
	s.Linux.Resources = r
	c.limits.Store(&limits{asked: asked})
	return nil
}

// askStart asks whether the container may start, and has it started by start. No plugin hears of its end before the
// start was told.
func (c *Container) askStart(ctx context.Context, start func(context.Context) error) error {
	if c.pod.m.cfg.Plugins == nil {
		return start(ctx)
	}
	c.heard.mu.Lock()
	defer c.heard.mu.Unlock()
	if err := c.pod.m.cfg.Plugins.StartContainer(ctx, c.pod.forPlugins(c.pod.facts.Load().IPs), c.forPlugins()); err != nil {
		return pluginError(err)
	}
	if err := start(ctx); err != nil {
		return err
	}
	c.pod.m.tell(ctx, api.Event_POST_START_CONTAINER, c.pod, c, func() {})
	return nil
}

// tellCreated tells plugins what became of the container that they were asked about.
func (c *Container) tellCreated(ctx context.Context) {
	c.heard.mu.Lock()
	defer c.heard.mu.Unlock()
	if c.heard.present() && !c.heard.stopped.Load() {
		c.pod.m.tell(ctx, api.Event_POST_CREATE_CONTAINER, c.pod, c, func() {})
	}
}

// tellEnd has plugins told that the container has exited, without anybody waiting for it.
func (c *Container) tellEnd() {
	m := c.pod.m
	if m.cfg.Plugins == nil || !c.heard.made.Load() {
		return
	}
	m.running.Add(1)
	go func() { // ends with its deadline, and with the manager
		defer m.running.Done()
		ctx, cancel := context.WithTimeout(m.flights.base, m.cfg.StopTimeout)
		defer cancel()
		c.tellStopped(ctx)
	}()
}

// tellStopped tells plugins that the container has ended, once, and follows what they want changed of others.
func (c *Container) tellStopped(ctx context.Context) {
	c.heard.mu.Lock()
	defer c.heard.mu.Unlock()
	c.tellStoppedLocked(ctx)
}

// tellStoppedLocked is tellStopped. Preconditions: c.heard.mu is held.
func (c *Container) tellStoppedLocked(ctx context.Context) {
	m := c.pod.m
	if m.cfg.Plugins == nil || !c.heard.made.Load() || c.heard.stopped.Load() {
		return
	}
	answer, err := m.cfg.Plugins.StopContainer(ctx, c.pod.forPlugins(c.pod.facts.Load().IPs), c.forPlugins(), func() { c.heard.stopped.Store(true) })
	if err == nil {
		err = m.follow(ctx, answer)
	}
	if err != nil {
		klog.ErrorS(err, "Plugins at the end of a container", "pod", c.pod.id, "container", c.id)
	}
}

// tellRemoved tells plugins that the container, whose processes are gone, is about to be gone as well.
func (c *Container) tellRemoved(ctx context.Context) {
	c.heard.mu.Lock()
	defer c.heard.mu.Unlock()
	if !c.heard.present() {
		return
	}
	c.tellStoppedLocked(ctx)
	c.pod.m.tell(ctx, api.Event_REMOVE_CONTAINER, c.pod, c, func() { c.heard.removed.Store(true) })
}

// evictionGrace is how long a container that a plugin evicts may take to end: what a pod has by default.
const evictionGrace = 30 * time.Second
