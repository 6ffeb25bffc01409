package sandbox

import (
	"context"
	"errors"
	"fmt"
	"math"
	"syscall"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
)

// killAgain is how often a container that does not die is killed again: what forks faster than it is killed,
// or was just moved into the cgroup, is met by the next one.
const killAgain = time.Second

// StopContainer asks a container to end by its stop signal and, timeoutSeconds later, kills everything in
// it. It returns when the container is EXITED. An id that does not exist, and a container that has exited,
// are no errors.
//
// Several stops of one container share one deadline, the earliest of theirs: a second one with a shorter
// time-out makes the first one end sooner too. If ctx ends, the stop goes on without its caller.
func (m *Manager) StopContainer(ctx context.Context, id string, timeoutSeconds int64) error {
	if timeoutSeconds < 0 {
		return fmt.Errorf("timeout %d is negative: %w", timeoutSeconds, ErrInvalid)
	}
	c, err := m.container(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	c.stop(timeout(timeoutSeconds))
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop container %s: wait for its exit: %w", c.id, ctx.Err())
	}
}

// timeout turns seconds into a duration; what does not fit is as good as never.
func timeout(seconds int64) time.Duration {
	if seconds > math.MaxInt64/int64(time.Second)/2 {
		return math.MaxInt64 / 2
	}
	return time.Duration(seconds) * time.Second
}

// stop lowers the deadline, and begins to stop the container if nobody did.
func (c *Container) stop(grace time.Duration) {
	deadline := time.Now().Add(grace)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.facts.Load().Finished != 0:
	case c.deadline.IsZero():
		c.deadline = deadline
		c.pod.m.running.Add(1)
		go c.stopper() // ends with the container's exit or with the manager
	case deadline.Before(c.deadline):
		c.deadline = deadline
		close(c.sooner)
		c.sooner = make(chan struct{})
	}
}

// stopper is the one that stops the container: signal, wait, kill until it is dead.
func (c *Container) stopper() {
	m := c.pod.m
	defer m.running.Done()
	if c.facts.Load().state() == runtimeapi.ContainerState_CONTAINER_RUNNING {
		// Beside the clock: a monitor that hangs must not put the deadline off.
		m.running.Add(1)
		go func() { // ends after StopTimeout at the latest
			defer m.running.Done()
			c.sendStopSignal(m.flights.base)
		}()
	} else {
		c.stop(0) // blocked before execve: nobody there to be asked
	}
	for {
		c.mu.Lock()
		left, sooner := time.Until(c.deadline), c.sooner
		c.mu.Unlock()
		if left <= 0 {
			ctx, cancel := context.WithTimeout(m.flights.base, killAgain)
			if err := c.kill(ctx); err != nil && ctx.Err() == nil {
				klog.ErrorS(err, "Kill of a container", "container", c.id)
			}
			cancel()
			left = killAgain
		}
		timer := time.NewTimer(left)
		select {
		case <-c.done:
		case <-sooner:
		case <-timer.C:
		case <-m.flights.base.Done():
		}
		timer.Stop()
		if c.facts.Load().Finished != 0 || m.flights.base.Err() != nil {
			return
		}
	}
}

// sendStopSignal asks the main process to end. If it cannot be asked, it still has its time: it may be about
// to end for another reason.
func (c *Container) sendStopSignal(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, c.pod.m.cfg.StopTimeout)
	defer cancel()
	pr, err := c.process()
	if err == nil {
		err = pr.signal(ctx, c.stopSignal())
	}
	if err != nil && !errors.Is(err, syscall.ESRCH) && !errors.Is(err, ErrState) && c.facts.Load().Finished == 0 {
		klog.ErrorS(err, "Stop signal", "container", c.id)
	}
}

// RemoveContainer kills a container if it runs, and removes all that is left of it but its logs. An id that
// does not exist is no error. After an error, calling again goes on where it ended.
func (m *Manager) RemoveContainer(ctx context.Context, id string) error {
	c, err := m.container(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = m.flights.do(ctx, "remove "+c.id, "remove container "+c.id, 2*m.cfg.StopTimeout, func(ctx context.Context, op *operation) (string, error) {
		op.at("erase")
		err := c.remove(ctx)
		if err == nil {
			klog.V(2).InfoS("Container removed", "pod", c.pod.id, "container", c.id)
		}
		return "", err
	})
	return err
}
