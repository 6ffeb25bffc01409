package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/conformance/stage"
)

// chatter prints numbered lines without end, about a thousand in a second.
const chatter = `i=0; while :; do i=$((i+1)); echo "line $i"; [ $((i % 20)) != 0 ] || sleep 0.02; done`

// killDaemon ends the daemon with SIGKILL and runs between while none is there; restart brings a new one.
func (s *scene) killDaemon() {
	s.Helper()
	if err := s.Daemon().Kill(); err != nil {
		s.Fatal(err)
	}
}

func (s *scene) restart() {
	s.Helper()
	if err := s.EnsureDaemon(s.ctx); err != nil {
		s.Fatal(err)
	}
	s.connect()
}

// gate makes a file path that a container sees as /gate/open; open it by creating the file.
func (s *scene) gate(name string) (string, func(*runtimeapi.ContainerConfig)) {
	s.Helper()
	dir := filepath.Join(s.Scratch, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "open"), func(c *runtimeapi.ContainerConfig) {
		c.Mounts = append(c.Mounts, &runtimeapi.Mount{HostPath: dir, ContainerPath: "/gate", Readonly: true})
	}
}

// whole fails unless the lines are "line 1" to "line n" without a gap.
func whole(t *testing.T, lines []string) {
	t.Helper()
	for i, l := range lines {
		if l != fmt.Sprintf("line %d", i+1) {
			t.Fatalf("log line %d is %q", i+1, l)
		}
	}
}

// TestDaemonKilled is the promise of the design: the daemon may die at any time, and containers do not notice.
func TestDaemonKilled(t *testing.T) {
	s := open(t)
	p := s.runPod("killed")
	path, withGate := s.gate("killed")
	chatty := p.run("chatty", chatter)
	leaver := p.run("leaver", "while [ ! -e /gate/open ]; do sleep 0.02; done; exit 7", withGate)
	waiting := p.create(stage.ContainerConfig("waiting", busybox, "/bin/sh", "-c", "exit 9"))
	s.eventually("chatty has begun", func() bool { return len(p.logText("chatty", "stdout")) > 50 })
	pids, before := p.pids(chatty), s.status(chatty)

	s.killDaemon()
	atKill := len(p.logText("chatty", "stdout"))
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	s.eventually("the log grows without a daemon", func() bool { return len(p.logText("chatty", "stdout")) > atKill+100 })
	time.Sleep(200 * time.Millisecond) // time for the leaver to leave
	s.restart()

	st, err := s.cri.PodSandboxStatus(s.ctx, p.id, false)
	if err != nil || st.Status.State != runtimeapi.PodSandboxState_SANDBOX_READY {
		t.Fatalf("pod after restart: %v (%v)", st, err)
	}
	after := s.status(chatty)
	if after.State != runtimeapi.ContainerState_CONTAINER_RUNNING || after.StartedAt != before.StartedAt || after.CreatedAt != before.CreatedAt {
		t.Errorf("container after restart: %v, before: %v", after, before)
	}
	if now := p.pids(chatty); len(pids) == 0 || !slices.Contains(now, pids[0]) {
		t.Errorf("pids before %v, after %v", pids, now)
	}
	if got := s.exec(chatty, "echo alive"); got != "alive" {
		t.Errorf("exec after restart: %q", got)
	}
	if st := s.exited(leaver); st.ExitCode != 7 || st.FinishedAt == 0 {
		t.Errorf("exited meanwhile: %v", st)
	}
	if st := s.status(waiting); st.State != runtimeapi.ContainerState_CONTAINER_CREATED {
		t.Errorf("created before, after restart: %v", st)
	} else if err := s.cri.StartContainer(s.ctx, waiting); err != nil {
		t.Errorf("start after restart: %v", err)
	} else if st := s.exited(waiting); st.ExitCode != 9 {
		t.Errorf("started after restart: %v", st)
	}
	if err := s.cri.StopContainer(s.ctx, chatty, 0); err != nil {
		t.Fatal(err)
	}
	whole(t, p.logText("chatty", "stdout"))
}

// TestStoppedAfterRestart: what the old daemon made, the new one can remove, without ever having made it.
func TestStoppedAfterRestart(t *testing.T) {
	s := open(t)
	p := s.runPod("heir")
	id := p.run("c", "sleep 1000")
	s.killDaemon()
	s.restart()
	if err := s.cri.StopContainer(s.ctx, id, 0); err != nil {
		t.Errorf("stop: %v", err)
	}
	if err := s.cri.RemoveContainer(s.ctx, id); err != nil {
		t.Errorf("remove: %v", err)
	}
	again := p.run("again", "echo again")
	if st := s.exited(again); st.ExitCode != 0 {
		t.Errorf("a new container in an old pod: %v", st)
	}
}

// TestPodDiesWithoutDaemon: everything of a pod is killed while no daemon runs; the new daemon says so and cleans up.
func TestPodDiesWithoutDaemon(t *testing.T) {
	s := open(t)
	p := s.runPod("dies")
	id := p.run("c", "sleep 1000")
	s.killDaemon()
	if err := os.WriteFile(cgroupKill(p), []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	s.restart()
	if st := s.exited(id); st.ExitCode != 137 {
		t.Errorf("killed meanwhile: %v", st)
	}
}

// cgroupKill returns the file that kills everything in the pod's cgroup.
func cgroupKill(p *pod) string { return "/sys/fs/cgroup" + p.cfg.Linux.CgroupParent + "/cgroup.kill" }

// TestSecondDaemon: a daemon on a root that is in use ends at once and says why; the first does not notice.
func TestSecondDaemon(t *testing.T) {
	s := open(t)
	ctx, cancel := context.WithTimeout(s.ctx, s.Scale(10*time.Second))
	defer cancel()
	begin := time.Now()
	out, err := s.RunDaemon(ctx)
	if err == nil || time.Since(begin) > s.Scale(5*time.Second) {
		t.Errorf("second daemon on the same root: %v after %v\n%s", err, time.Since(begin), out)
	}
	if !strings.Contains(out, s.Root) && !strings.Contains(out, s.RunDir) {
		t.Errorf("it does not say what is in use:\n%s", out)
	}
	if _, err := s.cri.Version(s.ctx, ""); err != nil {
		t.Errorf("first daemon after that: %v", err)
	}
}
