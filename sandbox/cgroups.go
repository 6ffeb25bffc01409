package sandbox

import (
	"context"
	"errors"
	"fmt"
	"path"
	"syscall"

	"k8s.io/klog/v2"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/cgroup"
)

// cgroupError gives the errors of package cgroup our kinds.
func cgroupError(err error) error {
	switch {
	case errors.Is(err, cgroup.ErrUnavailable):
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	case errors.Is(err, syscall.EAGAIN): // the number of cgroups, or their depth
		return fmt.Errorf("%w: %w", ErrExhausted, err)
	case errors.Is(err, cgroup.ErrInvalid):
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	case errors.Is(err, cgroup.ErrUnenforced), errors.Is(err, cgroup.ErrInUse), errors.Is(err, cgroup.ErrDelegation),
		errors.Is(err, cgroup.ErrFrozen):
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	return err
}

// removeCgroup kills whoever is in a cgroup, waits until they are gone, and removes it with what is below.
// A cgroup that does not exist is no error.
func removeCgroup(ctx context.Context, t CgroupTree, path string) error {
	s := t.Load(path)
	if err := s.Kill(); err != nil {
		return fmt.Errorf("kill cgroup %s: %w", path, err)
	}
	if err := s.WaitEmpty(ctx); err != nil {
		return fmt.Errorf("wait for cgroup %s: %w", path, err)
	}
	if err := s.Remove(ctx); err != nil {
		return fmt.Errorf("remove cgroup %s: %w", path, err)
	}
	return nil
}

// delegateCgroup hands the container its cgroup, if the pod asks for that. The process is blocked before its
// execve.
func (c *Container) delegateCgroup(pid int) error {
	if !c.pod.plan.DelegatesCgroup(c.config.GetMetadata().GetName()) {
		return nil
	}
	u := c.record.User
	return cgroupError(c.pod.m.cfg.Cgroups.Load(c.record.Cgroup).Delegate(pid, c.pod.plan.UserNS.Outside(uint32(u.UID)), c.pod.plan.UserNS.Outside(uint32(u.GID))))
}

// podCgroup opens the cgroup above the container's, where the monitor can still see who was killed once systemd
// has removed the container's. Where another pod is in there as well it would see others' dead: nil.
func (c *Container) podCgroup() (*sys.FD, error) {
	for _, o := range c.pod.m.index.Load().pods {
		if o != c.pod && o.record.Cgroup == c.pod.record.Cgroup {
			return nil, nil
		}
	}
	above := path.Dir(c.record.Cgroup)
	if above == "." {
		return nil, nil // the root, which counts everybody's
	}
	fd, err := c.pod.m.cfg.Cgroups.Load(above).OpenDir()
	if err != nil {
		return nil, fmt.Errorf("open cgroup of pod: %w", err)
	}
	return fd, nil
}

// pauseName names the cgroup of the pause, which lives beside the containers and not above them.
func (sb *Sandbox) pauseName() string { return "pause-" + sb.id }

func (sb *Sandbox) makePauseCgroup() (*cgroup.Scope, *sys.FD, error) {
	scope, err := sb.m.cfg.Cgroups.Create(sb.record.Cgroup, sb.pauseName(), nil)
	if err != nil {
		return nil, nil, err
	}
	fd, err := scope.OpenDir()
	return scope, fd, err
}

// placePause places the one process that is in the pause's cgroup.
func placePause(ctx context.Context, scope *cgroup.Scope) error {
	pids, err := scope.Procs()
	if err != nil {
		return err
	}
	if len(pids) != 1 {
		return fmt.Errorf("the pause's cgroup holds %d processes", len(pids))
	}
	return scope.Place(ctx, pids[0])
}

// resumeCgroup goes on with what the daemon before us did for a cgroup.
func resumeCgroup(t CgroupTree, path string) {
	if err := t.Load(path).Resume(); err != nil {
		klog.ErrorS(err, "Limits may not outlive the next daemon-reload", "cgroup", path)
	}
}
