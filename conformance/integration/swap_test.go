package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// swapOn switches swap on for the time of the test, in a file: that of the whole machine, so it must be ours.
func (s *scene) swapOn() {
	s.Helper()
	if os.Getenv("VITRINE_VM") == "" {
		s.Skip("needs a machine of its own: switches swap on")
	}
	file := filepath.Join(os.TempDir(), "swap-of-a-test") // on the disk
	s.Cleanup(func() {
		if out, err := exec.Command("swapoff", file).CombinedOutput(); err != nil {
			s.Errorf("swapoff: %v: %s", err, out)
		}
		if err := os.Remove(file); err != nil {
			s.Error(err)
		}
	})
	for _, c := range [][]string{{"dd", "if=/dev/zero", "of=" + file, "bs=1M", "count=128", "status=none"}, {"chmod", "0600", file}, {"mkswap", file}, {"swapon", file}} {
		s.command(c[0], c[1:]...)
	}
}

// TestSwap: of two containers that want 48 MiB and may have 32, the one that may swap the rest lives and is told to swap it, and the other one
// is killed.
func TestSwap(t *testing.T) {
	needsLimits(t)
	s := open(t)
	s.swapOn()
	p := s.runPod("swap")
	const hold = "dd if=/dev/zero bs=48M count=1 2>/dev/null | sleep 1000" // dd has it all in its hands, and nobody takes it
	limit := func(swap int64) func(*runtimeapi.ContainerConfig) {
		return resources(func(r *runtimeapi.LinuxContainerResources) {
			r.MemoryLimitInBytes, r.MemorySwapLimitInBytes, r.Unified = 32*mib, 32*mib+swap, map[string]string{"memory.oom.group": "1"}
		})
	}
	with := p.run("with", hold, limit(64*mib))
	s.eventually("it swaps", func() bool { return s.stats(with).GetSwap().GetSwapUsageBytes().GetValue() >= 12*mib })
	st := s.stats(with).GetSwap()
	if used, left := st.GetSwapUsageBytes().GetValue(), st.GetSwapAvailableBytes().GetValue(); used > 48*mib || used+left != 64*mib {
		t.Errorf("%d bytes are swapped and %d left, of 64 MiB", used, left)
	}
	if got, held := s.stats(with).GetSwap().GetSwapUsageBytes().GetValue(), p.counter(p.cgroupOf(with)+"/memory.swap.current", ""); got > held+8*mib || held > got+8*mib {
		t.Errorf("%d bytes are swapped, the kernel says %d", got, held)
	}
	s.wantEnd(p.run("without", hold+"; exit 3", limit(0)), "OOMKilled", 137, 3)
	if st := s.status(with); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the one that swaps: %v %s", st.State, st.Reason)
	}
}
