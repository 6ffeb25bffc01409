package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"

	"k8s.io/klog/v2"
)

// StopPodSandbox ends a pod's processes, by force where they still run, and takes its network and
// namespaces away. The pod stays visible as NOTREADY. It may be called again, and must be after an error; an
// id that does not exist is no error. From the first call on no container can be made in the pod; creations
// that are on their way are cancelled and rolled back.
//
// If ctx ends first the stop goes on; calling again joins it.
func (m *Manager) StopPodSandbox(ctx context.Context, id string) error {
	sb, err := m.pod(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = m.flights.do(ctx, "stop "+sb.id, "stop pod sandbox "+sb.id, 2*m.cfg.StopTimeout, func(ctx context.Context, op *operation) (string, error) {
		if err := sb.lockEnd(ctx); err != nil {
			return "", err
		}
		defer sb.unlockEnd()
		return "", sb.tearDown(ctx, op)
	})
	return err
}

// lockEnd makes the caller the one who ends the pod: a stop, a removal, a roll-back or the sweeper.
func (sb *Sandbox) lockEnd(ctx context.Context) error {
	select {
	case sb.ending <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for another stop of pod sandbox %s: %w", sb.id, ctx.Err())
	}
}

func (sb *Sandbox) unlockEnd() { <-sb.ending }

// RemovePodSandbox stops a pod if it was not, removes its containers and everything that is left of it. An
// id that does not exist is no error. After an error, calling again goes on where it ended.
func (m *Manager) RemovePodSandbox(ctx context.Context, id string) error {
	sb, err := m.pod(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = m.flights.do(ctx, "remove "+sb.id, "remove pod sandbox "+sb.id, 3*m.cfg.StopTimeout, func(ctx context.Context, op *operation) (string, error) {
		op.at("erase")
		if err := sb.erase(ctx); err != nil {
			return "", err
		}
		m.change(func(i *index) {
			delete(i.pods, sb.id)
			if name := podName(sb.config.GetMetadata()); i.names[name] == sb.id {
				delete(i.names, name)
			}
		})
		sb.tellDeleted()
		klog.V(2).InfoS("Pod sandbox removed", "pod", sb.id)
		return "", nil
	})
	return err
}

// tearDown ends everything of the pod that lives, in the order in which each step still has what it needs:
// the plugins want the namespace, the monitor wants its containers dead. Every step may be done again. A
// step that fails does not keep the others from being tried: a plugin that is broken must not keep processes
// alive.
//
// Preconditions: the caller is the one who ends the pod.
func (sb *Sandbox) tearDown(ctx context.Context, op *operation) error {
	if sb.facts.Load().Stopped != 0 {
		return nil
	}
	err := sb.update(func(f podFacts) podFacts {
		if f.NotReady == 0 {
			f.NotReady = now()
		}
		return f
	})
	sb.stats.end(sb.m.stats.fds) // an open file of the network namespace would keep it
	var errs []error
	fail := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
		}
	}
	if err != nil {
		// A full disk must not keep pods from being removed. Should the daemon die now, the next one finds the
		// pod without a monitor and comes to the same state.
		klog.ErrorS(err, "Record of a pod that is being stopped", "pod", sb.id)
	}
	op.at("cancel creations")
	fail("cancel creations", sb.gate.shut(ctx))
	op.at("reach monitor")
	sb.reach(ctx)
	op.at("kill containers")
	fail("kill containers", sb.killAll(ctx))
	op.at("tell plugins")
	sb.tellStopped(ctx)
	op.at("delete network")
	if err := sb.disconnect(ctx); err != nil {
		fail("delete network", err)
	} else {
		fail("unpin network namespace", unpinNetNS(sb.netns()))
	}
	op.at("stop monitor")
	fail("stop monitor", sb.stopMonitor(ctx))
	if len(errs) != 0 {
		return errors.Join(errs...)
	}
	err = sb.update(func(f podFacts) podFacts {
		f.Stopped = now()
		return f
	})
	if err != nil {
		klog.ErrorS(err, "Record of a stopped pod", "pod", sb.id)
	}
	return nil
}

// killAll kills the processes of all containers and waits until they are gone.
func (sb *Sandbox) killAll(ctx context.Context) error {
	list := sb.containers()
	errs := make(chan error, len(list))
	for _, c := range list {
		go func() { errs <- c.kill(ctx) }() // ends with ctx at the latest
	}
	var all []error
	for range list {
		all = append(all, <-errs)
	}
	return errors.Join(all...)
}

// disconnect has the plugins take the network away. They know the pod by its id; for a pod that never had
// a network this does nothing.
func (sb *Sandbox) disconnect(ctx context.Context) error {
	return networkError(sb.m.cfg.Network.Del(ctx, sb.id))
}

// erase takes away everything that this pod is or was about to be, from any point of its life, and the
// record last.
func (sb *Sandbox) erase(ctx context.Context) error {
	if err := sb.lockEnd(ctx); err != nil {
		return err
	}
	defer sb.unlockEnd()
	if err := sb.tearDown(ctx, &operation{}); err != nil {
		return err
	}
	// It is not ready any more, so nobody begins a change; one under way makes the pod's cgroup where that is not there.
	if err := sb.changing.over(ctx); err != nil {
		return fmt.Errorf("wait for an update of pod sandbox %s: %w", sb.id, err)
	}
	var errs []error
	for _, c := range sb.containers() {
		errs = append(errs, c.remove(ctx))
	}
	errs = append(errs, sb.eraseUnknown(ctx))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	sb.tellRemoved(ctx)
	if err := unmountAll(sb.shmDir()); err != nil {
		return err
	}
	if sb.record.OwnCG {
		if err := removeCgroup(ctx, sb.m.cfg.Cgroups, sb.record.Cgroup); err != nil {
			return err
		}
	}
	sb.mu.Lock()
	sb.erased = true
	sb.mu.Unlock()
	if err := os.RemoveAll(sb.dir); err != nil {
		return err
	}
	sb.releaseLabels()
	return nil
}

// eraseUnknown removes what directories of containers without a record leave behind elsewhere.
func (sb *Sandbox) eraseUnknown(ctx context.Context) error {
	entries, err := os.ReadDir(sb.dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var errs []error
	for _, e := range entries {
		if isID(e.Name()) {
			errs = append(errs, sb.m.cfg.Images.RemoveRootfs(ctx, e.Name()))
		}
	}
	return errors.Join(errs...)
}
