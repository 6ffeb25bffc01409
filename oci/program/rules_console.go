package program

import (
	"bytes"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
)

// terminals knows the requests of ioctl, and demands that stdio is only ever
// replaced by a terminal that slaveSeen has passed, that it becomes the
// controlling terminal as stdin, and that nothing but a message for a socket of
// the file table leaves the program.
func (c *checker) terminals(i int, s *step.Step) error {
	switch s.Nr {
	case unix.SYS_IOCTL:
		return c.request(i, s)
	case unix.SYS_FCNTL:
		if !aside(s) {
			return c.broken(i, "copy of a descriptor that is not the report")
		}
	case unix.SYS_DUP3:
		if c.passes(i, s) {
			return nil
		}
		if s.Args[0].Kind != step.Reg || !c.isSlave(i, step.Register(s.Args[0].Val)) || s.Args[1].Kind != step.Const || s.Args[1].Val > 2 || s.Args[2] != val(0) {
			return c.broken(i, "stdio from something else than a terminal")
		}
	case unix.SYS_SENDMSG:
		fd := s.Args[0]
		if fd.Kind != step.Const || fd.Val <= step.FirstFD || fd.Val >= uint64(step.FirstFD+len(c.p.Files)) || s.Args[2] != val(unix.MSG_NOSIGNAL) {
			return c.broken(i, "message to something else than a socket of the table")
		}
	}
	return nil
}

// request judges an ioctl.
func (c *checker) request(i int, s *step.Step) error {
	ok := false
	switch s.Args[1] {
	case val(unix.SIOCSIFFLAGS), val(unix.TIOCSPTLCK), val(unix.TIOCSWINSZ):
		ok = true
	case val(unix.TIOCSCTTY): // without stealing it from another session
		ok = s.Args[0] == val(0) && s.Args[2] == val(0)
	case val(unix.TIOCGPTPEER):
		if ok = s.Result != step.NoResult && c.slaveSeen(i+1, s.Result); !ok {
			return c.broken(i, "terminal that nobody looks at")
		}
	}
	if !ok {
		return c.broken(i, "request that no rule knows")
	}
	return nil
}

// isSlave says whether the register holds what TIOCGPTPEER has returned.
func (c *checker) isSlave(i int, r step.Register) bool {
	for j := i - 1; j >= 0; j-- {
		if s := &c.p.Steps[j]; s.Result == r {
			return s.Nr == unix.SYS_IOCTL && s.Args[1] == val(unix.TIOCGPTPEER)
		}
	}
	return false
}

// slaveSeen says whether the steps from i on end the child unless r is the
// slave of a terminal in a devpts.
func (c *checker) slaveSeen(i int, r step.Register) bool {
	const modeAt, devAt = unsafe.Offsetof(unix.Stat_t{}.Mode), unsafe.Offsetof(unix.Stat_t{}.Rdev)
	if i+5 > len(c.p.Steps) {
		return false
	}
	fs, st := &c.p.Steps[i], &c.p.Steps[i+2]
	return fs.Nr == unix.SYS_FSTATFS && fs.Args[0] == reg(r) &&
		c.expects(i, mem64(fs.Args[1], unsafe.Offsetof(unix.Statfs_t{}.Type)), unix.DEVPTS_SUPER_MAGIC) &&
		st.Nr == unix.SYS_NEWFSTATAT && st.Args[0] == reg(r) && c.text(st.Args[1]) == "" && c.p.Steps[i+1].Then == 0 &&
		c.expects(i+2, mem32(st.Args[2], modeAt), unix.S_IFCHR) && c.p.Steps[i+3].Args[3] == val(unix.S_IFMT) && c.p.Steps[i+3].Then == 0 &&
		c.expects(i+3, mem64(st.Args[2], devAt), ttyMajor) && c.p.Steps[i+4].Args[3] == val(ttyMajorBits)
}

// stores demands that a program writes to its own data only where a descriptor
// goes in a message: everything else was read by the rules as it stands.
func (c *checker) stores(i int, s *step.Step) error {
	if s.Nr != step.OpStore {
		return nil
	}
	at, head := s.Args[1].Val, rights()
	if s.Args[2] != val(4) || at < uint64(len(head)) || !bytes.Equal(c.p.Data[at-uint64(len(head)):at], head) {
		return c.broken(i, "change of the data that is no descriptor in a message")
	}
	for j := range c.p.Steps {
		if o := &c.p.Steps[j]; slices.ContainsFunc(o.Args[:], func(a step.Arg) bool {
			return a.Kind == step.Addr && a.Val >= at-uint64(len(head)) && a.Val < at+4 && j != i
		}) {
			return c.broken(i, "change of what a call is given")
		}
	}
	return nil
}

// hands demands that what seccomp(2) returns for a filter that notifies is what
// is handed over, as the very next step: without a holder of the listener each
// notification would be ENOSYS, or wait for ever.
func (c *checker) hands(i int, s *step.Step) error {
	listens := func(s *step.Step) bool {
		return s.Nr == unix.SYS_SECCOMP && s.Args[1].Val&unix.SECCOMP_FILTER_FLAG_NEW_LISTENER != 0
	}
	given := func(s, to *step.Step) bool {
		return to.Nr == step.OpHand && s.Result != step.NoResult && to.Args[0] == reg(s.Result) && s.Then == 0 && len(s.OnErr)+len(to.OnErr) == 0
	}
	switch {
	case s.Nr == unix.SYS_SECCOMP && s.Args[1].Kind != step.Const:
		return c.broken(i, "filter with flags that nobody sees")
	case listens(s) && (i+1 == len(c.p.Steps) || !given(s, &c.p.Steps[i+1])):
		return c.broken(i, "listener that nobody gets")
	case s.Nr == step.OpHand && (i == 0 || !listens(&c.p.Steps[i-1])):
		return c.broken(i, "descriptor handed over that is no listener")
	}
	return nil
}
