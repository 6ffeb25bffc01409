package integration

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/conformance/stage"
)

// listener collects events by the kubelet's own client.
type listener struct {
	mu   sync.Mutex
	all  []*runtimeapi.ContainerEventResponse
	done chan error
}

func (s *scene) listenToEvents() *listener {
	s.Helper()
	c, err := s.Connect(s.ctx)
	if err != nil {
		s.Fatal(err)
	}
	ctx, cancel := context.WithCancel(s.ctx)
	l := &listener{done: make(chan error, 1)}
	s.Cleanup(func() {
		cancel()
		_ = c.Close(context.Background())
	})
	ch, ready := make(chan *runtimeapi.ContainerEventResponse, 1), make(chan struct{})
	go func() { // ends with the stream
		l.done <- c.GetContainerEvents(ctx, ch, func(stream runtimeapi.RuntimeService_GetContainerEventsClient) {
			if _, err := stream.Header(); err == nil { // from here on nothing is missed
				close(ready)
			}
		})
		close(ch)
	}()
	go func() { // ends with the channel
		for e := range ch {
			l.mu.Lock()
			l.all = append(l.all, e)
			l.mu.Unlock()
		}
	}()
	select {
	case <-ready:
	case <-ctx.Done():
		s.Fatal("no stream of events")
	}
	return l
}

// of returns the kinds of the events of an id.
func (l *listener) of(id string) (kinds []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.all {
		if e.ContainerId == id {
			kinds = append(kinds, strings.ToLower(strings.Split(e.ContainerEventType.String(), "_")[1]))
		}
	}
	return kinds
}

// TestEventsOfThePod: what the kubelet's own client is told of a pod's life: an end of its own accord within the time of a relist, what could
// not be started, a removal; and the end of the daemon ends the stream.
func TestEventsOfThePod(t *testing.T) {
	s := open(t)
	l := s.listenToEvents()
	wants := func(what, id string, kinds ...string) {
		t.Helper()
		s.eventually(what, func() bool { return slices.Equal(l.of(id), kinds) })
	}
	p := s.runPod("told")
	short := p.run("short", "exit 7")
	wants("a container that ends by itself", short, "created", "started", "stopped")
	l.mu.Lock()
	last := l.all[len(l.all)-1]
	l.mu.Unlock()
	if st := last.ContainersStatuses; len(st) != 1 || st[0].ExitCode != 7 || last.PodSandboxStatus.GetId() != p.id {
		t.Errorf("its end: %v", last)
	}
	missing := stage.ContainerConfig("missing", busybox, "/not/there")
	id := p.create(missing)
	if err := s.cri.StartContainer(s.ctx, id); err == nil {
		t.Error("a program that is not there was started")
	}
	wants("what could not be started", id, "created", "stopped")
	if err := s.cri.RemoveContainer(s.ctx, short); err != nil {
		t.Fatal(err)
	}
	wants("a removal", short, "created", "started", "stopped", "deleted")
	if err := s.cri.StopPodSandbox(s.ctx, p.id); err != nil {
		t.Fatal(err)
	}
	if err := s.cri.RemovePodSandbox(s.ctx, p.id); err != nil {
		t.Fatal(err)
	}
	wants("the pod's end", p.id, "created", "started", "stopped", "deleted")
	if err := s.Daemon().Stop(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-l.done:
		if err == nil {
			t.Error("the stream ended as if there were nothing more to come")
		}
	case <-s.ctx.Done():
		t.Error("the stream outlives the daemon")
	}
	s.restart()
}
