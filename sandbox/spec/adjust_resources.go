package spec

import (
	"fmt"
	"math"
	"strconv"

	"github.com/containerd/nri/pkg/api"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// PluginResources turns limits as plugins have them into the CRI's, in which what cgroup2 has and the CRI does not is
// named by its file. What has no file in cgroup2 is refused by name. Where prefix is the path to r in its message.
//
// Zero means unset in the CRI, so a limit of zero that a plugin sets is refused, too: it would be lost.
func PluginResources(prefix string, r *api.LinuxResources) (*runtimeapi.LinuxContainerResources, error) {
	if err := refuseResources(prefix, r); err != nil {
		return nil, err
	}
	out := &runtimeapi.LinuxContainerResources{CpusetCpus: r.GetCpu().GetCpus(), CpusetMems: r.GetCpu().GetMems(), Unified: map[string]string{}}
	cpu, mem := r.GetCpu(), r.GetMemory()
	for _, n := range []struct {
		field string
		set   bool
		value int64
		to    *int64
	}{
		{"cpu.shares", cpu.GetShares() != nil, int64(min(cpu.GetShares().GetValue(), math.MaxInt64)), &out.CpuShares},
		{"cpu.quota", cpu.GetQuota() != nil, cpu.GetQuota().GetValue(), &out.CpuQuota},
		{"cpu.period", cpu.GetPeriod() != nil, int64(min(cpu.GetPeriod().GetValue(), math.MaxInt64)), &out.CpuPeriod},
		{"memory.limit", mem.GetLimit() != nil, mem.GetLimit().GetValue(), &out.MemoryLimitInBytes},
		{"memory.swap", mem.GetSwap() != nil, mem.GetSwap().GetValue(), &out.MemorySwapLimitInBytes},
	} {
		if n.set && n.value == 0 {
			return nil, Invalid(prefix+n.field, "0", "zero is no limit that can be set")
		}
		*n.to = n.value
	}
	for _, h := range r.GetHugepageLimits() {
		out.HugepageLimits = append(out.HugepageLimits, &runtimeapi.HugepageLimit{PageSize: h.GetPageSize(), Limit: h.GetLimit()})
	}
	for k, v := range r.GetUnified() {
		if problem := NumberForm(v); problem != "" {
			return nil, Invalid(fmt.Sprintf("%sunified[%q]", prefix, cut(k)), v, "%s", problem)
		}
		out.Unified[k] = v
	}
	if v := mem.GetReservation(); v != nil {
		out.Unified["memory.low"] = fileValue(v.GetValue())
	}
	if v := r.GetPids(); v != nil {
		out.Unified["pids.max"] = fileValue(v.GetLimit())
	}
	if len(out.Unified) == 0 {
		out.Unified = nil
	}
	return out, nil
}

// fileValue is a limit as cgroup2 writes it; what is negative is none.
func fileValue(n int64) string {
	if n < 0 {
		return "max"
	}
	return strconv.FormatInt(n, 10)
}

// refuseResources names what cgroup2 does not have.
func refuseResources(prefix string, r *api.LinuxResources) error {
	const v1 = "cgroup2 has no such limit"
	cpu, mem := r.GetCpu(), r.GetMemory()
	for _, f := range []struct {
		field string
		set   bool
		why   string
	}{
		{"memory.kernel", mem.GetKernel() != nil, v1}, {"memory.kernel_tcp", mem.GetKernelTcp() != nil, v1},
		{"memory.swappiness", mem.GetSwappiness() != nil, v1}, {"memory.disable_oom_killer", mem.GetDisableOomKiller() != nil, v1},
		{"memory.use_hierarchy", mem.GetUseHierarchy() != nil, v1},
		{"cpu.realtime_runtime", cpu.GetRealtimeRuntime() != nil, v1}, {"cpu.realtime_period", cpu.GetRealtimePeriod() != nil, v1},
		{"blockio_class", r.GetBlockioClass() != nil, "there are no classes of block I/O; unified names io.max and io.weight"},
		{"rdt_class", r.GetRdtClass() != nil, noResctrl},
		{"devices", len(r.GetDevices()) != 0, "a device is given with its node, by linux.devices"},
	} {
		if f.set {
			return Unimplemented(prefix+f.field, "", "%s", f.why)
		}
	}
	return nil
}
