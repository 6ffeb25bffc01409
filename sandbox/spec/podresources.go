package spec

import (
	"math"
	"math/bits"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// PodResources returns the limits of a pod's cgroup: resources, which are the sum of the containers', and the
// overhead on top. A limit that resources do not have is none of the pod's either: some container has none, and
// the overhead alone is no limit for it. Zero means unset. The result is never nil.
func PodResources(resources, overhead *runtimeapi.LinuxContainerResources, h Host) (*specs.LinuxResources, error) {
	if _, err := Resources(overhead, h); err != nil {
		return nil, err
	}
	sum := MergeResources(resources, nil)
	if sum.CpuShares > 0 && overhead.GetCpuShares() > 0 {
		sum.CpuShares = plus(sum.CpuShares, overhead.GetCpuShares())
	}
	if sum.CpuQuota > 0 && overhead.GetCpuQuota() > 0 {
		sum.CpuQuota = plus(sum.CpuQuota, scale(overhead.GetCpuQuota(), period(sum), period(overhead)))
	}
	if more := overhead.GetMemoryLimitInBytes(); sum.MemoryLimitInBytes > 0 && more > 0 {
		sum.MemoryLimitInBytes = plus(sum.MemoryLimitInBytes, more)
		if sum.MemorySwapLimitInBytes > 0 {
			sum.MemorySwapLimitInBytes = plus(sum.MemorySwapLimitInBytes, more)
		}
	}
	return Resources(sum, h)
}

func plus(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

// period is the kernel's where none was given.
func period(r *runtimeapi.LinuxContainerResources) int64 {
	if p := r.GetCpuPeriod(); p > 0 {
		return p
	}
	return 100_000
}

// scale returns n*to/from, rounded up.
func scale(n, to, from int64) int64 {
	hi, lo := bits.Mul64(uint64(n), uint64(to))
	if hi >= uint64(from) {
		return math.MaxInt64
	}
	q, rest := bits.Div64(hi, lo, uint64(from))
	if rest != 0 {
		q++
	}
	return int64(min(q, math.MaxInt64))
}

// Lifted adds to the limits of an update those that held before and are not among them any more, as unlimited.
// Weights and sets have no such value and stay.
func Lifted(update, before *specs.LinuxResources) {
	none := int64(-1)
	if before == nil {
		return
	}
	if b := before.Memory; b != nil && b.Limit != nil && (update.Memory == nil || update.Memory.Limit == nil) {
		update.Memory = &specs.LinuxMemory{Limit: &none}
	}
	if b := before.CPU; b != nil && b.Quota != nil && (update.CPU == nil || update.CPU.Quota == nil) {
		if update.CPU == nil {
			update.CPU = &specs.LinuxCPU{}
		}
		update.CPU.Quota = &none
	}
}
