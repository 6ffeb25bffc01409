package server

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/sandbox"
)

// B-88: what a change of limits must not be, and what it may.
func TestUpdateContainerResources(t *testing.T) {
	type r = runtimeapi.LinuxContainerResources
	c, f := serve(t, nil)
	ctx := context.Background()
	update := func(res *r) error {
		_, err := c.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: "abc", Linux: res,
			Annotations: map[string]string{"io.kubernetes.cri-o.UnifiedCgroup": "memory.max=max"}}) // CVE-2023-6476
		return err
	}
	for field, res := range map[string]*r{
		"linux: must be set":                         nil,
		"linux.cpu_period":                           {CpuPeriod: 999},
		"linux.cpu_quota":                            {CpuQuota: -2},
		"linux.cpu_shares":                           {CpuShares: -1},
		"linux.memory_limit_in_bytes":                {MemoryLimitInBytes: -2},
		"linux.memory_limit_in_bytes 4095":           {MemoryLimitInBytes: 4095},
		"linux.memory_swap_limit_in_bytes":           {MemorySwapLimitInBytes: -2},
		"linux.memory_swap_limit_in_bytes 4096":      {MemoryLimitInBytes: 8192, MemorySwapLimitInBytes: 4096},
		"linux.memory_swap_limit_in_bytes 4097":      {MemoryLimitInBytes: -1, MemorySwapLimitInBytes: 4097},
		"linux.oom_score_adj":                        {OomScoreAdj: math.MinInt64},
		"linux.cpuset_cpus":                          {CpusetCpus: "3-"},
		"linux.cpuset_mems":                          {CpusetMems: "a"},
		"linux.hugepage_limits[0].page_size":         {HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "3XB"}}},
		`linux.unified["cgroup.procs"]`:              {Unified: map[string]string{"cgroup.procs": "1"}},
		`linux.unified["memory.reclaim"]`:            {Unified: map[string]string{"memory.reclaim": "1G"}},
		`linux.unified["../memory.max"]`:             {Unified: map[string]string{"../memory.max": "1"}},
		`linux.unified["memory.max"]: must not hold`: {Unified: map[string]string{"memory.max": "1\n2"}},
	} {
		var name, value string
		fmt.Sscan(field, &name, &value)
		if value == "" || value == "must" {
			name = field
		}
		wantError(t, update(res), codes.InvalidArgument, name)
	}
	if calls := f.took(); len(calls) != 0 {
		t.Fatalf("reached the manager: %v", calls)
	}
	// What is missing here the container may have; and the kubelet's CPU manager sends so little.
	for _, res := range []*r{{}, {CpuQuota: 5000}, {MemorySwapLimitInBytes: 1 << 20}, {CpusetCpus: "0"}, {MemoryLimitInBytes: -1, CpuQuota: -1}, validResources()} {
		if err := update(res); err != nil {
			t.Errorf("%v: %v", res, err)
		}
	}
	if calls := f.took(); len(calls) != 6 || !slices.Contains(calls, fmt.Sprintf("UpdateContainerResources abc 512 %d", 64<<20)) {
		t.Errorf("calls %q", calls)
	}
	for want, err := range map[codes.Code]error{
		codes.FailedPrecondition: fmt.Errorf("memory.max: in use: %w", sandbox.ErrState), codes.InvalidArgument: sandbox.ErrInvalid, codes.NotFound: sandbox.ErrNotFound,
		codes.Internal: errors.New("restore"),
	} {
		f.do = func(context.Context, string) error { return err }
		wantError(t, update(&r{}), want, err.Error())
	}
}

// B-39.
func TestUpdatePodSandboxResources(t *testing.T) {
	type r = runtimeapi.LinuxContainerResources
	c, f := serve(t, nil)
	ctx := context.Background()
	update := func(overhead, resources *r) error {
		_, err := c.UpdatePodSandboxResources(ctx, &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: "abc", Overhead: overhead, Resources: resources})
		return err
	}
	wantError(t, update(nil, nil), codes.InvalidArgument, "resources: must be set")
	wantError(t, update(&r{MemoryLimitInBytes: -2}, nil), codes.InvalidArgument, "overhead.memory_limit_in_bytes")
	wantError(t, update(&r{}, &r{CpuQuota: 5000}), codes.InvalidArgument, "resources.cpu_quota")
	wantError(t, update(nil, &r{Unified: map[string]string{"cgroup.kill": "1"}}), codes.InvalidArgument, `resources.unified["cgroup.kill"]`)
	if calls := f.took(); len(calls) != 0 {
		t.Fatalf("reached the manager: %v", calls)
	}
	for _, err := range []error{update(&r{}, nil), update(nil, &r{MemoryLimitInBytes: 1 << 20}), update(&r{MemoryLimitInBytes: 4096}, &r{MemoryLimitInBytes: 8192})} {
		if err != nil {
			t.Error(err)
		}
	}
	if calls := f.took(); !slices.Equal(calls, []string{"UpdatePodSandboxResources abc 0 0", "UpdatePodSandboxResources abc 0 1048576", "UpdatePodSandboxResources abc 4096 8192"}) {
		t.Errorf("calls %q", calls)
	}
	f.do = func(context.Context, string) error { return sandbox.ErrState }
	wantError(t, update(&r{}, nil), codes.FailedPrecondition, "")
}
