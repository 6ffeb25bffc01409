package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestRestart: the daemon goes and comes back. One container runs on with its pid, one has ended meanwhile
// and shows its true exit code, one is still created.
func TestRestart(t *testing.T) {
	n := newNode(t, newFakes())
	pod := n.run(podRequest("web"))
	runs, ended, fresh := n.create(pod, containerRequest("runs", "sleep")), n.create(pod, containerRequest("ended", "sleep")), n.create(pod, containerRequest("fresh", "sleep"))
	n.start(runs)
	n.start(ended)
	pid := n.pid(runs)
	before := n.status(runs)
	if err := n.m.Close(); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(n.pid(ended), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, "exit record", func() bool {
		_, err := os.Stat(filepath.Join(n.m.podDir(pod), ended, "exit.json"))
		return err == nil
	})
	n.open()
	if n.podState(pod) != runtimeapi.PodSandboxState_SANDBOX_READY || n.pid(runs) != pid {
		t.Errorf("pod %v, pid %d instead of %d", n.podState(pod), n.pid(runs), pid)
	}
	if s := n.status(runs); s.State != runtimeapi.ContainerState_CONTAINER_RUNNING || s.StartedAt != before.StartedAt || s.Labels["c"] != "runs" {
		t.Errorf("%v", s)
	}
	if s := n.wait(ended); s.ExitCode != 143 || s.Reason != "Error" {
		t.Errorf("%v", s)
	}
	n.start(fresh)
	if err := n.m.StopContainer(bg, runs, 10); err != nil {
		t.Error(err)
	}
	if s := n.status(runs); s.ExitCode != 143 {
		t.Errorf("%v", s)
	}
}

// TestMonitorDies while the daemon watches, and while there is none.
func TestMonitorDies(t *testing.T) {
	for _, watched := range []bool{true, false} {
		fakes := newFakes()
		n := newNode(t, fakes)
		pod := n.run(podRequest("web"))
		runs, ended := n.create(pod, containerRequest("runs", "deaf")), n.create(pod, containerRequest("ended", "exit", "3"))
		n.start(runs)
		n.start(ended)
		n.wait(ended)
		mon := fakes.pods[n.m.podDir(pod)]
		if watched {
			mon.die()
		} else {
			if err := n.m.Close(); err != nil {
				t.Fatal(err)
			}
			mon.die()
			n.open()
		}
		eventually(t, "loss", func() bool { return n.podState(pod) == runtimeapi.PodSandboxState_SANDBOX_NOTREADY })
		if s := n.wait(runs); s.Reason != "Unknown" || s.ExitCode != 255 {
			t.Errorf("watched %v: %v", watched, s)
		}
		if s := n.wait(ended); s.ExitCode != 3 {
			t.Errorf("watched %v: %v", watched, s)
		}
		eventually(t, "death", func() bool { return syscall.Kill(n.pid(runs), 0) == syscall.ESRCH })
		if err := n.m.RemovePodSandbox(bg, pod); err != nil {
			t.Error(err)
		}
		n.wantClean()
	}
}

// TestReboot: the boot id differs, nothing runs, the network is deleted without a namespace.
func TestReboot(t *testing.T) {
	fakes := newFakes()
	n := newNode(t, fakes)
	pod := n.run(podRequest("web"))
	c := n.create(pod, containerRequest("c", "sleep"))
	n.start(c)
	if err := n.m.Close(); err != nil {
		t.Fatal(err)
	}
	// What a reboot does: processes, mounts and pins go.
	fakes.pods[n.m.podDir(pod)].die()
	sb := n.m.index.Load().pods[pod]
	if err := errors.Join(unmountAll(sb.shmDir()), unpinNetNS(sb.netns()), removeCgroup(bg, n.tree, n.m.index.Load().containers[c].record.Cgroup)); err != nil {
		t.Fatal(err)
	}
	os.Remove(filepath.Join(n.m.podDir(pod), c, "exit.json"))
	n.cfg.bootID = "another"
	n.open()
	if n.podState(pod) != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		t.Error("ready after a reboot")
	}
	if _, info, _ := n.m.PodSandboxStatus(pod); !strings.Contains(info["info"], "the node was restarted") {
		t.Errorf("%v", info)
	}
	if s := n.wait(c); s.Reason != "Unknown" || s.ExitCode != 255 {
		t.Errorf("%v", s)
	}
	if err := n.m.RemovePodSandbox(bg, pod); err != nil {
		t.Error(err)
	}
	n.wantClean()
}

// TestHalfMade: a daemon was killed in the middle of everything.
func TestHalfMade(t *testing.T) {
	n := newNode(t, newFakes())
	pod := n.run(podRequest("web"))
	keep := n.create(pod, containerRequest("keep", "sleep"))
	half := n.create(pod, containerRequest("half", "sleep"))
	lone := n.run(podRequest("lone"))
	if err := n.m.Close(); err != nil {
		t.Fatal(err)
	}
	// A container and a pod whose records say that they are on their way.
	c := n.m.index.Load().containers[half]
	c.facts.Store(&facts{})
	sb := n.m.index.Load().pods[lone]
	sb.facts.Store(&podFacts{})
	if err := errors.Join(c.writeLocked(), sb.writeLocked()); err != nil {
		t.Fatal(err)
	}
	// A directory that has not even a record, a root file system and an address of nobody.
	bare := strings.Repeat("0", 64)
	if err := os.Mkdir(n.m.podDir(bare), 0o700); err != nil {
		t.Fatal(err)
	}
	stray := strings.Repeat("1", 64)
	if err := n.images.NewRootfs(bg, stray, ""); err != nil {
		t.Fatal(err)
	}
	n.net.pending[stray] = ""
	if err := os.WriteFile(filepath.Join(n.cfg.NetNSDir, pinPrefix+stray[:12]), nil, 0o444); err != nil {
		t.Fatal(err)
	}
	n.open()
	if got := n.m.ListPodSandbox(nil); len(got) != 1 || got[0].Id != pod {
		t.Errorf("pods: %v", got)
	}
	if got := n.m.ListContainers(nil); len(got) != 1 || got[0].Id != keep {
		t.Errorf("containers: %v", got)
	}
	if got := n.images.left(); len(got) != 1 || got[0] != keep {
		t.Errorf("root file systems: %q", got)
	}
	if got := n.net.left(); len(got) != 1 || got[0] != pod {
		t.Errorf("networks: %q", got)
	}
	if got := names(n.cfg.NetNSDir); len(got) != 1 {
		t.Errorf("pins: %q", got)
	}
	if got := names(filepath.Join(n.cfg.RunDir, "pods")); len(got) != 1 {
		t.Errorf("directories: %q", got)
	}
	// The names are free again.
	n.create(pod, containerRequest("half", "sleep"))
	n.run(podRequest("lone"))
}

// TestAdoptAfterRestart: whoever asked the old daemon asks the new one, once.
func TestAdoptAfterRestart(t *testing.T) {
	n := newNode(t, newFakes())
	pod := n.run(podRequest("web"))
	n.restart()
	if got := n.run(podRequest("web")); got != pod {
		t.Errorf("got %s, want %s", got, pod)
	}
	if _, err := n.m.RunPodSandbox(bg, podRequest("web"), ""); !errors.Is(err, ErrExists) {
		t.Errorf("again: %v", err)
	}
}

// TestNewerRecord: a pod of a later version is not touched.
func TestNewerRecord(t *testing.T) {
	n := newNode(t, newFakes())
	pod := n.run(podRequest("web"))
	if err := n.m.Close(); err != nil {
		t.Fatal(err)
	}
	sb := n.m.index.Load().pods[pod]
	sb.record.Version = recordVersion + 1
	if err := sb.writeLocked(); err != nil {
		t.Fatal(err)
	}
	n.open()
	if len(n.m.ListPodSandbox(nil)) != 0 || len(names(sb.dir)) == 0 || len(n.net.left()) != 1 || len(names(n.cfg.NetNSDir)) != 1 {
		t.Error("shown, or not left alone")
	}
	if err := n.m.Close(); err != nil {
		t.Fatal(err)
	}
	sb.record.Version = recordVersion
	if err := sb.writeLocked(); err != nil {
		t.Fatal(err)
	}
	n.open()
}
