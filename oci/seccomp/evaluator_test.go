package seccomp

import (
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// This file is a second opinion: it answers single calls straight from the words of the OCI text and of the package comment,
// knows nothing of ranges, graphs and instructions, and shares with the compiler nothing but the table of names.

// clause is a rule as a reader of the profile sees it.
type clause struct {
	action Action
	args   []specs.LinuxSeccompArg
	copied bool
}

// judge holds what is worked out once for a profile on a machine.
type judge struct {
	m     *machine
	p     *specs.LinuxSeccomp
	scmp  bool // take the profile as libseccomp does where we mean to differ from it (differences_test.go has the list)
	deflt Action
	names []map[uint32][]string // for each ABI: numbers (with the x32 bit) to all their names
	top   []int
	memo  map[[2]uint32][]clause // ABI and number
}

// numberNames is what judges of one machine share.
var numberNames sync.Map

func namesOf(m *machine) []map[uint32][]string {
	if list, ok := numberNames.Load(m); ok {
		return list.([]map[uint32][]string)
	}
	list := make([]map[uint32][]string, len(m.abis))
	for i, a := range m.abis {
		list[i] = map[uint32][]string{}
		for _, c := range m.calls {
			if n := c.numbers[i]; n >= 0 {
				key := uint32(n) + a.base
				list[i][key] = append(list[i][key], c.name)
			}
		}
	}
	numberNames.Store(m, list)
	return list
}

func newJudge(m *machine, p *specs.LinuxSeccomp) *judge {
	j := &judge{m: m, p: p, deflt: mustAction(p.DefaultAction, p.DefaultErrnoRet), names: namesOf(m), memo: map[[2]uint32][]clause{}}
	mentioned := map[string]bool{}
	for _, s := range p.Syscalls {
		for _, name := range s.Names {
			mentioned[name] = true
		}
	}
	for i, a := range m.abis {
		top := -1
		for number, names := range j.names[i] {
			n := number - a.base
			if a.private != 0 && n >= a.private {
				continue
			}
			for _, name := range names {
				if mentioned[name] {
					top = max(top, int(n))
				}
			}
		}
		j.top = append(j.top, top)
	}
	return j
}

// called is the name of a call, or "".
func (j *judge) called(token, number uint32) string {
	for i, a := range j.m.abis {
		if names := j.names[i][number]; a.token == token && len(names) > 0 {
			return names[0]
		}
	}
	return ""
}

func mustAction(name specs.LinuxSeccompAction, errno *uint) Action {
	e := Action(1)
	if errno != nil {
		e = Action(*errno)
	}
	switch name {
	case "SCMP_ACT_ALLOW":
		return 0x7fff0000
	case "SCMP_ACT_LOG":
		return 0x7ffc0000
	case "SCMP_ACT_TRACE":
		return 0x7ff00000 + e
	case "SCMP_ACT_ERRNO":
		return 0x00050000 + e
	case "SCMP_ACT_NOTIFY":
		return 0x7fc00000
	case "SCMP_ACT_TRAP":
		return 0x00030000
	case "SCMP_ACT_KILL", "SCMP_ACT_KILL_THREAD":
		return 0
	case "SCMP_ACT_KILL_PROCESS":
		return 0x80000000
	}
	panic(name)
}

// answer is what a call gets.
func (j *judge) answer(c Call) Action {
	abi := j.abi(c)
	if abi < 0 {
		return KillProcess
	}
	names := j.names[abi][c.Number]
	clauses := j.about(abi, c.Number)
	for _, cl := range clauses {
		if len(cl.args) == 0 {
			return cl.action
		}
	}
	var best *clause
	for i := range clauses {
		cl := &clauses[i]
		if j.matches(abi, names, cl, c.Args) && (best == nil || precedes(clauses, cl, best, j.words(abi))) {
			best = cl
		}
	}
	if best != nil {
		return best.action
	}
	return j.unnamed(abi, c.Number, names)
}

// about lists what the profile says about a number.
func (j *judge) about(abi int, number uint32) []clause {
	key := [2]uint32{uint32(abi), number}
	list, ok := j.memo[key]
	if !ok {
		for i := range j.p.Syscalls {
			list = append(list, j.clauses(abi, &j.p.Syscalls[i], j.names[abi][number])...)
		}
		if j.scmp {
			list = j.scmpArgs(abi, list)
		}
		j.memo[key] = list
	}
	return list
}

// unnamed is the answer where no rule speaks: the default, or ENOSYS for what is newer than the profile.
func (j *judge) unnamed(abi int, number uint32, names []string) Action {
	for _, s := range j.p.Syscalls {
		for _, n := range names {
			if slices.Contains(s.Names, n) {
				return j.deflt
			}
		}
	}
	switch j.p.DefaultAction {
	case "SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE":
		return j.deflt
	}
	if j.scmp {
		return j.deflt
	}
	// Where the kernel shows a number that it does not know as 0, that is a new number too.
	isNew := int(number-j.m.abis[abi].base) > j.top[abi] || number == 0 && j.m.abis[abi].zeroUnknown
	if j.top[abi] >= 0 && isNew {
		return 0x00050000 + 38
	}
	return j.deflt
}

// abi finds the ABI of a call, or -1 if the profile does not include it.
func (j *judge) abi(c Call) int {
	for i, a := range j.m.abis {
		if a.token != c.Arch {
			continue
		}
		x32 := a.token == 0xc000003e && c.Number >= 0x40000000
		included := i == 0 || slices.Contains(j.p.Architectures, a.name)
		switch {
		case x32 && a.base == 0 && c.Number == 0xffffffff && !slices.Contains(j.p.Architectures, "SCMP_ARCH_X32"):
			return i
		case x32 == (a.base != 0) && included:
			return i
		}
	}
	return -1
}

// scmpArgs takes from clauses what libseccomp does not look at: upper words where an ABI's words have 32 bits, and masks without a bit.
func (j *judge) scmpArgs(abi int, list []clause) []clause {
	for i, c := range list {
		args := []specs.LinuxSeccompArg{}
		for _, a := range c.args {
			if !j.words(abi) {
				a.Value, a.ValueTwo = a.Value&0xffffffff, a.ValueTwo&0xffffffff
			}
			if a.Op != "SCMP_CMP_MASKED_EQ" || a.Value != 0 {
				args = append(args, a)
			}
		}
		list[i].args = args
	}
	return list
}

// clauses lists what one entry of the profile says about a call, directly and through a multiplexer.
func (j *judge) clauses(abi int, s *specs.LinuxSyscall, names []string) []clause {
	action := mustAction(s.Action, s.ErrnoRet)
	if action == j.deflt {
		return nil
	}
	var out []clause
	for _, name := range s.Names {
		if slices.Contains(names, name) {
			if len(s.Args) == 0 || distinct(s.Args) {
				out = append(out, clause{action: action, args: s.Args})
				continue
			}
			for _, a := range s.Args {
				out = append(out, clause{action: action, args: []specs.LinuxSeccompArg{a}})
			}
		}
		if !j.m.abis[abi].mux || len(s.Args) > 0 && !j.scmp && restrictive(action) > restrictive(j.deflt) {
			continue
		}
		if i := slices.Index(viaSocketcall, name); i > 0 && slices.Contains(names, "socketcall") {
			out = append(out, j.copy(action, specs.LinuxSeccompArg{Value: uint64(i), Op: "SCMP_CMP_EQ"}, s.Args)...)
		}
		if i := slices.Index(viaIPC, name); i > 0 && slices.Contains(names, "ipc") {
			out = append(out, j.copy(action, specs.LinuxSeccompArg{Value: 0xffff, ValueTwo: uint64(i), Op: "SCMP_CMP_MASKED_EQ"}, s.Args)...)
		}
	}
	return out
}

// copy is what a rule says about the multiplexer.
func (j *judge) copy(action Action, number specs.LinuxSeccompArg, args []specs.LinuxSeccompArg) []clause {
	if !j.scmp {
		return []clause{{action: action, copied: true, args: []specs.LinuxSeccompArg{number}}}
	}
	if number.Op == "SCMP_CMP_MASKED_EQ" {
		number = specs.LinuxSeccompArg{Value: number.ValueTwo, Op: "SCMP_CMP_EQ"}
	}
	if !distinct(args) {
		var list []clause
		for _, a := range args {
			list = append(list, j.copy(action, number, []specs.LinuxSeccompArg{a})...)
		}
		return list
	}
	rest := slices.DeleteFunc(slices.Clone(args), func(a specs.LinuxSeccompArg) bool { return a.Index == 0 })
	return []clause{{action: action, args: append(rest, number)}}
}

// The calls behind the multiplexers, at the places of their numbers.
var (
	viaSocketcall = strings.Fields("- socket bind connect listen accept getsockname getpeername socketpair send recv sendto recvfrom shutdown " +
		"setsockopt getsockopt sendmsg recvmsg accept4 recvmmsg sendmmsg")
	viaIPC = strings.Fields("- semop semget semctl semtimedop - - - - - - msgsnd msgrcv msgget msgctl - - - - - - shmat shmdt shmget shmctl")
)

// restrictive is higher for what the kernel lets win less.
func restrictive(a Action) int { return int(int32(a & 0xffff0000)) }

func distinct(args []specs.LinuxSeccompArg) bool {
	seen := map[uint]bool{}
	for _, a := range args {
		if seen[a.Index] {
			return false
		}
		seen[a.Index] = true
	}
	return true
}

// matches: all tests hold.
func (j *judge) matches(abi int, names []string, cl *clause, args [6]uint64) bool {
	for _, a := range cl.args {
		if !holds(a, args[a.Index], j.narrowFor(abi, names, a.Index)) {
			return false
		}
	}
	return true
}

// words says whether libseccomp looks at the upper words of an ABI's arguments.
func (j *judge) words(abi int) bool {
	a := j.m.abis[abi]
	return !a.narrow && a.name != "SCMP_ARCH_X32" && a.name != "SCMP_ARCH_MIPSEL64N32"
}

func (j *judge) narrowFor(abi int, names []string, index uint) bool {
	if j.m.abis[abi].narrow {
		return true
	}
	if j.scmp {
		return !j.words(abi)
	}
	if slices.Contains(names, "clone") && j.m.abis[abi].name == "SCMP_ARCH_S390X" {
		return index == 1 // the flags come second
	}
	for _, line := range narrowLines {
		if slices.Contains(names, line[0]) {
			return strings.Contains(line[1], string(rune('0'+index)))
		}
	}
	return false
}

var narrowLines = func() (list [][2]string) {
	for line := range strings.Lines(narrowText) {
		f := strings.Fields(line)
		list = append(list, [2]string{f[0], f[1]})
	}
	return list
}()

func holds(a specs.LinuxSeccompArg, arg uint64, narrow bool) bool {
	cut := func(v uint64) uint64 {
		if narrow && int64(v) < 0 && int64(v) == int64(int32(v)) {
			return uint64(uint32(v))
		}
		return v
	}
	if narrow {
		arg = uint64(uint32(arg))
	}
	v := cut(a.Value)
	switch a.Op {
	case "SCMP_CMP_NE":
		return arg != v
	case "SCMP_CMP_LT":
		return arg < v
	case "SCMP_CMP_LE":
		return arg <= v
	case "SCMP_CMP_EQ":
		return arg == v
	case "SCMP_CMP_GE":
		return arg >= v
	case "SCMP_CMP_GT":
		return arg > v
	case "SCMP_CMP_MASKED_EQ":
		return arg&a.Value == cut(a.ValueTwo&a.Value)
	}
	panic(a.Op)
}

// precedes says whether x wins over y where both match. On ABIs with words of 64 bits the upper words of tests for equality count first.
func precedes(clauses []clause, x, y *clause, wide bool) bool {
	xs, ys := plainArgs(x.args), plainArgs(y.args)
	for i := range min(len(xs), len(ys)) {
		if xs[i] == ys[i] {
			continue
		}
		if a, b := weight(xs[i]), weight(ys[i]); a != b {
			return a > b
		}
		if wide && weight(xs[i])%100 == 3 {
			a, b := upper(xs[i]), upper(ys[i])
			if a[2] != b[2] {
				return a[2] > b[2]
			}
			if a != b {
				return beginsUpper(clauses, xs[:i+1]) < beginsUpper(clauses, ys[:i+1])
			}
		}
		if a, b := sortValue(xs[i]), sortValue(ys[i]); a != b {
			return (a > b) != (xs[i].Op == "SCMP_CMP_LT" || xs[i].Op == "SCMP_CMP_LE")
		}
		return begins(clauses, xs[:i+1]) < begins(clauses, ys[:i+1])
	}
	if len(xs) != len(ys) {
		return len(xs) < len(ys)
	}
	return !x.copied && y.copied
}

// upper is what a test for equality wants of the upper word: whether there is a mask, the mask, and the value.
func upper(a specs.LinuxSeccompArg) [3]uint64 {
	if a.Op == "SCMP_CMP_MASKED_EQ" {
		return [3]uint64{1, a.Value >> 32, a.Value & a.ValueTwo >> 32}
	}
	return [3]uint64{0, 0, a.Value >> 32}
}

// beginsUpper finds the first clause with these tests at its beginning, of the last of which only the upper word counts.
func beginsUpper(clauses []clause, prefix []specs.LinuxSeccompArg) int {
	last := len(prefix) - 1
	return slices.IndexFunc(clauses, func(c clause) bool {
		args := plainArgs(c.args)
		return len(args) > last && slices.Equal(args[:last], prefix[:last]) && args[last].Index == prefix[last].Index &&
			weight(args[last])%100 == 3 && upper(args[last]) == upper(prefix[last])
	})
}

// begins finds the first clause with these tests at its beginning.
func begins(clauses []clause, prefix []specs.LinuxSeccompArg) int {
	return slices.IndexFunc(clauses, func(c clause) bool {
		args := plainArgs(c.args)
		return len(args) >= len(prefix) && slices.Equal(args[:len(prefix)], prefix)
	})
}

// plainArgs sorts tests by index and drops what of them means nothing.
func plainArgs(args []specs.LinuxSeccompArg) []specs.LinuxSeccompArg {
	args = slices.Clone(args)
	for i, a := range args {
		if a.Op == "SCMP_CMP_MASKED_EQ" {
			args[i].ValueTwo &= a.Value
		} else {
			args[i].ValueTwo = 0
		}
	}
	slices.SortFunc(args, func(a, b specs.LinuxSeccompArg) int { return int(a.Index) - int(b.Index) })
	return args
}

func sortValue(a specs.LinuxSeccompArg) uint64 {
	if a.Op == "SCMP_CMP_MASKED_EQ" {
		return a.Value & a.ValueTwo
	}
	return a.Value
}

// weight ranks a test by argument word and kind of operator.
func weight(a specs.LinuxSeccompArg) int {
	w := int(a.Index) * 100
	switch a.Op {
	case "SCMP_CMP_EQ", "SCMP_CMP_NE", "SCMP_CMP_MASKED_EQ":
		w += 3
	case "SCMP_CMP_LT", "SCMP_CMP_LE":
		w += 2
	}
	return w
}
