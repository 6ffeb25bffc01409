package cgroup

import (
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Some files hold one value, and some a line for each device or resource, of
// which a write changes one. What stands before the rest of such a line is its
// key.

// keyOf returns the key of a value that is about to be written to file; "" where
// the file holds one value.
func keyOf(file, value string) string {
	f := strings.Fields(value)
	switch {
	case len(f) == 0:
		return ""
	case isWeights(file) && len(f) == 1:
		return "default"
	case isWeights(file), isLines(file):
		return f[0]
	}
	return ""
}

func isWeights(file string) bool { return file == "io.weight" || file == "io.bfq.weight" }

func isLines(file string) bool {
	switch file {
	case "io.max", "io.latency", "rdma.max", "misc.max", "dmem.max", "dmem.low", "dmem.min":
		return true
	}
	return false
}

// valueIn returns what a file's content says for key, and false if it has no line
// for it. The value can be written back as it is.
func valueIn(content, key string) (string, bool) {
	if key == "" {
		return strings.TrimSpace(content), true
	}
	for line := range strings.Lines(content) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == key {
			return strings.Join(f, " "), true
		}
	}
	return "", false
}

// unset returns the value that takes the line for key out of a file again.
func unset(file, key string) string {
	switch {
	case key == "default":
		return "default 100"
	case isWeights(file):
		return key + " default"
	}
	switch file {
	case "io.max":
		return key + " rbps=max wbps=max riops=max wiops=max"
	case "io.latency":
		return key + " target=0"
	case "rdma.max":
		return key + " hca_handle=max hca_object=max"
	case "dmem.min", "dmem.low":
		return key + " 0"
	}
	return key + " max"
}

// same tells whether a file that holds have would not change by a write of want.
// It knows what the kernel makes of a value: whole pages, ranges instead of
// lists, a period where none was written.
func same(file, want, have string) bool {
	w, h := strings.Fields(want), strings.Fields(have)
	switch {
	case isBytes(file):
		a, aok := bytesOf(want)
		b, bok := bytesOf(have)
		return aok && bok && wholePages(file, a) == wholePages(file, b)
	case file == "cpuset.cpus" || file == "cpuset.mems":
		a, aok := setOf(want)
		b, bok := setOf(have)
		return aok && bok && slices.Equal(a, b)
	case file == "cpu.max" && len(w) == 1 && len(h) == 2:
		return w[0] == h[0]
	case isWeights(file) && len(w) == 1:
		return slices.Equal([]string{"default", w[0]}, h)
	case isLines(file):
		return len(w) > 0 && !slices.ContainsFunc(w, func(s string) bool { return !slices.Contains(h, s) })
	}
	return slices.Equal(w, h)
}

func isBytes(file string) bool {
	switch file {
	case "memory.min", "memory.low", "memory.high", "memory.max",
		"memory.swap.high", "memory.swap.max", "memory.zswap.max", "pids.max", "cpu.max.burst":
		return true
	}
	return isHugetlbFile(file)
}

// unlimited is what max is worth.
const unlimited = math.MaxUint64

// bytesOf reads a number as the kernel does, with its suffixes.
func bytesOf(v string) (uint64, bool) {
	v = strings.TrimSpace(v)
	if v == "max" {
		return unlimited, true
	}
	shift := 0
	if v != "" {
		if i := strings.IndexByte("KMGTPE", v[len(v)-1]&^0x20); i >= 0 {
			shift, v = 10*(i+1), v[:len(v)-1]
		}
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil || n > math.MaxUint64>>shift {
		return 0, false
	}
	return n << shift, true
}

// wholePages rounds as the kernel's counters do, which end below 2^63.
func wholePages(file string, n uint64) uint64 {
	page := uint64(os.Getpagesize())
	switch {
	case isHugetlbFile(file):
		size, _, _ := strings.Cut(strings.TrimPrefix(file, "hugetlb."), ".")
		page, _ = bytesOf(strings.TrimSuffix(size, "B"))
	case !strings.HasPrefix(file, "memory."):
		return n
	}
	if page == 0 || n >= math.MaxInt64/page*page {
		return unlimited
	}
	return n / page * page
}

// setOf expands a list as 0-3,7. An empty one is a set, too.
func setOf(list string) ([]int, bool) {
	list = strings.TrimSpace(list)
	if list == "" {
		return nil, true
	}
	if !isList(list) {
		return nil, false
	}
	var out []int
	for part := range strings.SplitSeq(list, ",") {
		from, to, ranged := strings.Cut(part, "-")
		if !ranged {
			to = from
		}
		a, aerr := strconv.Atoi(from)
		b, berr := strconv.Atoi(to)
		if aerr != nil || berr != nil {
			return nil, false
		}
		for ; a <= b; a++ {
			out = append(out, a)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), true
}
