package program

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
	"github.com/vitrine-runtime/vitrine/internal/sysctl"
)

// writes demands that what a program writes to files goes, whole, to files of a
// procfs of its own: the labels of its execve, and parameters that belong to a
// namespace (rule R2).
func (c *checker) writes(i int, s *step.Step) error {
	if s.Nr != unix.SYS_PWRITE64 && s.Nr != unix.SYS_WRITEV {
		return nil
	}
	j := c.definition(i, s.Args[0])
	if j < 0 || c.p.Steps[j].Nr != unix.SYS_OPENAT2 || !c.ownProcfs(j, &c.p.Steps[j]) {
		return c.broken(i, "write to something else than a file of its own procfs")
	}
	path := c.text(c.p.Steps[j].Args[1])
	param, isParam := strings.CutPrefix(path, "sys/")
	if !slices.Contains([]string{apparmorExec, labelExec, labelKeys, clockOffsets}, path) && !(isParam && sysctl.Of(param) != sysctl.Machine) {
		return c.broken(i, "write to a file that is the machine's")
	}
	if (s.Nr == unix.SYS_WRITEV) != (path == clockOffsets) {
		return c.broken(i, "write in a way that the file does not know")
	}
	if s.Nr == unix.SYS_WRITEV {
		if s.Args[2] != val(1) || !c.expects(i, reg(s.Result), c.word(s.Args[1], 8)) {
			return c.broken(i, "write that may be cut short")
		}
		return nil
	}
	if s.Args[2].Kind != step.Const || s.Args[3] != val(0) || !c.expects(i, reg(s.Result), s.Args[2].Val) {
		return c.broken(i, "write that may be cut short")
	}
	return nil
}

// ownProcfs says whether an openat2 is confined to a mount of proc that the
// program has made and attached nowhere.
func (c *checker) ownProcfs(i int, s *step.Step) bool {
	return c.word(s.Args[2], 16) == inProcfs && c.procfsMount(i, s.Args[0])
}

// procfsMount says whether the directory of step i is the root of such a mount.
func (c *checker) procfsMount(i int, dir step.Arg) bool {
	j := c.definition(i, dir)
	if j < 0 || c.p.Steps[j].Nr != unix.SYS_FSMOUNT {
		return false
	}
	k := c.definition(j, c.p.Steps[j].Args[0])
	if k < 0 || c.p.Steps[k].Nr != unix.SYS_FSOPEN || c.text(c.p.Steps[k].Args[0]) != "proc" {
		return false
	}
	return !slices.ContainsFunc(c.p.Steps, func(m step.Step) bool { return m.Nr == unix.SYS_MOVE_MOUNT && m.Args[0] == dir })
}

// definition returns the step before i that fills the register of an argument,
// or -1 unless every way to i goes through that and on without a jump.
func (c *checker) definition(i int, a step.Arg) int {
	if a.Kind != step.Reg {
		return -1
	}
	at := -1
	for j := i - 1; j >= 0 && at < 0; j-- {
		if c.p.Steps[j].Result == step.Register(a.Val) {
			at = j
		}
	}
	for j := range max(at, 0) { // what jumps over it
		s := &c.p.Steps[j]
		far := int(s.Then)
		for _, b := range s.OnErr {
			far = max(far, int(b.Skip))
		}
		if j+1+far > at {
			return -1
		}
	}
	return at
}
