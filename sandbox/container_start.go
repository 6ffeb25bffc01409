package sandbox

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
)

// The exit codes of a container whose program could not be executed, as shells have them, and the one for
// everything else that keeps a container from starting.
const (
	codeNotExecutable = 126
	codeNotFound      = 127
	codeStartError    = 128
)

// StartContainer lets a CREATED container execute its program and returns when it has. If that fails the
// container is EXITED with the reason StartError and the code 127 (no such file), 126 (not to be executed)
// or 128, and the error tells which step failed.
//
// A start that is on its way is not taken back when ctx ends: the program may run already.
func (m *Manager) StartContainer(ctx context.Context, id string) error {
	c, err := m.container(id)
	if err != nil {
		return err
	}
	_, err = m.flights.do(ctx, "start "+c.id, "start container "+c.id, m.cfg.OperationTimeout, func(ctx context.Context, op *operation) (string, error) {
		if s := c.facts.Load().state(); s != runtimeapi.ContainerState_CONTAINER_CREATED {
			return "", fmt.Errorf("container %s is %s: %w", c.id, stateName(s), ErrState)
		}
		op.at("execve")
		return "", c.askStart(ctx, c.start)
	})
	return err
}

func (c *Container) start(ctx context.Context) error {
	pr, err := c.process()
	if err != nil {
		return err
	}
	err = pr.start(ctx)
	var failed *startFailure
	switch {
	case err == nil:
		c.note(event{what: started, at: now()})
		klog.V(2).InfoS("Container started", "pod", c.pod.id, "container", c.id, "pid", c.facts.Load().Pid)
		return nil
	case errors.As(err, &failed):
		c.note(event{what: startFailed, at: now(), code: startCode(err), text: err.Error()})
		return fmt.Errorf("start container %s: %w: %w", c.id, ErrState, err)
	}
	return fmt.Errorf("start container %s: %w", c.id, c.orEnded(err))
}

// startCode is the exit code that people know for what kept a program from being executed.
func startCode(err error) int32 {
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ENOTDIR):
		return codeNotFound
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM), errors.Is(err, syscall.ENOEXEC), errors.Is(err, syscall.EISDIR):
		return codeNotExecutable
	}
	return codeStartError
}

// stateName is a state as people write it.
func stateName(s runtimeapi.ContainerState) string {
	switch s {
	case runtimeapi.ContainerState_CONTAINER_CREATED:
		return "created"
	case runtimeapi.ContainerState_CONTAINER_RUNNING:
		return "running"
	case runtimeapi.ContainerState_CONTAINER_EXITED:
		return "exited"
	}
	return "unknown"
}
