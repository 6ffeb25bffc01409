package spec

import (
	"math"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// MergeResources returns the limits that hold after an update. Zero means
// unchanged, as the CRI says: the kubelet's CPU manager sends a cpuset and nothing else.
//
//   - A new memory limit without one of swap keeps the swap that there is, although the CRI's number for it
//     is of memory and swap together.
//   - Huge pages and unified files are merged entry by entry. A file that an earlier request named itself
//     gives way to a new limit of the same meaning.
//   - oom_score_adj stays: the container's processes have inherited it.
func MergeResources(old, update *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	out := &runtimeapi.LinuxContainerResources{}
	if old != nil {
		out = proto.Clone(old).(*runtimeapi.LinuxContainerResources)
	}
	for _, n := range []struct {
		to    *int64
		value int64
		files []string
	}{
		{&out.CpuShares, update.GetCpuShares(), []string{"cpu.weight", "cpu.weight.nice"}},
		{&out.CpuQuota, update.GetCpuQuota(), []string{"cpu.max"}},
		{&out.CpuPeriod, update.GetCpuPeriod(), []string{"cpu.max"}},
		{&out.MemoryLimitInBytes, update.GetMemoryLimitInBytes(), []string{"memory.max"}},
		{&out.MemorySwapLimitInBytes, update.GetMemorySwapLimitInBytes(), []string{"memory.swap.max"}},
	} {
		if n.value != 0 {
			*n.to = n.value
			forget(out, n.files...)
		}
	}
	keepSwap(out, old, update)
	for _, s := range []struct {
		to          *string
		value, file string
	}{{&out.CpusetCpus, update.GetCpusetCpus(), "cpuset.cpus"}, {&out.CpusetMems, update.GetCpusetMems(), "cpuset.mems"}} {
		if s.value != "" {
			*s.to = s.value
			forget(out, s.file)
		}
	}
	mergeHugepages(out, update.GetHugepageLimits())
	for k, v := range update.GetUnified() {
		if out.Unified == nil {
			out.Unified = map[string]string{}
		}
		out.Unified[k] = v
	}
	return out
}

// forget drops files that an earlier request named itself.
func forget(r *runtimeapi.LinuxContainerResources, files ...string) {
	for _, f := range files {
		delete(r.Unified, f)
	}
}

// keepSwap moves the limit of memory and swap together along with a new limit of memory.
func keepSwap(out, old, update *runtimeapi.LinuxContainerResources) {
	was, swap, limit := old.GetMemoryLimitInBytes(), old.GetMemorySwapLimitInBytes(), update.GetMemoryLimitInBytes()
	switch {
	case limit == 0 || update.GetMemorySwapLimitInBytes() != 0 || swap <= 0 || was <= 0:
	case limit < 0:
		out.MemorySwapLimitInBytes = 0 // no limit of memory, and then none of swap
	case swap-was > math.MaxInt64-limit:
		out.MemorySwapLimitInBytes = -1
	default:
		out.MemorySwapLimitInBytes = limit + swap - was
	}
}

func mergeHugepages(out *runtimeapi.LinuxContainerResources, update []*runtimeapi.HugepageLimit) {
	for _, l := range update {
		forget(out, "hugetlb."+l.GetPageSize()+".max", "hugetlb."+l.GetPageSize()+".rsvd.max")
		i := slices.IndexFunc(out.HugepageLimits, func(h *runtimeapi.HugepageLimit) bool { return h.GetPageSize() == l.GetPageSize() })
		if i < 0 {
			out.HugepageLimits = append(out.HugepageLimits, l)
			continue
		}
		out.HugepageLimits[i] = l
	}
}

// ResourcesOf is the way back of [Resources]: limits as the CRI shows them. oomScoreAdj is not among those of
// the runtime spec's resources.
func ResourcesOf(r *specs.LinuxResources, oomScoreAdj int64) *runtimeapi.LinuxContainerResources {
	out := &runtimeapi.LinuxContainerResources{OomScoreAdj: oomScoreAdj}
	if r == nil {
		return out
	}
	if c := r.CPU; c != nil {
		out.CpusetCpus, out.CpusetMems = strings.TrimSpace(c.Cpus), strings.TrimSpace(c.Mems)
		out.CpuShares, out.CpuPeriod = signed(c.Shares), signed(c.Period)
		if c.Quota != nil {
			out.CpuQuota = *c.Quota
		}
	}
	if m := r.Memory; m != nil {
		if m.Limit != nil {
			out.MemoryLimitInBytes = *m.Limit
		}
		if m.Swap != nil {
			out.MemorySwapLimitInBytes = *m.Swap
		}
	}
	for _, h := range r.HugepageLimits {
		out.HugepageLimits = append(out.HugepageLimits, &runtimeapi.HugepageLimit{PageSize: h.Pagesize, Limit: h.Limit})
	}
	for k, v := range r.Unified {
		if out.Unified == nil {
			out.Unified = map[string]string{}
		}
		out.Unified[k] = v
	}
	return out
}

func signed(n *uint64) int64 {
	if n == nil {
		return 0
	}
	return int64(min(*n, math.MaxInt64))
}
