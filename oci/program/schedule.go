package program

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// schedule says how the process is to be run: by which scheduler, with which
// priority for disks, where, and on which memory. All of it survives execve, and
// some of it wants CAP_SYS_NICE, so it stands before the capabilities go.
func (b process) schedule() error {
	for _, section := range []func() error{b.affinity, b.scheduler, b.ioPriority, b.memoryPolicy, b.personality} {
		if err := section(); err != nil {
			return err
		}
	}
	return nil
}

// schedulerPolicies has SCHED_* of linux/sched.h. SCHED_ISO has a number there
// and nothing behind it.
var schedulerPolicies = map[specs.LinuxSchedulerPolicy]uint32{
	specs.SchedOther: unix.SCHED_NORMAL, specs.SchedFIFO: unix.SCHED_FIFO, specs.SchedRR: unix.SCHED_RR,
	specs.SchedBatch: unix.SCHED_BATCH, specs.SchedIdle: unix.SCHED_IDLE, specs.SchedDeadline: unix.SCHED_DEADLINE,
}

// schedulerFlags has SCHED_FLAG_* of linux/sched.h. The flags for utilization
// clamping are missing: the spec has no field for the values that they announce.
var schedulerFlags = map[specs.LinuxSchedulerFlag]uint64{
	specs.SchedFlagResetOnFork: unix.SCHED_FLAG_RESET_ON_FORK, specs.SchedFlagReclaim: unix.SCHED_FLAG_RECLAIM,
	specs.SchedFlagDLOverrun: unix.SCHED_FLAG_DL_OVERRUN, specs.SchedFlagKeepPolicy: unix.SCHED_FLAG_KEEP_POLICY,
	specs.SchedFlagKeepParams: unix.SCHED_FLAG_KEEP_PARAMS,
}

func (b process) scheduler() error {
	s := b.spec.Scheduler
	if s == nil {
		return nil
	}
	attr, err := schedAttr(s)
	if err != nil {
		return err
	}
	raw := unsafe.Slice((*byte)(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	b.call("schedule by "+string(s.Policy), unix.SYS_SCHED_SETATTR, val(0), b.bytes(raw), val(0))
	return nil
}

// schedAttr refuses what the kernel would take and not look at: a nice value
// for a real-time policy, say.
func schedAttr(s *specs.Scheduler) (unix.SchedAttr, error) {
	policy, ok := schedulerPolicies[s.Policy]
	if s.Policy == specs.SchedISO {
		return unix.SchedAttr{}, fmt.Errorf("process.scheduler.policy: %s, which Linux does not have: %w", s.Policy, ErrUnsupported)
	}
	if !ok {
		return unix.SchedAttr{}, fmt.Errorf("process.scheduler.policy: %.100q: %w", s.Policy, ErrInvalid)
	}
	fair := policy == unix.SCHED_NORMAL || policy == unix.SCHED_BATCH
	static := policy == unix.SCHED_FIFO || policy == unix.SCHED_RR
	deadline := policy == unix.SCHED_DEADLINE
	switch {
	case s.Nice < -20 || s.Nice > 19 || s.Nice != 0 && !fair:
		return unix.SchedAttr{}, fmt.Errorf("process.scheduler.nice: %d with %s: %w", s.Nice, s.Policy, ErrInvalid)
	case !static && s.Priority != 0 || static && (s.Priority < 1 || s.Priority > 99):
		return unix.SchedAttr{}, fmt.Errorf("process.scheduler.priority: %d with %s: %w", s.Priority, s.Policy, ErrInvalid)
	}
	for _, f := range []struct {
		name  string
		value uint64
	}{{"runtime", s.Runtime}, {"deadline", s.Deadline}, {"period", s.Period}} {
		if f.value != 0 && !deadline {
			return unix.SchedAttr{}, fmt.Errorf("process.scheduler.%s: with %s: %w", f.name, s.Policy, ErrInvalid)
		}
	}
	attr := unix.SchedAttr{
		Size: unix.SizeofSchedAttr, Policy: policy, Nice: s.Nice, Priority: uint32(s.Priority),
		Runtime: s.Runtime, Deadline: s.Deadline, Period: s.Period,
	}
	for i, f := range s.Flags {
		bits, ok := schedulerFlags[f]
		if !ok {
			return attr, fmt.Errorf("process.scheduler.flags[%d]: %.100q: %w", i, f, ErrUnsupported)
		}
		attr.Flags |= bits
	}
	return attr, nil
}

// ioClasses has IOPRIO_CLASS_* of linux/ioprio.h.
var ioClasses = map[specs.IOPriorityClass]int{specs.IOPRIO_CLASS_RT: 1, specs.IOPRIO_CLASS_BE: 2, specs.IOPRIO_CLASS_IDLE: 3}

// ioPriority sets the priority of the process group, which is this process: it
// leads a session of its own.
func (b process) ioPriority() error {
	const whoPgrp, classShift = 2, 13 // IOPRIO_WHO_PGRP, IOPRIO_CLASS_SHIFT of linux/ioprio.h
	p := b.spec.IOPriority
	if p == nil {
		return nil
	}
	class, ok := ioClasses[p.Class]
	if !ok {
		return fmt.Errorf("process.ioPriority.class: %.100q: %w", p.Class, ErrInvalid)
	}
	if p.Priority < 0 || p.Priority > 7 {
		return fmt.Errorf("process.ioPriority.priority: %d: %w", p.Priority, ErrInvalid)
	}
	b.call("set the priority for input and output", unix.SYS_IOPRIO_SET, val(whoPgrp), val(0), val(class<<classShift|p.Priority))
	return nil
}

// affinity sets the processors of an exec, "final" in the spec: it is in the
// container's cgroup by now. It is none of an init's business.
func (b process) affinity() error {
	a := b.spec.ExecCPUAffinity
	if a == nil || a.Final == "" {
		return nil
	}
	mask, err := parseList("process.execCPUAffinity.final", a.Final, maxCPUs)
	if err != nil || !b.exec {
		return err
	}
	b.call("run on processors "+a.Final, unix.SYS_SCHED_SETAFFINITY, val(0), val(len(mask)), b.bytes(mask))
	return nil
}

// initialAffinity sets the processors that an exec begins on; an init has none. The spec wants
// that before the process enters its cgroup; ours is born there, where its first
// call comes closest. As there, processors that the cgroup does not have give way
// to those that it has.
func (b process) initialAffinity() error {
	a := b.spec.ExecCPUAffinity
	if a == nil || a.Initial == "" {
		return nil
	}
	mask, err := parseList("process.execCPUAffinity.initial", a.Initial, maxCPUs)
	if err != nil || !b.exec {
		return err
	}
	b.call("begin on processors "+a.Initial, unix.SYS_SCHED_SETAFFINITY, val(0), val(len(mask)), b.bytes(mask)).ok(unix.EINVAL)
	return nil
}

// Limits of lists: the largest that kernels are built with.
const (
	maxCPUs  = 8192
	maxNodes = 1024
)

// parseList reads a list such as "0-3,7" into a mask of whole 64-bit words.
func parseList(field, list string, limit int) ([]byte, error) {
	words := []uint64{0}
	for part := range strings.SplitSeq(list, ",") {
		from, to, ranged := strings.Cut(strings.TrimSpace(part), "-")
		if !ranged {
			to = from
		}
		a, errA := strconv.ParseUint(from, 10, 16)
		z, errZ := strconv.ParseUint(to, 10, 16)
		if errA != nil || errZ != nil || a > z || z >= uint64(limit) {
			return nil, fmt.Errorf("%s: %.100q: %w", field, list, ErrInvalid)
		}
		for ; a <= z; a++ {
			for int(a/64) >= len(words) {
				words = append(words, 0)
			}
			words[a/64] |= 1 << (a % 64)
		}
	}
	var mask []byte
	for _, w := range words {
		mask = binary.NativeEndian.AppendUint64(mask, w)
	}
	return mask, nil
}

// personality sets the execution domain.
func (b process) personality() error {
	p := b.domain
	if p == nil {
		return nil
	}
	if len(p.Flags) > 0 {
		return fmt.Errorf("linux.personality.flags[0]: %.100q: %w", p.Flags[0], ErrUnsupported)
	}
	var domain int
	switch p.Domain {
	case specs.PerLinux:
	case specs.PerLinux32:
		domain = 8 // PER_LINUX32 of linux/personality.h
	default:
		return fmt.Errorf("linux.personality.domain: %.100q: %w", p.Domain, ErrInvalid)
	}
	b.call("be a process of "+string(p.Domain), unix.SYS_PERSONALITY, val(domain))
	return nil
}

// memoryModes and memoryFlags have MPOL_* of linux/mempolicy.h.
var memoryModes = map[specs.MemoryPolicyModeType]int{
	specs.MpolDefault: 0, specs.MpolPreferred: 1, specs.MpolBind: 2, specs.MpolInterleave: 3, specs.MpolLocal: 4,
	specs.MpolPreferredMany: 5, specs.MpolWeightedInterleave: 6,
}

var memoryFlags = map[specs.MemoryPolicyFlagType]int{
	specs.MpolFStaticNodes: 1 << 15, specs.MpolFRelativeNodes: 1 << 14, specs.MpolFNumaBalancing: 1 << 13,
}

// memoryPolicy sets the policy that the memory of the process follows. Which
// modes go with which nodes and flags is the kernel's to say.
func (b process) memoryPolicy() error {
	m := b.memory
	if m == nil {
		return nil
	}
	mode, ok := memoryModes[m.Mode]
	if !ok {
		return fmt.Errorf("linux.memoryPolicy.mode: %.100q: %w", m.Mode, ErrInvalid)
	}
	for i, f := range m.Flags {
		bits, ok := memoryFlags[f]
		if !ok {
			return fmt.Errorf("linux.memoryPolicy.flags[%d]: %.100q: %w", i, f, ErrInvalid)
		}
		mode |= bits
	}
	nodes, count := val(0), 0
	if m.Nodes != "" {
		mask, err := parseList("linux.memoryPolicy.nodes", m.Nodes, maxNodes)
		if err != nil {
			return err
		}
		nodes, count = b.bytes(mask), 8*len(mask)+1 // the kernel takes one off
	}
	b.call(strings.TrimSpace("take memory by "+string(m.Mode)+" "+m.Nodes), unix.SYS_SET_MEMPOLICY, val(mode), nodes, val(count))
	return nil
}
