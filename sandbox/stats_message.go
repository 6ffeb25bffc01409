package sandbox

import (
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/oci/cgroup"
)

// statsMessage renders what was last read of a container. Attributes are shared with the record: nobody changes them.
func (c *Container) statsMessage() *runtimeapi.ContainerStats {
	out := &runtimeapi.ContainerStats{
		Attributes: &runtimeapi.ContainerAttributes{
			Id: c.id, Metadata: c.config.GetMetadata(), Labels: c.config.GetLabels(), Annotations: c.config.GetAnnotations(),
		},
		WritableLayer: c.stats.layer.Load().message(),
	}
	if r := c.stats.use.last.Load(); r != nil && c.facts.Load().Finished == 0 {
		out.Cpu, out.Memory, out.Io, out.Swap = r.value.cpu(r.at), r.value.memory(r.at), r.value.io(r.at), r.value.swap(r.at)
	}
	return out
}

// message renders a writable layer; nil where it was not measured yet, which is not the same as an empty one.
func (u *layerUse) message() *runtimeapi.FilesystemUsage {
	if u == nil {
		return nil
	}
	return &runtimeapi.FilesystemUsage{
		Timestamp:  u.at,
		FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: u.use.Mountpoint},
		UsedBytes:  &runtimeapi.UInt64Value{Value: u.use.UsedBytes},
		InodesUsed: &runtimeapi.UInt64Value{Value: u.use.Inodes},
	}
}

// statsMessage renders what was last read of a pod.
func (sb *Sandbox) statsMessage(containers []*Container) *runtimeapi.PodSandboxStats {
	linux := &runtimeapi.LinuxPodSandboxStats{}
	if sb.facts.Load().NotReady == 0 {
		if r := sb.stats.use.last.Load(); r != nil {
			linux.Cpu, linux.Memory, linux.Io = r.value.cpu(r.at), r.value.memory(r.at), r.value.io(r.at)
		}
		if r := sb.stats.network.last.Load(); r != nil {
			linux.Network = networkMessage(r.value, r.at)
		}
		if n, at := sb.counted(containers); n.Known {
			linux.Process = &runtimeapi.ProcessUsage{Timestamp: at, ProcessCount: value(n)}
		}
	}
	for _, c := range containers {
		linux.Containers = append(linux.Containers, c.statsMessage())
	}
	return &runtimeapi.PodSandboxStats{
		Attributes: &runtimeapi.PodSandboxAttributes{
			Id: sb.id, Metadata: sb.config.GetMetadata(), Labels: sb.config.GetLabels(), Annotations: sb.config.GetAnnotations(),
		},
		Linux: linux,
	}
}

// defaultInterface is the name of a pod's own interface; package cni makes no other.
const defaultInterface = "eth0"

// networkMessage renders interfaces: eth0, or else the first, is the default, and the others are listed.
func networkMessage(list []netInterface, at int64) *runtimeapi.NetworkUsage {
	out := &runtimeapi.NetworkUsage{Timestamp: at}
	first := 0
	for i := range list {
		if list[i].name == defaultInterface {
			first = i
		}
	}
	for i := range list {
		u := &runtimeapi.NetworkInterfaceUsage{
			Name:    list[i].name,
			RxBytes: &runtimeapi.UInt64Value{Value: list[i].rxBytes}, RxErrors: &runtimeapi.UInt64Value{Value: list[i].rxErrors},
			TxBytes: &runtimeapi.UInt64Value{Value: list[i].txBytes}, TxErrors: &runtimeapi.UInt64Value{Value: list[i].txErrors},
		}
		if i == first {
			out.DefaultInterface = u
			continue
		}
		out.Interfaces = append(out.Interfaces, u)
	}
	return out
}

// value renders a number: nil where the kernel has none.
func value(n cgroup.Number) *runtimeapi.UInt64Value {
	if !n.Known {
		return nil
	}
	return &runtimeapi.UInt64Value{Value: n.Value}
}

// available is what is left of a limit: nil without one.
func available(limit, used cgroup.Number) *runtimeapi.UInt64Value {
	if !limit.Known || !used.Known {
		return nil
	}
	return &runtimeapi.UInt64Value{Value: limit.Value - min(used.Value, limit.Value)}
}

func (u *cgroupUse) cpu(at int64) *runtimeapi.CpuUsage {
	return &runtimeapi.CpuUsage{Timestamp: at, UsageCoreNanoSeconds: value(u.CPUUsage), UsageNanoCores: value(u.nanoCores), Psi: psi(&u.CPU)}
}

// memory has a timestamp also where the memory controller is missing and there is nothing to tell but pressure:
// that it was looked at is what clients ask for.
func (u *cgroupUse) memory(at int64) *runtimeapi.MemoryUsage {
	working := u.WorkingSet()
	return &runtimeapi.MemoryUsage{
		Timestamp: at, WorkingSetBytes: value(working), AvailableBytes: available(u.MemoryLimit, working),
		UsageBytes: value(u.MemoryUsage), RssBytes: value(u.Anonymous),
		PageFaults: value(u.PageFaults), MajorPageFaults: value(u.MajorPageFaults), Psi: psi(&u.Memory),
	}
}

// io is nil without PSI, since the CRI knows nothing else of io.
func (u *cgroupUse) io(at int64) *runtimeapi.IoUsage {
	if !u.IO.Known {
		return nil
	}
	return &runtimeapi.IoUsage{Timestamp: at, Psi: psi(&u.IO)}
}

// swap is nil where the kernel does not count it.
func (u *cgroupUse) swap(at int64) *runtimeapi.SwapUsage {
	if !u.SwapUsage.Known {
		return nil
	}
	return &runtimeapi.SwapUsage{Timestamp: at, SwapUsageBytes: value(u.SwapUsage), SwapAvailableBytes: available(u.SwapLimit, u.SwapUsage)}
}

func psi(p *cgroup.Pressure) *runtimeapi.PsiStats {
	if !p.Known {
		return nil
	}
	return &runtimeapi.PsiStats{Some: psiData(&p.Some), Full: psiData(&p.Full)}
}

func psiData(l *cgroup.PressureLine) *runtimeapi.PsiData {
	return &runtimeapi.PsiData{Total: l.Total, Avg10: l.Avg10, Avg60: l.Avg60, Avg300: l.Avg300}
}
