package program

import (
	"fmt"
	"math"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
)

// known demands that the rules have an opinion on a call: those that Explain
// has a name for. A plain write goes to the report pipe, and nowhere else; what is
// written to files is for the rule writes to judge.
func (c *checker) known(i int, s *step.Step) error {
	word, bit := s.Nr/64%uint32(len(c.met)), uint64(1)<<(s.Nr%64)
	if s.Nr/64 != word || c.met[word]&bit == 0 {
		if _, ok := signatures[s.Nr]; !ok {
			return c.broken(i, "call that no rule knows")
		}
		if s.Nr/64 == word {
			c.met[word] |= bit
		}
	}
	if s.Nr == unix.SYS_WRITE && s.Args[0] != val(step.ReportFD) {
		return c.broken(i, "write to something else than the report pipe")
	}
	return nil
}

// reports demands that each wait is announced by its own milestone, and each
// milestone followed by its wait; that only a byte of the parent ends it; and that
// there is none behind the start wait.
func (c *checker) reports(i int, s *step.Step) error {
	switch s.Nr {
	case unix.SYS_WRITE:
		if c.hop >= 0 && i == c.hop+2 {
			return nil // the birth of a sibling: see hops
		}
		if s.Then != 0 || i+1 >= len(c.p.Steps) || c.p.Steps[i+1].Nr != unix.SYS_READ || s.Args[2] != val(step.RecordSize) || c.word(s.Args[1], 0) != uint64(uint32(i+1)) {
			return c.broken(i, "report of something that is no wait")
		}
	case unix.SYS_READ:
		if i == 0 || c.p.Steps[i-1].Nr != unix.SYS_WRITE {
			return c.broken(i, "wait without a report")
		}
		if s.Args[0] != val(step.StartFD) || s.Args[2] != val(1) || !c.expects(i, reg(s.Result), 1) {
			return c.broken(i, "wait for somebody else than the parent")
		}
		if c.p.Wait != step.NoWait && i > c.p.Wait {
			return c.broken(i, "wait behind the start wait")
		}
	}
	return nil
}

// lenient are the calls that may fail and be passed over, and with what. What
// is missing here is a protection, or has no failure that could be meant.
var lenient = map[uint32][]unix.Errno{
	unix.SYS_OPENAT2: {unix.ENOENT, unix.ENOTDIR}, // looked for; what is to be there is opened again
	unix.SYS_MKDIRAT: {unix.EEXIST}, unix.SYS_MKNODAT: {unix.EEXIST}, unix.SYS_SYMLINKAT: {unix.EEXIST},
	unix.SYS_SCHED_SETAFFINITY: {unix.EINVAL},             // where to begin; the cgroup has no such processors
	unix.SYS_KEYCTL:            {unix.ENOSYS},             // a kernel without keyrings
	unix.SYS_CHDIR:             {unix.EACCES, unix.EPERM}, // tried again as the user
	unix.SYS_PRCTL:             {unix.EINVAL},             // a capability that this kernel does not have: see strict
	// To give up groups may be denied in a user namespace, since a group can be what
	// keeps somebody out. To set some may not be passed over.
	unix.SYS_SETGROUPS: {unix.EPERM},
	unix.SYS_EXECVE:    {unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.EACCES},
}

// strict demands that a call that fails ends the child (rule R16), but for the
// failures that are told apart.
func (c *checker) strict(i int, s *step.Step) error {
	if s.Nr >= step.OpExpect {
		return nil // a question, which jumps looks after
	}
	for _, b := range s.OnErr {
		if !slices.Contains(lenient[s.Nr], unix.Errno(b.Errno)) || s.Nr == unix.SYS_PRCTL && !dropsBounding(s) ||
			s.Nr == unix.SYS_SETGROUPS && s.Args[0] != val(0) {
			return c.broken(i, "failure passed over")
		}
	}
	return nil
}

func dropsBounding(s *step.Step) bool {
	return s.Nr == unix.SYS_PRCTL && s.Args[0] == val(unix.PR_CAPBSET_DROP)
}

// jumps looks at what the branches of a step leave out.
func (c *checker) jumps(i int, s *step.Step) error {
	if c.hop >= 0 && i == c.hop+1 {
		return nil // the way of the sibling: see hops
	}
	over := func(n int, errno unix.Errno) error {
		for j := i + 1; j <= i+n && j < len(c.p.Steps); j++ {
			if !mayLeaveOut(s, errno, &c.p.Steps[j]) {
				return c.broken(j, fmt.Sprintf("protection that step %d jumps over", i))
			}
		}
		return nil
	}
	if err := over(int(s.Then), 0); err != nil {
		return err
	}
	for _, b := range s.OnErr {
		if err := over(int(b.Skip), unix.Errno(b.Errno)); err != nil {
			return err
		}
	}
	return nil
}

// mayLeaveOut says whether step s may jump over step to.
func mayLeaveOut(s *step.Step, errno unix.Errno, to *step.Step) bool {
	switch to.Nr {
	case unix.SYS_MOVE_MOUNT, unix.SYS_MOUNT_SETATTR, unix.SYS_OPEN_TREE:
		// The path was not found, or is no directory; or, from the end of one way of
		// masking, over the other.
		return s.Nr == unix.SYS_OPENAT2 && errno != 0 || s.Nr == unix.SYS_CLOSE && errno == 0
	case unix.SYS_PRCTL:
		return dropsBounding(s) && dropsBounding(to) && errno == unix.EINVAL // all higher ones are missing too
	case unix.SYS_CHDIR:
		return s.Nr == step.OpExpect
	case step.OpExpect: // a device that was made is not looked at, and a dead end is none for everybody
		return s.Nr == unix.SYS_MKNODAT && errno == 0 || s.Nr == step.OpExpect && to.Args[0] == val(0) && to.Args[1] == val(1)
	case step.OpSet, unix.SYS_OPENAT2, unix.SYS_CLOSE, unix.SYS_MKDIRAT, unix.SYS_MKNODAT, unix.SYS_FCHOWNAT, unix.SYS_NEWFSTATAT:
		return true // what makes things, and looks for them
	}
	return false
}

// spine demands the calls that every way to an execve goes through, in their
// order.
func (c *checker) spine() error {
	calls := []uint32{unix.SYS_SETNS}
	if c.flags&unix.CLONE_NEWNS != 0 {
		calls = []uint32{unix.SYS_PIVOT_ROOT, unix.SYS_UMOUNT2}
	}
	calls = append(calls, unix.SYS_SETGROUPS, unix.SYS_SETRESGID, unix.SYS_SETRESUID, unix.SYS_CAPSET, unix.SYS_GETCWD, unix.SYS_CLOSE_RANGE)
	if c.p.Wait != step.NoWait {
		calls = append(calls, unix.SYS_READ)
	}
	for i := range c.p.Steps {
		s := &c.p.Steps[i]
		switch {
		case len(calls) > 0 && s.Nr == calls[0]:
			if !c.holds(i, s) {
				return c.broken(i, "without effect")
			}
			calls = calls[1:]
		case len(calls) > 0 && (s.Nr == unix.SYS_EXECVE || s.Nr == unix.SYS_EXECVEAT):
			return c.broken(i, "execution without "+signatures[calls[0]].name)
		case (s.Nr == unix.SYS_CHDIR || s.Nr == unix.SYS_FCHDIR) && !slices.Contains(calls, unix.SYS_GETCWD):
			return c.broken(i, "directory that nobody looks at")
		}
	}
	return nil
}

// holds says whether a call of the spine does what it is there for.
func (c *checker) holds(i int, s *step.Step) bool {
	switch s.Nr {
	case unix.SYS_UMOUNT2:
		return s.Args[1] == val(unix.MNT_DETACH)
	case unix.SYS_SETNS:
		return s.Args[1].Kind == step.Const && s.Args[1].Val&unix.CLONE_NEWNS != 0
	case unix.SYS_CLOSE_RANGE:
		return c.closesAll(s)
	case unix.SYS_GETCWD:
		return c.expects(i, step.Arg{Kind: step.Mem8, Val: s.Args[0].Val}, '/')
	case unix.SYS_READ:
		return i == c.p.Wait && s.Args[0] == val(step.StartFD) && c.expects(i, reg(s.Result), 1)
	}
	return true
}

// expects says whether the step behind i ends the child unless got is want.
func (c *checker) expects(i int, got step.Arg, want uint64) bool {
	if i+1 >= len(c.p.Steps) || c.p.Steps[i].Then != 0 {
		return false
	}
	s := &c.p.Steps[i+1]
	return s.Nr == step.OpExpect && s.Args[0] == got && s.Args[1] == val(want) && len(s.OnErr) == 0
}

// closesAll demands that nothing stays but the fixed descriptors and those that the
// process is to have.
func (c *checker) closesAll(s *step.Step) bool {
	return s.Args[0].Kind == step.Const && s.Args[0].Val <= uint64(step.FirstFD+c.preserves()) && s.Args[1] == val(uint64(math.MaxUint32)) && s.Args[2] == val(0)
}

// private demands that the new root is made private, or a slave, before something
// is mounted, that it is the program's own namespace where that happens, and that of
// each mount which is handed over it is said whom it shares with before it is attached:
// a copy of a shared mount shows the host all that is mounted on it.
func (c *checker) private() error {
	ours, said := false, map[uint64]bool{}
	for i := range c.p.Steps {
		switch s := &c.p.Steps[i]; s.Nr {
		case unix.SYS_MOUNT_SETATTR:
			if s.Args[0].Kind == step.Const && s.Args[2] == val(unix.AT_EMPTY_PATH|unix.AT_RECURSIVE) && c.word(s.Args[3], 16) != 0 {
				said[s.Args[0].Val] = true
			}
			ours = ours || s.Args[0] == rootFD && s.Args[2] == val(unix.AT_EMPTY_PATH|unix.AT_RECURSIVE) && (c.word(s.Args[3], 16) == unix.MS_PRIVATE || c.word(s.Args[3], 16) == unix.MS_SLAVE)
		case unix.SYS_MOVE_MOUNT:
			if !ours || c.flags&unix.CLONE_NEWNS == 0 {
				return c.broken(i, "mount that may be seen outside")
			}
			if s.Args[0].Kind == step.Const && !said[s.Args[0].Val] {
				return c.broken(i, "mount that may be shared with the host")
			}
		}
	}
	return nil
}
