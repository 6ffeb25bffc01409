package sandbox

import (
	"fmt"
	"maps"
	"strings"
)

// index is a snapshot of what exists. It is never changed once it is published.
type index struct {
	pods       map[string]*Sandbox
	containers map[string]*Container
	names      map[string]string // name of a pod or container -> id
}

// change publishes a new index which f made out of a copy. f must not block.
func (m *Manager) change(f func(*index)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.index.Load()
	n := &index{pods: maps.Clone(old.pods), containers: maps.Clone(old.containers), names: maps.Clone(old.names)}
	f(n)
	m.index.Store(n)
}

// pod finds a pod by its id or by a prefix of it that no other pod has.
func (m *Manager) pod(id string) (*Sandbox, error) {
	return lookUp(m.index.Load().pods, "pod sandbox", id)
}

// container finds a container in the same way.
func (m *Manager) container(id string) (*Container, error) {
	return lookUp(m.index.Load().containers, "container", id)
}

func lookUp[T any](all map[string]*T, what, id string) (*T, error) {
	if id == "" {
		return nil, fmt.Errorf("%s id is empty: %w", what, ErrInvalid)
	}
	if v := all[id]; v != nil {
		return v, nil
	}
	if len(id) > idLength {
		return nil, fmt.Errorf("%s %.80q: %w", what, id, ErrNotFound)
	}
	var found *T
	for k, v := range all {
		if !strings.HasPrefix(k, id) {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("%s id %q is the beginning of several: %w", what, id, ErrInvalid)
		}
		found = v
	}
	if found == nil {
		return nil, fmt.Errorf("%s %.80q: %w", what, id, ErrNotFound)
	}
	return found, nil
}
