package program

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
)

// preserved is what the file table says of a descriptor that the process is to have.
const preserved = "descriptor for the process"

// claimPreserved takes places in the table for the descriptors that the process is to
// have behind its stdio. They stand in their order, and behind the root.
func claimPreserved(files []int, claim func(field string, file int, what string) error) error {
	for i, f := range files {
		if f != files[0]+i {
			return fmt.Errorf("preserved descriptors: file %d is not behind file %d: %w", f, files[0]+i-1, ErrInvalid)
		}
		if err := claim("preserved descriptor", f, preserved); err != nil {
			return err
		}
	}
	return nil
}

// hold moves them together, to the lowest numbers of the table, where they outlast
// the wait. Each goes down, so none covers one that is still to be moved.
func (b process) hold() {
	for i, f := range b.keep {
		b.call("keep a descriptor for the process", unix.SYS_DUP3, file(f), val(step.FirstFD+i), val(unix.O_CLOEXEC))
	}
}

// pass gives them their numbers, from 3 on. Where the report pipe is in the way it
// goes aside: a failure from here on is told through the copy.
func (b process) pass() {
	if len(b.keep) == 0 {
		return
	}
	b.call("put the report aside", unix.SYS_FCNTL, val(step.ReportFD), val(unix.F_DUPFD_CLOEXEC), val(step.FirstFD+len(b.keep))).to(rAny)
	b.call("report there", step.OpSet, reg(rAny)).to(step.ReportRegister)
	for i := range b.keep {
		b.call(fmt.Sprintf("pass on descriptor %d", step.ReportFD+i), unix.SYS_DUP3, val(step.FirstFD+i), val(step.ReportFD+i), val(0))
	}
}

// preserves says how many descriptors a program passes on.
func (c *checker) preserves() (n int) {
	for _, f := range c.p.Files {
		if f == preserved {
			n++
		}
	}
	return n
}

// passes allows a dup3 that moves a preserved descriptor: from the table to its
// beginning, closed by execve, before the start wait; from there to its number,
// behind it.
func (c *checker) passes(i int, s *step.Step) bool {
	n := uint64(c.preserves())
	from, to := s.Args[0], s.Args[1]
	if from.Kind != step.Const || to.Kind != step.Const || from.Val < step.FirstFD {
		return false
	}
	if s.Args[2] == val(unix.O_CLOEXEC) {
		f := from.Val - step.FirstFD
		return f < uint64(len(c.p.Files)) && c.p.Files[f] == preserved && to.Val >= step.FirstFD && to.Val < step.FirstFD+n && i < c.p.Wait
	}
	return s.Args[2] == val(0) && from.Val < step.FirstFD+n && to.Val == from.Val-step.FirstFD+step.ReportFD && i > c.p.Wait && c.p.Wait != step.NoWait
}

// aside allows one fcntl: the one that copies the report pipe out of the way.
func aside(s *step.Step) bool {
	return s.Args[0] == val(step.ReportFD) && s.Args[1] == val(unix.F_DUPFD_CLOEXEC) && s.Args[2].Kind == step.Const && s.Args[2].Val >= step.FirstFD
}
