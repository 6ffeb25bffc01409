package sandbox

import (
	"context"
	"errors"
	"io/fs"

	"k8s.io/klog/v2"
)

// watch takes in what a monitor reports until it is let go of or dies.
func (sb *Sandbox) watch(mon monitor, events <-chan podEvent) {
	defer sb.m.running.Done()
	for e := range events {
		switch e.what {
		case containerExited:
			if c, ok := sb.watched.Load(e.id); ok {
				c.(*Container).ended(e.exit)
			}
		case monitorDied:
			sb.monitorLost("the pod's monitor died")
		case disconnected:
			sb.reconnect(sb.m.flights.base, mon, sb.m.cfg.StopTimeout)
		}
	}
}

// monitorLost takes in that nobody holds the pod any more: it is NOTREADY, and every container that has no
// exit record is dead or about to be, with an exit code that nobody knows. Their cgroups are killed: a
// container without a monitor has no log and no waiter.
func (sb *Sandbox) monitorLost(why string) {
	ctx, cancel := context.WithTimeout(context.Background(), sb.m.cfg.StopTimeout)
	defer cancel()
	if err := sb.letGo(); err != nil {
		klog.ErrorS(err, "Connection to a dead monitor", "pod", sb.id)
	}
	if sb.facts.Load().NotReady == 0 {
		klog.InfoS("Pod sandbox is lost", "pod", sb.id, "reason", why)
	}
	err := sb.update(func(f podFacts) podFacts {
		if f.NotReady == 0 {
			f.NotReady, f.Reason = now(), why
		}
		return f
	})
	sb.stats.end(sb.m.stats.fds)
	if err != nil {
		klog.ErrorS(err, "Record of a lost pod", "pod", sb.id)
	}
	for _, c := range sb.containers() {
		if err := c.lost(ctx, why); err != nil {
			klog.ErrorS(err, "Container of a lost pod", "pod", sb.id, "container", c.id)
		}
	}
}

// ended takes in the exit of the main process.
func (c *Container) ended(x exit) {
	at := x.at
	if at == 0 {
		at = now()
	}
	c.note(event{what: exited, at: at, code: x.code, oom: x.oom, kills: x.kills})
}

// note takes in what has happened and cannot be undone. A record that cannot be written then is no reason
// to tell a caller that it did not: the monitor tells the next daemon again.
func (c *Container) note(e event) {
	if err := c.update(e); err != nil {
		klog.ErrorS(err, "Record of a container", "container", c.id)
	}
}

// lost takes in that the container has no monitor any more: with the exit that it wrote down, if it did.
func (c *Container) lost(ctx context.Context, why string) error {
	kerr := c.killCgroup(ctx)
	if c.facts.Load().Created == 0 {
		return kerr // being made: whoever makes it takes it back
	}
	x, err := c.pod.m.cfg.monitors.readExit(c.dir)
	switch {
	case err == nil:
		c.ended(x)
	case !errors.Is(err, fs.ErrNotExist):
		klog.ErrorS(err, "Exit record", "container", c.id)
		fallthrough
	default:
		err = c.update(event{what: lost, at: now(), text: why})
	}
	return errors.Join(kerr, err)
}
