package program

import (
	"fmt"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
)

// ownClocks is the link to the time namespace that unshare has made; it leads to no
// file, and is no path.
const ownClocks = "self/ns/time_for_children"

// clockOffsets is the file that the clocks of a new time namespace are set by,
// until somebody is in it.
const clockOffsets = "self/timens_offsets"

// clockNames are the clocks that a time namespace has, in the order of writing.
var clockNames = []string{"monotonic", "boottime"}

// clocks makes the time namespace if its clocks are to be set: the clone would
// have put the child into it, and then they stand. One that was forked into a user
// namespace cannot set them: to the kernel its files are those of the root outside,
// who does it then, at step.GateMaps.
func (c *compiler) clocks() error {
	offsets := c.spec.Linux.TimeOffsets
	if len(offsets) == 0 {
		return nil
	}
	text, err := ClockText(offsets)
	if err != nil {
		return err
	}
	if c.ns.fresh&unix.CLONE_NEWTIME == 0 {
		return fmt.Errorf("linux.timeOffsets: without a new time namespace: %w", ErrInvalid)
	}
	if c.ns.joined&unix.CLONE_NEWUSER != 0 || c.ns.fresh&unix.CLONE_NEWUSER != 0 && !c.in.ClocksAtGate {
		return fmt.Errorf("linux.timeOffsets: in a user namespace, and nobody sets the clocks: %w", ErrUnsupported)
	}
	c.procfs()
	if c.ns.fresh&unix.CLONE_NEWUSER == 0 {
		c.setClocks(text)
	}
	c.openBelow("find its clocks", reg(rProc), ownClocks, unix.O_RDONLY, 0, rTarget)
	c.call("go by them", unix.SYS_SETNS, reg(rTarget), val(uint64(unix.CLONE_NEWTIME)))
	c.closeReg(rTarget)
	return nil
}

// makeClocks makes the time namespace, before the gate at which a parent may set
// its clocks.
func (c *compiler) makeClocks() {
	if len(c.spec.Linux.TimeOffsets) > 0 && c.ns.fresh&unix.CLONE_NEWTIME != 0 {
		c.call("make clocks of its own", unix.SYS_UNSHARE, val(uint64(unix.CLONE_NEWTIME)))
	}
}

// setClocks sets them.
func (c *compiler) setClocks(text string) {
	c.openProc("find the offsets of its clocks", clockOffsets)
	// This file takes no pwrite.
	c.call("set its clocks", unix.SYS_WRITEV, reg(rTarget), c.iovec(text), val(1)).to(rAny)
	c.expect("set its clocks, all of it", reg(rAny), uint64(len(text)), ^uint64(0), unix.EINVAL)
	c.closeReg(rTarget)
}

// ClockText is what is written to a process's timens_offsets to set the clocks of
// linux.timeOffsets, or an error that names the field.
func ClockText(offsets map[string]specs.LinuxTimeOffset) (string, error) {
	var b strings.Builder
	known := 0
	for _, name := range clockNames {
		o, ok := offsets[name]
		if !ok {
			continue
		}
		known++
		if o.Nanosecs >= 1e9 {
			return "", fmt.Errorf("linux.timeOffsets[%q].nanosecs: %d: %w", name, o.Nanosecs, ErrInvalid)
		}
		fmt.Fprintf(&b, "%s %d %d\n", name, o.Secs, o.Nanosecs)
	}
	if known != len(offsets) {
		return "", fmt.Errorf("linux.timeOffsets: a clock that is neither monotonic nor boottime: %w", ErrInvalid)
	}
	return b.String(), nil
}

// clockLink says whether a step opens the time namespace that the program has
// just made: by that one link of its own procfs, which the kernel resolves to an
// object and not to a path.
func (c *checker) clockLink(i int, s *step.Step) bool {
	return c.procfsMount(i, s.Args[0]) && c.text(s.Args[1]) == ownClocks && c.word(s.Args[2], 0) == unix.O_RDONLY|unix.O_CLOEXEC
}

// clocksSet says whether a setns goes to the time namespace of its own.
func (c *checker) clocksSet(i int, s *step.Step) bool {
	j := c.definition(i, s.Args[0])
	return s.Args[1] == val(uint64(unix.CLONE_NEWTIME)) && j >= 0 && c.p.Steps[j].Nr == unix.SYS_OPENAT2 && c.clockLink(j, &c.p.Steps[j])
}
