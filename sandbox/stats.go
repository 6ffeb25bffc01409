package sandbox

import (
	"context"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/oci/cgroup"
)

// statsPatience is how long one container or pod may take to be read before it is passed over. Then what was read of it
// the last time is shown, with its older timestamp.
const statsPatience = 250 * time.Millisecond

// statsLimit is how long all of them may take together.
const statsLimit = 5 * time.Second

// containerStats are the gauges of one container.
type containerStats struct {
	use   gauge[cgroupUse]
	procs gauge[uint64] // read for pods only
	layer atomic.Pointer[layerUse]

	// What follows is read for metrics only.
	detail gauge[cgroup.Detail]
	crowd  gauge[crowd]
}

// podStats are the gauges of one pod.
type podStats struct {
	use     gauge[cgroupUse]
	network gauge[[]netInterface]
}

// stats is what reading statistics needs: it belongs to the Manager.
type stats struct {
	fds    *fdBudget
	layers *layers
	limit  time.Duration // a test's; 0 means statsPatience

	openMeter func(path string) (source[cgroupUse], error) // a test's; nil means the kernel's
}

func (m *Manager) startStats(ctx context.Context) {
	m.stats.fds = newFDBudget()
	m.stats.layers = newLayers(ctx, m.cfg.Images)
	m.stats.limit = statsPatience
	m.stats.openMeter = func(path string) (source[cgroupUse], error) {
		meter, err := m.cfg.Cgroups.Load(path).Meter()
		if err != nil {
			return nil, err
		}
		return meterSource{meter}, nil
	}
}

// end closes what is open of a container's statistics. Its writable layer stays known.
func (s *containerStats) end(b *fdBudget) {
	s.use.end(b)
	s.procs.end(b)
	s.detail.end(b)
	s.crowd.end(b)
}

func (s *podStats) end(b *fdBudget) {
	s.use.end(b)
	s.network.end(b)
}

// endStats closes all that is open.
func (m *Manager) endStats() {
	i := m.index.Load()
	for _, sb := range i.pods {
		sb.stats.end(m.stats.fds)
		for _, c := range sb.containers() {
			c.stats.end(m.stats.fds)
		}
	}
}

// ContainerStats returns what a container uses. One that has exited has no CPU and no memory, but its writable layer.
//
// Figures that the node does not have, for want of a controller, are nil and not zero. Every part has the timestamp of
// its reading. A container whose cgroup does not answer within a quarter of a second is shown as it was the last time;
// the writable layer is measured in the background, and missing until that was done once.
func (m *Manager) ContainerStats(ctx context.Context, id string) (*runtimeapi.ContainerStats, error) {
	c, err := m.container(id)
	if err != nil {
		return nil, err
	}
	m.read(ctx, []*Container{c}, nil)
	return c.statsMessage(), nil
}

// ListContainerStats is ContainerStats for all containers that match a filter, newest first; nil means all. One that
// does not answer keeps nobody waiting but for its share.
func (m *Manager) ListContainerStats(ctx context.Context, filter *runtimeapi.ContainerStatsFilter) []*runtimeapi.ContainerStats {
	var list []*Container
	for _, c := range m.index.Load().containers {
		if strings.HasPrefix(c.id, filter.GetId()) && strings.HasPrefix(c.pod.id, filter.GetPodSandboxId()) &&
			selected(filter.GetLabelSelector(), c.config.GetLabels()) {
			list = append(list, c)
		}
	}
	m.read(ctx, list, nil)
	sortContainers(list)
	out := make([]*runtimeapi.ContainerStats, len(list))
	for i, c := range list {
		out[i] = c.statsMessage()
	}
	return out
}

// PodSandboxStats returns what a pod uses, all of its containers and the overhead included, and what each of its
// containers uses: see ContainerStats. A pod that is not ready has no CPU, memory and network.
func (m *Manager) PodSandboxStats(ctx context.Context, id string) (*runtimeapi.PodSandboxStats, error) {
	sb, err := m.pod(id)
	if err != nil {
		return nil, err
	}
	return m.podStats(ctx, []*Sandbox{sb})[0], nil
}

// ListPodSandboxStats is PodSandboxStats for all pods that match a filter, newest first; nil means all.
func (m *Manager) ListPodSandboxStats(ctx context.Context, filter *runtimeapi.PodSandboxStatsFilter) []*runtimeapi.PodSandboxStats {
	var list []*Sandbox
	for _, sb := range m.index.Load().pods {
		if strings.HasPrefix(sb.id, filter.GetId()) && selected(filter.GetLabelSelector(), sb.config.GetLabels()) {
			list = append(list, sb)
		}
	}
	slices.SortFunc(list, func(a, b *Sandbox) int {
		return newestFirst(a.facts.Load().Created, b.facts.Load().Created, a.id, b.id)
	})
	return m.podStats(ctx, list)
}

func sortContainers(list []*Container) {
	slices.SortFunc(list, func(a, b *Container) int {
		return newestFirst(a.facts.Load().Created, b.facts.Load().Created, a.id, b.id)
	})
}

// podStats reads pods and their containers, and returns them in the order of the list.
func (m *Manager) podStats(ctx context.Context, list []*Sandbox) []*runtimeapi.PodSandboxStats {
	of := make(map[*Sandbox][]*Container, len(list))
	for _, sb := range list {
		of[sb] = nil
	}
	var all []*Container
	for _, c := range m.index.Load().containers {
		if mine, ok := of[c.pod]; ok {
			of[c.pod] = append(mine, c)
			all = append(all, c)
		}
	}
	m.read(ctx, all, of)
	out := make([]*runtimeapi.PodSandboxStats, len(list))
	for i, sb := range list {
		sortContainers(of[sb])
		out[i] = sb.statsMessage(of[sb])
	}
	return out
}

// read refreshes the gauges of containers, and of pods with the number of their containers' processes.
func (m *Manager) read(ctx context.Context, list []*Container, pods map[*Sandbox][]*Container) {
	m.stats.layers.want(list)
	jobs := make([]func(), 0, len(list)+len(pods))
	for _, c := range list {
		if c.facts.Load().Finished == 0 {
			jobs = append(jobs, func() { c.readStats(pods != nil) })
		}
	}
	for sb, containers := range pods {
		if sb.facts.Load().NotReady == 0 {
			jobs = append(jobs, func() { sb.readStats(containers) })
		}
	}
	ctx, cancel := context.WithTimeout(ctx, statsLimit)
	defer cancel()
	collect(ctx, m.stats.limit, jobs)
}

func (c *Container) readStats(withProcesses bool) {
	s := &c.pod.m.stats
	c.stats.use.refresh(s.fds, s.limit, func() (source[cgroupUse], error) { return s.openMeter(c.record.Cgroup) })
	if withProcesses {
		c.stats.procs.refresh(s.fds, s.limit, func() (source[uint64], error) {
			census, err := c.pod.m.cfg.Cgroups.Load(c.record.Cgroup).Census()
			if err != nil {
				return nil, err
			}
			return censusSource{census}, nil
		})
	}
}

func (sb *Sandbox) readStats(containers []*Container) {
	s := &sb.m.stats
	sb.stats.use.refresh(s.fds, s.limit, func() (source[cgroupUse], error) { return s.openMeter(sb.statsCgroup(containers)) })
	sb.readNetwork()
}

func (sb *Sandbox) readNetwork() {
	s := &sb.m.stats
	if mon := sb.monitor(); mon != nil && !sb.plan.HostNetwork {
		sb.stats.network.refresh(s.fds, s.limit, func() (source[[]netInterface], error) {
			return openNetwork(mon.pid(), sb.netns())
		})
	}
}

// statsCgroup returns the pod's cgroup: the one that its containers are in, since what earlier versions recorded of the
// pod may be the name of a slice. Without containers, a name with a dash is one: where it lies has a slash as well.
func (sb *Sandbox) statsCgroup(containers []*Container) string {
	for _, c := range containers {
		return path.Dir(c.record.Cgroup)
	}
	recorded := sb.record.Cgroup
	if strings.Contains(recorded, "-") && !strings.Contains(recorded, "/") {
		if whole, err := sb.m.cfg.Cgroups.Parent(recorded); err == nil {
			return whole
		}
	}
	return recorded
}

// counted adds up the processes of containers, where they are known of all that live.
func (sb *Sandbox) counted(containers []*Container) (n cgroup.Number, at int64) {
	if sb.plan.SharedPID && sb.monitor() != nil {
		n.Value = 1 // the pause
	}
	at = now()
	for _, c := range containers {
		if c.facts.Load().Finished != 0 {
			continue
		}
		last := c.stats.procs.last.Load()
		if last == nil {
			return cgroup.Number{}, 0
		}
		n.Value, at = n.Value+last.value, min(at, last.at)
	}
	n.Known = true
	return n, at
}
