package seccomp

import (
	"math/rand/v2"
	"slices"
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

// tokens are the audit architectures of this machine, and one that it cannot have.
func tokens() []uint32 {
	list := []uint32{0x00000042}
	for _, a := range hostABIs {
		if !slices.Contains(list, a.token) {
			list = append(list, a.token)
		}
	}
	return list
}

// allNumbers are all numbers around and in the tables.
var allNumbers = func() []uint32 {
	var list []uint32
	for _, base := range []uint32{0, 0x40000000} {
		for n := range uint32(1024) {
			list = append(list, base+n)
		}
	}
	for _, a := range hostABIs {
		if a.private > 1024 {
			for n := range uint32(16) {
				list = append(list, a.private-4+n)
			}
		}
	}
	return append(list, 4000, 5000, 5500, 0x3fffffff, 0x80000000, 0xfffffffe, 0xffffffff)
}()

// edges gives argument values around a test.
func argEdges(a specs.LinuxSeccompArg) []uint64 {
	v := a.Value
	list := []uint64{0, 1, v - 1, v, v + 1, v | 1<<32, v + 1 | 1<<32, v ^ 1<<63, 1 << 31, 1 << 32, 1 << 63, 0xffffffff, ^uint64(0), uint64(int64(int32(v)))}
	if a.Op == specs.OpMaskedEqual {
		list = append(list, a.ValueTwo, a.ValueTwo&v, a.ValueTwo|^v, a.ValueTwo&v|^v&0xffffffff, a.ValueTwo&v|1<<40)
	}
	return list
}

// compare runs the filter and the evaluator over all numbers, with all edges of the arguments that the profile tests. It returns the number of calls.
func compare(t *testing.T, p *specs.LinuxSeccomp, f *Filter, rnd *rand.Rand) int {
	t.Helper()
	if err := Check(f.Insns); err != nil {
		t.Fatal(err)
	}
	j := newJudge(p)
	byName := map[string][]specs.LinuxSeccompArg{}
	for _, s := range p.Syscalls {
		for _, n := range s.Names {
			byName[n] = append(byName[n], s.Args...)
		}
	}
	calls := 0
	try := func(c Call) {
		calls++
		got, _ := f.Run(c)
		if want := j.answer(c); got != want {
			t.Fatalf("call %#x of %#x (%s) with %#x: filter says %v, profile says %v\nprofile: %+v", c.Number, c.Arch, CallName(c.Arch, c.Number), c.Args, got, want, p)
		}
	}
	for _, token := range tokens() {
		for _, n := range allNumbers {
			name := nameOf(token, n)
			tests := byName[name]
			c := Call{Number: n, Arch: token}
			try(c)
			if name == "socketcall" || name == "ipc" {
				for v := range uint64(26) {
					c.Args = [6]uint64{v | 3<<16}
					try(c)
					c.Args = [6]uint64{v}
					try(c)
				}
			}
			for range 4 * len(tests) {
				for _, a := range tests {
					e := argEdges(a)
					c.Args[a.Index] = e[rnd.IntN(len(e))]
				}
				try(c)
			}
			for _, a := range tests {
				for _, v := range argEdges(a) {
					c.Args[a.Index] = v
					try(c)
				}
			}
		}
	}
	return calls
}

func TestDefaultProfileAgainstEvaluator(t *testing.T) {
	for name, caps := range capSets {
		t.Run(name, func(t *testing.T) {
			p, err := profile.Default(caps, "")
			if err != nil {
				t.Fatal(err)
			}
			f, err := Compile(p)
			if err != nil {
				t.Fatal(err)
			}
			n := compare(t, p, f, rand.New(rand.NewPCG(1, 2)))
			t.Logf("%v, %d calls compared", f, n)
		})
	}
}

// randomProfile makes profiles that are likely to have rules which overlap.
func randomProfile(rnd *rand.Rand) *specs.LinuxSeccomp {
	actions := []specs.LinuxSeccompAction{specs.ActAllow, specs.ActErrno, specs.ActErrno, specs.ActKill, specs.ActKillProcess, specs.ActTrap, specs.ActLog, specs.ActTrace}
	pick := func() (specs.LinuxSeccompAction, *uint) {
		a := actions[rnd.IntN(len(actions))]
		if (a == specs.ActErrno || a == specs.ActTrace) && rnd.IntN(2) == 0 {
			e := uint(rnd.IntN(5))
			return a, &e
		}
		return a, nil
	}
	// Wide and narrow arguments, multiplexed calls, calls that some ABIs lack, and one that is none.
	names := []string{"mmap", "ptrace", "socket", "semop", "shmat", "connect", "clone", "ioctl", "personality", "send", "socketcall", "ipc", "arch_prctl", "statx", "no_such_call"}
	ops := []specs.LinuxSeccompOperator{specs.OpEqualTo, specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpMaskedEqual}
	values := []uint64{0, 1, 2, 3, 7, 40, 1 << 31, 1<<32 - 1, 1 << 32, 1<<32 | 2, 1<<33 | 1, 1 << 63, ^uint64(0), ^uint64(0) - 1, 0xffffffff80000000}
	p := &specs.LinuxSeccomp{}
	p.DefaultAction, p.DefaultErrnoRet = pick()
	for _, a := range hostABIs {
		if rnd.IntN(3) > 0 {
			p.Architectures = append(p.Architectures, a.name)
		}
	}
	for range 1 + rnd.IntN(24) {
		s := specs.LinuxSyscall{}
		s.Action, s.ErrnoRet = pick()
		for range 1 + rnd.IntN(2) {
			s.Names = append(s.Names, names[rnd.IntN(len(names))])
		}
		for rnd.IntN(8) > 2 && len(s.Args) < 4 {
			s.Args = append(s.Args, specs.LinuxSeccompArg{Index: uint(rnd.IntN(3)), Value: values[rnd.IntN(len(values))], ValueTwo: values[rnd.IntN(len(values))], Op: ops[rnd.IntN(len(ops))]})
		}
		p.Syscalls = append(p.Syscalls, s)
	}
	if rnd.IntN(4) == 0 {
		for range 150 {
			p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: []string{table()[rnd.IntN(len(table()))].name}, Action: specs.ActAllow})
		}
	}
	return p
}

func TestRandomProfilesAgainstEvaluator(t *testing.T) {
	want := 600
	if testing.Short() {
		want = 100
	}
	calls, longest, refused := 0, 0, 0
	for seed := uint64(0); want > 0; seed++ {
		rnd := rand.New(rand.NewPCG(seed, 11))
		p := randomProfile(rnd)
		f, err := Compile(p)
		if err != nil {
			refused++ // the same arguments with two actions
			continue
		}
		want--
		calls += compare(t, p, f, rnd)
		longest = max(longest, len(f.Insns))
	}
	t.Logf("%d calls compared, %d profiles refused for contradictions, longest filter %d", calls, refused, longest)
}

// TestEveryOperatorAtEveryBorder is the full product for single tests, wide and narrow, which random profiles only sample.
func TestEveryOperatorAtEveryBorder(t *testing.T) {
	values := []uint64{0, 1, 2, 1<<31 - 1, 1 << 31, 1<<32 - 2, 1<<32 - 1, 1 << 32, 1<<32 + 1, 1 << 40, 1<<63 - 1, 1 << 63, 0xffffffff7fffffff, 0xffffffff80000000, ^uint64(0) - 1, ^uint64(0)}
	masks := []uint64{0, 1, 0x7e020000, 1 << 31, 0xffffffff, 1 << 32, 0xffffffff00000000, 0x7e0200007e020000, ^uint64(0)}
	two := uint(2)
	n := 0
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
					p := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: []specs.Arch{hostABIs[len(hostABIs)-1].name, hostABIs[min(1, len(hostABIs)-1)].name},
						Syscalls: []specs.LinuxSyscall{{Names: []string{name}, Action: specs.ActErrno, ErrnoRet: &two, Args: []specs.LinuxSeccompArg{arg}}}}
					f, err := Compile(p)
					if err != nil {
						t.Fatal(err)
					}
					j := newJudge(p)
					for i, a := range hostABIs {
						number := lookup(name)[i]
						if number < 0 {
							continue
						}
						for _, x := range values {
							c := Call{Arch: a.token, Number: uint32(number) + a.base, Args: [6]uint64{1: x}}
							n++
							if got, _ := f.Run(c); got != j.answer(c) {
								t.Errorf("%s %s %#x/%#x on %#x in %s: got %v", name, op, v, mask, x, a.name, got)
							}
						}
					}
				}
			}
		}
	}
	t.Logf("%d comparisons", n)
}
