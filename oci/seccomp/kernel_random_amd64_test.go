package seccomp

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// runtimeCalls are those that the Go runtime makes on the victim's thread between the tested ones.
var runtimeCalls = []uint32{unix.SYS_FUTEX, unix.SYS_RT_SIGRETURN, unix.SYS_SCHED_YIELD, unix.SYS_NANOSLEEP, unix.SYS_TGKILL, unix.SYS_GETPID, unix.SYS_GETTID,
	unix.SYS_RT_SIGPROCMASK, unix.SYS_EPOLL_PWAIT, unix.SYS_MADVISE,
	unix.SYS_WRITE, unix.SYS_EXIT_GROUP, unix.SYS_MMAP, unix.SYS_RT_SIGACTION}

// firstErrno is above all that there are, so that nothing takes it for one that it knows.
const firstErrno = 1000

// disarm makes a filter that answers every call with firstErrno plus the place of the true answer in actions. What the kernel does with
// the actions themselves is TestKernelActions' matter; here it tells which one it found, and no call runs but the runtime's.
func disarm(f *Filter, actions []Action) *Filter {
	n := len(runtimeCalls)
	out := []Insn{{Code: codeLoad, K: offArch}, {Code: codeEqual, K: host().abis[0].token, Jf: uint8(n + 3)}, {Code: codeLoad, K: offNumber}}
	for i, number := range runtimeCalls {
		out = append(out, Insn{Code: codeEqual, K: number, Jt: uint8(n - i)})
	}
	out = append(out, Insn{Code: codeJump, K: 1}, Insn{Code: codeReturn, K: uint32(Allow)})
	for _, insn := range f.Insns {
		if insn.Code == codeReturn {
			insn.K = uint32(Errno) | uint32(firstErrno+slices.Index(actions, Action(insn.K)))
		}
		out = append(out, insn)
	}
	return &Filter{Insns: out}
}

// returns lists the answers that a filter can give.
func returns(f *Filter) []Action {
	var list []Action
	for _, insn := range f.Insns {
		if insn.Code == codeReturn && !slices.Contains(list, Action(insn.K)) {
			list = append(list, Action(insn.K))
		}
	}
	return list
}

// trial is calls under filters, with what is expected.
type trial struct {
	assignment
	want []Action
	all  [][]Action
}

// add puts a profile and calls that hit it in.
func (o *trial) add(t *testing.T, p *specs.LinuxSeccomp, rnd *rand.Rand, compat bool) bool {
	f, err := CompileWith(p, Options{Notify: true})
	if err != nil {
		return false
	}
	actions, j := returns(f), newJudge(host(), p)
	o.filters = append(o.filters, disarm(f, actions))
	o.all = append(o.all, actions)
	try := func(c Call, viaInt80 bool) {
		k := kernelCall{Number: uint64(c.Number), Args: c.Args, Compat: uint64(len(o.filters)-1) << 1}
		if viaInt80 {
			k.Compat |= 1
			for i := range c.Args {
				c.Args[i] = uint64(uint32(c.Args[i]))
			}
		}
		want := j.answer(c)
		if got, _ := f.Run(c); got != want {
			t.Fatalf("%+v: filter %v, evaluator %v", c, got, want)
		}
		o.calls, o.want = append(o.calls, k), append(o.want, want)
	}
	for i, a := range host().abis {
		if a.narrow && !compat {
			continue
		}
		for range 8 {
			n := uint32(rnd.IntN(500))
			if !slices.Contains(runtimeCalls, n) && n != 335 && n != 336 { // kernels since 6.14 do not ask filters about uprobes
				try(Call{Arch: a.token, Number: n + a.base}, a.narrow)
			}
		}
		for _, s := range p.Syscalls {
			for _, name := range s.Names {
				numbers := host().lookup(name)
				if numbers == nil || numbers[i] < 0 || a.base == 0 && !a.narrow && slices.Contains(runtimeCalls, uint32(numbers[i])) || name == "uprobe" || name == "uretprobe" {
					continue
				}
				c := Call{Arch: a.token, Number: uint32(numbers[i]) + a.base}
				for range 1 + 4*len(s.Args) {
					for _, arg := range s.Args {
						e := argEdges(arg)
						c.Args[arg.Index] = e[rnd.IntN(len(e))]
					}
					try(c, a.narrow)
				}
			}
		}
	}
	return true
}

// TestKernelAgreesOnRandomProfiles: compiler, evaluator and kernel give the same answers.
func TestKernelAgreesOnRandomProfiles(t *testing.T) {
	compat := has32(t)
	done, calls := 0, 0
	for seed := uint64(0); done < profileCount(500); {
		var o trial
		for ; len(o.filters) < 50; seed++ {
			rnd := rand.New(rand.NewPCG(seed, 21))
			g := newGenerator(host(), rnd)
			g.indexes = min(g.indexes, 5)                        // int 0x80 is done with five
			g.names = append([]string{"mremap"}, g.names[1:]...) // for mmap, which the runtime calls
			if o.add(t, g.profile(), rnd, compat) {
				done++
			}
		}
		out := startVictim(t, "answers", o.assignment)
		for i, c := range o.calls {
			place := int(binary.NativeEndian.Uint64(out[8*i:])) - firstErrno
			actions := o.all[c.Compat>>1]
			if place < 0 || place >= len(actions) {
				t.Fatalf("call %+v: errno %d", c, place+firstErrno)
			}
			if actions[place] != o.want[i] {
				t.Fatalf("call %+v: kernel %v, filter and evaluator %v", c, actions[place], o.want[i])
			}
		}
		calls += len(o.calls)
	}
	t.Logf("%d profiles, %d calls, int 0x80: %v", done, calls, compat)
}
