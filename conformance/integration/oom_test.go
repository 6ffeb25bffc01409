package integration

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// hog is a command that wants eight times what little gives, all at once.
const hog = "dd if=/dev/zero of=/dev/null bs=64M count=1 2>/dev/null"

// little limits a container's memory. Its init waits for the gate, where it has one.
func little(c *runtimeapi.ContainerConfig) { c.Linux.Resources.MemoryLimitInBytes = 8 << 20 }

const whenOpen = "until test -e /gate/open; do sleep 0.05; done; "

// often is how many times the races are run that take little.
const often = 20

// rounds is how often a race is run: n times, and where n is often, VITRINE_OOM_RUNS times if that is set. With -short it is twice for a smaller
// n, and for every n with the cgroupfs driver: package oci runs such races too, and faster.
func rounds(n int) int {
	if v, err := strconv.Atoi(os.Getenv("VITRINE_OOM_RUNS")); err == nil && n == often {
		return v
	}
	if testing.Short() && (n < often || place == nil || place.Driver != "systemd") {
		return 2
	}
	return n
}

// openForRounds is open for a test that runs a race so often; more rounds than usual have more time. A round takes a fraction of a second, and one to two in a guest.
func openForRounds(t *testing.T, n int) *scene {
	t.Helper()
	return openFor(t, 2*time.Minute+time.Duration(max(0, n-often))*time.Second)
}

// wantEnd holds a container's end against what it is to be, and removes the container.
func (s *scene) wantEnd(id, reason string, code int32, kills int) {
	s.Helper()
	st := s.exited(id)
	if st.Reason != reason || st.ExitCode != code {
		s.Errorf("want %s %d, got %s %d (%s)", reason, code, st.Reason, st.ExitCode, st.Message)
	}
	if n := s.info(id).OOMKills; n != kills {
		s.Errorf("%d OOM kills instead of %d", n, kills)
	}
	if err := s.cri.RemoveContainer(s.ctx, id); err != nil {
		s.Error(err)
	}
}

// monitor returns the process id of a container's monitor: the parent of its init.
func (s *scene) monitor(id string) int {
	s.Helper()
	stat := fileText("/proc/" + strconv.Itoa(s.info(id).Pid) + "/stat")
	f := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(f) < 2 {
		s.Fatalf("container %s has no process", id)
	}
	pid, _ := strconv.Atoi(f[1])
	return pid
}

// blind runs f while the monitor behind it is stopped, and lets it go on when the scopes are gone: by systemd, where it
// keeps them.
func (s *scene) blind(monitor int, f func(), scopes ...string) {
	s.Helper()
	if err := unix.Kill(monitor, unix.SIGSTOP); err != nil {
		s.Fatal(err)
	}
	defer func() {
		if err := unix.Kill(monitor, unix.SIGCONT); err != nil {
			s.Error(err)
		}
	}()
	f()
	for _, dir := range scopes {
		s.vanish(dir)
	}
}

// vanish waits until systemd has removed a scope, or removes it as systemd does: when nobody is in it.
func (s *scene) vanish(dir string) {
	s.Helper()
	s.eventually(dir+" is gone", func() bool {
		if s.Driver != "systemd" && key(dir+"/cgroup.events", "populated") == 0 {
			_ = os.Remove(dir)
		}
		_, err := os.Stat(dir)
		return errors.Is(err, os.ErrNotExist)
	})
}

// A container that wants more than it has is OOMKilled with 137, every time.
func TestOOMKilled(t *testing.T) {
	needsLimits(t)
	n := rounds(often)
	s := openForRounds(t, n)
	p := s.runPod("oom")
	for i := range n {
		s.wantEnd(p.run("c"+strconv.Itoa(i), "exec "+hog, little), "OOMKilled", 137, 1)
	}
}

// And also when the monitor sees nothing of it before systemd has removed the scope with the count.
func TestOOMKilledUnseen(t *testing.T) {
	needsLimits(t)
	n := rounds(often)
	s := openForRounds(t, n)
	p := s.runPod("unseen")
	for i := range n {
		name := "unseen" + strconv.Itoa(i)
		path, withGate := s.gate(name)
		id := p.run(name, whenOpen+"exec "+hog, little, withGate)
		s.blind(s.monitor(id), func() { s.touch(path) }, s.scope(id))
		s.wantEnd(id, "OOMKilled", 137, 1)
	}
}

func (s *scene) touch(path string) {
	s.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		s.Fatal(err)
	}
}

// A container that is stopped while its sibling is OOM-killed is not OOMKilled, whoever dies first, though the monitor has
// seen neither count.
func TestOOMBesideAStop(t *testing.T) {
	needsLimits(t)
	n := rounds(4)
	s := openForRounds(t, n)
	p := s.runPod("beside")
	for i := range n {
		name := "beside" + strconv.Itoa(i)
		path, withGate := s.gate(name)
		stopped := p.run("stopped"+strconv.Itoa(i), "trap '' TERM; while :; do sleep 1; done", little)
		oom := p.run(name, whenOpen+"exec "+hog, little, withGate)
		done := make(chan error, 1)
		dirs := []string{s.scope(stopped), s.scope(oom)}
		steps := []func(){
			func() { go func() { done <- s.cri.StopContainer(s.ctx, stopped, 0) }(); s.vanish(dirs[0]) },
			func() { s.touch(path); s.vanish(dirs[1]) },
		}
		s.blind(s.monitor(oom), func() { steps[i%2](); steps[1-i%2]() })
		if err := <-done; err != nil {
			t.Errorf("stop: %v", err)
		}
		s.wantEnd(stopped, "Error", 137, 0)
		s.wantEnd(oom, "OOMKilled", 137, 1)
	}
}

// One process of several that is killed is not the end of the container. It is counted, also by the daemon that comes
// after this one; and the stop that ends the container is then no OOM kill.
func TestOOMSurvived(t *testing.T) {
	needsLimits(t)
	s := open(t)
	p := s.runPod("survived")
	long := p.run("long", hog+"; trap '' TERM; while :; do sleep 1; done", little)
	well := p.run("well", hog+"; exit 0", little)
	passes := p.run("passes", hog+"; exit $?", little)
	group := p.run("group", hog+"; sleep 1000", little, resources(func(r *runtimeapi.LinuxContainerResources) {
		r.Unified = map[string]string{"memory.oom.group": "1"}
	}))
	s.wantEnd(well, "Completed", 0, 1)
	s.wantEnd(passes, "OOMKilled", 137, 1)
	s.exited(group)
	if n := s.info(group).OOMKills; n < 2 { // the kernel counts the one that it chose twice
		t.Errorf("%d OOM kills of two processes", n)
	} else {
		s.wantEnd(group, "OOMKilled", 137, n)
	}
	s.eventually("the kill is counted", func() bool { return s.info(long).OOMKills == 1 })
	s.killDaemon()
	s.restart()
	if st := s.status(long); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING || s.info(long).OOMKills != 1 {
		t.Errorf("after a restart: %v, %+v", st.State, s.info(long))
	}
	if err := s.cri.StopContainer(s.ctx, long, 0); err != nil {
		t.Fatal(err)
	}
	s.wantEnd(long, "Error", 137, 1)
}

// Nobody runs when it happens but the monitor: the next daemon has the reason from it, and the one after that from
// its own record.
func TestOOMWithoutADaemon(t *testing.T) {
	needsLimits(t)
	s := open(t)
	p := s.runPod("alone")
	path, withGate := s.gate("alone")
	id := p.run("c", whenOpen+"exec "+hog, little, withGate)
	pid := s.info(id).Pid
	s.killDaemon()
	s.touch(path)
	for deadline := time.Now().Add(time.Minute); isAlive(pid); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it lives")
		}
	}
	for range 2 {
		s.restart()
		if st := s.exited(id); st.Reason != "OOMKilled" || st.ExitCode != 137 {
			t.Errorf("%s %d", st.Reason, st.ExitCode)
		}
		s.killDaemon()
	}
	s.restart()
	s.wantEnd(id, "OOMKilled", 137, 1)
}
