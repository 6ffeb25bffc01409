package seccomp

import (
	"encoding/json"
	"maps"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/vitrine-runtime/vitrine/oci/seccomp/profile"
)

// capSets are bounding sets whose default profiles differ in every conditional group.
var capSets = map[string][]string{
	"none":    nil,
	"default": {"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE"},
	"admin":   {"CAP_SYS_ADMIN"},
	"ptrace":  {"CAP_SYS_PTRACE", "CAP_SYS_NICE", "CAP_SYSLOG"},
	"all": {"CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_CHROOT", "CAP_SYS_MODULE", "CAP_SYS_PACCT", "CAP_SYS_PTRACE", "CAP_SYS_RAWIO", "CAP_SYS_TIME",
		"CAP_SYS_TTY_CONFIG", "CAP_SYS_NICE", "CAP_SYSLOG", "CAP_BPF", "CAP_PERFMON", "CAP_DAC_READ_SEARCH"},
}

// tokens are the audit architectures of a machine, and one that it cannot have.
func tokens(m *machine) []uint32 {
	list := []uint32{0x00000042}
	for _, a := range m.abis {
		if !slices.Contains(list, a.token) {
			list = append(list, a.token)
		}
	}
	return list
}

// allNumbers are all numbers in the tables of a machine, what is around them, and what is far from them.
func allNumbers(m *machine) []uint32 {
	set := map[uint32]bool{}
	for n := range uint32(512) {
		set[n], set[x32Bit+n] = true, true
	}
	for i, a := range m.abis {
		for _, c := range m.calls {
			if c.numbers[i] >= 0 {
				for d := range uint32(9) {
					set[uint32(c.numbers[i])+a.base+d-4] = true
				}
			}
		}
	}
	for _, n := range []uint32{1000, 4000, 5000, 5500, 0x3fffffff, 0x80000000, 0xfffffffe, 0xffffffff} {
		set[n] = true
	}
	return slices.Sorted(maps.Keys(set))
}

// argEdges gives argument values around a test.
func argEdges(a specs.LinuxSeccompArg) []uint64 {
	v := a.Value
	list := []uint64{0, 1, v - 1, v, v + 1, v | 1<<32, v + 1 | 1<<32, v ^ 1<<63, 1 << 31, 1 << 32, 1 << 63, 0xffffffff, ^uint64(0), uint64(int64(int32(v)))}
	if a.Op == specs.OpMaskedEqual {
		list = append(list, a.ValueTwo, a.ValueTwo&v, a.ValueTwo|^v, a.ValueTwo&v|^v&0xffffffff, a.ValueTwo&v|1<<40)
	}
	return list
}

// comparison is a filter beside the evaluator's opinion.
type comparison struct {
	*testing.T
	j     *judge
	f     *Filter
	rnd   *rand.Rand
	tests map[string][]specs.LinuxSeccompArg // by call
	calls int
}

// compare runs the filter and the evaluator over numbers, with all edges of the arguments that the profile tests. It returns the number of calls.
func compare(t *testing.T, m *machine, p *specs.LinuxSeccomp, f *Filter, numbers []uint32, rnd *rand.Rand) int {
	t.Helper()
	if err := Check(f.Insns); err != nil {
		t.Fatal(err)
	}
	c := comparison{T: t, j: newJudge(m, p), f: f, rnd: rnd, tests: map[string][]specs.LinuxSeccompArg{}}
	for _, s := range p.Syscalls {
		for _, n := range s.Names {
			c.tests[n] = append(c.tests[n], s.Args...)
		}
	}
	for _, token := range tokens(m) {
		for _, n := range numbers {
			c.number(token, n)
		}
	}
	return c.calls
}

func (c *comparison) try(call Call) {
	c.calls++
	got, _ := c.f.run(call, c.j.m.order())
	if want := c.j.answer(call); got != want {
		b, err := json.Marshal(c.j.p)
		c.Fatalf("%s: call %#x of %#x (%s) with %#x: filter says %v, profile says %v\nprofile: %s %v", c.j.m.abis[0].name, call.Number, call.Arch,
			c.j.called(call.Arch, call.Number), call.Args, got, want, b, err)
	}
}

// number tries one number with many arguments.
func (c *comparison) number(token, n uint32) {
	name := c.j.called(token, n)
	tests := c.tests[name]
	call := Call{Number: n, Arch: token}
	c.try(call)
	if name == "socketcall" || name == "ipc" {
		for v := range uint64(26) {
			call.Args = [6]uint64{v | 3<<16}
			c.try(call)
			call.Args = [6]uint64{v}
			c.try(call)
		}
	}
	for range 4 * min(len(tests), 25) {
		for _, a := range tests {
			e := argEdges(a)
			call.Args[a.Index] = e[c.rnd.IntN(len(e))]
		}
		c.try(call)
	}
	for _, a := range tests[:min(len(tests), 25)] {
		for _, v := range argEdges(a) {
			call.Args[a.Index] = v
			c.try(call)
		}
	}
}

func TestDefaultProfileAgainstEvaluator(t *testing.T) {
	for goarch, m := range machines() {
		numbers := allNumbers(m)
		for name, caps := range capSets {
			p, err := profile.Default(caps, goarch)
			if err != nil {
				t.Fatal(err)
			}
			f, err := m.compile(p, Options{})
			if err != nil {
				t.Fatal(err)
			}
			n := compare(t, m, p, f, numbers, rand.New(rand.NewPCG(1, 2)))
			if name == "default" {
				t.Logf("%s: %v, %d calls compared for each set", goarch, f, n)
			}
		}
	}
}

// generator makes random profiles that are likely to have rules which overlap.
type generator struct {
	*rand.Rand
	m       *machine
	names   []string
	actions []specs.LinuxSeccompAction
	values  []uint64
	ops     []specs.LinuxSeccompOperator
	indexes int
}

var (
	// Wide and narrow arguments, multiplexed calls, calls that some ABIs lack, and one that is none.
	overlapping = []string{"mmap", "ptrace", "socket", "semop", "shmat", "connect", "clone", "ioctl", "personality", "send", "socketcall", "ipc", "arch_prctl", "statx", "no_such_call"}
	allActions  = []specs.LinuxSeccompAction{specs.ActAllow, specs.ActErrno, specs.ActErrno, specs.ActKill, specs.ActKillThread, specs.ActKillProcess, specs.ActTrap, specs.ActLog, specs.ActTrace, specs.ActNotify}
	allOps      = []specs.LinuxSeccompOperator{specs.OpEqualTo, specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpMaskedEqual}
	someValues  = []uint64{0, 1, 2, 3, 7, 40, 1 << 31, 1<<32 - 1, 1 << 32, 1<<32 | 2, 1<<33 | 1, 1 << 63, ^uint64(0), ^uint64(0) - 1, 0xffffffff80000000, 0xffffffff7fffffff}
)

func newGenerator(m *machine, rnd *rand.Rand) *generator {
	return &generator{Rand: rnd, m: m, names: overlapping, actions: allActions, values: someValues, ops: allOps, indexes: 2 + rnd.IntN(5)}
}

func (g *generator) action() (specs.LinuxSeccompAction, *uint) {
	a := g.actions[g.IntN(len(g.actions))]
	if (a == specs.ActErrno || a == specs.ActTrace) && g.IntN(2) == 0 {
		e := uint(g.IntN(5))
		return a, &e
	}
	return a, nil
}

func (g *generator) arg() specs.LinuxSeccompArg {
	value := func() uint64 {
		if g.IntN(16) == 0 {
			return g.Uint64() >> g.IntN(64)
		}
		return g.values[g.IntN(len(g.values))]
	}
	return specs.LinuxSeccompArg{Index: uint(g.IntN(g.indexes)), Value: value(), ValueTwo: value(), Op: g.ops[g.IntN(len(g.ops))]}
}

func (g *generator) profile() *specs.LinuxSeccomp {
	p := &specs.LinuxSeccomp{ListenerPath: "/run/listener"}
	for p.DefaultAction == "" || p.DefaultAction == specs.ActNotify {
		p.DefaultAction, p.DefaultErrnoRet = g.action()
	}
	for _, a := range g.m.abis {
		if g.IntN(3) > 0 {
			p.Architectures = append(p.Architectures, a.name)
		}
	}
	for range 1 + g.IntN(24) {
		s := specs.LinuxSyscall{}
		s.Action, s.ErrnoRet = g.action()
		for range 1 + g.IntN(2) {
			s.Names = append(s.Names, g.names[g.IntN(len(g.names))])
		}
		for g.IntN(8) > 2 && len(s.Args) < 4 {
			s.Args = append(s.Args, g.arg())
		}
		p.Syscalls = append(p.Syscalls, s)
	}
	if g.IntN(4) == 0 {
		for range 150 {
			if name := g.m.calls[g.IntN(len(g.m.calls))].name; name != "write" {
				p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: []string{name}, Action: specs.ActAllow})
			}
		}
	}
	return p
}

// profileCount is how many random profiles a test makes: VITRINE_SECCOMP_PROFILES, or else what it asks for.
func profileCount(normal int) int {
	if n, err := strconv.Atoi(os.Getenv("VITRINE_SECCOMP_PROFILES")); err == nil {
		return n
	}
	if testing.Short() {
		return normal / 10
	}
	return normal
}

// TestRandomProfilesAgainstEvaluator: each 16th with all numbers, the others with those that a profile of the generator names and some more.
func TestRandomProfilesAgainstEvaluator(t *testing.T) {
	names := slices.Sorted(maps.Keys(machines()))
	calls, longest, refused, notify := 0, 0, 0, 0
	numbers := map[string][2][]uint32{}
	for _, goarch := range names {
		m := machines()[goarch]
		var few []uint32
		for _, name := range append([]string{"read"}, overlapping...) {
			for i, n := range m.lookup(name) {
				if n >= 0 {
					few = append(few, uint32(n)+m.abis[i].base-1, uint32(n)+m.abis[i].base, uint32(n)+m.abis[i].base+1)
				}
			}
		}
		numbers[goarch] = [2][]uint32{allNumbers(m), append(few, x32Bit, x32Bit-1, 1000, ^uint32(0))}
	}
	done := 0
	for seed := uint64(0); done < profileCount(3000); seed++ {
		goarch := runtime.GOARCH
		if seed%2 == 0 {
			goarch = names[seed/2%uint64(len(names))]
		}
		m, rnd := machines()[goarch], rand.New(rand.NewPCG(seed, 11))
		p := newGenerator(m, rnd).profile()
		f, err := m.compile(p, Options{Notify: true})
		if err != nil {
			refused++ // the same arguments with two actions
			continue
		}
		if f.Listener != nil {
			notify++
		}
		calls += compare(t, m, p, f, numbers[goarch][min(done%16, 1)], rnd)
		longest = max(longest, len(f.Insns))
		done++
	}
	t.Logf("%d profiles, %d calls compared, %d more profiles refused for contradictions, %d with a listener, longest filter %d", done, calls, refused, notify, longest)
}

// TestRT21EveryOperatorAtEveryBorder (CVE-2017-18367, CVE-2019-9893, GHSA-4q85-33p6-j5g6) is the full product for single tests, wide and narrow, which random profiles only sample.
func TestRT21EveryOperatorAtEveryBorder(t *testing.T) {
	values := []uint64{0, 1, 2, 1<<31 - 1, 1 << 31, 1<<32 - 2, 1<<32 - 1, 1 << 32, 1<<32 + 1, 1 << 40, 1<<63 - 1, 1 << 63, 0xffffffff7fffffff, 0xffffffff80000000, ^uint64(0) - 1, ^uint64(0)}
	masks := []uint64{0, 1, 0x7e020000, 1 << 31, 0xffffffff, 1 << 32, 0xffffffff00000000, 0x7e0200007e020000, ^uint64(0)}
	n := 0
	for goarch, m := range machines() {
		if goarch == runtime.GOARCH || goarch == "s390x" || goarch == "arm64" {
			n += everyOperator(t, m, values, masks)
		}
	}
	t.Logf("%d comparisons", n)
}

func everyOperator(t *testing.T, m *machine, values, masks []uint64) (n int) {
	two := uint(2)
	for _, name := range []string{"mmap", "socket"} {
		for op := range operators {
			for _, v := range values {
				for _, mask := range masks {
					arg := specs.LinuxSeccompArg{Index: 1, Value: v, Op: op}
					if op == specs.OpMaskedEqual {
						arg.Value, arg.ValueTwo = mask, v
					} else if mask != 0 {
						continue
					}
					p := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: []specs.Arch{m.abis[len(m.abis)-1].name, m.abis[min(1, len(m.abis)-1)].name},
						Syscalls: []specs.LinuxSyscall{{Names: []string{name}, Action: specs.ActErrno, ErrnoRet: &two, Args: []specs.LinuxSeccompArg{arg}}}}
					f, err := m.compile(p, Options{})
					if err != nil {
						t.Fatal(err)
					}
					j := newJudge(m, p)
					for i, a := range m.abis {
						number := m.lookup(name)[i]
						if number < 0 {
							continue
						}
						for _, x := range values {
							c := Call{Arch: a.token, Number: uint32(number) + a.base, Args: [6]uint64{1: x}}
							n++
							if got, _ := f.run(c, m.order()); got != j.answer(c) {
								t.Errorf("%s %s %#x/%#x on %#x in %s: got %v", name, op, v, mask, x, a.name, got)
							}
						}
					}
				}
			}
		}
	}
	return n
}
