package spec

import (
	"math"
	"reflect"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type res = runtimeapi.LinuxContainerResources

func TestMergeResources(t *testing.T) {
	huge := func(size string, n uint64) *runtimeapi.HugepageLimit {
		return &runtimeapi.HugepageLimit{PageSize: size, Limit: n}
	}
	full := &res{CpuPeriod: 100000, CpuQuota: 20000, CpuShares: 512, MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 80 << 20, OomScoreAdj: 500,
		CpusetCpus: "0-1", CpusetMems: "0", HugepageLimits: []*runtimeapi.HugepageLimit{huge("2MB", 1), huge("1GB", 2)}, Unified: map[string]string{"memory.high": "max"}}
	with := func(edit func(*res)) *res {
		r := proto.Clone(full).(*res)
		edit(r)
		return r
	}
	for name, tt := range map[string]struct{ old, update, want *res }{
		"nothing":            {full, &res{}, full},
		"nil":                {full, nil, full},
		"to nothing":         {nil, full, with(func(r *res) { r.OomScoreAdj = 0 })},
		"to nothing nothing": {nil, nil, &res{}},
		"a cpuset alone":     {full, &res{CpusetCpus: "1"}, with(func(r *res) { r.CpusetCpus = "1" })},
		"the score stays":    {full, &res{OomScoreAdj: -999}, full},
		"a quota":            {full, &res{CpuQuota: -1}, with(func(r *res) { r.CpuQuota = -1 })},
		"a page size": {full, &res{HugepageLimits: []*runtimeapi.HugepageLimit{huge("1GB", 7), huge("64KB", 8)}}, with(func(r *res) {
			r.HugepageLimits = []*runtimeapi.HugepageLimit{huge("2MB", 1), huge("1GB", 7), huge("64KB", 8)}
		})},
		"unified": {full, &res{Unified: map[string]string{"memory.min": "1"}}, with(func(r *res) { r.Unified["memory.min"] = "1" })},
		"a field after a file": {&res{Unified: map[string]string{"memory.max": "1", "memory.swap.max": "2", "cpu.max": "1000", "cpu.weight": "7", "cpuset.cpus": "0", "hugetlb.2MB.max": "9", "pids.max": "3"}}, full,
			with(func(r *res) { r.Unified["pids.max"], r.OomScoreAdj = "3", 0 })},
		"a file after a field":      {full, &res{Unified: map[string]string{"memory.max": "1"}}, with(func(r *res) { r.Unified["memory.max"] = "1" })},
		"both at once":              {nil, &res{MemoryLimitInBytes: 4096, Unified: map[string]string{"memory.max": "1"}}, &res{MemoryLimitInBytes: 4096, Unified: map[string]string{"memory.max": "1"}}},
		"more memory keeps swap":    {full, &res{MemoryLimitInBytes: 100 << 20}, with(func(r *res) { r.MemoryLimitInBytes, r.MemorySwapLimitInBytes = 100<<20, 116<<20 })},
		"no limit":                  {full, &res{MemoryLimitInBytes: -1}, with(func(r *res) { r.MemoryLimitInBytes, r.MemorySwapLimitInBytes = -1, 0 })},
		"swap of its own":           {full, &res{MemoryLimitInBytes: 1 << 20, MemorySwapLimitInBytes: 2 << 20}, with(func(r *res) { r.MemoryLimitInBytes, r.MemorySwapLimitInBytes = 1<<20, 2<<20 })},
		"swap alone":                {full, &res{MemorySwapLimitInBytes: -1}, with(func(r *res) { r.MemorySwapLimitInBytes = -1 })},
		"more swap than the number": {full, &res{MemoryLimitInBytes: math.MaxInt64}, with(func(r *res) { r.MemoryLimitInBytes, r.MemorySwapLimitInBytes = math.MaxInt64, -1 })},
	} {
		before := proto.Clone(tt.old)
		if got := MergeResources(tt.old, tt.update); !proto.Equal(got, tt.want) {
			t.Errorf("%s:\ngot  %v\nwant %v", name, got, tt.want)
		}
		if tt.old != nil && !proto.Equal(tt.old, before) {
			t.Errorf("%s: the old limits were changed", name)
		}
	}
}

// What is shown of limits that the kernel took as they are is what was asked for.
func TestResourcesOf(t *testing.T) {
	asked := &res{CpuPeriod: 100000, CpuQuota: 20000, CpuShares: 512, MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: -1, OomScoreAdj: 500,
		CpusetCpus: "0-1", CpusetMems: "0", HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 5}}, Unified: map[string]string{"memory.high": "max"}}
	for _, want := range []*res{asked, {}, {CpuQuota: -1}, {MemoryLimitInBytes: -1}} {
		r, err := Resources(want, Host{HugePageSizes: []string{"2MB"}})
		if err != nil {
			t.Fatal(err)
		}
		if got := ResourcesOf(r, want.OomScoreAdj); !proto.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	if got := ResourcesOf(nil, 7); !proto.Equal(got, &res{OomScoreAdj: 7}) {
		t.Errorf("nil: %v", got)
	}
}

func TestPodResources(t *testing.T) {
	num := func(n int64) *int64 { return &n }
	unsigned := func(n uint64) *uint64 { return &n }
	for name, tt := range map[string]struct {
		resources, overhead *res
		want                specs.LinuxResources
	}{
		"nothing": {nil, nil, specs.LinuxResources{}},
		"the sum": {&res{CpuPeriod: 100000, CpuQuota: 20000, CpuShares: 512, MemoryLimitInBytes: 64 << 20}, &res{CpuPeriod: 50000, CpuQuota: 1001, CpuShares: 10, MemoryLimitInBytes: 1 << 20},
			specs.LinuxResources{CPU: &specs.LinuxCPU{Period: unsigned(100000), Quota: num(22002), Shares: unsigned(522)}, Memory: &specs.LinuxMemory{Limit: num(65 << 20)}}},
		"overhead alone limits nothing": {nil, &res{MemoryLimitInBytes: 1 << 20, CpuQuota: 1000, CpuPeriod: 100000, CpuShares: 2}, specs.LinuxResources{}},
		"no limit and overhead":         {&res{MemoryLimitInBytes: -1}, &res{MemoryLimitInBytes: 1 << 20}, specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: num(-1)}}},
		"more than there is":            {&res{MemoryLimitInBytes: math.MaxInt64}, &res{MemoryLimitInBytes: 1 << 20}, specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: num(math.MaxInt64)}}},
		"swap": {&res{MemoryLimitInBytes: 1 << 20, MemorySwapLimitInBytes: 2 << 20}, &res{MemoryLimitInBytes: 4096},
			specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: num(1<<20 + 4096), Swap: num(2<<20 + 4096)}}},
	} {
		got, err := PodResources(tt.resources, tt.overhead, Host{})
		if err != nil || !reflect.DeepEqual(*got, tt.want) {
			t.Errorf("%s: %+v %+v %+v, %v", name, got, got.CPU, got.Memory, err)
		}
	}
	for _, bad := range []*res{{MemoryLimitInBytes: -2}, {CpuQuota: 5}, {Unified: map[string]string{"cgroup.procs": "1"}}} {
		if _, err := PodResources(nil, bad, Host{}); err == nil {
			t.Errorf("overhead %v is accepted", bad)
		}
		if _, err := PodResources(bad, nil, Host{}); err == nil {
			t.Errorf("resources %v are accepted", bad)
		}
	}
	before, _ := PodResources(&res{CpuQuota: 20000, CpuPeriod: 100000, MemoryLimitInBytes: 64 << 20}, nil, Host{})
	for _, now := range []*res{{}, {CpuShares: 7}, {CpuQuota: -1}} {
		r, _ := PodResources(now, nil, Host{})
		if Lifted(r, before); *r.CPU.Quota != -1 || *r.Memory.Limit != -1 {
			t.Errorf("%v: not lifted: %+v %+v", now, r.CPU, r.Memory)
		}
	}
	same, _ := PodResources(&res{CpuQuota: 30000, MemoryLimitInBytes: 1 << 20}, nil, Host{})
	if Lifted(same, before); *same.CPU.Quota != 30000 || *same.Memory.Limit != 1<<20 {
		t.Errorf("lifted: %+v %+v", same.CPU, same.Memory)
	}
	if Lifted(same, nil); *same.CPU.Quota != 30000 {
		t.Error("lifted what there was not")
	}
}
