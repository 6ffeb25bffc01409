package nri

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	"google.golang.org/grpc/status"
)

// Answer is what plugins want, all of them together.
type Answer struct {
	// Adjust is what is to be changed in the container that is about to be made, nil for other requests.
	Adjust *api.ContainerAdjustment
	// Resources replace those that were asked for in an update; nil leaves these.
	Resources *api.LinuxResources
	// Update are changes of other containers.
	Update []*api.ContainerUpdate
	// Evict are containers to be stopped.
	Evict []*api.ContainerEviction
}

// maxText is how much of a plugin's error is repeated.
const maxText = 1024

// ask makes one request to all plugins, in the order of their indices. begun is called when it is certain that they will be asked,
// and at a moment at which no plugin is being told the state: so a plugin either is told of the thing by the state or
// gets the request. strict wants the required plugins to be there and to answer.
func (p *Plugins) ask(ctx context.Context, event api.Event, strict bool, begun func(), f func(context.Context, *adaptation.Adaptation) error) (*call, error) {
	c := &call{}
	var a *adaptation.Adaptation
	if p != nil {
		a = p.a.Load()
	}
	if a == nil {
		begun()
		return c, nil
	}
	block := a.BlockPluginSync()
	defer block.Unblock()
	name := event.PrettyName()
	if who := p.missing(); strict && who != "" {
		return c, fmt.Errorf("%s: plugin %s is not there: %w", name, who, ErrNoAnswer)
	}
	begun()
	err := f(context.WithValue(ctx, callKey{}, c), a)
	switch {
	case ctx.Err() != nil:
		return c, fmt.Errorf("%s: plugins: %w", name, ctx.Err())
	case err != nil && len(c.failed) != 0:
		return c, fmt.Errorf("%s: %s: %w", name, text(err), ErrNoAnswer)
	case err != nil:
		return c, fmt.Errorf("%s: %s%s: %w", name, p.denier(c), text(err), ErrRefused)
	}
	if who := p.silent(c, event); strict && who != "" {
		return c, fmt.Errorf("%s: plugin %s did not answer: %w", name, who, ErrNoAnswer)
	}
	return c, nil
}

// denier names the plugin that said no, where one did: its error does not.
func (p *Plugins) denier(c *call) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.denied == nil {
		return ""
	}
	return "plugin " + c.denied.name + ": "
}

// text is what an error says, without what it is: a plugin's time-out is not our caller's.
func text(err error) string {
	s := strings.ToValidUTF8(status.Convert(err).Message(), "?")
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") + "..."
	}
	return s
}

func nothing() {}

// RunPodSandbox asks whether a pod may run that has everything but containers. begun is described at CreateContainer.
func (p *Plugins) RunPodSandbox(ctx context.Context, pod *api.PodSandbox, begun func()) error {
	_, err := p.ask(ctx, api.Event_RUN_POD_SANDBOX, true, begun, func(ctx context.Context, a *adaptation.Adaptation) error {
		return a.RunPodSandbox(ctx, &api.RunPodSandboxRequest{Pod: pod})
	})
	return err
}

// UpdatePodSandbox asks whether the limits of a pod as a whole may be changed.
func (p *Plugins) UpdatePodSandbox(ctx context.Context, pod *api.PodSandbox, overhead, resources *api.LinuxResources) error {
	_, err := p.ask(ctx, api.Event_UPDATE_POD_SANDBOX, true, nothing, func(ctx context.Context, a *adaptation.Adaptation) error {
		_, err := a.UpdatePodSandbox(ctx, &api.UpdatePodSandboxRequest{Pod: pod, OverheadLinuxResources: overhead, LinuxResources: resources})
		return err
	})
	return err
}

// CreateContainer asks what is to be changed in a container before it is made. ctr is changed by it.
//
// begun is called before the first plugin hears of it; from then on Runtime.State must list the container. It is not
// called where a required plugin is not there, since none hears of it then.
func (p *Plugins) CreateContainer(ctx context.Context, pod *api.PodSandbox, ctr *api.Container, begun func()) (*Answer, error) {
	devices := slices.Clone(ctr.GetLinux().GetDevices())
	answer := &Answer{}
	c, err := p.ask(ctx, api.Event_CREATE_CONTAINER, true, begun, func(ctx context.Context, a *adaptation.Adaptation) error {
		r, err := a.CreateContainer(ctx, &api.CreateContainerRequest{Pod: pod, Container: ctr})
		answer.Adjust, answer.Update = r.GetAdjust(), r.GetUpdate()
		return err
	})
	if err != nil {
		return nil, err
	}
	if answer.Adjust != nil {
		addRemovals(answer.Adjust, ctr, c.gone, devices)
	}
	answer.Evict = c.evict
	return answer, nil
}

// addRemovals adds the variables and devices that plugins removed from the request, which the adaptation tells them
// but not us. A variable that one removed and another has set since is in both: who applies it removes first.
func addRemovals(a *api.ContainerAdjustment, now *api.Container, gone []string, devices []*api.LinuxDevice) {
	for _, mark := range gone {
		a.Env = append(a.Env, &api.KeyValue{Key: mark})
	}
	for _, d := range devices {
		if !slices.ContainsFunc(now.GetLinux().GetDevices(), func(o *api.LinuxDevice) bool { return o.GetPath() == d.GetPath() }) {
			a.Linux.Devices = append(a.Linux.Devices, &api.LinuxDevice{Path: api.MarkForRemoval(d.GetPath())})
		}
	}
}

// StartContainer asks whether a container may be started.
func (p *Plugins) StartContainer(ctx context.Context, pod *api.PodSandbox, ctr *api.Container) error {
	_, err := p.ask(ctx, api.Event_START_CONTAINER, true, nothing, func(ctx context.Context, a *adaptation.Adaptation) error {
		return a.StartContainer(ctx, &api.StartContainerRequest{Pod: pod, Container: ctr})
	})
	return err
}

// UpdateContainer asks what is to be changed in an update of limits.
func (p *Plugins) UpdateContainer(ctx context.Context, pod *api.PodSandbox, ctr *api.Container, r *api.LinuxResources) (*Answer, error) {
	answer := &Answer{}
	c, err := p.ask(ctx, api.Event_UPDATE_CONTAINER, true, nothing, func(ctx context.Context, a *adaptation.Adaptation) error {
		rpl, err := a.UpdateContainer(ctx, &api.UpdateContainerRequest{Pod: pod, Container: ctr, LinuxResources: r})
		for _, u := range rpl.GetUpdate() {
			switch {
			case u == nil: // nobody had anything to say on this one
			case u.GetContainerId() == ctr.GetId():
				answer.Resources = u.GetLinux().GetResources()
			default:
				answer.Update = append(answer.Update, u)
			}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	answer.Evict = c.evict
	return answer, nil
}

// StopContainer tells that a container has ended, and returns what is to be changed of others.
func (p *Plugins) StopContainer(ctx context.Context, pod *api.PodSandbox, ctr *api.Container, begun func()) (*Answer, error) {
	answer := &Answer{}
	_, err := p.ask(ctx, api.Event_STOP_CONTAINER, false, begun, func(ctx context.Context, a *adaptation.Adaptation) error {
		r, err := a.StopContainer(ctx, &api.StopContainerRequest{Pod: pod, Container: ctr})
		answer.Update = r.GetUpdate()
		return err
	})
	return answer, err
}

// Tell tells what has happened and cannot be undone: the Post events, the stop of a pod, and removals. An error is for the log.
func (p *Plugins) Tell(ctx context.Context, event api.Event, pod *api.PodSandbox, ctr *api.Container, begun func()) error {
	_, err := p.ask(ctx, event, false, begun, func(ctx context.Context, a *adaptation.Adaptation) error {
		switch event {
		case api.Event_STOP_POD_SANDBOX:
			return a.StopPodSandbox(ctx, &api.StopPodSandboxRequest{Pod: pod})
		case api.Event_REMOVE_POD_SANDBOX:
			return a.RemovePodSandbox(ctx, &api.RemovePodSandboxRequest{Pod: pod})
		case api.Event_POST_UPDATE_POD_SANDBOX:
			return a.PostUpdatePodSandbox(ctx, &api.PostUpdatePodSandboxRequest{Pod: pod})
		case api.Event_POST_CREATE_CONTAINER:
			return a.PostCreateContainer(ctx, &api.PostCreateContainerRequest{Pod: pod, Container: ctr})
		case api.Event_POST_START_CONTAINER:
			return a.PostStartContainer(ctx, &api.PostStartContainerRequest{Pod: pod, Container: ctr})
		case api.Event_POST_UPDATE_CONTAINER:
			return a.PostUpdateContainer(ctx, &api.PostUpdateContainerRequest{Pod: pod, Container: ctr})
		case api.Event_REMOVE_CONTAINER:
			return a.RemoveContainer(ctx, &api.RemoveContainerRequest{Pod: pod, Container: ctr})
		}
		return fmt.Errorf("event %d is none that is told", event)
	})
	return err
}
