package sandbox

import (
	"context"
	"slices"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/oci/cgroup"
)

// ListMetricDescriptors returns what metrics there are. It never changes while the daemon runs: a kubelet asks once.
func (m *Manager) ListMetricDescriptors() []*runtimeapi.MetricDescriptor {
	out := make([]*runtimeapi.MetricDescriptor, len(families))
	for i, f := range families {
		out[i] = &runtimeapi.MetricDescriptor{Name: f.name, Help: f.help, LabelKeys: f.keys()}
	}
	return out
}

// ListPodSandboxMetrics returns the metrics of all pods that are ready and of their containers that have not exited,
// newest first.
//
// What the node does not count is left out. A sample without a timestamp was read for this answer; one with a timestamp
// is from before: what a cgroup that does not answer within a quarter of a second said the last time, and what is
// measured in the background.
func (m *Manager) ListPodSandboxMetrics(ctx context.Context) []*runtimeapi.PodSandboxMetrics {
	i, begin := m.index.Load(), now()
	of := map[*Sandbox][]*Container{}
	var pods []*Sandbox
	for _, sb := range i.pods {
		if sb.plan != nil && sb.facts.Load().NotReady == 0 {
			pods, of[sb] = append(pods, sb), nil
		}
	}
	var all []*Container
	for _, c := range i.containers {
		if mine, ok := of[c.pod]; ok && c.facts.Load().Finished == 0 {
			all, of[c.pod] = append(all, c), append(mine, c)
		}
	}
	m.readMetrics(ctx, all, pods)
	slices.SortFunc(pods, func(a, b *Sandbox) int {
		return newestFirst(a.facts.Load().Created, b.facts.Load().Created, a.id, b.id)
	})
	out := make([]*runtimeapi.PodSandboxMetrics, len(pods))
	for i, sb := range pods {
		sortContainers(of[sb])
		out[i] = sb.metricsMessage(of[sb], begin)
	}
	return out
}

// readMetrics refreshes what metrics are made of. A layer that was never measured is waited for as long as for anything
// else: else the first answer after a start would have no file systems.
func (m *Manager) readMetrics(ctx context.Context, list []*Container, pods []*Sandbox) {
	m.stats.layers.want(list)
	jobs := make([]func(), 0, len(list)+len(pods))
	for _, c := range list {
		jobs = append(jobs, c.readMetrics)
	}
	for _, sb := range pods {
		jobs = append(jobs, sb.readNetwork)
	}
	ctx, cancel := context.WithTimeout(ctx, statsLimit)
	defer cancel()
	collect(ctx, m.stats.limit, jobs)
	m.stats.layers.first(ctx, list, m.stats.limit)
}

func (c *Container) readMetrics() {
	c.readStats(false)
	s := &c.pod.m.stats
	scope := c.pod.m.cfg.Cgroups.Load(c.record.Cgroup)
	c.stats.detail.refresh(s.fds, s.limit, func() (source[cgroup.Detail], error) {
		ledger, err := scope.Ledger()
		if err != nil {
			return nil, err
		}
		return ledgerSource{ledger}, nil
	})
	if !c.crowdIsOld() {
		return
	}
	c.stats.crowd.refresh(s.fds, s.limit, func() (source[crowd], error) {
		census, err := scope.Census()
		if err != nil {
			return nil, err
		}
		return crowdSource{census, c.facts.Load().Pid}, nil
	})
}

// metricsMessage renders what was last read of a pod and of those of its containers that are given.
func (sb *Sandbox) metricsMessage(containers []*Container, begin int64) *runtimeapi.PodSandboxMetrics {
	out := &runtimeapi.PodSandboxMetrics{PodSandboxId: sb.id}
	l := look{begin: begin, network: sb.stats.network.last.Load()}
	out.Metrics = l.samples(sb.labels("/"+sb.statsCgroup(containers), sb.id, "", podContainerName))
	for _, c := range containers {
		out.ContainerMetrics = append(out.ContainerMetrics, &runtimeapi.ContainerMetrics{ContainerId: c.id, Metrics: c.metrics(begin)})
	}
	return out
}

func (c *Container) metrics(begin int64) []*runtimeapi.Metric {
	f := c.facts.Load()
	l := look{
		begin: begin, started: f.Started, asked: c.limits.Load().asked, layer: c.stats.layer.Load(),
		use: c.stats.use.last.Load(), detail: c.stats.detail.last.Load(), crowd: c.stats.crowd.last.Load(),
	}
	return l.samples(c.pod.labels("/"+c.record.Cgroup, c.id, c.record.Image.Name, c.config.GetMetadata().GetName()))
}

// podContainerName stands for the pod itself among its containers, as those who query such metrics expect.
const podContainerName = "POD"

// labels are the values of baseKeys.
func (sb *Sandbox) labels(id, name, image, container string) []string {
	md := sb.config.GetMetadata()
	return []string{id, name, image, md.GetNamespace(), md.GetName(), container}
}

// look is what was last seen of one container or pod; parts that are nil were not.
type look struct {
	begin   int64 // of the request: what was read later is live
	started int64
	asked   *runtimeapi.LinuxContainerResources // nil for a pod
	use     *reading[cgroupUse]
	detail  *reading[cgroup.Detail]
	crowd   *reading[crowd]
	layer   *layerUse
	network *reading[[]netInterface]
}

// samples renders all families that there is something of.
func (l *look) samples(base []string) []*runtimeapi.Metric {
	w := sampler{look: l, base: base, out: make([]*runtimeapi.Metric, 0, len(families)+8)}
	for i := range families {
		w.family = &families[i]
		w.family.read(&w)
	}
	return w.out
}

// sampler takes samples of one family after the other.
type sampler struct {
	*look
	family *family
	base   []string // shared by all samples that have no labels of their own
	out    []*runtimeapi.Metric

	devices []string // names of the disks, once a family has asked
}

// add takes one sample. Its labels are in the order of the family's; at is when the value was read, in ns since 1970.
func (w *sampler) add(at int64, v uint64, labels ...string) {
	if at >= w.begin {
		at = 0
	}
	all := w.base
	if len(labels) != 0 {
		all = slices.Concat(w.base, labels)
	}
	w.out = append(w.out, &runtimeapi.Metric{
		Name: w.family.name, MetricType: w.family.kind, Timestamp: at, LabelValues: all, Value: &runtimeapi.UInt64Value{Value: v},
	})
}

// number takes a sample of what the kernel counted, if it did.
func (w *sampler) number(at int64, n cgroup.Number, labels ...string) {
	if n.Known {
		w.add(at, n.Value, labels...)
	}
}

// seconds is number for nanoseconds, in whole seconds: the CRI has no others.
func (w *sampler) seconds(at int64, n cgroup.Number, labels ...string) {
	n.Value /= 1e9
	w.number(at, n, labels...)
}
