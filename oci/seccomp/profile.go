package seccomp

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sort"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// operator is one of the seven comparisons.
type operator uint8

const (
	opNE operator = iota
	opEQ
	opMaskedEQ
	opLT
	opLE
	opGE
	opGT
)

var operators = map[specs.LinuxSeccompOperator]operator{
	specs.OpNotEqual: opNE, specs.OpEqualTo: opEQ, specs.OpMaskedEqual: opMaskedEQ,
	specs.OpLessThan: opLT, specs.OpLessEqual: opLE, specs.OpGreaterEqual: opGE, specs.OpGreaterThan: opGT,
}

// test is one comparison of one argument.
type test struct {
	arg   int
	op    operator
	value uint64
	mask  uint64 // opMaskedEQ only; value is within it
}

// rule is an action under tests, all of which must hold. They are in the order of their argument indexes, each at most once.
type rule struct {
	action Action
	tests  []test
	copied bool // came from a call that the multiplexer hides: yields to the profile's own words
}

// maxRules bounds the rules with arguments for one call; the work for them grows with the square.
const maxRules = 1024

// ruleSet is what a profile says about one number of one ABI.
type ruleSet struct {
	always  Action // the rule without tests, if settled
	settled bool
	named   bool  // and not only reached as a multiplexer
	narrow  uint8 // the arguments of which only the low word is looked at
	rules   []rule
}

// entry is a member of LinuxSeccomp.Syscalls, checked.
type entry struct {
	names  []string
	action Action
	tests  [][]test // alternatives; one empty one if there are no arguments
}

// checkEntry resolves everything about a rule but its names.
func checkEntry(s *specs.LinuxSyscall) (entry, error) {
	e := entry{names: s.Names}
	if len(s.Names) == 0 {
		return e, errors.New("no names")
	}
	if slices.Contains(s.Names, "") {
		return e, errors.New("empty name")
	}
	var err error
	if e.action, err = resolveAction(s.Action, s.ErrnoRet); err != nil {
		return e, err
	}
	var all, sorted []test
	var seen, twice uint
	for _, a := range s.Args {
		t, err := checkArg(a)
		if err != nil {
			return e, err
		}
		twice |= seen & (1 << t.arg)
		seen |= 1 << t.arg
		all = append(all, t)
		sorted = insert(sorted, t, func(a, b test) int { return a.arg - b.arg })
	}
	if twice == 0 {
		e.tests = [][]test{sorted}
		return e, nil
	}
	for _, t := range all {
		e.tests = append(e.tests, []test{t})
	}
	return e, nil
}

func checkArg(a specs.LinuxSeccompArg) (test, error) {
	op, ok := operators[a.Op]
	if !ok {
		return test{}, fmt.Errorf("operator %q: unknown", a.Op)
	}
	if a.Index > 5 {
		return test{}, fmt.Errorf("argument index %d: the last is 5", a.Index)
	}
	t := test{arg: int(a.Index), op: op, value: a.Value}
	if op == opMaskedEQ {
		t.mask, t.value = a.Value, a.Value&a.ValueTwo
	}
	return t, nil
}

// add puts one alternative of an entry into the set, under the order of precedence that the package comment gives.
func (s *ruleSet) add(name string, r rule, w *warnings) error {
	dead := func() {
		if !r.copied {
			w.add("a rule for " + name + " never applies: another one without arguments has precedence")
		}
	}
	if s.settled {
		if s.always != r.action {
			dead()
		}
		return nil
	}
	if len(r.tests) == 0 {
		if slices.ContainsFunc(s.rules, func(o rule) bool { return o.action != r.action && !o.copied }) {
			dead()
		}
		s.always, s.settled, s.rules = r.action, true, nil
		return nil
	}
	for i, o := range s.rules {
		if !slices.Equal(o.tests, r.tests) {
			continue
		}
		switch {
		case o.action == r.action || r.copied:
		case o.copied:
			s.rules[i] = r
		default:
			return fmt.Errorf("rules for %s: the same arguments lead to %v and to %v", name, o.action, r.action)
		}
		return nil
	}
	if len(s.rules) == maxRules {
		return fmt.Errorf("rules for %s: more than %d with arguments", name, maxRules)
	}
	s.rules = append(s.rules, r)
	return nil
}

// path is a rule with the nodes that it has in libseccomp's tree: one for each test, or two where an upper word is tested before the lower one.
type path struct {
	rule  rule
	nodes []test
}

// order brings rules into the order in which the first that matches wins. wide is for ABIs whose words have 64 bits.
func order(rules []rule, wide bool) []rule {
	if len(rules) < 2 {
		return rules
	}
	paths := make([]path, len(rules))
	for i, r := range rules {
		paths[i] = path{r, r.tests}
		if wide {
			paths[i].nodes = nil
			for _, t := range r.tests {
				paths[i].nodes = append(paths[i].nodes, t.words()...)
			}
		}
	}
	return walk(rules[:0:0], paths, 0)
}

// walk appends rules in the order of the tree below one node: rules with the same next node are neighbours, those that end there come first.
func walk(out []rule, paths []path, depth int) []rule {
	var first []test
	under := map[test][]path{}
	for _, p := range paths {
		if len(p.nodes) == depth {
			out = append(out, p.rule)
			continue
		}
		t := p.nodes[depth]
		if under[t] == nil {
			first = insert(first, t, test.compare)
		}
		under[t] = append(under[t], p)
	}
	for _, t := range first {
		if list := under[t]; len(list) == 1 {
			out = append(out, list[0].rule)
		} else {
			out = walk(out, list, depth+1)
		}
	}
	return out
}

// insert puts a test into a sorted list, behind those that are equal. Two instances of a sorting function
// would be 25 KB.
func insert(list []test, t test, order func(a, b test) int) []test {
	i := sort.Search(len(list), func(i int) bool { return order(list[i], t) > 0 })
	list = append(list, t)
	copy(list[i+1:], list[i:])
	list[i] = t
	return list
}

// words divides a test for equality into that of the upper word, which does not tell EQ from NE, and that of the lower.
func (t test) words() []test {
	if t.class() != 0 {
		return []test{t}
	}
	upper := test{arg: t.arg, op: opEQ, value: t.value >> 32}
	if t.op == opMaskedEQ {
		upper.op, upper.mask = t.op, t.mask>>32
	}
	t.value, t.mask = uint64(uint32(t.value)), uint64(uint32(t.mask))
	return []test{upper, t}
}

// compare orders two tests as libseccomp orders the nodes of its tree.
func (t test) compare(o test) int {
	if c := o.arg - t.arg; c != 0 {
		return c
	}
	if t.class() != o.class() {
		return t.class() - o.class()
	}
	if t.op == opLT || t.op == opLE {
		return cmp.Compare(t.value, o.value)
	}
	return cmp.Compare(o.value, t.value)
}

func (t test) class() int {
	switch t.op {
	case opNE, opEQ, opMaskedEQ:
		return 0
	case opLT, opLE:
		return 1
	}
	return 2
}

// program is a profile in numbers.
type program struct {
	*machine
	listenerPath string
	deflt        Action
	in           []bool     // which of the machine's ABIs are included
	rules        []ruleSets // for each ABI: every number (with base) that is named, also by rules that are skipped, or is reached
	spare        []ruleSet  // where new ones are taken from
	top          []int      // for each ABI: the highest number of the common sequence that is named, or -1
}

// resolve checks a profile whole and turns names into numbers.
func (m *machine) resolve(p *specs.LinuxSeccomp, o Options, w *warnings) (*program, error) {
	g := &program{machine: m, listenerPath: p.ListenerPath, rules: m.newRuleSets(), top: make([]int, len(m.abis))}
	var err error
	if g.deflt, err = resolveAction(p.DefaultAction, p.DefaultErrnoRet); err != nil {
		return nil, fmt.Errorf("default: %w", err)
	}
	if err := checkListener(p, o, g.deflt); err != nil {
		return nil, err
	}
	if g.in, err = m.selectABIs(p.Architectures, w); err != nil {
		return nil, err
	}
	for i := range m.abis {
		g.top[i] = -1
	}
	for i := range p.Syscalls {
		if err := g.addEntry(&p.Syscalls[i], o, w); err != nil {
			return nil, fmt.Errorf("seccomp syscalls[%d]: %w", i, err)
		}
	}
	for i := range g.rules {
		for _, s := range g.rules[i].all {
			s.rules = order(s.rules, m.abis[i].wide())
		}
	}
	return g, nil
}

// checkListener refuses what cannot work before any rule is looked at. With NOTIFY as the default the container's own execve, which nobody
// but the answerer can let pass, would wait for an answerer that may wait for the container; runc refuses it too.
func checkListener(p *specs.LinuxSeccomp, o Options, deflt Action) error {
	switch {
	case p.ListenerMetadata != "" && p.ListenerPath == "":
		return errors.New("listenerMetadata: needs listenerPath")
	case deflt == Notify && !o.Notify:
		return fmt.Errorf("default: %w", ErrNotify)
	case deflt == Notify:
		return errors.New("default: seccomp action SCMP_ACT_NOTIFY cannot be the default")
	}
	return nil
}

// addEntry enters a member of LinuxSeccomp.Syscalls.
func (g *program) addEntry(s *specs.LinuxSyscall, o Options, w *warnings) error {
	e, err := checkEntry(s)
	if err != nil {
		return err
	}
	if e.action == Notify {
		switch {
		case !o.Notify:
			return ErrNotify
		case g.listenerPath == "":
			return errors.New("seccomp action SCMP_ACT_NOTIFY: needs listenerPath")
		}
	}
	if len(e.tests) > 1 {
		w.add("a rule for " + e.names[0] + " tests one argument more than once: each of its tests counts as a rule")
	}
	for _, name := range e.names {
		if err := g.add(name, &e, w); err != nil {
			return err
		}
	}
	return nil
}

// add enters a rule for one name into every ABI that has the call.
func (g *program) add(name string, e *entry, w *warnings) error {
	numbers := g.lookup(name)
	h, behind := multiplexed()[name]
	known := false
	for i, a := range g.abis {
		if !g.in[i] {
			known = known || numbers != nil && numbers[i] >= 0 || behind && a.mux
			continue
		}
		if a.mux && behind {
			known = true
			if err := g.addCopy(i, h, e, w); err != nil {
				return err
			}
		}
		if numbers == nil || numbers[i] < 0 {
			continue
		}
		known = true
		n := uint32(numbers[i])
		set := g.set(i, n, name)
		set.named = true
		if a.private == 0 || n < a.private {
			g.top[i] = max(g.top[i], int(n))
		}
		if e.action == g.deflt {
			continue
		}
		for _, t := range e.tests {
			if err := set.add(name, rule{action: e.action, tests: t}, w); err != nil {
				return err
			}
		}
	}
	if !known {
		w.add("system call " + name + " is not of this machine: ignored")
	}
	return nil
}
