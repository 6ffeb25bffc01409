package program

import (
	"fmt"
	"math"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// maxMappings is UID_GID_MAP_MAX_EXTENTS.
const maxMappings = 340

// idMaps looks at the mappings, which the parent writes at step.GateMaps, and
// finds the ids to make the container with.
func (c *compiler) idMaps() error {
	l := c.spec.Linux
	all := c.ns.fresh | c.ns.joined | c.ns.inherited
	if all&unix.CLONE_NEWUSER == 0 {
		if len(l.UIDMappings)+len(l.GIDMappings) > 0 {
			return fmt.Errorf("linux.uidMappings: without a user namespace: %w", ErrInvalid)
		}
		return nil
	}
	if c.ns.fresh&unix.CLONE_NEWUSER != 0 && (len(l.UIDMappings) == 0 || len(l.GIDMappings) == 0) {
		return fmt.Errorf("linux.uidMappings: a new user namespace without uids or gids: %w", ErrInvalid)
	}
	u := &c.spec.Process.User
	for _, k := range []struct {
		field, user string
		maps        []specs.LinuxIDMapping
		id          uint32
		root        *uint32
	}{
		{"linux.uidMappings", "process.user.uid", l.UIDMappings, u.UID, &c.rootUID},
		{"linux.gidMappings", "process.user.gid", l.GIDMappings, u.GID, &c.rootGID},
	} {
		if len(k.maps) == 0 {
			continue // of a namespace that somebody else has mapped
		}
		if err := checkMappings(k.field, k.maps); err != nil {
			return err
		}
		if !mapped(k.maps, k.id) {
			return fmt.Errorf("%s: %d is not mapped: %w", k.user, k.id, ErrInvalid)
		}
		*k.root = rootOf(k.maps, k.id)
	}
	for i, g := range u.AdditionalGids {
		if len(l.GIDMappings) > 0 && !mapped(l.GIDMappings, g) {
			return fmt.Errorf("process.user.additionalGids[%d]: %d is not mapped: %w", i, g, ErrInvalid)
		}
	}
	return nil
}

// checkMappings demands what the kernel would, so that the error names a field.
func checkMappings(field string, maps []specs.LinuxIDMapping) error {
	if len(maps) > maxMappings {
		return fmt.Errorf("%s: %d lines of at most %d: %w", field, len(maps), maxMappings, ErrInvalid)
	}
	for i, m := range maps {
		// The highest id means none.
		if m.Size == 0 || uint64(m.ContainerID)+uint64(m.Size) > math.MaxUint32 || uint64(m.HostID)+uint64(m.Size) > math.MaxUint32 {
			return fmt.Errorf("%s[%d]: %d ids from %d to %d: %w", field, i, m.Size, m.ContainerID, m.HostID, ErrInvalid)
		}
		for j, o := range maps[:i] {
			if overlap(m.ContainerID, m.Size, o.ContainerID, o.Size) || overlap(m.HostID, m.Size, o.HostID, o.Size) {
				return fmt.Errorf("%s[%d]: overlaps line %d: %w", field, i, j, ErrInvalid)
			}
		}
	}
	return nil
}

func overlap(a, n, b, m uint32) bool {
	return uint64(a) < uint64(b)+uint64(m) && uint64(b) < uint64(a)+uint64(n)
}

// mapped says whether an id of the container is one of the host.
func mapped(maps []specs.LinuxIDMapping, id uint32) bool {
	for _, m := range maps {
		if id >= m.ContainerID && id-m.ContainerID < m.Size {
			return true
		}
	}
	return false
}

// rootOf is who makes what a user namespace with these maps is to own, for a process of that id: root, if there is one.
func rootOf(maps []specs.LinuxIDMapping, id uint32) uint32 {
	if len(maps) == 0 || mapped(maps, 0) {
		return 0
	}
	return id
}
