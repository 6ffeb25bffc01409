package integration

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/nri/pkg/api"
	nrilog "github.com/containerd/nri/pkg/log"
	"github.com/containerd/nri/pkg/stub"
	"github.com/containerd/ttrpc"
)

// nriPlugin is a real plugin, in this process. What its fields say is asked for while it is connected.
type nriPlugin struct {
	stub stub.Stub

	mu     sync.Mutex
	say    func(event string) error                                                  // guarded by mu: what it answers
	adjust func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate)   // guarded by mu
	update func(*api.Container, *api.LinuxResources) ([]*api.ContainerUpdate, error) // guarded by mu
	events []string                                                                  // guarded by mu: "RunPodSandbox name"
	pods   map[string]*api.PodSandbox                                                // guarded by mu: as they were last seen
	ctrs   map[string]*api.Container                                                 // guarded by mu
	synced []string                                                                  // guarded by mu: names
	evict  string                                                                    // guarded by mu: id of a container that the next answers evict
}

// hear notes an event and returns the answer to it.
func (p *nriPlugin) hear(event string, pod *api.PodSandbox, c *api.Container) error {
	p.mu.Lock()
	name := pod.GetName()
	p.pods[name] = pod
	if c != nil {
		name = c.GetName()
		p.ctrs[name] = c
	}
	p.events = append(p.events, event+" "+name)
	say := p.say
	p.mu.Unlock()
	if say != nil {
		return say(event)
	}
	return nil
}

// of returns the events of a pod or container.
func (p *nriPlugin) of(name string) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for _, e := range p.events {
		if event, who, _ := strings.Cut(e, " "); who == name {
			out = append(out, event)
		}
	}
	return out
}

// ctr returns a container as the plugin saw it last.
func (p *nriPlugin) ctr(name string) *api.Container {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ctrs[name]
}

// set changes what the plugin does.
func (p *nriPlugin) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

func (p *nriPlugin) Synchronize(_ context.Context, pods []*api.PodSandbox, ctrs []*api.Container) ([]*api.ContainerUpdate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, pod := range pods {
		p.synced = append(p.synced, pod.GetName())
	}
	for _, c := range ctrs {
		p.synced = append(p.synced, fmt.Sprintf("%s %s", c.GetName(), c.GetState()))
		p.ctrs[c.GetName()] = c
	}
	slices.Sort(p.synced)
	return nil, nil
}

func (p *nriPlugin) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.hear("RunPodSandbox", pod, nil)
}

func (p *nriPlugin) UpdatePodSandbox(_ context.Context, pod *api.PodSandbox, _, _ *api.LinuxResources) error {
	return p.hear("UpdatePodSandbox", pod, nil)
}

func (p *nriPlugin) PostUpdatePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.hear("PostUpdatePodSandbox", pod, nil)
}

func (p *nriPlugin) StopPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.hear("StopPodSandbox", pod, nil)
}

func (p *nriPlugin) RemovePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.hear("RemovePodSandbox", pod, nil)
}

func (p *nriPlugin) CreateContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	if err := p.hear("CreateContainer", pod, c); err != nil {
		return nil, nil, err
	}
	p.mu.Lock()
	adjust := p.adjust
	p.mu.Unlock()
	if adjust == nil {
		return nil, nil, nil
	}
	a, u := adjust(c)
	return a, u, nil
}

func (p *nriPlugin) PostCreateContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	return p.hear("PostCreateContainer", pod, c)
}

func (p *nriPlugin) StartContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	return p.hear("StartContainer", pod, c)
}

func (p *nriPlugin) PostStartContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	return p.hear("PostStartContainer", pod, c)
}

func (p *nriPlugin) UpdateContainer(_ context.Context, pod *api.PodSandbox, c *api.Container, r *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	if err := p.hear("UpdateContainer", pod, c); err != nil {
		return nil, err
	}
	p.mu.Lock()
	update := p.update
	p.mu.Unlock()
	if update == nil {
		return nil, nil
	}
	return update(c, r)
}

func (p *nriPlugin) PostUpdateContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	return p.hear("PostUpdateContainer", pod, c)
}

func (p *nriPlugin) StopContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	return nil, p.hear("StopContainer", pod, c)
}

func (p *nriPlugin) RemoveContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	return p.hear("RemoveContainer", pod, c)
}

// evicting adds evictions to answers; the stub has no words for them.
func (p *nriPlugin) evicting(ctx context.Context, u ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
	answer, err := method(ctx, u)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil || p.evict == "" {
		return answer, err
	}
	evict := []*api.ContainerEviction{{ContainerId: p.evict, Reason: "test"}}
	switch a := answer.(type) {
	case *api.CreateContainerResponse:
		a.Evict = evict
	case *api.UpdateContainerResponse:
		a.Evict = evict
	}
	return answer, err
}

// quietNRI drops a log.
type quietNRI struct{ nrilog.Logger }

// Debugf drops it.
func (quietNRI) Debugf(context.Context, string, ...any) {}

// Infof drops it.
func (quietNRI) Infof(context.Context, string, ...any) {}

// Warnf drops it.
func (quietNRI) Warnf(context.Context, string, ...any) {}

// Errorf drops it.
func (quietNRI) Errorf(context.Context, string, ...any) {}

// withNRI has the daemon listen for plugins, until the test ends.
func (s *scene) withNRI(more string) {
	s.Helper()
	s.configured(fmt.Sprintf("[nri]\nenable = true\nsocket = %q\n%s\n", s.nriSocket(), more))
}

func (s *scene) nriSocket() string { return filepath.Join(s.RunDir, "nri.sock") }

// plugin connects a plugin. It takes a moment more until it gets requests, which are held up meanwhile.
func (s *scene) plugin(idx, name string) *nriPlugin {
	s.Helper()
	p := &nriPlugin{pods: map[string]*api.PodSandbox{}, ctrs: map[string]*api.Container{}}
	var err error
	for end := time.Now().Add(s.Scale(10 * time.Second)); ; time.Sleep(20 * time.Millisecond) {
		p.stub, err = stub.New(p, stub.WithPluginIdx(idx), stub.WithPluginName(name), stub.WithSocketPath(s.nriSocket()), stub.WithLogger(quietNRI{}),
			stub.WithOnClose(func() {}), stub.WithTTRPCOptions(nil, []ttrpc.ServerOpt{ttrpc.WithUnaryServerInterceptor(p.evicting)}))
		if err == nil {
			err = p.stub.Start(s.ctx)
		}
		if err == nil {
			break
		}
		if time.Now().After(end) {
			s.Fatalf("connect plugin %s: %v", name, err)
		}
	}
	s.Cleanup(p.stub.Stop)
	s.eventually("plugin "+name+" is asked", func() bool {
		return strings.Contains(s.Daemon().Tail(200), fmt.Sprintf("plugin %q connected and synchronized", idx+"-"+name))
	})
	return p
}
