package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/vitrine-runtime/vitrine/oci/bundle"
	"github.com/vitrine-runtime/vitrine/oci/cgroup"
)

// event is a line of events: statistics, or that the kernel has killed somebody.
type event struct {
	Type string `json:"type"` // stats, oom
	ID   string `json:"id"`
	Data any    `json:"data,omitempty"`
}

// What follows has the names that readers of the other runtimes' events know.
type (
	stats struct {
		CPU    cpuStats    `json:"cpu"`
		Memory memoryStats `json:"memory"`
		Pids   pidStats    `json:"pids"`
		Blkio  blkioStats  `json:"blkio"`
	}
	cpuStats struct {
		Usage      cpuUsage   `json:"usage"`
		Throttling throttling `json:"throttling"`
	}
	cpuUsage struct { // nanoseconds
		Total  uint64 `json:"total"`
		Kernel uint64 `json:"kernel"`
		User   uint64 `json:"user"`
	}
	throttling struct {
		Periods          uint64 `json:"periods,omitempty"`
		ThrottledPeriods uint64 `json:"throttledPeriods,omitempty"`
		ThrottledTime    uint64 `json:"throttledTime,omitempty"` // nanoseconds
	}
	memoryStats struct { // bytes
		Cache uint64            `json:"cache"`
		Usage memoryUsage       `json:"usage"`
		Swap  memoryUsage       `json:"swap"`
		Raw   map[string]uint64 `json:"raw,omitempty"`
	}
	memoryUsage struct {
		Limit   uint64 `json:"limit"` // the largest number without one
		Usage   uint64 `json:"usage"`
		Failcnt uint64 `json:"failcnt"`
	}
	pidStats struct {
		Current uint64 `json:"current,omitempty"`
		Limit   uint64 `json:"limit,omitempty"`
	}
	blkioStats struct {
		Bytes []blkioEntry `json:"ioServiceBytesRecursive,omitempty"`
		Ops   []blkioEntry `json:"ioServicedRecursive,omitempty"`
	}
	blkioEntry struct {
		Major uint64 `json:"major,omitempty"`
		Minor uint64 `json:"minor,omitempty"`
		Op    string `json:"op,omitempty"`
		Value uint64 `json:"value,omitempty"`
	}
)

func limitOf(n cgroup.Number) uint64 {
	if !n.Known {
		return ^uint64(0)
	}
	return n.Value
}

func statsOf(s *bundle.Stats) stats {
	const us = 1000
	out := stats{
		CPU: cpuStats{
			Usage:      cpuUsage{Total: s.CPU["usage_usec"] * us, Kernel: s.CPU["system_usec"] * us, User: s.CPU["user_usec"] * us},
			Throttling: throttling{s.CPU["nr_periods"], s.CPU["nr_throttled"], s.CPU["throttled_usec"] * us},
		},
		Memory: memoryStats{
			Cache: s.Memory["file"], Raw: s.Memory,
			Usage: memoryUsage{Limit: limitOf(s.MemoryLimit), Usage: s.MemoryUsage.Value, Failcnt: s.OOMKills},
			Swap:  memoryUsage{Limit: limitOf(s.SwapLimit), Usage: s.SwapUsage.Value},
		},
		Pids: pidStats{Current: s.Pids.Value, Limit: s.PidsMax.Value},
	}
	for _, d := range s.Disk {
		out.Blkio.Bytes = append(out.Blkio.Bytes, blkioEntry{d.Major, d.Minor, "Read", d.ReadBytes}, blkioEntry{d.Major, d.Minor, "Write", d.WriteBytes})
		out.Blkio.Ops = append(out.Blkio.Ops, blkioEntry{d.Major, d.Minor, "Read", d.ReadOps}, blkioEntry{d.Major, d.Minor, "Write", d.WriteOps})
	}
	return out
}

func prepareEvents(c *call) ([]option, func([]string) (int, error)) {
	once, interval := false, 5*time.Second
	options := []option{
		toggle("stats", "print statistics once", &once),
		{"interval", "TIME", "between two lines of statistics (default 5s)", func(v string) (err error) {
			interval, err = duration(v)
			return err
		}},
	}
	return options, func(args []string) (int, error) {
		id, err := oneID(args)
		if err != nil {
			return 1, err
		}
		return 0, c.events(id, once, interval)
	}
}

// duration reads 5s and 500ms, and refuses what would never end or never rest.
func duration(v string) (time.Duration, error) {
	if digits := strings.TrimRight(v, "s"); digits != v {
		if n, err := strconv.Atoi(digits); err == nil && n > 0 && n < 1<<20 {
			return time.Duration(n) * time.Second, nil
		}
	}
	n, err := strconv.Atoi(strings.TrimSuffix(v, "ms"))
	if err == nil && (n <= 0 || !strings.HasSuffix(v, "ms")) {
		err = strconv.ErrSyntax
	}
	return time.Duration(n) * time.Millisecond, err
}

// events prints statistics, once or until the container has ended. In between it
// says when the kernel has killed somebody for want of memory.
func (c *call) events(id string, once bool, interval time.Duration) error {
	ctx, kills, first := untilInterrupted(), uint64(0), true
	for {
		ctr, err := c.rt.Look(id)
		if err != nil {
			return err
		}
		if _, err := ctr.Processes(); err != nil { // it runs
			if first {
				return err
			}
			return nil
		}
		s, err := ctr.Stats()
		if err != nil {
			return err
		}
		if s.OOMKills > kills && !first {
			if err := printLine(c.out, event{Type: "oom", ID: id}); err != nil {
				return err
			}
		}
		kills, first = s.OOMKills, false
		if err := printLine(c.out, event{Type: "stats", ID: id, Data: statsOf(s)}); err != nil {
			return fmt.Errorf("print statistics: %w", err)
		}
		if once {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(interval):
		}
	}
}
