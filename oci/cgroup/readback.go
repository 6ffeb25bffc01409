package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"sort"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// ReadBack returns the limits that r names as the kernel holds them. A value that
// the kernel only wrote in its own way, such as in whole pages, stays as r has it:
// who compares what was asked for with what holds shall find them equal. One that
// is really different is the kernel's, and one whose file does not exist is left
// out. Block devices, rdma and devices are not looked at.
func (s *Scope) ReadBack(r *specs.LinuxResources) (*specs.LinuxResources, error) {
	dir, err := s.OpenDir()
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	out, err := readBack(dir.Int(), r)
	if err != nil {
		return nil, fmt.Errorf("read limits of cgroup %s: %w", s.path, err)
	}
	return out, nil
}

func readBack(dir int, r *specs.LinuxResources) (*specs.LinuxResources, error) {
	if r == nil {
		return &specs.LinuxResources{}, nil
	}
	out := *r
	b := reader{dir: dir}
	out.CPU = b.cpu(r)
	out.Memory = b.memory(r.Memory)
	if r.Pids != nil && r.Pids.Limit != nil {
		out.Pids = &specs.LinuxPids{Limit: b.signed("pids.max", r.Pids.Limit)}
	}
	out.HugepageLimits = nil
	for _, h := range r.HugepageLimits {
		if n := b.signed("hugetlb."+h.Pagesize+".max", pointer(int64(min(h.Limit, math.MaxInt64)))); n != nil {
			if *n >= 0 && *n != int64(min(h.Limit, math.MaxInt64)) {
				h.Limit = uint64(*n)
			}
			out.HugepageLimits = append(out.HugepageLimits, h)
		}
	}
	out.Unified = b.unified(r.Unified)
	return &out, b.err
}

// reader reads values until the first error.
type reader struct {
	dir int
	err error
}

func (b *reader) value(file, key string) (string, bool) {
	if b.err != nil {
		return "", false
	}
	content, err := readFile(b.dir, file)
	if errors.Is(err, fs.ErrNotExist) {
		return "", false
	}
	b.err = err
	v, found := valueIn(content, key)
	return v, found && err == nil
}

// signed returns the number in file, -1 for max, nil without the file, and asked
// where that is what the number is.
func (b *reader) signed(file string, asked *int64) *int64 {
	if asked == nil || *asked == 0 && !strings.HasPrefix(file, "hugetlb.") {
		return asked
	}
	have, ok := b.value(file, "")
	if !ok {
		return nil
	}
	if same(file, orMax(*asked), have) {
		return asked
	}
	return pointer(number(have))
}

// number is a value of the kernel's as the runtime spec has it.
func number(v string) int64 {
	n, ok := bytesOf(v)
	if !ok || n > math.MaxInt64 {
		return -1
	}
	return int64(n)
}

func pointer[T any](v T) *T { return &v }

func (b *reader) cpu(r *specs.LinuxResources) *specs.LinuxCPU {
	if r.CPU == nil {
		return nil
	}
	c := *r.CPU
	if c.Shares != nil && *c.Shares != 0 {
		c.Shares = b.shares(*c.Shares)
	}
	if c.Quota != nil && *c.Quota != 0 || c.Period != nil && *c.Period != 0 {
		b.bandwidth(&c)
	}
	for _, set := range []struct {
		file string
		v    *string
	}{{"cpuset.cpus", &c.Cpus}, {"cpuset.mems", &c.Mems}} {
		if *set.v == "" {
			continue
		}
		if have, ok := b.value(set.file, ""); !ok || !same(set.file, *set.v, have) {
			*set.v = have
		}
	}
	return &c
}

// shares turns cpu.weight back. Many shares make one weight; it is the least of
// them, unless asked is among them.
func (b *reader) shares(asked uint64) *uint64 {
	have, ok := b.value("cpu.weight", "")
	if !ok {
		return nil
	}
	weight, err := strconv.ParseUint(have, 10, 64)
	if err != nil || weight == cpuWeight(asked) {
		return &asked
	}
	if idle, _ := b.value("cpu.idle", ""); idle == "1" { // then its weight is not its own
		return &asked
	}
	least := sort.Search(maxShares, func(n int) bool { return cpuWeight(uint64(n)) >= weight })
	return pointer(uint64(max(least, minShares)))
}

func (b *reader) bandwidth(c *specs.LinuxCPU) {
	have, ok := b.value("cpu.max", "")
	quota, rest, _ := strings.Cut(have, " ")
	period, err := strconv.ParseUint(rest, 10, 64)
	if !ok || err != nil {
		c.Quota, c.Period = nil, nil
		return
	}
	if n := number(quota); c.Quota != nil && *c.Quota != 0 && (n != -1 || *c.Quota > 0) {
		c.Quota = &n
	}
	if c.Period != nil && *c.Period != 0 {
		c.Period = &period
	}
}

func (b *reader) memory(m *specs.LinuxMemory) *specs.LinuxMemory {
	if m == nil {
		return nil
	}
	out := *m
	out.Reservation, out.Limit = b.signed("memory.low", m.Reservation), b.signed("memory.max", m.Limit)
	asked, err := swapMax(m)
	if m.Swap == nil || err != nil || asked == "" {
		return &out
	}
	// Where the file is missing there is no swap, or it was refused.
	have, ok := b.value("memory.swap.max", "")
	switch n := number(have); {
	case !ok && m.Limit != nil && out.Limit == nil:
		out.Swap = nil // it is the controller that is missing
	case !ok || same("memory.swap.max", asked, have):
	case n < 0 || out.Limit == nil || *out.Limit < 0:
		out.Swap = pointer(int64(-1))
	default:
		out.Swap = pointer(*out.Limit + n)
	}
	return &out
}

func (b *reader) unified(asked map[string]string) map[string]string {
	var out map[string]string
	for file, want := range asked {
		have, ok := b.value(file, keyOf(file, want))
		if !ok {
			continue
		}
		if same(file, want, have) {
			have = want
		}
		if out == nil {
			out = make(map[string]string, len(asked))
		}
		out[file] = have
	}
	return out
}
