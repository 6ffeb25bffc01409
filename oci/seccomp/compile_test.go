package seccomp

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/vitrine-runtime/vitrine/oci/seccomp/profile"
)

func ptr[T any](v T) *T { return &v }

func one(s specs.LinuxSyscall) *specs.LinuxSeccomp {
	return &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{s}}
}

func TestRefused(t *testing.T) {
	args := func(a ...specs.LinuxSeccompArg) specs.LinuxSyscall {
		return specs.LinuxSyscall{Names: []string{"mmap"}, Action: specs.ActAllow, Args: a}
	}
	for name, c := range map[string]struct {
		p    *specs.LinuxSeccomp
		want string
	}{
		"empty":                   {&specs.LinuxSeccomp{}, `default: seccomp action "": unknown`},
		"unknown action":          {one(specs.LinuxSyscall{Names: []string{"read"}, Action: "SCMP_ACT_MAYBE"}), `seccomp syscalls[0]: seccomp action "SCMP_ACT_MAYBE": unknown`},
		"unknown operator":        {one(args(specs.LinuxSeccompArg{Op: "SCMP_CMP_XX"})), `operator "SCMP_CMP_XX": unknown`},
		"argument 6":              {one(args(specs.LinuxSeccompArg{Index: 6, Op: specs.OpEqualTo})), "argument index 6"},
		"no names":                {one(specs.LinuxSyscall{Action: specs.ActAllow}), "no names"},
		"empty name":              {one(specs.LinuxSyscall{Names: []string{""}, Action: specs.ActAllow}), "empty name"},
		"errno on allow":          {one(specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActAllow, ErrnoRet: ptr(uint(1))}), "takes no errno"},
		"errno on kill":           {&specs.LinuxSeccomp{DefaultAction: specs.ActKill, DefaultErrnoRet: ptr(uint(1))}, "takes no errno"},
		"errno too large":         {&specs.LinuxSeccomp{DefaultAction: specs.ActErrno, DefaultErrnoRet: ptr(uint(4096))}, "above 4095"},
		"unknown flag":            {&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{"X"}}, `flag "X": unknown`},
		"unknown architecture":    {&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: []specs.Arch{"SCMP_ARCH_PDP11"}}, `architecture "SCMP_ARCH_PDP11": unknown`},
		"metadata without path":   {&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, ListenerMetadata: "x"}, "needs listenerPath"},
		"notify as default":       {&specs.LinuxSeccomp{DefaultAction: specs.ActNotify}, "SCMP_ACT_NOTIFY"},
		"notify":                  {one(specs.LinuxSyscall{Names: []string{"mount"}, Action: specs.ActNotify}), "SCMP_ACT_NOTIFY"},
		"invalid in unknown name": {one(specs.LinuxSyscall{Names: []string{"no_such"}, Action: "X"}), "unknown"},
		"contradiction": {&specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{
			args(specs.LinuxSeccompArg{Op: specs.OpEqualTo}), {Names: []string{"mmap"}, Action: specs.ActLog, Args: []specs.LinuxSeccompArg{{Op: specs.OpEqualTo, ValueTwo: 9}}}}},
			"rules for mmap: the same arguments lead to ALLOW and to LOG"},
	} {
		_, err := Compile(c.p)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %s", name, err, c.want)
		}
		if strings.Contains(name, "notify") && !errors.Is(err, ErrNotify) {
			t.Errorf("%s: not ErrNotify: %v", name, err)
		}
	}
}

func TestWarnings(t *testing.T) {
	p := &specs.LinuxSeccomp{
		DefaultAction: specs.ActErrno,
		ListenerPath:  "/run/listener",
		Architectures: []specs.Arch{specs.ArchSHEB},
		Flags:         []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagWaitKillableRecv, "SECCOMP_FILTER_FLAG_TSYNC", specs.LinuxSeccompFlagLog},
		Syscalls: []specs.LinuxSyscall{
			{Names: []string{"no_such_call", "no_such_call", "setns"}, Action: specs.ActAllow},
			{Names: []string{"setns"}, Action: specs.ActLog},
			{Names: []string{"read"}, Action: specs.ActAllow},
			{Names: []string{"read"}, Action: specs.ActAllow},
			{Names: []string{"mmap"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Op: specs.OpGreaterThan, Value: 1}, {Op: specs.OpLessThan, Value: 5}}},
			{Names: []string{"no_such_call"}, Action: specs.ActNotify},
		},
	}
	f, err := CompileWith(p, Options{Notify: true})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"architecture SCMP_ARCH_SHEB is not of this machine: ignored",
		"system call no_such_call is not of this machine: ignored",
		"a rule for setns never applies: another one without arguments has precedence",
		"a rule for mmap tests one argument more than once: each of its tests counts as a rule",
		"listenerPath has no effect: no call leads to SCMP_ACT_NOTIFY",
		"flag SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV has no effect without SCMP_ACT_NOTIFY",
	}
	if !reflect.DeepEqual(f.Warnings, want) {
		t.Errorf("%q", f.Warnings)
	}
	if f.Flags != flagLog {
		t.Errorf("flags %#x", f.Flags)
	}
}

// TestNotify: the action needs somebody who passes the listener on, a path to pass it to, and must not stop what starts a container.
func TestNotify(t *testing.T) {
	rule := func(name string) *specs.LinuxSeccomp {
		p := one(specs.LinuxSyscall{Names: []string{name}, Action: specs.ActNotify})
		p.ListenerPath = "/run/listener"
		return p
	}
	with := func(p *specs.LinuxSeccomp, change func(*specs.LinuxSeccomp)) *specs.LinuxSeccomp {
		change(p)
		return p
	}
	able := Options{Notify: true}
	for name, c := range map[string]struct {
		p    *specs.LinuxSeccomp
		o    Options
		want string
	}{
		"unable":             {rule("mount"), Options{}, "nobody to pass the listener on"},
		"unable, as default": {&specs.LinuxSeccomp{DefaultAction: specs.ActNotify}, Options{}, "nobody to pass the listener on"},
		"default":            {with(rule("mount"), func(p *specs.LinuxSeccomp) { p.DefaultAction = specs.ActNotify }), able, "cannot be the default"},
		"no path":            {with(rule("mount"), func(p *specs.LinuxSeccomp) { p.ListenerPath = "" }), able, "needs listenerPath"},
		"errno":              {with(rule("mount"), func(p *specs.LinuxSeccomp) { p.Syscalls[0].ErrnoRet = ptr(uint(1)) }), able, "takes no errno"},
	} {
		f, err := CompileWith(c.p, c.o)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, %v, want %s", name, f, err, c.want)
		}
		if (c.o == Options{}) != errors.Is(err, ErrNotify) {
			t.Errorf("%s: ErrNotify and %v", name, err)
		}
	}
	p := rule("mount")
	p.ListenerMetadata = "data"
	p.Flags = []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagWaitKillableRecv}
	f, err := CompileWith(p, able)
	if err != nil || f.Flags != flagNewListener|flagWaitKill || f.Listener == nil || *f.Listener != (Listener{"/run/listener", "data"}) || f.Warnings != nil {
		t.Errorf("%+v, %v", f, err)
	}
	if got, _ := f.Run(Call{Number: uint32(host().lookup("mount")[0]), Arch: host().abis[0].token}); got != Notify {
		t.Error(got)
	}
	if _, err := CompileWith(rule("write"), able); err != nil { // the listener is handed over without one
		t.Error(err)
	}
	c := NewCache(2)
	if _, err := c.CompileWith(p, able); err != nil {
		t.Error(err)
	}
	if _, err := c.Compile(p); !errors.Is(err, ErrNotify) {
		t.Errorf("the cache has no notion of who asks: %v", err)
	}
}

func TestFlags(t *testing.T) {
	for want, flags := range map[uint64][]specs.LinuxSeccompFlag{4: nil, 0: {}, 6: {specs.LinuxSeccompFlagLog, specs.LinuxSeccompFlagSpecAllow}} {
		f, err := Compile(&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: flags})
		if err != nil || f.Flags != want {
			t.Errorf("%v: %v, %v", flags, f, err)
		}
	}
}

// TestDefaultProfileBudget holds the promises on size and path length.
func TestDefaultProfileBudget(t *testing.T) {
	for name, caps := range capSets {
		p, err := profile.Default(caps, "")
		if err != nil {
			t.Fatal(err)
		}
		f, err := Compile(p)
		if err != nil {
			t.Fatal(err)
		}
		if len(f.Insns) > 300 {
			t.Errorf("%s: %v", name, f)
		}
		longest, sum := 0, 0
		for n := range uint32(480) {
			_, steps := f.Run(Call{Number: n, Arch: host().abis[0].token})
			longest, sum = max(longest, steps), sum+steps
		}
		if longest > 24 {
			t.Errorf("%s: the longest path has %d instructions", name, longest)
		}
		t.Logf("%s: %v, longest native path %d, mean %.1f, warnings %q", name, f, longest, float64(sum)/480, f.Warnings)
	}
}

// TestLongJumps makes filters whose parts are further apart than a conditional jump reaches.
func TestLongJumps(t *testing.T) {
	for _, n := range []int{100, 200, 300, 500, 1000} {
		p := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
		for i := range n {
			p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: []string{"mmap"}, Action: specs.ActErrno, ErrnoRet: ptr(uint(2 + i)),
				Args: []specs.LinuxSeccompArg{{Index: 0, Op: specs.OpEqualTo, Value: uint64(i) * 3}, {Index: 1, Op: specs.OpMaskedEqual, Value: 0xff, ValueTwo: uint64(i % 200)}}})
		}
		f, err := Compile(p)
		if n == 1000 {
			if !errors.Is(err, ErrTooLong) {
				t.Errorf("%d rules: %v, %v", n, f, err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("%d rules: %v", n, err)
		}
		compareSome(t, p, f, n)
		t.Logf("%d rules: %v", n, f)
	}
	p := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
	for i := range maxRules + 1 {
		p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: []string{"mmap"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Op: specs.OpEqualTo, Value: uint64(i)}}})
	}
	if _, err := Compile(p); err == nil || !strings.Contains(err.Error(), "more than 1024") {
		t.Errorf("%v", err)
	}
	p.Syscalls = p.Syscalls[:maxRules]
	if f, err := Compile(p); err != nil || len(f.Insns) > 20 {
		t.Errorf("a run of allowed values is not one range: %v, %v", f, err)
	}
}

func compareSome(t *testing.T, p *specs.LinuxSeccomp, f *Filter, n int) {
	t.Helper()
	if err := Check(f.Insns); err != nil {
		t.Fatal(err)
	}
	j, rnd := newJudge(host(), p), rand.New(rand.NewPCG(3, uint64(n)))
	number := uint32(host().lookup("mmap")[0])
	for range 3000 {
		i := rnd.IntN(n)
		c := Call{Number: number, Arch: host().abis[0].token, Args: [6]uint64{uint64(i)*3 + uint64(rnd.IntN(8)/7), uint64(i%200) | uint64(rnd.IntN(3))<<8}}
		if got, _ := f.Run(c); got != j.answer(c) {
			t.Fatalf("%#x: %v, want %v", c.Args, got, j.answer(c))
		}
	}
}

func TestUnknownNumbersAreENOSYS(t *testing.T) {
	names := []string{"read", "openat2"}
	top := uint32(host().lookup("openat2")[0])
	for deflt, want := range map[specs.LinuxSeccompAction]Action{
		specs.ActErrno: Errno | enosys, specs.ActKillProcess: Errno | enosys, specs.ActTrap: Errno | enosys,
		specs.ActAllow: Allow, specs.ActLog: Log, specs.ActTrace: Trace | eperm,
	} {
		f, err := Compile(&specs.LinuxSeccomp{DefaultAction: deflt, Syscalls: []specs.LinuxSyscall{{Names: names, Action: deflt}, {Names: []string{"write"}, Action: specs.ActErrno, ErrnoRet: ptr(uint(9))}}})
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range []uint32{top + 1, 600, 4000 + top, 0x3fffffff, 0xffffffff} {
			if got, _ := f.Run(Call{Number: n, Arch: host().abis[0].token}); got != want {
				t.Errorf("default %s, number %d: %v, want %v", deflt, n, got, want)
			}
		}
		if got, _ := f.Run(Call{Number: top - 1, Arch: host().abis[0].token}); got != mustAction(deflt, nil) {
			t.Errorf("default %s, number below the top: %v", deflt, got)
		}
	}
}

func TestActionNames(t *testing.T) {
	got := fmt.Sprint(Allow, Errno|2, KillThread, KillProcess, Trap, Trace|3, Log, Notify, Action(0x7fb00000))
	if got != "ALLOW ERRNO(2) KILL_THREAD KILL_PROCESS TRAP TRACE(3) LOG NOTIFY 0x7fb00000" {
		t.Error(got)
	}
}

func TestCheckRefuses(t *testing.T) {
	ret := Insn{Code: codeReturn}
	for name, p := range map[string][]Insn{
		"empty":            nil,
		"too long":         make([]Insn, MaxLen+1),
		"no return":        {{Code: codeLoad}},
		"unaligned load":   {{Code: codeLoad, K: 2}, ret},
		"load beyond":      {{Code: codeLoad, K: 64}, ret},
		"jump out":         {{Code: codeJump, K: 1}, ret},
		"jump far out":     {{Code: codeJump, K: 0xffffffff}, ret},
		"true jump out":    {{Code: codeEqual, Jt: 1}, ret},
		"false jump out":   {{Code: codeSet, Jf: 255}, ret},
		"unknown":          {{Code: 0x99}, ret},
		"jump as last one": {ret, {Code: codeEqual}},
	} {
		if Check(p) == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestCache(t *testing.T) {
	profiles := []*specs.LinuxSeccomp{
		{DefaultAction: specs.ActAllow},
		{DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{}},
		one(specs.LinuxSyscall{Names: []string{"read", "write"}, Action: specs.ActAllow}),
		one(specs.LinuxSyscall{Names: []string{"read", "write"}, Action: specs.ActErrno, ErrnoRet: ptr(uint(0))}),
	}
	c := NewCache(3)
	var first []*Filter
	for _, p := range profiles {
		f, err := c.Compile(p)
		if err != nil {
			t.Fatal(err)
		}
		want, err := Compile(p)
		if err != nil || !reflect.DeepEqual(f, want) {
			t.Errorf("cached %v, compiled %v (%v)", f, want, err)
		}
		first = append(first, f)
	}
	if len(c.entries) != 3 {
		t.Errorf("%d entries", len(c.entries))
	}
	if f, _ := c.Compile(profiles[1]); f != first[1] {
		t.Error("compiled again")
	}
	if f, _ := c.Compile(profiles[0]); f == first[0] {
		t.Error("the oldest entry was kept")
	}
	if f, _ := c.Compile(profiles[1]); f != first[1] {
		t.Error("the entry used last was dropped")
	}
	if _, err := c.Compile(&specs.LinuxSeccomp{}); err == nil || len(c.entries) != 3 {
		t.Error("an error was remembered")
	}
}

// TestEncodingIsInjective changes every member of a profile and wants another key each time.
func TestEncodingIsInjective(t *testing.T) {
	base := func() *specs.LinuxSeccomp {
		return &specs.LinuxSeccomp{DefaultAction: "a", Syscalls: []specs.LinuxSyscall{{Names: []string{"n", "m"}, Action: "b", Args: []specs.LinuxSeccompArg{{Index: 1, Value: 2, ValueTwo: 3, Op: "o"}}}}}
	}
	seen := map[string]int{string(AppendProfile(nil, base(), Options{})): -1}
	for i, change := range []func(*specs.LinuxSeccomp){
		func(p *specs.LinuxSeccomp) { p.DefaultAction = "b" },
		func(p *specs.LinuxSeccomp) { p.DefaultErrnoRet = ptr(uint(0)) },
		func(p *specs.LinuxSeccomp) { p.DefaultErrnoRet = ptr(uint(1)) },
		func(p *specs.LinuxSeccomp) { p.Architectures = []specs.Arch{"x"} },
		func(p *specs.LinuxSeccomp) { p.Flags = []specs.LinuxSeccompFlag{} },
		func(p *specs.LinuxSeccomp) { p.Flags = []specs.LinuxSeccompFlag{"x"} },
		func(p *specs.LinuxSeccomp) { p.ListenerPath = "x" },
		func(p *specs.LinuxSeccomp) { p.ListenerMetadata = "x" },
		func(p *specs.LinuxSeccomp) { p.Syscalls = nil },
		func(p *specs.LinuxSeccomp) { p.Syscalls[0].Names = []string{"nm"} },
		func(p *specs.LinuxSeccomp) { p.Syscalls[0].Names = []string{"n", "m", "b"} },
		func(p *specs.LinuxSeccomp) { p.Syscalls[0].Action = "c" },
		func(p *specs.LinuxSeccomp) { p.Syscalls[0].ErrnoRet = ptr(uint(0)) },
		func(p *specs.LinuxSeccomp) { p.Syscalls[0].Args[0].Index = 0 },
		func(p *specs.LinuxSeccomp) { p.Syscalls[0].Args[0].Value = 0 },
		func(p *specs.LinuxSeccomp) { p.Syscalls[0].Args[0].ValueTwo = 0 },
		func(p *specs.LinuxSeccomp) { p.Syscalls[0].Args[0].Op = "" },
		func(p *specs.LinuxSeccomp) { p.Syscalls[0].Args = nil },
		func(p *specs.LinuxSeccomp) { p.Syscalls = append(p.Syscalls, p.Syscalls[0]) },
	} {
		p := base()
		change(p)
		key := string(AppendProfile(nil, p, Options{}))
		if other, ok := seen[key]; ok {
			t.Errorf("changes %d and %d have one key", i, other)
		}
		seen[key] = i
	}
}

// TestMultiplexerAboveTheTop: a profile of one call that x86 has behind socketcall only names no number of that ABI, and socketcall's other
// numbers are newer than that.
func TestMultiplexerAboveTheTop(t *testing.T) {
	p := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: []specs.Arch{specs.ArchX86}, Syscalls: []specs.LinuxSyscall{
		{Names: []string{"send", "read"}, Action: specs.ActAllow}}}
	f, err := Compile(p)
	if err != nil {
		t.Fatal(err)
	}
	compare(t, host(), p, f, allNumbers(host()), rand.New(rand.NewPCG(1, 1)))
}
