package integration

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
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

// words are the events in order, each in a line.
func words(all []*runtimeapi.ContainerEventResponse) (lines []string) {
	for _, e := range all {
		lines = append(lines, fmt.Sprintf("%s %v %d", e.ContainerId, e.ContainerEventType, e.CreatedAt))
	}
	return lines
}

func (l *listener) words() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return words(l.all)
}

// liveAndDie is the whole life of a container, of which each step has the time that a step has.
func (p *pod) liveAndDie(name string) (string, error) {
	ctx, cancel := context.WithTimeout(p.ctx, p.Scale(30*time.Second))
	defer cancel()
	id, err := p.cri.CreateContainer(ctx, p.id, stage.ContainerConfig(name, busybox, "/bin/sleep", "1000"), p.cfg)
	if err == nil {
		err = p.cri.StartContainer(ctx, id)
	}
	if err == nil {
		err = p.cri.StopContainer(ctx, id, 0)
	}
	if err == nil {
		err = p.cri.RemoveContainer(ctx, id)
	}
	return id, err
}

// TestEventsUnread: a client that asks for events and reads none, while more happens than the daemon keeps for it, holds up nobody: pods live
// and die, and another client is told all of it. Once it reads, it gets what came first, without a gap, and is told that it
// has lost the rest. It may then ask again, on the same connection, and is told of what comes from then on.
func TestEventsUnread(t *testing.T) {
	s := openFor(t, 4*time.Minute)
	// As little as there can be on the way to a client: 64 KiB of events, and as much in the daemon's writer.
	unread := runtimeapi.NewRuntimeServiceClient(s.bareConn(grpc.WithStaticStreamWindowSize(64<<10), grpc.WithStaticConnWindowSize(64<<10)))
	ask := func() runtimeapi.RuntimeService_GetContainerEventsClient {
		t.Helper()
		st, err := unread.GetContainerEvents(s.ctx, &runtimeapi.GetEventsRequest{})
		if err == nil {
			_, err = st.Header()
		}
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	stream := ask()
	l := s.listenToEvents()

	// Each event shows its pod, and so each has these 16 KiB: what is on the way is no more than ten of them.
	heavy := func(c *runtimeapi.PodSandboxConfig) {
		c.Annotations = map[string]string{"heavy": strings.Repeat("x", 16<<10)}
	}
	const kept, way, workers = 1024, 64, 4
	var group sync.WaitGroup
	var pods []*pod
	for n := range workers {
		pods = append(pods, s.runPod(fmt.Sprintf("unread-%d", n), heavy))
	}
	ids := make([][]string, workers)
	for n, p := range pods {
		group.Go(func() {
			for i := range (kept + way) / workers / 4 {
				id, err := p.liveAndDie(fmt.Sprintf("c%d", i))
				if err != nil {
					t.Errorf("container %d of pod %d, while nobody reads: %v", i, n, err)
					return
				}
				ids[n] = append(ids[n], id)
			}
		})
	}
	if group.Wait(); t.Failed() {
		return
	}
	for n, list := range ids {
		for i, id := range list {
			s.eventually("who reads is told all", func() bool { return len(l.of(id)) == 4 })
			if got := l.of(id); !slices.Equal(got, []string{"created", "started", "stopped", "deleted"}) {
				t.Errorf("container %d of pod %d: who reads was told %q", i, n, got)
			}
		}
	}

	var late []*runtimeapi.ContainerEventResponse
	err := error(nil)
	for err == nil {
		var e *runtimeapi.ContainerEventResponse
		if e, err = stream.Recv(); err == nil {
			late = append(late, e)
		}
	}
	if code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "list, and ask again") {
		t.Errorf("who has not read: %v, want ResourceExhausted", err)
	}
	all, got := l.words(), words(late)
	if len(got) < kept || len(got) >= len(all) || !slices.Equal(got, all[:len(got)]) {
		t.Errorf("who has not read was told %d events of %d, and not the first ones", len(got), len(all))
	}

	again := ask()
	id, err := pods[0].liveAndDie("again")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []runtimeapi.ContainerEventType{
		runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT,
		runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT,
	} {
		if e, err := again.Recv(); err != nil || e.ContainerId != id || e.ContainerEventType != want {
			t.Errorf("asked again: %v %v, %v; want %v of %s", e.GetContainerEventType(), e.GetContainerId(), err, want, id)
		}
	}
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
