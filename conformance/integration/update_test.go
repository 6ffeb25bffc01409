package integration

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/conformance/stage"
)

// wantHeld wants files of a cgroup to hold that.
func (s *scene) wantHeld(when, cgroup string, want map[string]string) {
	s.Helper()
	var wrong []string
	for _, file := range slices.Sorted(maps.Keys(want)) {
		if got := textOrWhy(filepath.Join(cgroup, file)); got != want[file] {
			wrong = append(wrong, fmt.Sprintf("%s is %q, want %q", file, got, want[file]))
		}
	}
	s.wantNone(when, wrong)
}

func (s *scene) update(id string, r *runtimeapi.LinuxContainerResources) error {
	return s.cri.UpdateContainerResources(s.ctx, id, &runtimeapi.ContainerResources{Linux: r})
}

// under lists what may happen to a node whose limits must stay as they are.
func (s *scene) under() map[string]func() {
	events := map[string]func(){
		"a restart of the daemon": func() { s.killDaemon(); s.restart() },
	}
	if s.Stage.Driver == "systemd" {
		events["a daemon-reload"] = func() {
			if out, err := exec.CommandContext(s.ctx, "systemctl", "daemon-reload").CombinedOutput(); err != nil {
				s.Fatalf("daemon-reload: %v: %s", err, out)
			}
		}
	}
	return events
}

// TestUpdate changes the limits of a running container, and a quota that systemd cannot keep is among them.
func TestUpdate(t *testing.T) {
	needsLimits(t)
	s := open(t)
	p := s.runPod("update")
	want := &runtimeapi.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 20000, CpuShares: 512, MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 64 << 20,
		OomScoreAdj: 500, Unified: map[string]string{"memory.oom.group": "1", "memory.high": "max"}}
	id := p.run("c", "exec sleep 600", resources(func(r *runtimeapi.LinuxContainerResources) { proto.Merge(r, want) }))
	scope := s.scope(id)
	files := map[string]string{"cpu.weight": "59", "cpu.max": "20000 100000", "memory.max": "67108864", "memory.swap.max": "0",
		"memory.high": "max", "memory.oom.group": "1", "memory.low": "0", "pids.max": "max", "cpuset.cpus": ""}
	check := func(when string) {
		t.Helper()
		s.wantHeld(when, scope, files)
		got := proto.Clone(s.status(id).Resources.Linux).(*runtimeapi.LinuxContainerResources)
		got.HugepageLimits = nil
		if !proto.Equal(got, want) {
			t.Errorf("%s:\nshown %v\nwant  %v", when, got, want)
		}
	}
	check("created")
	if err := s.update(id, &runtimeapi.LinuxContainerResources{CpuQuota: 12345, CpuShares: 1024, MemoryLimitInBytes: 100_000_000, CpusetCpus: "0",
		Unified: map[string]string{"memory.high": "50000000", "memory.low": "8M", "pids.max": "99"}}); err != nil {
		t.Fatal(err)
	}
	want.CpuQuota, want.CpuShares, want.MemoryLimitInBytes, want.MemorySwapLimitInBytes, want.CpusetCpus = 12345, 1024, 100_000_000, 100_000_000, "0"
	maps.Copy(want.Unified, map[string]string{"memory.high": "50000000", "memory.low": "8M", "pids.max": "99"})
	maps.Copy(files, map[string]string{"cpu.weight": "100", "cpu.max": "12345 100000", "memory.max": "99999744", "memory.high": "49999872", "memory.low": "8388608", "pids.max": "99", "cpuset.cpus": "0"})
	check("updated")
	if got := s.exec(id, "cat /sys/fs/cgroup/cpu.max"); strings.TrimSpace(got) != "12345 100000" {
		t.Errorf("the container sees %q", got)
	}
	for event, happens := range s.under() {
		happens()
		check(event)
	}
	// What is refused changes nothing, here nor there.
	refused := map[codes.Code]*runtimeapi.LinuxContainerResources{
		codes.FailedPrecondition: {CpuShares: 2, MemoryLimitInBytes: 4096},
		codes.InvalidArgument:    {CpuShares: 2, Unified: map[string]string{"memory.high": "1", "memory.min": "much"}},
	}
	for code, r := range refused {
		if err := s.update(id, r); status.Code(err) != code {
			t.Errorf("%v: %v", r, err)
		} else {
			t.Log(err)
		}
		check("refused")
	}
	if err := s.update(id, &runtimeapi.LinuxContainerResources{CpuQuota: -1, MemoryLimitInBytes: -1}); err != nil {
		t.Fatal(err)
	}
	want.CpuQuota, want.MemoryLimitInBytes, want.MemorySwapLimitInBytes = -1, -1, 0
	maps.Copy(files, map[string]string{"cpu.max": "max 100000", "memory.max": "max", "memory.swap.max": "max"})
	check("without limits")
	for event, happens := range s.under() {
		happens()
		check("without limits, " + event)
	}
	if err := s.cri.StopContainer(s.ctx, id, 0); err != nil {
		t.Fatal(err)
	}
	if err := s.update(id, &runtimeapi.LinuxContainerResources{CpuShares: 2}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("exited: %v", err)
	}
}

// TestUpdatePodWithoutParent limits a pod whose cgroup is ours.
func TestUpdatePodWithoutParent(t *testing.T) {
	needsLimits(t)
	s := open(t)
	p := s.runPod("own", func(c *runtimeapi.PodSandboxConfig) {
		if err := s.Forget(c); err != nil { // which the kubelet would have made
			t.Fatal(err)
		}
		c.Linux.CgroupParent = ""
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuQuota: 20000, CpuPeriod: 100000}
		c.Linux.Overhead = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 16 << 20}
	})
	id := p.run("c", "exec sleep 600")
	pod := filepath.Dir(s.scope(id))
	files := map[string]string{"memory.max": "83886080", "cpu.max": "20000 100000"}
	check := func(when string) {
		t.Helper()
		s.wantHeld(when, pod, files)
	}
	check("run")
	if _, err := s.cri.UpdatePodSandboxResources(s.ctx, &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: p.id,
		Resources: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 128 << 20, CpuQuota: 12345, CpuPeriod: 100000}}); err != nil {
		t.Fatal(err)
	}
	files = map[string]string{"memory.max": "150994944", "cpu.max": "12345 100000"}
	check("updated")
	for event, happens := range s.under() {
		happens()
		check(event)
	}
}

// TestCrictlUpdate sends what crictl update does: everything that is not named is 0. It also runs where there is nothing to enforce.
func TestCrictlUpdate(t *testing.T) {
	s := open(t)
	p := s.runPod("crictl")
	cfg := stage.ContainerConfig("c", busybox, "/bin/sleep", "600")
	id := p.create(cfg)
	for _, r := range []*runtimeapi.LinuxContainerResources{{}, {CpuShares: 300}, {CpuQuota: 12345}, {MemoryLimitInBytes: 256 << 20}} {
		if err := s.update(id, r); err != nil {
			t.Errorf("%v: %v", r, err)
		}
	}
	ctx, cancel := context.WithCancel(s.ctx)
	cancel()
	if err := s.cri.UpdateContainerResources(ctx, id, &runtimeapi.ContainerResources{Linux: &runtimeapi.LinuxContainerResources{}}); !errors.Is(err, context.Canceled) && status.Code(err) != codes.Canceled {
		t.Errorf("given up: %v", err)
	}
	if err := s.update("nosuchcontainer", &runtimeapi.LinuxContainerResources{}); status.Code(err) != codes.NotFound {
		t.Errorf("unknown: %v", err)
	}
}
