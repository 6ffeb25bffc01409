package integration

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/conformance/stage"
)

// needsLimits skips a test where the kernel has nothing to limit with. In a guest it has.
func needsLimits(t *testing.T) {
	t.Helper()
	if missing := stage.MissingControllers(); len(missing) > 0 {
		if os.Getenv("VITRINE_VM") != "" {
			t.Fatalf("a guest without the controllers %v", missing)
		}
		t.Skipf("needs the memory controller, and what else there is to limit by: %v are missing", missing)
	}
}

// resources changes what a container may use.
func resources(f func(r *runtimeapi.LinuxContainerResources)) func(*runtimeapi.ContainerConfig) {
	return func(c *runtimeapi.ContainerConfig) { f(c.Linux.Resources) }
}

// info is what the verbose status tells of a container.
type info struct {
	Pid      int    `json:"pid"`
	Cgroup   string `json:"cgroup"`
	OOMKills int    `json:"oomKills"`
}

func (s *scene) info(id string) (i info) {
	s.Helper()
	st, err := s.cri.ContainerStatus(s.ctx, id, true)
	if err == nil {
		err = json.Unmarshal([]byte(st.Info["info"]), &i)
	}
	if err != nil {
		s.Fatalf("verbose status: %v", err)
	}
	return i
}

// scope is a container's cgroup as the stage sees it.
func (s *scene) scope(id string) string { return filepath.Join("/sys/fs/cgroup", s.info(id).Cgroup) }

// key reads a number of a file of lines "key number", 0 if it is not there.
func key(path, name string) int {
	b, _ := os.ReadFile(path)
	for _, line := range strings.Split(string(b), "\n") {
		if k, v, _ := strings.Cut(line, " "); k == name {
			n, _ := strconv.Atoi(v)
			return n
		}
	}
	return 0
}

func number(path string) int {
	b, _ := os.ReadFile(path)
	n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return n
}

// A process that wants twice its limit gets that.
func TestCPULimit(t *testing.T) {
	needsLimits(t)
	s := open(t)
	p := s.runPod("cpu")
	id := p.run("busy", "while :; do :; done", resources(func(r *runtimeapi.LinuxContainerResources) { r.CpuPeriod, r.CpuQuota = 100000, 50000 }))
	stat := s.scope(id) + "/cpu.stat"
	s.eventually("it has begun", func() bool { return key(stat, "usage_usec") > 100000 })
	began, used, throttled := time.Now(), key(stat, "usage_usec"), key(stat, "nr_throttled")
	time.Sleep(3 * time.Second)
	share := float64(key(stat, "usage_usec")-used) / float64(time.Since(began).Microseconds())
	throttled = key(stat, "nr_throttled") - throttled
	t.Logf("%.2f of a CPU, throttled in %d periods", share, throttled)
	if throttled < 5 || share > 0.65 {
		t.Errorf("a limit of half a CPU: %.2f used, throttled in %d periods", share, throttled)
	}
}

// A process that exceeds memory.high is slowed and not killed.
func TestMemoryHigh(t *testing.T) {
	needsLimits(t)
	s := open(t)
	p := s.runPod("high")
	id := p.run("hungry", "while :; do dd if=/dev/zero of=/dev/null bs=24M count=1 2>/dev/null; done",
		resources(func(r *runtimeapi.LinuxContainerResources) {
			r.MemoryLimitInBytes = 64 << 20
			r.Unified = map[string]string{"memory.high": strconv.Itoa(16 << 20)}
		}))
	events := s.scope(id) + "/memory.events"
	s.eventually("it is slowed", func() bool { return key(events, "high") > 20 })
	stall := strings.Fields(fileText(s.scope(id) + "/memory.pressure"))
	t.Logf("over memory.high %d times, pressure %v", key(events, "high"), stall)
	if st := s.status(id); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING || key(events, "oom_kill") != 0 {
		t.Errorf("%v, %d OOM kills", st, key(events, "oom_kill"))
	}
	if i := slices.IndexFunc(stall, func(f string) bool { return strings.HasPrefix(f, "total=") }); i < 0 || stall[i] == "total=0" {
		t.Errorf("nobody has waited for memory: %v", stall)
	}
}

func fileText(path string) string {
	b, _ := os.ReadFile(path)
	return string(b)
}

// A limit of 2 MiB is enough to start a static program.
func TestTwoMegabytes(t *testing.T) {
	needsLimits(t)
	s := open(t)
	p := s.runPod("tiny")
	cfg := stage.ContainerConfig("c", busybox, "/bin/true")
	cfg.Linux.Resources.MemoryLimitInBytes = 2 << 20
	id := p.create(cfg)
	peak := s.scope(id) + "/memory.peak"
	blocked := number(s.scope(id) + "/memory.current")
	if err := s.cri.StartContainer(s.ctx, id); err != nil {
		t.Fatal(err)
	}
	if st := s.exited(id); st.ExitCode != 0 || st.Reason != "Completed" {
		t.Errorf("%v", st)
	}
	t.Logf("created, it holds %d KiB; its peak was %d KiB (0: systemd has removed it)", blocked>>10, number(peak)>>10)
}

// bomb is a program that starts itself again and again, in each of its processes, and does not stop when it is refused. As PID 1 it does not
// hear a SIGTERM either.
const bomb = `echo 'BEGIN { while (1) system("setsid awk -f /tmp/bomb &") }' >/tmp/bomb; exec awk -f /tmp/bomb`

// A fork bomb meets its limit, takes nobody along, and is gone 5 seconds after the grace period.
func TestForkBomb(t *testing.T) {
	needsLimits(t)
	s := open(t)
	p := s.runPod("bomb")
	id := p.run("bomb", bomb, resources(func(r *runtimeapi.LinuxContainerResources) { r.Unified = map[string]string{"pids.max": "100"} }))
	bystander := p.run("bystander", "sleep 1000")
	dir := s.scope(id)
	s.eventually("it meets its limit", func() bool { return key(dir+"/pids.events", "max") > 100 })
	if n := number(dir + "/pids.current"); n > 100 {
		t.Errorf("%d processes", n)
	}
	refused := key(dir+"/pids.events", "max")
	const grace = 2
	began := time.Now()
	if err := s.cri.StopContainer(s.ctx, id, grace); err != nil {
		t.Fatal(err)
	}
	if err := s.cri.RemoveContainer(s.ctx, id); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	t.Logf("refused %d forks; stopped and removed in %v", refused, took)
	if took > (grace+5)*time.Second {
		t.Errorf("took %v with %d s of grace", took, grace)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Errorf("%s is still there", dir)
	}
	if got := s.exec(bystander, "echo fine"); got != "fine" {
		t.Errorf("the bystander: %q", got)
	}
}

// Nothing survives its container: neither daemons that have forked twice, nor sessions, nor what an exec leaves, also
// where no pid namespace takes them along.
func TestNothingSurvives(t *testing.T) {
	s := open(t)
	for _, mode := range []runtimeapi.NamespaceMode{runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_NODE} {
		pid := func(o *runtimeapi.NamespaceOption) { o.Pid = mode }
		open, withGate := s.gate("survivors-" + mode.String())
		p := s.runPod("survivors-"+strings.ToLower(mode.String()), func(c *runtimeapi.PodSandboxConfig) { pid(c.Linux.SecurityContext.NamespaceOptions) })
		for _, ends := range []bool{true, false} {
			name := "stopped"
			last := "sleep 2000"
			if ends {
				name, last = "ends", "while [ ! -e /gate/open ]; do sleep 0.02; done"
			}
			id := p.run(name, "(setsid sh -c '(sleep 1001 &) & sleep 1002' &) & (trap '' TERM HUP; sleep 1003) & "+last,
				withGate, func(c *runtimeapi.ContainerConfig) { pid(c.Linux.SecurityContext.NamespaceOptions) })
			s.exec(id, "(setsid sh -c '(sleep 1004 &) & sleep 1005' </dev/null >/dev/null 2>&1 &) &")
			var all []int
			s.eventually("all are there", func() bool {
				all = p.everybody(id)
				return p.sleepers(all) == 5
			})
			if ends {
				if err := os.WriteFile(open, nil, 0o600); err != nil {
					t.Fatal(err)
				}
			} else if err := s.cri.StopContainer(s.ctx, id, 0); err != nil {
				t.Fatal(err)
			}
			s.exited(id)
			s.eventually("all are gone", func() bool { return !slices.ContainsFunc(all, isAlive) })
			if err := s.cri.RemoveContainer(s.ctx, id); err != nil {
				t.Error(err)
			}
		}
	}
}

// everybody is a container's processes with those of its execs.
func (p *pod) everybody(id string) (all []int) {
	p.Helper()
	_ = filepath.WalkDir(p.scope(id), func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Name() == "cgroup.procs" {
			for _, f := range strings.Fields(fileText(path)) {
				n, _ := strconv.Atoi(f)
				all = append(all, n)
			}
		}
		return nil //nolint:nilerr // a cgroup may go while we look
	})
	return all
}

// sleepers counts those that TestNothingSurvives has left in corners: sleep 1001 to 1005.
func (p *pod) sleepers(all []int) (n int) {
	for _, pid := range all {
		if strings.HasPrefix(fileText("/proc/"+strconv.Itoa(pid)+"/cmdline"), "sleep\x00100") {
			n++
		}
	}
	return n
}

// isAlive says whether a process is there and no zombie.
func isAlive(pid int) bool {
	stat := fileText("/proc/" + strconv.Itoa(pid) + "/stat")
	i := strings.LastIndexByte(stat, ')')
	return i >= 0 && len(stat) > i+2 && stat[i+2] != 'Z' && stat[i+2] != 'X'
}

// oom_score_adj is what the kubelet asks for by QoS class, in init and in execs.
func TestOOMScores(t *testing.T) {
	s := open(t)
	was := fileText("/proc/self/oom_score_adj")
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0); err != nil {
		t.Skip("needs CAP_SYS_RESOURCE: " + err.Error())
	}
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte(was), 0); err != nil {
		t.Fatal(err)
	}
	p := s.runPod("scores")
	for class, score := range map[string]int64{"guaranteed": -997, "burstable": 637, "besteffort": 1000, "none": 0} {
		id := p.run(class, "sleep 1000", resources(func(r *runtimeapi.LinuxContainerResources) { r.OomScoreAdj = score }))
		if got := number("/proc/" + strconv.Itoa(s.info(id).Pid) + "/oom_score_adj"); int64(got) != score {
			t.Errorf("%s: %d instead of %d", class, got, score)
		}
		if got := s.exec(id, "cat /proc/self/oom_score_adj"); got != strconv.FormatInt(score, 10) {
			t.Errorf("%s: an exec has %s instead of %d", class, got, score)
		}
	}
}
