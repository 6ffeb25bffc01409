package sandbox

import (
	"context"
	"fmt"
)

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
