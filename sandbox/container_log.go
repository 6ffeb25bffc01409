package sandbox

import (
	"context"
	"fmt"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ReopenContainerLog makes a running container's log go to a new file of the same name, after the kubelet
// renamed the old one. If that fails the old file is kept and no new one is made.
func (m *Manager) ReopenContainerLog(ctx context.Context, id string) error {
	c, err := m.container(id)
	if err != nil {
		return err
	}
	if s := c.facts.Load().state(); s != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return fmt.Errorf("container %s is %s: %w", c.id, stateName(s), ErrState)
	}
	pr, err := c.process()
	if err != nil {
		return err
	}
	if err := pr.reopenLog(ctx); err != nil {
		return fmt.Errorf("reopen log of container %s: %w", c.id, c.orEnded(err))
	}
	return nil
}
