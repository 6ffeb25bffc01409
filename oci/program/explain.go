package program

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
)

// Explain writes a program for people: one line per step with the system call,
// its arguments, and what it is for.
//
//	17  openat2      r1 = (root, "proc", PATH|DIRECTORY in root, 24)   find /proc
//
// r1 and the like are registers. Under a step stand the errors that do not end
// the child, and where it goes on then. The first line says what the descriptors
// are that the child begins with.
func Explain(w io.Writer, p *step.Program) error {
	files := make([]string, 0, len(p.Files))
	for i, f := range p.Files {
		files = append(files, descText(uint64(step.FirstFD+i))+" "+f)
	}
	if _, err := fmt.Fprintf(w, "     descriptors  0, 1, 2 stdio; %d report; %d start; %s\n", step.ReportFD, step.StartFD, strings.Join(files, "; ")); err != nil {
		return err
	}
	return ExplainSteps(w, p, 0, len(p.Steps))
}

// ExplainSteps writes the steps from first up to and without last, as Explain
// does. Numbers beyond the program are cut to it.
func ExplainSteps(w io.Writer, p *step.Program, first, last int) error {
	e := explainer{p: p, w: bufio.NewWriter(w)}
	if first <= 0 {
		fmt.Fprintf(e.w, "     clone3       (%s)\n", flagText(p.Clone|unix.CLONE_PIDFD|unix.CLONE_CLEAR_SIGHAND, cloneText))
	}
	for i := max(first, 0); i < min(last, len(p.Steps)); i++ {
		e.step(i)
	}
	return e.w.Flush()
}

type explainer struct {
	p *step.Program
	w *bufio.Writer
}

// form says how an argument is shown.
type form byte

// Forms of arguments; the letters stand in the table of signatures.
const (
	number form = 'n' // decimal
	hex    form = 'x'
	str    form = 's' // pointer to a string
	desc   form = 'd' // descriptor
	how    form = 'h' // struct open_how
	attr   form = 'a' // struct mount_attr
	argv   form = 'v' // array of strings
	blob   form = 'b' // pointer to anything else
)

// signatures has the name of each call that the compiler uses and the forms of
// its arguments.
var signatures = map[uint32]struct{ name, args string }{
	unix.SYS_SETSID: {"setsid", ""}, unix.SYS_UMASK: {"umask", "o"}, unix.SYS_UNSHARE: {"unshare", "C"}, unix.SYS_SETNS: {"setns", "dC"},
	unix.SYS_SETHOSTNAME: {"sethostname", "sn"}, unix.SYS_SETDOMAINNAME: {"setdomainname", "sn"},
	unix.SYS_STATX: {"statx", "dsAxb"}, unix.SYS_NEWFSTATAT: {"newfstatat", "dsbA"}, unix.SYS_FSTATFS: {"fstatfs", "db"},
	unix.SYS_SOCKET: {"socket", "nxn"}, unix.SYS_IOCTL: {"ioctl", "dig"}, unix.SYS_DUP3: {"dup3", "dnn"}, unix.SYS_FCNTL: {"fcntl", "dnn"}, unix.SYS_SENDMSG: {"sendmsg", "dMx"}, unix.SYS_CLOSE: {"close", "d"},
	unix.SYS_MOUNT_SETATTR: {"mount_setattr", "dsAan"}, unix.SYS_MOVE_MOUNT: {"move_mount", "dsdsB"}, unix.SYS_OPEN_TREE: {"open_tree", "dsA"},
	unix.SYS_FSOPEN: {"fsopen", "sx"}, unix.SYS_FSCONFIG: {"fsconfig", "dfssn"}, unix.SYS_FSMOUNT: {"fsmount", "dxm"}, unix.SYS_FSPICK: {"fspick", "dsx"},
	unix.SYS_OPENAT2: {"openat2", "dshn"}, unix.SYS_MKDIRAT: {"mkdirat", "dso"}, unix.SYS_MKNODAT: {"mknodat", "dsoD"},
	unix.SYS_SYMLINKAT: {"symlinkat", "sds"}, unix.SYS_FCHOWNAT: {"fchownat", "dsIIA"}, unix.SYS_FCHDIR: {"fchdir", "d"},
	unix.SYS_PIVOT_ROOT: {"pivot_root", "ss"}, unix.SYS_UMOUNT2: {"umount2", "sU"}, unix.SYS_CHDIR: {"chdir", "s"}, unix.SYS_GETCWD: {"getcwd", "bn"},
	unix.SYS_PRLIMIT64: {"prlimit64", "nlRn"}, unix.SYS_KEYCTL: {"keyctl", "nn"}, unix.SYS_PRCTL: {"prctl", "pnnnn"},
	unix.SYS_SETGROUPS: {"setgroups", "nb"}, unix.SYS_SETRESGID: {"setresgid", "III"}, unix.SYS_SETRESUID: {"setresuid", "III"},
	unix.SYS_CAPSET: {"capset", "bK"}, unix.SYS_RT_SIGPROCMASK: {"rt_sigprocmask", "nbnn"}, unix.SYS_CLOSE_RANGE: {"close_range", "nnn"},
	unix.SYS_WRITE: {"write", "dbn"}, unix.SYS_READ: {"read", "dbn"}, unix.SYS_PWRITE64: {"pwrite64", "dsnn"}, unix.SYS_WRITEV: {"writev", "dbn"}, unix.SYS_SECCOMP: {"seccomp", "nLF"},
	unix.SYS_CLONE3: {"clone3", "Pn"}, unix.SYS_EXIT_GROUP: {"exit_group", "n"},
	unix.SYS_EXECVE: {"execve", "svv"}, unix.SYS_EXECVEAT: {"execveat", "dsvvx"}, unix.SYS_RT_SIGACTION: {"rt_sigaction", "nbbn"},
	unix.SYS_SCHED_SETATTR: {"sched_setattr", "nSx"}, unix.SYS_SCHED_SETAFFINITY: {"sched_setaffinity", "nnN"}, unix.SYS_IOPRIO_SET: {"ioprio_set", "nnx"},
	unix.SYS_PERSONALITY: {"personality", "x"}, unix.SYS_SET_MEMPOLICY: {"set_mempolicy", "xNn"},
	step.OpExpect: {"expect", "xxEx"}, step.OpSet: {"set", "x"}, step.OpStore: {"store", "xbn"}, step.OpHand: {"hand", "d"},
}

func (e explainer) step(i int) {
	s := &e.p.Steps[i]
	name, args := e.call(s)
	text := "(" + strings.Join(args, ", ") + ")"
	if s.Result != step.NoResult {
		text = fmt.Sprintf("r%d = %s", s.Result, text)
	}
	fmt.Fprintf(e.w, "%4d %-13s %-72s %s\n", i, name, text, s.Name)
	for _, b := range s.OnErr {
		fmt.Fprintf(e.w, "%19s%s: go on at %d\n", "", errnoName(b.Errno), i+1+int(b.Skip))
	}
	if s.Then > 0 {
		fmt.Fprintf(e.w, "%19sdone: go on at %d\n", "", i+1+int(s.Then))
	}
}

// call returns the name of a step's call and its arguments.
func (e explainer) call(s *step.Step) (name string, args []string) {
	sig, ok := signatures[s.Nr]
	if !ok {
		sig.name, sig.args = "call "+strconv.Itoa(int(s.Nr)), "xxxxxx"
	}
	if s.Nr == step.OpExpect {
		return sig.name, []string{e.expectation(s)}
	}
	for n, f := range []byte(sig.args) {
		args = append(args, e.arg(form(f), s.Args[n]))
	}
	return sig.name, args
}

func (e explainer) expectation(s *step.Step) string {
	got := e.arg(hex, s.Args[0])
	if m := s.Args[3].Val; m != ^uint64(0) {
		got += " & " + e.arg(hex, s.Args[3])
	}
	return fmt.Sprintf("%s == %s, else %s", got, e.arg(hex, s.Args[1]), errnoName(uint16(s.Args[2].Val)))
}

func errnoName(n uint16) string {
	if name := unix.ErrnoName(unix.Errno(n)); name != "" {
		return name
	}
	return "errno " + strconv.Itoa(int(n))
}

// arg shows one argument.
func (e explainer) arg(f form, a step.Arg) string {
	switch a.Kind {
	case step.Reg:
		return "r" + strconv.FormatUint(a.Val, 10)
	case step.Mem8, step.Mem32, step.Mem64:
		return "data[" + strconv.FormatUint(a.Val, 10) + "]"
	case step.Addr:
		return e.pointer(f, a)
	}
	if show, ok := constants[f]; ok {
		return show(a.Val)
	}
	if int64(a.Val) > -4096 && int64(a.Val) < 10 {
		return strconv.FormatInt(int64(a.Val), 10)
	}
	return "0x" + strconv.FormatUint(a.Val, 16)
}

// constants shows arguments that are no pointers.
var constants = map[form]func(uint64) string{
	number: func(v uint64) string { return strconv.FormatInt(int64(v), 10) },
	'o':    func(v uint64) string { return "0" + strconv.FormatUint(v, 8) },
	desc:   descText,
	'C':    func(v uint64) string { return flagText(v, cloneText) },
	'D':    func(v uint64) string { return fmt.Sprintf("%d:%d", unix.Major(v), unix.Minor(v)) },
	'm':    func(v uint64) string { return flagText(v, attrText) },
	'i':    func(v uint64) string { return cmp.Or(ioctlNames[v], "0x"+strconv.FormatUint(v, 16)) },
	'L':    flags(filterText),
	'A':    flags(atText),
	'B':    flags(moveText),
	'U':    flags([]flag{{unix.MNT_DETACH, "DETACH"}}),
	'g':    flags(openText),
	'I':    func(v uint64) string { return strconv.FormatInt(int64(int32(v)), 10) },
	'p':    func(v uint64) string { return cmp.Or(prctlNames[v], strconv.FormatUint(v, 10)) },
	'l':    rlimitText,
	'f':    func(v uint64) string { return cmp.Or(fsconfigNames[v], strconv.FormatUint(v, 10)) },
}

// flags shows flags, and none of them as 0.
func flags(names []flag) func(uint64) string {
	return func(v uint64) string {
		if v == 0 {
			return "0"
		}
		return flagText(v, names)
	}
}

func rlimitText(v uint64) string {
	for name, n := range rlimitNumbers {
		if uint64(n) == v {
			return strings.TrimPrefix(name, "RLIMIT_")
		}
	}
	return strconv.FormatUint(v, 10)
}

func descText(v uint64) string {
	switch int(v) {
	case unix.AT_FDCWD:
		return "CWD"
	case step.ReportFD:
		return "report"
	case step.StartFD:
		return "start"
	case step.FirstFD:
		return "root"
	}
	return strconv.FormatInt(int64(v), 10)
}

// pointer shows what an address points to.
func (e explainer) pointer(f form, a step.Arg) string {
	c := checker{p: e.p}
	switch f {
	case str:
		return strconv.Quote(c.text(a))
	case how:
		return "{" + flagText(c.word(a, 0)&^unix.O_CLOEXEC, openText) + " " + flagText(c.word(a, 16), resolveText) + "}"
	case attr:
		var t []string
		for i, n := range []string{"set ", "clear "} {
			if v := c.word(a, uint64(8*i)); v != 0 {
				t = append(t, n+flagText(v, attrText))
			}
		}
		if v := c.word(a, 16); v != 0 {
			t = append(t, flagText(v, propagationText))
		}
		return "{" + strings.Join(t, ", ") + "}"
	case argv:
		return e.vector(a)
	case 'P':
		return "{" + flagText(c.word(a, 0), cloneText) + "}"
	case 'R':
		return fmt.Sprintf("{%d, %d}", int64(c.word(a, 0)), int64(c.word(a, 8)))
	case 'S':
		return fmt.Sprintf("{policy %d, flags %#x, nice %d, priority %d, %d/%d/%d}", c.word(a, 0)>>32, c.word(a, 8), int32(c.word(a, 16)), c.word(a, 16)>>32,
			c.word(a, 24), c.word(a, 32), c.word(a, 40))
	case 'N':
		return fmt.Sprintf("{%#x}", c.word(a, 0))
	case 'M':
		return "{a descriptor}"
	case 'F':
		return fmt.Sprintf("{%d instructions}", c.word(a, 0)&0xffff)
	}
	return "data+" + strconv.FormatUint(a.Val, 10)
}

// vector shows the first strings of an array and how many follow.
func (e explainer) vector(a step.Arg) string {
	at := map[uint32]uint32{}
	for _, r := range e.p.Relocs {
		at[r.At] = r.To
	}
	var out []string
	for off := uint32(a.Val); ; off += 8 {
		to, ok := at[off]
		if !ok || int(off)+8 > len(e.p.Data) || binary.NativeEndian.Uint64(e.p.Data[off:]) != 0 {
			break
		}
		out = append(out, strconv.Quote((&checker{p: e.p}).text(step.Arg{Kind: step.Addr, Val: uint64(to)})))
	}
	if len(out) > 4 {
		out = append(out[:3], fmt.Sprintf("and %d more", len(out)-3))
	}
	return "[" + strings.Join(out, ", ") + "]"
}
