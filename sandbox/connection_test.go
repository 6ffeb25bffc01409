package sandbox

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// connectedPod is a pod with a container that runs, in a daemon that was started anew.
func connectedPod(n *node, f *fakeMonitors, dialErr error) (pod, id string) {
	n.t.Helper()
	pod = n.run(podRequest("p"))
	id = n.create(pod, containerRequest("c", "sleep", "1000"))
	n.start(id)
	f.set(func(f *fakeMonitors) { f.dialErr = dialErr })
	n.restart()
	return pod, id
}

// TestSilentMonitorEndsWithItsPod: a monitor that did not answer the daemon at its start is not a reason to kill a pod; and where the
// pod is removed before it answers, it does not outlive it, holding the pod's namespaces for nobody.
func TestSilentMonitorEndsWithItsPod(t *testing.T) {
	f := newFakes()
	n := newNode(t, f)
	pod, id := connectedPod(n, f, ErrUnavailable)
	if n.m.index.Load().pods[pod].monitor() != nil || n.podState(pod) != runtimeapi.PodSandboxState_SANDBOX_READY {
		t.Fatal("the pod should be ready, and its monitor not connected")
	}
	if err := n.m.StopPodSandbox(bg, pod); err != nil {
		t.Fatal(err)
	}
	if len(f.pods) != 0 || f.killed != 1 {
		t.Errorf("%d monitors live on without their pod, %d were killed", len(f.pods), f.killed)
	}
	if st := n.status(id); st.State != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Errorf("the container is %v", st.State)
	}
	if err := n.m.RemovePodSandbox(bg, pod); err != nil {
		t.Fatal(err)
	}
}

// TestMonitorIsReachedByAStop: one that answers by then tells how the container has ended.
func TestMonitorIsReachedByAStop(t *testing.T) {
	for name, stop := range map[string]func(n *node, pod, id string) error{
		"of the pod":       func(n *node, pod, _ string) error { return n.m.StopPodSandbox(bg, pod) },
		"of the container": func(n *node, _, id string) error { return n.m.StopContainer(bg, id, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakes()
			n := newNode(t, f)
			pod, id := connectedPod(n, f, ErrUnavailable)
			f.set(func(f *fakeMonitors) { f.dialErr = nil })
			if err := stop(n, pod, id); err != nil {
				t.Fatal(err)
			}
			if st := n.status(id); st.ExitCode != 137 {
				t.Errorf("exit code %d: %s", st.ExitCode, st.Message)
			}
			if f.killed != 0 {
				t.Error("it was killed and not asked")
			}
			if name == "of the container" && n.m.index.Load().pods[pod].monitor() == nil {
				t.Error("it was not asked")
			}
			if err := n.m.RemovePodSandbox(bg, pod); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestStoppedPodIsNotConnected: who dials a monitor while its pod is stopped, or the daemon ends, does not come back to it.
func TestStoppedPodIsNotConnected(t *testing.T) {
	f := newFakes()
	n := newNode(t, f)
	pod, _ := connectedPod(n, f, nil)
	sb := n.m.index.Load().pods[pod]
	mon := sb.monitor()
	dialed, goOn := make(chan struct{}), make(chan struct{})
	f.set(func(f *fakeMonitors) { f.dialed = func() { close(dialed); <-goOn } })
	if err := mon.close(); err != nil { // as when the connection breaks: it is dialed anew
		t.Fatal(err)
	}
	<-dialed
	f.set(func(f *fakeMonitors) { f.dialed = nil })
	if err := sb.letGo(); err != nil && !errors.Is(err, errNoMonitor) {
		t.Fatal(err)
	}
	close(goOn)
	if !sb.lockDial(bg) {
		t.Fatal("it still dials")
	}
	sb.unlockDial()
	if sb.monitor() != nil {
		t.Error("a pod that nobody holds any more is connected")
	}
}

// TestRealSilentMonitor: the same with a process that is stopped, from before the daemon's start until its pod is removed.
func TestRealSilentMonitor(t *testing.T) {
	n := newRealNode(t)
	n.cfg.StopTimeout = 3 * time.Second // that is how long the daemon's start waits for it
	pod := n.run(podRequest("web"))
	c := n.running(pod, "c", nil)
	monitor := n.m.index.Load().pods[pod].monitor().pid()
	if err := syscall.Kill(monitor, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	n.restart()
	if n.m.index.Load().pods[pod].monitor() != nil || n.podState(pod) != runtimeapi.PodSandboxState_SANDBOX_READY {
		t.Fatal("the pod should be ready, and its monitor not connected")
	}
	if got := n.procs(c); got == 0 {
		t.Fatal("the container was killed for its monitor's sake")
	}
	if err := n.m.StopPodSandbox(bg, pod); err != nil {
		t.Fatal(err)
	}
	if err := n.m.RemovePodSandbox(bg, pod); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", monitor)); err == nil && !strings.Contains(string(b), ") Z ") {
		t.Errorf("the monitor lives on: %s", b)
	}
}
