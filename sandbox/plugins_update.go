package sandbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/nri/pkg/api"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/vitrine-runtime/vitrine/nri"
	"github.com/vitrine-runtime/vitrine/sandbox/spec"
)

// pluginRuntime is the manager as the node's plugins have it.
type pluginRuntime struct{ m *Manager }

// ForPlugins returns what plugins see and change of the manager. It is to be handed to the plugins of its Config.
func (m *Manager) ForPlugins() nri.Runtime { return pluginRuntime{m} }

// State lists what plugins have been told of and not been told the end of, with what is being made now. It reads
// memory, and after a restart once the spec of each container.
func (r pluginRuntime) State() (pods []*api.PodSandbox, containers []*api.Container) {
	r.m.known.Range(func(_, v any) bool {
		sb := v.(*Sandbox)
		pods = append(pods, sb.forPlugins(sb.facts.Load().IPs))
		for _, c := range sb.containers() {
			if c.heard.present() {
				containers = append(containers, c.forPlugins())
			}
		}
		return true
	})
	return pods, containers
}

// Update changes the limits of a container, as UpdateContainerResources does, without asking plugins.
func (r pluginRuntime) Update(ctx context.Context, u *api.ContainerUpdate) error {
	change, err := spec.PluginResources("linux.resources.", u.GetLinux().GetResources())
	if err != nil {
		return err
	}
	c, err := r.m.container(u.GetContainerId())
	if err != nil {
		return err
	}
	return r.m.updateContainer(ctx, c, func(ctx context.Context, op *operation) error { return c.change(ctx, op, change) })
}

// Evict begins to stop a container. Its pod goes on, and whoever owns that may make another.
func (r pluginRuntime) Evict(_ context.Context, e *api.ContainerEviction) error {
	c, err := r.m.container(e.GetContainerId())
	if err != nil {
		return err
	}
	klog.InfoS("Container evicted by a plugin", "pod", c.pod.id, "container", c.id, "reason", fmt.Sprintf("%.256q", e.GetReason()))
	c.stop(evictionGrace)
	return nil
}

// follow does what plugins want of other containers. An update that must not fail is an error; what was changed before
// it stays so, as it would be with an update of theirs.
func (m *Manager) follow(ctx context.Context, answer *nri.Answer) error {
	r := pluginRuntime{m}
	var errs []error
	for _, u := range answer.Update {
		err := r.Update(ctx, u)
		switch {
		case err == nil:
		case u.GetIgnoreFailure():
			klog.InfoS("Update by a plugin", "container", u.GetContainerId(), "err", err)
		default:
			errs = append(errs, fmt.Errorf("update of container %.80q by plugins: %s: %w", u.GetContainerId(), err, ErrState)) //nolint:errorlint // its kind is the caller's fault
		}
	}
	for _, e := range answer.Evict {
		if err := r.Evict(ctx, e); err != nil {
			klog.ErrorS(err, "Eviction by a plugin", "container", e.GetContainerId())
		}
	}
	return errors.Join(errs...)
}

// askUpdate asks plugins what an update is to be, and returns that.
func (c *Container) askUpdate(ctx context.Context, change *runtimeapi.LinuxContainerResources) (*runtimeapi.LinuxContainerResources, error) {
	m := c.pod.m
	if m.cfg.Plugins == nil {
		return change, nil
	}
	if s := c.facts.Load().state(); s == runtimeapi.ContainerState_CONTAINER_EXITED {
		return nil, fmt.Errorf("container %s is %s: %w", c.id, stateName(s), ErrState)
	}
	answer, err := m.cfg.Plugins.UpdateContainer(ctx, c.pod.forPlugins(c.pod.facts.Load().IPs), c.forPlugins(), resourcesForPlugins(change))
	if err != nil {
		return nil, pluginError(err)
	}
	if answer.Resources != nil {
		next, err := spec.PluginResources("linux.resources.", answer.Resources)
		if err != nil {
			return nil, fmt.Errorf("update by plugins: %s: %w", err, ErrState) //nolint:errorlint // its kind is the caller's fault
		}
		next.OomScoreAdj = change.GetOomScoreAdj()
		change = next
	}
	return change, m.follow(ctx, answer)
}

// askUpdate asks plugins whether the limits of the pod as a whole may be changed.
func (sb *Sandbox) askUpdate(ctx context.Context, overhead, resources *runtimeapi.LinuxContainerResources) error {
	if sb.m.cfg.Plugins == nil {
		return nil
	}
	if sb.facts.Load().state() != runtimeapi.PodSandboxState_SANDBOX_READY {
		return fmt.Errorf("pod sandbox %s is not ready: %w", sb.id, ErrState)
	}
	pod := sb.forPlugins(sb.facts.Load().IPs)
	return pluginError(sb.m.cfg.Plugins.UpdatePodSandbox(ctx, pod, resourcesForPlugins(overhead), resourcesForPlugins(resources)))
}
