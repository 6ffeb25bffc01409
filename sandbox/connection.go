package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/klog/v2"
)

// answerTime is how long a monitor may take to answer somebody who ends its pod or a container. It needs a millisecond; one that is
// stopped, or in a disk that hangs, does not answer at all.
const answerTime = 2 * time.Second

// monitor returns the pod's monitor, nil if there is none.
func (sb *Sandbox) monitor() monitor {
	sb.monMu.Lock()
	defer sb.monMu.Unlock()
	return sb.mon
}

// setMonitor makes mon the pod's and starts to watch it. Where nobody is to connect any more, it lets go of it and says false.
func (sb *Sandbox) setMonitor(mon monitor) bool {
	sb.monMu.Lock()
	defer sb.monMu.Unlock()
	if sb.apart {
		go discard(mon)
		return false
	}
	sb.mon = mon
	sb.m.running.Add(1)
	go sb.watch(mon, mon.events()) // ends with the monitor's events, which close ends
	return true
}

// discard ends a connection that nobody watches.
func discard(mon monitor) {
	events := mon.events()
	if err := mon.close(); err != nil {
		klog.ErrorS(err, "Connection to a monitor")
	}
	for range events {
	}
}

// swapMonitor makes mon the pod's and returns the one before.
func (sb *Sandbox) swapMonitor(mon monitor) monitor {
	sb.monMu.Lock()
	defer sb.monMu.Unlock()
	old := sb.mon
	sb.mon = mon
	return old
}

// part takes the monitor out, and nobody connects to it again until meet.
func (sb *Sandbox) part() monitor {
	sb.monMu.Lock()
	defer sb.monMu.Unlock()
	mon := sb.mon
	sb.mon, sb.apart = nil, true
	return mon
}

// meet puts back what part has returned.
func (sb *Sandbox) meet(mon monitor) {
	sb.monMu.Lock()
	defer sb.monMu.Unlock()
	sb.mon, sb.apart = mon, false
}

// letGo closes the connection to the monitor for good. The pod goes on.
func (sb *Sandbox) letGo() error {
	if mon := sb.part(); mon != nil {
		return mon.close()
	}
	return nil
}

// lockDial waits until nobody else dials, and says false where ctx ends before. Then there is nothing to unlock.
func (sb *Sandbox) lockDial(ctx context.Context) bool {
	select {
	case sb.dialing <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (sb *Sandbox) unlockDial() { <-sb.dialing }

// reconnect dials a monitor again that hung up on us, or that did not answer so far (old is nil). If we hung
// up there is nothing to do. It returns when somebody else who dials has done so.
func (sb *Sandbox) reconnect(ctx context.Context, old monitor, limit time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if !sb.lockDial(ctx) {
		return
	}
	defer sb.unlockDial()
	if sb.monitor() != old || sb.m.flights.base.Err() != nil {
		return
	}
	sb.redial(ctx)
}

// redial is reconnect. Preconditions: dialing is held.
func (sb *Sandbox) redial(ctx context.Context) {
	sb.swapMonitor(nil)
	mon, err := sb.m.cfg.monitors.dial(ctx, sb.dir)
	if err == nil {
		if !sb.setMonitor(mon) {
			return
		}
		err = sb.reconcile(ctx, mon)
	}
	switch {
	case errors.Is(err, errNoMonitor):
		sb.monitorLost("the pod's monitor died")
	case err != nil:
		sb.silent = time.Now().Add(2 * answerTime)
		klog.ErrorS(err, "Monitor does not answer", "pod", sb.id)
	}
}

// reach has the pod's monitor connected where it lives and answers, for somebody who ends the pod or a container: how that ends is
// then told by who knows. One that has just been silent is not asked again.
func (sb *Sandbox) reach(ctx context.Context) {
	if sb.monitor() != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	if !sb.lockDial(ctx) {
		return
	}
	defer sb.unlockDial()
	if sb.monitor() == nil && time.Now().After(sb.silent) {
		sb.redial(ctx)
	}
}

// stopMonitor ends the monitor, the pause and their cgroup.
func (sb *Sandbox) stopMonitor(ctx context.Context) error {
	// Taken out first: its end is then no loss, and nobody dials it again.
	mon := sb.part()
	if err := sb.endMonitor(ctx, mon); err != nil {
		sb.meet(mon)
		return err
	}
	if sb.plan == nil || !sb.plan.SharedPID {
		return nil
	}
	// A pause whose monitor is lost, or was killed, is still there.
	p, err := sb.m.cfg.Cgroups.ScopePath(sb.record.Cgroup, sb.pauseName())
	if err != nil {
		return err
	}
	return removeCgroup(ctx, sb.m.cfg.Cgroups, p)
}

// endMonitor ends the monitor that is connected, or else one that is not, and that would outlive its pod: it does not answer, since
// reach has asked.
func (sb *Sandbox) endMonitor(ctx context.Context, mon monitor) error {
	if mon == nil {
		err := sb.m.cfg.monitors.kill(ctx, sb.dir)
		if err == nil {
			klog.InfoS("Monitor did not answer and was killed", "pod", sb.id)
		}
		if err == nil || errors.Is(err, errNoMonitor) {
			return nil
		}
		return fmt.Errorf("end a monitor that does not answer: %w", err)
	}
	err := mon.stop(ctx)
	// A container whose start failed has ended for us before its monitor has reaped it.
	for end := time.Now().Add(drainTime + time.Second); errors.Is(err, ErrState) && time.Now().Before(end) && ctx.Err() == nil; {
		time.Sleep(5 * time.Millisecond)
		err = mon.stop(ctx)
	}
	if err != nil && !errors.Is(err, errNoMonitor) {
		return err
	}
	return mon.close()
}
