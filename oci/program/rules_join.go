package program

import (
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
)

// newNamespaces are the flags that clones of a program may have.
const newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS |
	unix.CLONE_NEWUSER | unix.CLONE_NEWTIME

// hops demands of a second clone, step i, that it makes a sibling of the first
// child and shares nothing with it, that the sibling's birth is reported as the
// kernel numbers it and its maker ends there, and that nothing but namespaces was
// changed before.
func (c *checker) hops(i int) error {
	p := c.p
	for j := range p.Steps[:i] {
		if s := &p.Steps[j]; s.Nr != unix.SYS_SETNS && !hides(s) || len(s.OnErr) > 0 || s.Then != 0 {
			return c.broken(j, "something else than namespaces before a second clone")
		}
	}
	if i+3 >= len(p.Steps) || p.Clone != 0 {
		return c.broken(i, "second clone that leads nowhere")
	}
	s, child, tell, end := &p.Steps[i], &p.Steps[i+1], &p.Steps[i+2], &p.Steps[i+3]
	args := s.Args[0]
	flags := c.word(args, 0)
	const want = unix.CLONE_PARENT | unix.CLONE_PARENT_SETTID
	if s.Args[1] != val(cloneArgsSize) || flags&want != want || flags&^(want|newNamespaces) != 0 || len(s.OnErr) > 0 || s.Then != 0 {
		return c.broken(i, "clone that makes no sibling of its own")
	}
	for off := uint64(8); off < cloneArgsSize; off += 8 {
		to := slices.IndexFunc(p.Relocs, func(r step.Reloc) bool { return uint64(r.At) == args.Val+off })
		switch {
		case off == parentTID && (to < 0 || uint64(p.Relocs[to].To) != tell.Args[1].Val || tell.Args[1].Kind != step.Addr):
			return c.broken(i, "sibling that nobody knows the pid of")
		case off != parentTID && (to >= 0 || c.word(args, off) != 0):
			return c.broken(i, "clone that makes no sibling of its own")
		}
	}
	if child.Nr != step.OpExpect || child.Args[0] != reg(s.Result) || child.Args[1] != val(0) || child.Args[3] != val(^uint64(0)) ||
		child.Then != 2 || len(child.OnErr) != 1 || uint64(child.OnErr[0].Errno) != child.Args[2].Val || child.OnErr[0].Skip != 0 {
		return c.broken(i+1, "second clone after which two go on")
	}
	if tell.Nr != unix.SYS_WRITE || tell.Args[0] != val(step.ReportFD) || tell.Args[2] != val(step.RecordSize) || c.word(tell.Args[1], 0) != step.Born<<32 ||
		len(tell.OnErr) > 0 || tell.Then != 0 {
		return c.broken(i+2, "sibling that is not reported")
	}
	if end.Nr != unix.SYS_EXIT_GROUP || end.Args[0] != val(0) {
		return c.broken(i+3, "second clone after which two go on")
	}
	c.hop, c.flags = i, flags&newNamespaces
	return nil
}

// hides says whether a step makes the process untraceable.
func hides(s *step.Step) bool {
	return s.Nr == unix.SYS_PRCTL && s.Args[0] == val(unix.PR_SET_DUMPABLE) && s.Args[1] == val(0)
}

// enters looks at what makes and changes processes and namespaces on the way.
func (c *checker) enters(i int, s *step.Step) error {
	switch s.Nr {
	case unix.SYS_CLONE3:
		if i != c.hop {
			return c.broken(i, "third clone")
		}
	case unix.SYS_EXIT_GROUP:
		if c.hop < 0 || i != c.hop+3 {
			return c.broken(i, "end without an execution")
		}
	case unix.SYS_PRCTL:
		if s.Args[0] == val(unix.PR_SET_DUMPABLE) && !hides(s) {
			return c.broken(i, "process that others may trace")
		}
	case unix.SYS_UNSHARE:
		const inUser = unix.CLONE_NEWIPC | unix.CLONE_NEWCGROUP
		if !slices.Contains([]step.Arg{val(unix.CLONE_NEWTIME), val(unix.CLONE_NEWCGROUP), val(unix.CLONE_NEWIPC), val(inUser)}, s.Args[0]) {
			return c.broken(i, "namespace that a clone is to make")
		}
	case unix.SYS_SETNS:
		// An exec joins what belongs to one process, all at once. A container is made of
		// single namespaces, before anything is in its own.
		made := c.flags&unix.CLONE_NEWNS != 0
		flag := s.Args[1].Val
		if s.Args[0].Kind != step.Const && !c.clocksSet(i, s) {
			return c.broken(i, "namespace of an unknown origin")
		}
		if s.Args[1].Kind != step.Const || made && (flag&unix.CLONE_NEWNS != 0 || flag == 0 || flag&(flag-1) != 0) {
			return c.broken(i, "namespace of an unknown kind")
		}
		if made && slices.ContainsFunc(c.p.Steps[:i], func(s step.Step) bool { return s.Nr == unix.SYS_PIVOT_ROOT || s.Nr == unix.SYS_CAPSET }) {
			return c.broken(i, "namespace of another's at the end")
		}
	}
	return nil
}
