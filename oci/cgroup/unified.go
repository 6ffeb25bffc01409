package cgroup

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// unifiedFiles are the files that a request may name itself. Whatever moves
// processes, kills, delegates, takes CPUs from neighbours (cpuset.cpus.partition)
// or makes the kernel work on the spot (memory.reclaim) is not among them.
var unifiedFiles = []string{
	"cpu.idle", "cpu.max", "cpu.max.burst", "cpu.uclamp.max", "cpu.uclamp.min", "cpu.weight", "cpu.weight.nice",
	"cpuset.cpus", "cpuset.mems",
	"dmem.low", "dmem.max", "dmem.min",
	"io.bfq.weight", "io.latency", "io.max", "io.prio.class", "io.weight",
	"memory.high", "memory.low", "memory.max", "memory.min", "memory.oom.group",
	"memory.swap.high", "memory.swap.max", "memory.zswap.max", "memory.zswap.writeback",
	"misc.max", "pids.max", "rdma.max",
}

// Settable says whether a request may name a file of the cgroup itself.
func Settable(file string) bool { return slices.Contains(unifiedFiles, file) || isHugetlbFile(file) }

// planUnified checks names and values on their bytes: both end up in the kernel
// as they are.
func planUnified(r *specs.LinuxResources) (out []setting, err error) {
	for _, file := range slices.Sorted(maps.Keys(r.Unified)) {
		value := r.Unified[file]
		if !Settable(file) {
			return nil, invalid("unified", strconv.Quote(file), "is not a file that sets a limit")
		}
		if value == "" || len(value) > 256 || strings.ContainsFunc(value, func(c rune) bool { return c < ' ' || c > '~' }) {
			return nil, invalid("unified", strconv.Quote(file), "must be one line of text")
		}
		out = append(out, setting{file: file, value: value})
	}
	return out, nil
}

func isHugetlbFile(file string) bool {
	rest, ok := strings.CutPrefix(file, "hugetlb.")
	size, name, _ := strings.Cut(rest, ".")
	return ok && isPageSize(size) && (name == "max" || name == "rsvd.max")
}
