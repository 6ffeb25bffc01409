package bundle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/vitrine-runtime/vitrine/internal/specjson"
	"github.com/vitrine-runtime/vitrine/oci/cgroup"
)

// freezeTime is how long the kernel may take to stop every process.
const freezeTime = 10 * time.Second

// Pause stops all processes of a created or running container, until Resume.
func (c *Container) Pause(ctx context.Context) error {
	if err := c.want("pause", specs.StateCreated, specs.StateRunning); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, freezeTime)
	defer cancel()
	return c.withGroup(func(s *cgroup.Scope) error { return s.Freeze(ctx) })
}

// Resume lets the processes of a paused container go on.
func (c *Container) Resume() error {
	if err := c.want("resume", StatePaused); err != nil {
		return err
	}
	return c.withGroup((*cgroup.Scope).Thaw)
}

// Processes returns the pids of all processes of the container, those of execs
// included.
func (c *Container) Processes() (pids []int, err error) {
	if err := c.want("list processes of", specs.StateCreated, specs.StateRunning, StatePaused); err != nil {
		return nil, err
	}
	if c.rec.Cgroup == nil {
		return []int{c.rec.Init.Pid}, nil // who else belongs to it nobody knows
	}
	err = c.withGroup(func(s *cgroup.Scope) (err error) { pids, err = s.Procs(); return err })
	return pids, err
}

// Update changes the limits that res names: all of them or, after an error, none.
// Devices may be named as they are, and cannot be changed.
func (c *Container) Update(ctx context.Context, res *specs.LinuxResources) error {
	if err := c.want("update", specs.StateCreated, specs.StateRunning, StatePaused); err != nil {
		return err
	}
	spec, err := c.Spec()
	if err != nil {
		return err
	}
	if was := spec.Linux.Resources; was != nil && sameDevices(was.Devices, res.Devices) {
		r := *res // podman sends everything, also what stays as it is
		r.Devices = nil
		res = &r
	}
	return c.withGroup(func(s *cgroup.Scope) error { return s.Update(ctx, res) })
}

func sameDevices(a, b []specs.LinuxDeviceCgroup) bool {
	x, err1 := specjson.Marshal(a)
	y, err2 := specjson.Marshal(b)
	return err1 == nil && err2 == nil && string(x) == string(y)
}

// Stats are what the kernel has counted for a container. What it does not count
// here is nil, or not known.
type Stats struct {
	MemoryUsage, MemoryLimit cgroup.Number // a limit is not Known where there is none
	SwapUsage, SwapLimit     cgroup.Number
	OOMKills                 uint64
	Pids, PidsMax            cgroup.Number
	CPU                      map[string]uint64 // of cpu.stat, in microseconds and counts
	Memory                   map[string]uint64 // of memory.stat, in bytes and counts
	Disk                     []cgroup.DiskStats
}

// Stats reads them once.
func (c *Container) Stats() (*Stats, error) {
	st := &Stats{}
	err := c.withGroup(func(s *cgroup.Scope) error {
		var errs [7]error
		st.MemoryUsage, st.MemoryLimit, errs[5] = s.Amounts("memory.current", "memory.max")
		st.SwapUsage, st.SwapLimit, errs[6] = s.Amounts("memory.swap.current", "memory.swap.max")
		st.OOMKills, errs[0] = s.OOMKills()
		st.CPU, errs[1] = s.Counters("cpu.stat")
		st.Memory, errs[2] = s.Counters("memory.stat")
		st.Disk, errs[3] = s.Disks()
		st.Pids, st.PidsMax, errs[4] = s.Amounts("pids.current", "pids.max")
		for _, err := range errs {
			if err != nil && !errors.Is(err, fs.ErrNotExist) { // a controller that this machine lacks
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read statistics of container %s: %w", c.rec.ID, err)
	}
	return st, nil
}
