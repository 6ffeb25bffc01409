package cgroup

import (
	"context"
	"math"
	"math/bits"
	"slices"
	"strconv"
	"strings"
)

// What systemd has properties for, it also writes: at the start of a unit, at a
// change, at a daemon-reload (252), and whenever a unit elsewhere in the slice needs
// another controller. A property that was not given has a default, which is written
// as well. So each limit that we have in such a file has to be a property, or to be
// put back (see kept).

// theirs are the files that systemd writes.
var theirs = []string{
	"cpu.idle", "cpu.max", "cpu.weight", "cpu.weight.nice", "cpuset.cpus", "cpuset.mems", "io.bfq.weight", "io.weight",
	"memory.high", "memory.low", "memory.max", "memory.min", "memory.oom.group", "memory.swap.max",
	"memory.zswap.max", "memory.zswap.writeback", "pids.max",
}

// byteLimits are files with one number, whose property means exactly that.
var byteLimits = map[string]string{
	"memory.min": "MemoryMin", "memory.low": "MemoryLow", "memory.high": "MemoryHigh", "memory.max": "MemoryMax",
	"memory.swap.max": "MemorySwapMax", "pids.max": "TasksMax",
}

// cpuPeriod is the kernel's and systemd's default.
const cpuPeriod = 100000

// translate returns the properties that mean what a file holds, and whether they
// mean it exactly, also after a daemon-reload; step is units.quotaStep.
func translate(file, content string, step func() uint64) (props []property, exact bool) {
	f := strings.Fields(content)
	if name := byteLimits[file]; name != "" && len(f) == 1 {
		n, ok := bytesOf(f[0])
		if !ok {
			return nil, false
		}
		return []property{prop(name, n)}, true
	}
	switch {
	case file == "cpu.weight" && len(f) == 1:
		if n, err := strconv.ParseUint(f[0], 10, 64); err == nil && n >= minWeight && n <= maxWeight {
			return []property{prop("CPUWeight", n)}, true
		}
	case file == "cpu.max":
		return translateQuota(f, step)
	case file == "cpuset.cpus" || file == "cpuset.mems":
		name := map[string]string{"cpuset.cpus": "AllowedCPUs", "cpuset.mems": "AllowedMemoryNodes"}[file]
		if set, ok := setOf(content); ok {
			return []property{prop(name, bitmap(set))}, true
		}
	case file == "io.weight" && (len(f) == 1 || len(f) == 2 && f[0] == "default"):
		if n, err := strconv.ParseUint(f[len(f)-1], 10, 64); err == nil {
			return []property{prop("IOWeight", n)}, true
		}
	}
	return nil, false
}

// translateQuota rounds a quota up to what is kept, so that what systemd shows is
// the same before and after a daemon-reload.
func translateQuota(f []string, step func() uint64) (props []property, exact bool) {
	period := uint64(cpuPeriod)
	if len(f) == 2 {
		var err error
		if period, err = strconv.ParseUint(f[1], 10, 64); err != nil || period == 0 {
			return nil, false
		}
	}
	if len(f) == 0 || len(f) > 2 {
		return nil, false
	}
	props = []property{prop("CPUQuotaPeriodUSec", period)}
	if f[0] == "max" {
		return append(props, prop("CPUQuotaPerSecUSec", uint64(math.MaxUint64))), true
	}
	quota, err := strconv.ParseUint(f[0], 10, 63)
	if err != nil {
		return nil, false
	}
	// In 128 bits, because quotas may be anything.
	hi, lo := bits.Mul64(quota, 1000000)
	if hi >= period {
		return nil, false
	}
	n, rest := bits.Div64(hi, lo, period)
	if n > math.MaxInt64 {
		return nil, false
	}
	exact = rest == 0
	if !exact {
		n++
	}
	if n%10000 != 0 { // the coarsest step, so that the usual quotas ask nobody
		s := step()
		exact = exact && n%s == 0
		n = (n + s - 1) / s * s
	}
	return append(props, prop("CPUQuotaPerSecUSec", n)), exact
}

// bitmap is a set as systemd wants it: bit n of the bytes.
func bitmap(set []int) []byte {
	out := []byte{}
	for _, n := range set {
		for len(out) <= n/8 {
			out = append(out, 0)
		}
		out[n/8] |= 1 << (n % 8)
	}
	return out
}

// describe reads what the files of limits hold, and returns it as properties, and
// what of it systemd cannot keep.
func (t *Tree) describe(ctx context.Context, dir int, limits []setting) (props []property, keep []setting, err error) {
	step := func() uint64 { return t.units.quotaStep(ctx) }
	for _, l := range merge(limits) {
		if l.file == "cpu.weight.nice" { // a view of the file that systemd writes, which has more values
			if weight, err := fields(dir, "cpu.weight"); err == nil && len(weight) == 1 {
				l.file, l.value = "cpu.weight", weight[0]
			}
		}
		if !slices.Contains(theirs, l.file) {
			continue
		}
		content, err := readFile(dir, l.file)
		if err != nil && !gone(err) {
			return nil, nil, err
		}
		if now, ok := valueIn(content, keyOf(l.file, l.value)); err != nil || !ok || !same(l.file, l.value, now) {
			content = l.value // systemd has turned the controller off meanwhile; it will not once it knows
		}
		p, exact := translate(l.file, content, step)
		props = append(props, p...)
		if !exact {
			keep = append(keep, l)
		}
	}
	return props, keep, nil
}
