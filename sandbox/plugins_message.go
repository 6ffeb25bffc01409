package sandbox

import (
	"encoding/json"
	"maps"
	"unicode/utf8"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// forPlugins is the pod as plugins see it. The path of the network namespace is the pin, which is there from before
// RunPodSandbox until after StopPodSandbox.
func (sb *Sandbox) forPlugins(ips []string) *api.PodSandbox {
	md, l := sb.config.GetMetadata(), sb.limits.Load().orNone()
	out := &api.PodSandbox{
		Id: sb.id, Name: md.GetName(), Uid: md.GetUid(), Namespace: md.GetNamespace(), RuntimeHandler: sb.record.Handler,
		Labels: maps.Clone(sb.config.GetLabels()), Annotations: maps.Clone(sb.config.GetAnnotations()), Ips: ips,
		Linux: &api.LinuxPodSandbox{
			CgroupParent: sb.config.GetLinux().GetCgroupParent(), CgroupsPath: sb.record.Cgroup,
			PodOverhead: podResources(l.Overhead), PodResources: podResources(l.Resources),
		},
	}
	if sb.plan != nil && !sb.plan.HostNetwork {
		out.Linux.Namespaces = []*api.LinuxNamespace{{Type: string(specs.NetworkNamespace), Path: sb.netns()}}
	}
	return out
}

// podResources are limits of a pod as a whole, from its record.
func podResources(raw json.RawMessage) *api.LinuxResources {
	r := &runtimeapi.LinuxContainerResources{}
	if raw == nil || decodeMessage(raw, r) != nil {
		return nil
	}
	return resourcesForPlugins(r)
}

// resourcesForPlugins are limits as plugins have them. Zero means unset.
func resourcesForPlugins(r *runtimeapi.LinuxContainerResources) *api.LinuxResources {
	if r == nil {
		return nil
	}
	out := &api.LinuxResources{Memory: &api.LinuxMemory{}, Cpu: &api.LinuxCPU{Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems()}, Unified: maps.Clone(r.GetUnified())}
	if n := r.GetMemoryLimitInBytes(); n != 0 {
		out.Memory.Limit = api.Int64(n)
	}
	if n := r.GetMemorySwapLimitInBytes(); n != 0 {
		out.Memory.Swap = api.Int64(n)
	}
	if n := r.GetCpuQuota(); n != 0 {
		out.Cpu.Quota = api.Int64(n)
	}
	if n := r.GetCpuPeriod(); n > 0 {
		out.Cpu.Period = api.UInt64(uint64(n))
	}
	if n := r.GetCpuShares(); n > 0 {
		out.Cpu.Shares = api.UInt64(uint64(n))
	}
	for _, h := range r.GetHugepageLimits() {
		out.HugepageLimits = append(out.HugepageLimits, &api.HugepageLimit{PageSize: h.GetPageSize(), Limit: h.GetLimit()})
	}
	return out
}

// forPlugins is the container as plugins see it. One whose spec is not made yet, or cannot be read, is described without.
func (c *Container) forPlugins() *api.Container {
	s, err := c.ociSpec()
	if err != nil {
		s = nil
	}
	return c.describe(s)
}

// describe is forPlugins with a spec, which may be nil. It shares nothing with the spec that plugins could change.
func (c *Container) describe(s *specs.Spec) *api.Container {
	f := c.facts.Load()
	out := &api.Container{
		Id: c.id, PodSandboxId: c.pod.id, Name: c.config.GetMetadata().GetName(), State: pluginState(f.state()), Pid: uint32(f.Pid),
		Labels: maps.Clone(c.config.GetLabels()), Annotations: maps.Clone(c.config.GetAnnotations()),
		CreatedAt: f.Created, StartedAt: f.Started, FinishedAt: f.Finished,
		ExitCode: f.ExitCode, StatusReason: f.Reason, StatusMessage: f.Message,
		Image: &api.Image{Name: c.record.Image.Name, ConfigDigest: c.record.Image.ID},
	}
	if s == nil {
		return out
	}
	if out.Annotations == nil {
		out.Annotations = map[string]string{}
	}
	maps.Copy(out.Annotations, s.Annotations)
	p, l := s.Process, s.Linux
	out.Args, out.Env, out.Mounts = api.DupStringSlice(p.Args), tellable(p.Env, func(kv string) string { return kv }), api.FromOCIMounts(s.Mounts)
	out.Hooks = api.FromOCIHooks(s.Hooks)
	out.User = &api.User{Uid: p.User.UID, Gid: p.User.GID, AdditionalGids: p.User.AdditionalGids}
	for _, r := range p.Rlimits {
		out.Rlimits = append(out.Rlimits, &api.POSIXRlimit{Type: r.Type, Hard: r.Hard, Soft: r.Soft})
	}
	out.Linux = &api.LinuxContainer{
		Namespaces: api.FromOCILinuxNamespaces(l.Namespaces), Devices: api.FromOCILinuxDevices(tellable(l.Devices, devicePath)),
		Resources:   api.FromOCILinuxResources(l.Resources, nil),
		OomScoreAdj: api.Int(p.OOMScoreAdj), CgroupsPath: c.record.Cgroup, IoPriority: api.FromOCILinuxIOPriority(p.IOPriority),
		Scheduler: api.FromOCILinuxScheduler(p.Scheduler),
	}
	if l.Seccomp != nil {
		out.Linux.SeccompPolicy = api.FromOCILinuxSeccomp(l.Seccomp)
	}
	return out
}

// tellable returns what of a list can be in a message. The strings of one are UTF-8, or it is not sent at all: a single variable of the
// kubelet's (KeyValue.value is bytes) or device of the host's that is not would fail the creation, and keep every plugin that connects
// later from being told the state. All other strings of a description come from messages, from JSON, or from us, and why a container did
// not start is made sendable where it is noted.
func tellable[T any](list []T, text func(T) string) (out []T) {
	for _, v := range list {
		if utf8.ValidString(text(v)) {
			out = append(out, v)
		}
	}
	return out
}

func devicePath(d specs.LinuxDevice) string { return d.Path }

// pluginState is a state by the name that plugins have for it.
func pluginState(s runtimeapi.ContainerState) api.ContainerState {
	switch s {
	case runtimeapi.ContainerState_CONTAINER_CREATED:
		return api.ContainerState_CONTAINER_CREATED
	case runtimeapi.ContainerState_CONTAINER_RUNNING:
		return api.ContainerState_CONTAINER_RUNNING
	case runtimeapi.ContainerState_CONTAINER_EXITED:
		return api.ContainerState_CONTAINER_STOPPED
	}
	return api.ContainerState_CONTAINER_UNKNOWN
}
