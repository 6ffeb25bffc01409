package spec

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/oci/cgroup"
)

// cpuset is the grammar of cpuset_cpus and cpuset_mems: ranges, no empty parts. Whether the CPUs exist is
// the kernel's to say.
var cpuset = regexp.MustCompile(`^[0-9]{1,6}(-[0-9]{1,6})?(,[0-9]{1,6}(-[0-9]{1,6})?)*$`)

// pageSize is the grammar of a huge page size.
var pageSize = regexp.MustCompile(`^[1-9][0-9]{0,9}(KB|MB|GB)$`)

// applyResources translates the limits. It keeps the device rules that are already there.
func applyResources(in *Input, s *specs.Spec) error {
	r, err := Resources(in.Container.GetLinux().GetResources(), in.Host)
	if err != nil {
		return err
	}
	r.Devices = s.Linux.Resources.Devices
	s.Linux.Resources = r
	return nil
}

// Resources translates the CRI's limits. Zero means unset, as the CRI says. The result is never nil.
func Resources(r *runtimeapi.LinuxContainerResources, h Host) (*specs.LinuxResources, error) {
	out := &specs.LinuxResources{}
	for _, f := range []func(*runtimeapi.LinuxContainerResources, *specs.LinuxResources) error{cpu, memory, unified} {
		if err := f(r, out); err != nil {
			return nil, err
		}
	}
	return out, hugepages(r, h, out)
}

func cpu(r *runtimeapi.LinuxContainerResources, out *specs.LinuxResources) error {
	const field = "linux.resources."
	period, quota, shares := r.GetCpuPeriod(), r.GetCpuQuota(), r.GetCpuShares()
	switch {
	case period != 0 && (period < 1000 || period > 1_000_000):
		return Invalid(field+"cpu_period", itoa(period), "outside 1000..1000000 us")
	case quota < -1 || quota > 0 && quota < 1000:
		return Invalid(field+"cpu_quota", itoa(quota), "neither -1 nor at least 1000 us")
	case shares < 0:
		return Invalid(field+"cpu_shares", itoa(shares), "negative")
	}
	c := &specs.LinuxCPU{}
	if period != 0 {
		p := uint64(period)
		c.Period = &p
	}
	if quota != 0 {
		c.Quota = &quota
	}
	if shares != 0 {
		// The kernel's bounds for v1 shares, from which the weight is computed.
		v := uint64(min(max(shares, 2), 262144))
		c.Shares = &v
	}
	for _, set := range []struct {
		field, value string
		to           *string
	}{{"cpuset_cpus", r.GetCpusetCpus(), &c.Cpus}, {"cpuset_mems", r.GetCpusetMems(), &c.Mems}} {
		if set.value != "" && (len(set.value) > pathMax || !cpuset.MatchString(set.value)) {
			return Invalid(field+set.field, set.value, "not a list of ranges such as 0-3,7")
		}
		*set.to = set.value
	}
	if *c != (specs.LinuxCPU{}) {
		out.CPU = c
	}
	return nil
}

func memory(r *runtimeapi.LinuxContainerResources, out *specs.LinuxResources) error {
	const field = "linux.resources."
	limit, swap := r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes()
	switch {
	case limit < -1 || limit > 0 && limit < 4096:
		return Invalid(field+"memory_limit_in_bytes", itoa(limit), "neither -1 nor at least a page")
	case swap < -1:
		return Invalid(field+"memory_swap_limit_in_bytes", itoa(swap), "negative")
	case swap > 0 && limit <= 0:
		return Invalid(field+"memory_swap_limit_in_bytes", itoa(swap), "set without a memory limit")
	case swap > 0 && swap < limit:
		return Invalid(field+"memory_swap_limit_in_bytes", itoa(swap), "below the memory limit of %d, which it includes", limit)
	}
	if limit == 0 && swap == 0 {
		return nil
	}
	out.Memory = &specs.LinuxMemory{}
	if limit != 0 {
		out.Memory.Limit = &limit
	}
	if swap != 0 {
		out.Memory.Swap = &swap
	}
	return nil
}

func unified(r *runtimeapi.LinuxContainerResources, out *specs.LinuxResources) error {
	for k, v := range r.GetUnified() {
		const field = "linux.resources.unified"
		// The name becomes a file name in the container's cgroup: cgroup.procs or ../ would move processes.
		if !cgroup.Settable(k) {
			return Invalid(field, k, "not a file of a resource controller that sets a limit")
		}
		if v == "" || len(v) > pathMax || strings.ContainsAny(v, "\x00\n\r") {
			return Invalid(field, k, "its value is empty, too long, or holds a newline")
		}
		if out.Unified == nil {
			out.Unified = map[string]string{}
		}
		out.Unified[k] = v
	}
	return nil
}

// hugepages writes the limits for the page sizes that this kernel has. The kubelet sends one for each size
// it ever heard of; a size that the kernel does not have cannot be used either, so its limit is dropped.
func hugepages(r *runtimeapi.LinuxContainerResources, h Host, out *specs.LinuxResources) error {
	seen := map[string]bool{}
	for i, l := range r.GetHugepageLimits() {
		field := fmt.Sprintf("linux.resources.hugepage_limits[%d].page_size", i)
		if !pageSize.MatchString(l.GetPageSize()) {
			return Invalid(field, l.GetPageSize(), "not of the form 2MB")
		}
		if seen[l.GetPageSize()] {
			return Invalid(field, l.GetPageSize(), "named twice")
		}
		seen[l.GetPageSize()] = true
		if slices.Contains(h.HugePageSizes, l.GetPageSize()) {
			out.HugepageLimits = append(out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: l.GetPageSize(), Limit: l.GetLimit()})
		}
	}
	return nil
}
