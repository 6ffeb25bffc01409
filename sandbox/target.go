package sandbox

import (
	"fmt"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/sandbox/spec"
)

const targetField = "config.linux.security_context.namespace_options.target_id"

// findTarget finds the container whose pid namespace is asked for (NamespaceMode TARGET), as a debug container's is by the kubelet: one of
// the same pod, which runs. It may have ended when the new one is made; then the monitor says so. Nobody sees the processes of
// another pod in this way, which would be a way out of one's own.
func (c *Container) findTarget() error {
	o := c.config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if o.GetPid() != runtimeapi.NamespaceMode_TARGET {
		return nil
	}
	id := o.GetTargetId()
	t, err := c.pod.m.container(id)
	if err != nil {
		return fmt.Errorf("%s: %w", targetField, err)
	}
	if t.pod != c.pod {
		return spec.Invalid(targetField, id, "is a container of another pod sandbox")
	}
	if state := t.facts.Load().state(); state != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return fmt.Errorf("%s: container %s is %s and does not run: %w", targetField, t.id, state, ErrState)
	}
	c.target = t
	return nil
}

// targetPath is where the target's pid namespace is seen on the host, "" without a target.
func (c *Container) targetPath() string {
	if c.target == nil {
		return ""
	}
	return fmt.Sprintf("/proc/%d/ns/pid", c.target.facts.Load().Pid)
}

// targetID is the target's id, "" without one.
func (c *Container) targetID() string {
	if c.target == nil {
		return ""
	}
	return c.target.id
}
