package server

import (
	"strconv"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/oci/cgroup"
	"github.com/vitrine-runtime/vitrine/sandbox/spec"
)

// Ranges of the kernel's CFS bandwidth control, in microseconds.
const (
	minQuota  = 1_000
	maxQuota  = 1<<44 - 1
	minPeriod = 1_000
	maxPeriod = 1_000_000
)

// minMemory is one page: memory.max rounds down to pages, and nothing runs in none.
const minMemory = 4096

// unlimited is how the kubelet and older cgroups write "no limit".
const unlimited = -1

// checkResources checks limits by themselves; whether the node can enforce them is
// the sandbox's question.
func checkResources(r *runtimeapi.LinuxContainerResources) error {
	if r == nil {
		return nil
	}
	return first(checkValues(r), checkPairs(r))
}

// checkUpdate checks a change of limits. What a limit needs besides it may be what
// the container has already, so pairs are the sandbox's question.
func checkUpdate(r *runtimeapi.LinuxContainerResources) error {
	if r == nil {
		return wrong("", "must be set")
	}
	err := checkValues(r)
	if r.GetMemoryLimitInBytes() != 0 {
		err = first(err, checkSwap(r))
	}
	return err
}

// checkValues checks each limit alone.
func checkValues(r *runtimeapi.LinuxContainerResources) error {
	return first(
		checkCPU(r),
		checkMemory(r),
		within("oom_score_adj", r.GetOomScoreAdj(), -1000, 1000),
		optional("cpuset_cpus", r.GetCpusetCpus(), cpuset),
		optional("cpuset_mems", r.GetCpusetMems(), cpuset),
		checkHugepages(r.GetHugepageLimits()),
		checkUnified(r.GetUnified()),
	)
}

func within(field string, v, low, high int64) error {
	if v < low || v > high {
		return badInt(field, v, "must be between "+strconv.FormatInt(low, 10)+" and "+strconv.FormatInt(high, 10))
	}
	return nil
}

func checkCPU(r *runtimeapi.LinuxContainerResources) error {
	period, quota := r.GetCpuPeriod(), r.GetCpuQuota()
	switch {
	case period != 0 && (period < minPeriod || period > maxPeriod):
		return within("cpu_period", period, minPeriod, maxPeriod)
	case quota != unlimited && quota != 0 && quota < minQuota:
		return badInt("cpu_quota", quota, "must be -1, 0 or at least "+strconv.Itoa(minQuota))
	case quota > maxQuota:
		return badInt("cpu_quota", quota, "must be at most "+strconv.FormatInt(maxQuota, 10))
	case r.GetCpuShares() < 0:
		return badInt("cpu_shares", r.GetCpuShares(), "must not be negative")
	}
	return nil
}

func checkMemory(r *runtimeapi.LinuxContainerResources) error {
	limit, swap := r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes()
	switch {
	case limit != unlimited && limit != 0 && limit < minMemory:
		return badInt("memory_limit_in_bytes", limit, "must be -1, 0 or at least "+strconv.Itoa(minMemory))
	case swap < unlimited:
		return badInt("memory_swap_limit_in_bytes", swap, "must not be below -1")
	}
	return nil
}

// checkPairs checks limits that mean nothing without another.
func checkPairs(r *runtimeapi.LinuxContainerResources) error {
	if r.GetCpuQuota() > 0 && r.GetCpuPeriod() == 0 {
		return badInt("cpu_quota", r.GetCpuQuota(), "must not be set without cpu_period")
	}
	return checkSwap(r)
}

// checkSwap: the limit of swap is one of memory and swap together.
func checkSwap(r *runtimeapi.LinuxContainerResources) error {
	limit, swap := r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes()
	switch {
	case swap > 0 && limit <= 0:
		return badInt("memory_swap_limit_in_bytes", swap, "must not be set without memory_limit_in_bytes")
	case swap > 0 && swap < limit:
		return badInt("memory_swap_limit_in_bytes", swap, "must not be below memory_limit_in_bytes")
	}
	return nil
}

// cpuset: the kernel's list format, 0-3,7, without anything that it tolerates by
// accident.
func cpuset(v string) string {
	for part := range strings.SplitSeq(v, ",") {
		from, to, ranged := strings.Cut(part, "-")
		low, ok := cpuNumber(from)
		if ok && ranged {
			var high int
			high, ok = cpuNumber(to)
			ok = ok && low <= high
		}
		if !ok {
			return "must be a list as 0-3,7 of numbers below " + strconv.Itoa(maxCPUs)
		}
	}
	return ""
}

// maxCPUs is the largest CONFIG_NR_CPUS.
const maxCPUs = 8192

func cpuNumber(v string) (int, bool) {
	if !digits(v) || len(v) > 4 {
		return 0, false
	}
	n, err := strconv.Atoi(v)
	return n, err == nil && n < maxCPUs
}

func checkHugepages(limits []*runtimeapi.HugepageLimit) error {
	seen := make(map[string]bool, len(limits))
	for i, l := range limits {
		err := text("page_size", l.GetPageSize(), required, pageSize)
		if err == nil && seen[l.GetPageSize()] {
			err = bad("page_size", l.GetPageSize(), "must not be given twice")
		}
		if err != nil {
			return atIndex("hugepage_limits", i, err)
		}
		seen[l.GetPageSize()] = true
	}
	return nil
}

// pageSize: a number and a unit, 64KB, 2MB, 1GB.
func pageSize(v string) string {
	const must = "must be a page size as 2MB"
	n, ok := strings.CutSuffix(v, "B")
	if !ok || len(n) < 2 || len(n) > 8 {
		return must
	}
	if unit := n[len(n)-1]; strings.IndexByte("KMG", unit) < 0 || !digits(n[:len(n)-1]) || n[0] == '0' {
		return must
	}
	return ""
}

// checkUnified: core files (cgroup.*) are never a pod's business: cgroup.procs would
// move processes, cgroup.kill end them.
func checkUnified(unified map[string]string) error {
	for k, v := range unified {
		err := first(text("", k, unifiedKey), text("", v, required, singleLine, spec.NumberForm))
		if err != nil {
			return atKey("unified", k, err)
		}
	}
	return nil
}

// unifiedKey: a file that sets a limit, one name in one directory.
func unifiedKey(k string) string {
	if !cgroup.Settable(k) {
		return "must be a file of a cgroup v2 controller that sets a limit, as memory.high"
	}
	return ""
}
