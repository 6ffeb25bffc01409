package sandbox

import (
	"errors"
	"testing"

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
	if len(f.pods) != 0 {
		t.Error("the monitor lives on without its pod")
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
	sb.dialing <- struct{}{}
	<-sb.dialing
	if sb.monitor() != nil {
		t.Error("a pod that nobody holds any more is connected")
	}
}
