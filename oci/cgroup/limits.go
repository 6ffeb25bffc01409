package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// setting is one write to one file of a cgroup.
type setting struct {
	file, value string
	// optional: the kernel without this file behaves as if it were written, or
	// another file stands in for it.
	optional bool
}

const (
	minShares, maxShares = 2, 1 << 18
	minWeight, maxWeight = 1, 10000
	minPeriod, maxPeriod = 1000, 1000000 // us; the kernel's
	minQuota             = 1000
)

// plan turns the limits of the runtime spec, which speaks of cgroup v1, into
// files of cgroup v2. What v2 cannot do is refused by name; unified comes last,
// since it is the one that means exactly what it says.
func plan(r *specs.LinuxResources) ([]setting, error) {
	if r == nil {
		return nil, nil
	}
	var out []setting
	for _, rule := range []func(*specs.LinuxResources) ([]setting, error){
		planCPU, planCpuset, planMemory, planPids, planIO, planHugetlb, planRdma, planNetwork, planUnified,
	} {
		s, err := rule(r)
		if err != nil {
			return nil, err
		}
		out = append(out, s...)
	}
	return out, nil
}

func invalid(field string, value any, why string) error {
	return fmt.Errorf("check %s %v: %s: %w", field, value, why, ErrInvalid)
}

// File is one limit as the kernel sees it.
type File struct {
	Name  string // in the cgroup's directory
	Value string // as it is written
}

// Files returns what the limits in r become, in the order of writing, or
// ErrInvalid with the name of what cannot be. Nothing is looked at and nothing is
// written.
func Files(r *specs.LinuxResources) ([]File, error) {
	limits, err := plan(r)
	out := make([]File, 0, len(limits))
	for _, l := range limits {
		out = append(out, File{l.file, l.value})
	}
	return out, err
}

func planCPU(r *specs.LinuxResources) (out []setting, err error) {
	c := r.CPU
	if c == nil {
		return nil, nil
	}
	if c.RealtimeRuntime != nil && *c.RealtimeRuntime != 0 || c.RealtimePeriod != nil && *c.RealtimePeriod != 0 {
		return nil, invalid("cpu.realtimeRuntime", "", "cgroup v2 has no realtime limits")
	}
	if c.Idle != nil {
		if *c.Idle != 0 && *c.Idle != 1 {
			return nil, invalid("cpu.idle", *c.Idle, "must be 0 or 1")
		}
		out = append(out, setting{file: "cpu.idle", value: num(*c.Idle)})
	}
	// The kernel refuses a weight for an idle group.
	if idle := c.Idle != nil && *c.Idle == 1 || r.Unified["cpu.idle"] == "1"; c.Shares != nil && *c.Shares != 0 && !idle {
		out = append(out, setting{file: "cpu.weight", value: num(cpuWeight(*c.Shares))})
	}
	limit, err := cpuMax(c)
	if err != nil {
		return nil, err
	}
	if limit != "" {
		out = append(out, setting{file: "cpu.max", value: limit})
	}
	if c.Burst != nil { // it must never exceed the quota; a new cgroup has none
		out = append(out, setting{file: "cpu.max.burst", value: num(*c.Burst)})
	}
	return out, nil
}

// cpuMax returns the value of cpu.max: a quota alone keeps the period.
func cpuMax(c *specs.LinuxCPU) (string, error) {
	var quota, period string
	if c.Quota != nil && *c.Quota != 0 {
		switch q := *c.Quota; {
		case q < 0:
			quota = "max"
		case q < minQuota:
			return "", invalid("cpu.quota", q, "must be at least 1000 us")
		default:
			quota = num(q)
		}
	}
	if c.Period != nil && *c.Period != 0 {
		if p := *c.Period; p < minPeriod || p > maxPeriod {
			return "", invalid("cpu.period", p, "must be from 1000 to 1000000 us")
		}
		period = num(*c.Period)
		if quota == "" {
			quota = "max"
		}
	}
	return strings.TrimSpace(quota + " " + period), nil
}

// cpuWeight converts shares (2 to 262144, 1024 by default) to a weight (1 to
// 10000, 100 by default). The curve is a parabola of the logarithms through the
// three points (2, 1), (1024, 100) and (262144, 10000): the formula that runc
// (1.3.2), crun (1.23) and with them the kubelet's own cgroups use since 2025. An
// older, linear one made 39 of 1024, so that pods lost to everything else.
func cpuWeight(shares uint64) uint64 {
	if shares <= minShares {
		return minWeight
	}
	if shares >= maxShares {
		return maxWeight
	}
	l := math.Log2(float64(shares))
	return uint64(math.Ceil(math.Pow(10, (l*l+125*l)/612-7.0/34)))
}

func planCpuset(r *specs.LinuxResources) (out []setting, err error) {
	if r.CPU == nil {
		return nil, nil
	}
	for _, f := range []struct{ field, file, value string }{
		{"cpu.cpus", "cpuset.cpus", r.CPU.Cpus}, {"cpu.mems", "cpuset.mems", r.CPU.Mems},
	} {
		if f.value == "" {
			continue
		}
		if !isList(f.value) {
			return nil, invalid(f.field, strconv.Quote(f.value), "must be a list as 0-3,7")
		}
		out = append(out, setting{file: f.file, value: f.value})
	}
	return out, nil
}

// isList accepts what a person would write, and not all that the kernel's parser
// tolerates. Whether the CPUs exist, the kernel says.
func isList(s string) bool {
	for part := range strings.SplitSeq(s, ",") {
		from, to, ranged := strings.Cut(part, "-")
		a, err := strconv.ParseUint(from, 10, 16)
		if err != nil || from[0] == '+' {
			return false
		}
		if !ranged {
			continue
		}
		if b, err := strconv.ParseUint(to, 10, 16); err != nil || b < a || to[0] == '+' {
			return false
		}
	}
	return true
}

func planMemory(r *specs.LinuxResources) (out []setting, err error) {
	m := r.Memory
	if m == nil {
		return nil, nil
	}
	switch {
	//nolint:staticcheck // Kernel is deprecated, but a spec may carry it
	case m.Kernel != nil && *m.Kernel > 0:
		return nil, invalid("memory.kernel", *m.Kernel, "cgroup v2 has no such limit") //nolint:staticcheck // as above
	case m.UseHierarchy != nil && !*m.UseHierarchy:
		return nil, invalid("memory.useHierarchy", false, "cgroup v2 always does")
	case m.KernelTCP != nil && *m.KernelTCP > 0:
		return nil, invalid("memory.kernelTCP", *m.KernelTCP, "cgroup v2 has no such limit")
	case m.Swappiness != nil:
		return nil, invalid("memory.swappiness", *m.Swappiness, "cgroup v2 has none")
	case m.DisableOOMKiller != nil && *m.DisableOOMKiller:
		return nil, invalid("memory.disableOOMKiller", true, "cgroup v2 cannot")
	}
	if v := m.Reservation; v != nil && *v != 0 {
		out = append(out, setting{file: "memory.low", value: orMax(*v)})
	}
	swap, err := swapMax(m)
	if err != nil {
		return nil, err
	}
	if v := m.Limit; v != nil && *v != 0 {
		out = append(out, setting{file: "memory.max", value: orMax(*v)})
	}
	if swap != "" {
		// Without swap accounting there is no file. A limit of zero or none holds
		// anyway where there is no swap to be had; one in between does not.
		out = append(out, setting{file: "memory.swap.max", value: swap, optional: swap == "0" || swap == "max"})
	}
	return out, nil
}

// swapMax converts the limit of memory and swap together to one of swap alone.
func swapMax(m *specs.LinuxMemory) (string, error) {
	var limit, swap int64
	if m.Limit != nil {
		limit = *m.Limit
	}
	if m.Swap != nil {
		swap = *m.Swap
	}
	switch {
	case swap == 0:
		if limit < 0 {
			return "max", nil // unlimited memory, then unlimited swap
		}
		return "", nil
	case swap < 0:
		return "max", nil
	case limit == 0:
		return "", invalid("memory.swap", swap, "is of memory and swap together, and there is no memory.limit")
	case limit < 0:
		return "", invalid("memory.swap", swap, "cannot be below an unlimited memory.limit")
	case swap < limit:
		return "", invalid("memory.swap", swap, "must not be below memory.limit, which it includes")
	}
	return num(swap - limit), nil
}

func planPids(r *specs.LinuxResources) ([]setting, error) {
	if r.Pids == nil || r.Pids.Limit == nil {
		return nil, nil
	}
	limit := *r.Pids.Limit
	if limit == 0 { // would be a cgroup that can hold nothing, not even its first process
		limit = 1
	}
	return []setting{{file: "pids.max", value: orMax(limit)}}, nil
}

func planHugetlb(r *specs.LinuxResources) (out []setting, err error) {
	for _, h := range r.HugepageLimits {
		if !isPageSize(h.Pagesize) {
			return nil, invalid("hugepageLimits", strconv.Quote(h.Pagesize), "must be a page size as 2MB")
		}
		out = append(out,
			setting{file: "hugetlb." + h.Pagesize + ".max", value: num(h.Limit)},
			setting{file: "hugetlb." + h.Pagesize + ".rsvd.max", value: num(h.Limit), optional: true})
	}
	return out, nil
}

func isPageSize(s string) bool {
	n, ok := strings.CutSuffix(s, "B")
	if !ok || len(n) < 2 || len(n) > 8 || !strings.ContainsRune("KMG", rune(n[len(n)-1])) {
		return false
	}
	_, err := strconv.ParseUint(n[:len(n)-1], 10, 32)
	return err == nil && n[0] != '+' && n[0] != '0'
}

func planRdma(r *specs.LinuxResources) (out []setting, err error) {
	for _, dev := range slices.Sorted(maps.Keys(r.Rdma)) {
		if dev == "" || strings.ContainsFunc(dev, func(c rune) bool { return c <= ' ' || c > '~' }) {
			return nil, invalid("rdma", strconv.Quote(dev), "is no device name")
		}
		v := dev
		if n := r.Rdma[dev].HcaHandles; n != nil {
			v += " hca_handle=" + num(*n)
		}
		if n := r.Rdma[dev].HcaObjects; n != nil {
			v += " hca_object=" + num(*n)
		}
		out = append(out, setting{file: "rdma.max", value: v})
	}
	return out, nil
}

func planNetwork(r *specs.LinuxResources) ([]setting, error) {
	if n := r.Network; n != nil && (n.ClassID != nil || len(n.Priorities) > 0) {
		return nil, invalid("network", "", "cgroup v2 has neither classID nor priorities")
	}
	return nil, nil
}

func planIO(r *specs.LinuxResources) (out []setting, err error) {
	b := r.BlockIO
	if b == nil {
		return nil, nil
	}
	if b.LeafWeight != nil || len(b.WeightDevice) > 0 {
		return nil, invalid("blockIO", "", "leafWeight and weightDevice are not supported")
	}
	if b.Weight != nil && *b.Weight != 0 {
		w := uint64(*b.Weight)
		if w < 10 || w > 1000 {
			return nil, invalid("blockIO.weight", w, "must be from 10 to 1000")
		}
		// The bounds are mapped onto each other: 10 is 1 and 1000 is 10000.
		out = append(out, setting{file: "io.weight", value: num(1 + (w-10)*9999/990)})
	}
	for _, t := range []struct {
		key  string
		devs []specs.LinuxThrottleDevice
	}{
		{"rbps", b.ThrottleReadBpsDevice}, {"wbps", b.ThrottleWriteBpsDevice},
		{"riops", b.ThrottleReadIOPSDevice}, {"wiops", b.ThrottleWriteIOPSDevice},
	} {
		for _, d := range t.devs {
			rate := "max"
			if d.Rate != 0 {
				rate = num(d.Rate)
			}
			out = append(out, setting{file: "io.max", value: fmt.Sprintf("%d:%d %s=%s", d.Major, d.Minor, t.key, rate)})
		}
	}
	return out, nil
}

// applyAll writes settings in their order and returns the files that do not
// exist. The first one that the kernel refuses ends it.
func applyAll(dir int, all []setting) (missing []string, err error) {
	for _, s := range all {
		err := writeFile(dir, s.file, s.value)
		switch {
		case err == nil:
		case errors.Is(err, fs.ErrNotExist):
			if !s.optional && !slices.Contains(missing, s.file) {
				missing = append(missing, s.file)
			}
		default:
			return missing, refusal(s.file, err)
		}
	}
	return missing, nil
}

func orMax(n int64) string {
	if n < 0 {
		return "max"
	}
	return num(n)
}

func num[T int64 | uint64 | uint32](n T) string { return fmt.Sprint(n) }
