package sandbox

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// hearing collects what a subscriber is told.
type hearing struct {
	n    *node
	q    <-chan *runtimeapi.ContainerEventResponse
	stop func()
	all  []*runtimeapi.ContainerEventResponse
}

func (n *node) listen() *hearing {
	n.t.Helper()
	q, stop, err := n.m.Subscribe()
	if err != nil {
		n.t.Fatal(err)
	}
	return &hearing{n: n, q: q, stop: stop}
}

// kinds returns what was told of an id so far, in order.
func (h *hearing) kinds(id string) (list []string) {
	for more := true; more; {
		select {
		case e, ok := <-h.q:
			if more = ok; ok {
				h.all = append(h.all, e)
			}
		default:
			more = false
		}
	}
	for _, e := range h.all {
		if e.ContainerId == id {
			list = append(list, strings.ToLower(strings.Split(e.ContainerEventType.String(), "_")[1]))
		}
	}
	return list
}

// wants waits until exactly these events have come.
func (h *hearing) wants(id string, kinds ...string) {
	h.n.t.Helper()
	eventually(h.n.t, fmt.Sprintf("events %q", kinds), func() bool { return slices.Equal(h.kinds(id), kinds) })
	if got := h.kinds(id); !slices.Equal(got, kinds) {
		h.n.t.Fatalf("events %q, want %q", got, kinds)
	}
}

// TestEventsOfALife: each change is told once, to everybody, with the states of that moment; what is told can be asked for.
func TestEventsOfALife(t *testing.T) {
	n := newNode(t, newFakes())
	old := n.run(podRequest("old"))
	h, other := n.listen(), n.listen()
	pod := n.run(podRequest("web"))
	h.wants(pod, "created", "started")
	c := n.create(pod, containerRequest("c", "sleep"))
	h.wants(c, "created")
	last := h.all[len(h.all)-1]
	if len(last.ContainersStatuses) != 1 || last.ContainersStatuses[0].Id != c || last.ContainersStatuses[0].State != runtimeapi.ContainerState_CONTAINER_CREATED ||
		last.PodSandboxStatus.Id != pod || last.PodSandboxStatus.State != runtimeapi.PodSandboxState_SANDBOX_READY || last.CreatedAt == 0 {
		t.Errorf("created: %v", last)
	}
	n.start(c)
	h.wants(c, "created", "started")
	never := n.create(pod, containerRequest("never", "sleep"))
	if err := n.m.StopContainer(bg, c, 10); err != nil {
		t.Fatal(err)
	}
	h.wants(c, "created", "started", "stopped")
	if last = h.all[len(h.all)-1]; len(last.ContainersStatuses) != 2 || last.ContainersStatuses[1].ExitCode != 143 {
		t.Errorf("stopped: %v", last)
	}
	if err := errors.Join(n.m.RemoveContainer(bg, c), n.m.RemoveContainer(bg, c)); err != nil {
		t.Fatal(err)
	}
	h.wants(c, "created", "started", "stopped", "deleted")
	if last = h.all[len(h.all)-1]; len(last.ContainersStatuses) != 1 || last.ContainersStatuses[0].Id != never {
		t.Errorf("deleted: %v", last)
	}
	if err := errors.Join(n.m.StopPodSandbox(bg, pod), n.m.StopPodSandbox(bg, pod)); err != nil {
		t.Fatal(err)
	}
	h.wants(never, "created", "stopped") // it never was started
	h.wants(pod, "created", "started", "stopped")
	if err := errors.Join(n.m.RemovePodSandbox(bg, pod), n.m.RemovePodSandbox(bg, pod)); err != nil {
		t.Fatal(err)
	}
	h.wants(never, "created", "stopped", "deleted")
	h.wants(pod, "created", "started", "stopped", "deleted")
	if got := h.kinds(old); len(got) != 0 {
		t.Errorf("of a pod to which nothing happened: %q", got)
	}
	h.stop()
	h.stop()
	if err := errors.Join(n.m.RemovePodSandbox(bg, old)); err != nil {
		t.Fatal(err)
	}
	if got := h.kinds(old); len(got) != 0 {
		t.Errorf("after the end of the subscription: %q", got)
	}
	other.wants(old, "stopped", "deleted")
	other.wants(c, "created", "started", "stopped", "deleted")
}

// TestEventsOfFailures: what could not be made is never told of.
func TestEventsOfFailures(t *testing.T) {
	n := newNode(t, newFakes())
	h := n.listen()
	pod := n.run(podRequest("web"))
	poor := containerRequest("c", "sleep")
	poor.Image.Image = "missing"
	if _, err := n.m.CreateContainer(bg, pod, poor, nil); err == nil {
		t.Fatal("created without an image")
	}
	n.net.set(func(w *testNetwork) { w.addErr = errors.New("no address") })
	if _, err := n.m.RunPodSandbox(bg, podRequest("lost"), ""); err == nil {
		t.Fatal("a pod without a network")
	}
	h.wants(pod, "created", "started")
	if len(h.all) != 2 {
		t.Errorf("events %v", h.all)
	}
}

// TestEventsAfterRestart: a new daemon does not tell again what its predecessor knew, and tells what happens then.
func TestEventsAfterRestart(t *testing.T) {
	n := newNode(t, newFakes())
	pod := n.run(podRequest("web"))
	c := n.create(pod, containerRequest("c", "sleep"))
	n.start(c)
	n.restart()
	h := n.listen()
	if err := n.m.StopContainer(bg, c, 10); err != nil {
		t.Fatal(err)
	}
	h.wants(c, "stopped")
	if len(h.kinds(pod)) != 0 {
		t.Errorf("events %v", h.all)
	}
}

// TestEventsLateStart: an exit that is heard of before the start is the last word.
func TestEventsLateStart(t *testing.T) {
	n := newNode(t, newFakes())
	pod := n.run(podRequest("web"))
	h := n.listen()
	id := n.create(pod, containerRequest("c", "sleep"))
	c := n.m.index.Load().containers[id]
	c.note(event{what: exited, at: now(), code: 3})
	c.note(event{what: started, at: now()})
	h.wants(id, "created", "stopped")
}

// TestEventsSlow: F-48. A hundred subscribers of whom one never reads and others come and go: nobody waits, nobody else loses anything,
// and the slow one is told by the end of its queue. One too many is refused.
func TestEventsSlow(t *testing.T) {
	n := newNode(t, newFakes())
	pod := n.run(podRequest("web"))
	lazy := n.listen()
	var all []*hearing
	for range 98 {
		all = append(all, n.listen())
	}
	var group sync.WaitGroup
	end := make(chan struct{})
	group.Add(1)
	go func() { // ends with end
		defer group.Done()
		for {
			select {
			case <-end:
				return
			default:
			}
			if _, stop, err := n.m.Subscribe(); err == nil {
				stop()
			}
		}
	}()
	sb := n.m.index.Load().pods[pod]
	heard := make([]int, len(all))
	for i := range feedQueue + 10 {
		n.m.feed.mu.Lock()
		n.m.feed.push(&runtimeapi.ContainerEventResponse{ContainerId: sb.id, CreatedAt: int64(i)})
		n.m.feed.mu.Unlock()
		for j, h := range all {
			if e := <-h.q; e.CreatedAt != int64(i) {
				t.Fatalf("subscriber %d got event %d as number %d", j, e.CreatedAt, i)
			}
			heard[j]++
		}
	}
	close(end)
	group.Wait()
	count := 0
	for range lazy.q { // ends because the queue was closed
		count++
	}
	if count != feedQueue {
		t.Errorf("the slow one got %d events before it was dropped", count)
	}
	lazy.stop()
	for i := len(all); i < maxSubscribers; i++ {
		all = append(all, n.listen())
	}
	if _, _, err := n.m.Subscribe(); !errors.Is(err, ErrExhausted) {
		t.Errorf("subscriber %d: %v", maxSubscribers+1, err)
	}
	all[0].stop()
	n.listen()
	start := time.Now()
	n.m.feed.mu.Lock()
	n.m.feed.mu.Unlock() //nolint:staticcheck // that nobody holds it is what is shown
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("the feed was held for %v", d)
	}
}
