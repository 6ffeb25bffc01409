package seccomp

import (
	"bytes"
	"fmt"
	"slices"
	"syscall"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/vitrine-runtime/vitrine/oci/seccomp/profile"
	"golang.org/x/sys/unix"
)

const high = 1 << 32

func defaultFilter(t testing.TB, caps []string) *Filter {
	t.Helper()
	p, err := profile.Default(caps, "")
	if err != nil {
		t.Fatal(err)
	}
	f, err := Compile(p)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// has32 probes for IA32 emulation: getpid by int 0x80 (20), beside a call that does not exist there. Some
// hypervisors have no such gate: whoever tries dies of a general protection fault.
func has32(t testing.TB) bool {
	t.Helper()
	calls := []kernelCall{{Compat: 1, Number: 20}, {Compat: 1, Number: 9999}}
	if _, said, err := runVictim(t, "calls", assignment{calls: calls}); err != nil && bytes.Contains(said, []byte("SIGSEGV")) {
		return false
	}
	r := results(t, nil, calls)
	return r[0] == 0 && r[1] == unix.ENOSYS
}

// TestRT27KernelDeniesByDefault is RT-27: what kernel exploits start from is closed in a default container, also with bits that the kernel drops.
func TestRT27KernelDeniesByDefault(t *testing.T) {
	f := defaultFilter(t, capSets["default"])
	// CLONE_SIGHAND without CLONE_VM is invalid: should the filter let a call through, it makes no process.
	newNS := []uint64{unix.CLONE_NEWNS, unix.CLONE_NEWUTS, unix.CLONE_NEWIPC, unix.CLONE_NEWUSER, unix.CLONE_NEWPID, unix.CLONE_NEWNET, unix.CLONE_NEWCGROUP}
	type row struct {
		name string
		call kernelCall
		want syscall.Errno
	}
	rows := []row{
		{"clone3", kernelCall{Number: unix.SYS_CLONE3}, unix.ENOSYS},
		{"mount", kernelCall{Number: unix.SYS_MOUNT}, unix.EPERM},
		{"umount2", kernelCall{Number: unix.SYS_UMOUNT2}, unix.EPERM},
		{"fsopen", kernelCall{Number: unix.SYS_FSOPEN}, unix.EPERM},
		{"fsconfig", kernelCall{Number: unix.SYS_FSCONFIG}, unix.EPERM},
		{"move_mount", kernelCall{Number: unix.SYS_MOVE_MOUNT}, unix.EPERM},
		{"open_tree", kernelCall{Number: unix.SYS_OPEN_TREE}, unix.EPERM},
		{"setns", kernelCall{Number: unix.SYS_SETNS}, unix.EPERM},
		{"io_uring_setup", kernelCall{Number: unix.SYS_IO_URING_SETUP}, unix.EPERM},
		{"keyctl", kernelCall{Number: unix.SYS_KEYCTL}, unix.EPERM},
		{"add_key", kernelCall{Number: unix.SYS_ADD_KEY}, unix.EPERM},
		{"bpf", kernelCall{Number: unix.SYS_BPF}, unix.EPERM},
		{"perf_event_open", kernelCall{Number: unix.SYS_PERF_EVENT_OPEN}, unix.EPERM},
		{"userfaultfd", kernelCall{Number: unix.SYS_USERFAULTFD}, unix.EPERM},
		{"kexec_load", kernelCall{Number: unix.SYS_KEXEC_LOAD}, unix.EPERM},
		{"open_by_handle_at", kernelCall{Number: unix.SYS_OPEN_BY_HANDLE_AT}, unix.EPERM},
		{"call 500, which no kernel has", kernelCall{Number: 500}, unix.ENOSYS},
		{"open_tree_attr, newer than the profile", kernelCall{Number: 467}, unix.ENOSYS},
		{"x32 call 511", kernelCall{Number: x32Bit + 511}, unix.ENOSYS},
		{"x32 mount", kernelCall{Number: x32Bit + 165}, unix.EPERM},
		{"personality(ADDR_NO_RANDOMIZE)", kernelCall{Number: unix.SYS_PERSONALITY, Args: [6]uint64{0x40000}}, unix.EPERM},
	}
	for _, domain := range []uint64{unix.AF_ALG, unix.AF_VSOCK, unix.AF_RXRPC} {
		for _, bits := range []uint64{0, high, 1 << 63, 0xffffffff << 32} {
			rows = append(rows, row{fmt.Sprintf("socket(%#x)", domain|bits), kernelCall{Number: unix.SYS_SOCKET, Args: [6]uint64{domain | bits, unix.SOCK_DGRAM}}, unix.EPERM})
		}
	}
	for _, ns := range newNS {
		rows = append(rows,
			row{fmt.Sprintf("unshare(%#x)", ns), kernelCall{Number: unix.SYS_UNSHARE, Args: [6]uint64{ns}}, unix.EPERM},
			row{fmt.Sprintf("clone(%#x)", ns), kernelCall{Number: unix.SYS_CLONE, Args: [6]uint64{ns | unix.CLONE_SIGHAND}}, unix.EPERM},
			row{fmt.Sprintf("clone(%#x)", ns|high), kernelCall{Number: unix.SYS_CLONE, Args: [6]uint64{ns | unix.CLONE_SIGHAND | high}}, unix.EPERM})
	}
	if has32(t) {
		for n := range uint64(22) {
			rows = append(rows, row{fmt.Sprintf("i386 socketcall(%d)", n), kernelCall{Compat: 1, Number: 102, Args: [6]uint64{n}}, unix.ENOSYS})
		}
		rows = append(rows,
			row{"i386 socket(AF_ALG)", kernelCall{Compat: 1, Number: 359, Args: [6]uint64{unix.AF_ALG, unix.SOCK_SEQPACKET}}, unix.EPERM},
			row{"i386 mount", kernelCall{Compat: 1, Number: 21}, unix.EPERM},
			row{"i386 clone(NEWUSER)", kernelCall{Compat: 1, Number: 120, Args: [6]uint64{unix.CLONE_NEWUSER | unix.CLONE_SIGHAND}}, unix.EPERM},
			row{"i386 call 500", kernelCall{Compat: 1, Number: 500}, unix.ENOSYS})
	}
	calls := make([]kernelCall, len(rows))
	for i, r := range rows {
		calls[i] = r.call
	}
	for i, got := range results(t, f, calls) {
		if got != rows[i].want {
			t.Errorf("%s: errno %d (%v), want %v", rows[i].name, int(got), got, rows[i].want)
		}
	}
	t.Logf("%d calls", len(rows))
}

// TestKernelAllowsByDefault: calls that a program cannot do without behave as if there was no filter, among them the ones that C libraries probe for.
func TestKernelAllowsByDefault(t *testing.T) {
	calls := []kernelCall{
		{Number: unix.SYS_SOCKET, Args: [6]uint64{unix.AF_UNIX, unix.SOCK_STREAM}},
		{Number: unix.SYS_SOCKET, Args: [6]uint64{unix.AF_INET, unix.SOCK_DGRAM}},
		{Number: unix.SYS_SOCKET, Args: [6]uint64{unix.AF_INET6 | high, unix.SOCK_STREAM}},
		{Number: unix.SYS_SOCKET, Args: [6]uint64{unix.AF_NETLINK, unix.SOCK_RAW}},
		{Number: unix.SYS_PERSONALITY, Args: [6]uint64{0xffffffff}},
		{Number: unix.SYS_PERSONALITY, Args: [6]uint64{^uint64(0)}},
		{Number: unix.SYS_PERSONALITY},
		{Number: unix.SYS_CLONE, Args: [6]uint64{unix.CLONE_THREAD}}, // EINVAL without CLONE_SIGHAND
		{Number: unix.SYS_CHROOT},
		{Number: unix.SYS_PTRACE, Args: [6]uint64{9999}},
	}
	for _, n := range []uint64{unix.SYS_FACCESSAT2, unix.SYS_OPENAT2, unix.SYS_STATX, unix.SYS_RSEQ, unix.SYS_FUTEX_WAITV, unix.SYS_FCHMODAT2, unix.SYS_MSEAL,
		unix.SYS_CACHESTAT, unix.SYS_GETPID, unix.SYS_GETPPID, unix.SYS_EPOLL_PWAIT2, unix.SYS_CLOSE_RANGE, unix.SYS_MEMFD_CREATE, unix.SYS_COPY_FILE_RANGE} {
		calls = append(calls, kernelCall{Number: n, Args: [6]uint64{^uint64(0), 1, 1, 1, 1, 1}})
	}
	if has32(t) {
		calls = append(calls, kernelCall{Compat: 1, Number: 20}, kernelCall{Compat: 1, Number: 359, Args: [6]uint64{unix.AF_INET, unix.SOCK_STREAM}})
	}
	got, want := results(t, defaultFilter(t, capSets["default"]), calls), results(t, nil, calls)
	for i, c := range calls {
		if got[i] != want[i] {
			t.Errorf("call %d (compat %d) with %#x: %v, without a filter %v", c.Number, c.Compat, c.Args, got[i], want[i])
		}
	}
}

// TestKernelAgreesWithInterpreter asks the kernel about every number that the interpreter says is denied, in all three ABIs. The arguments
// are such that no call would do anything if it ran after all.
func TestKernelAgreesWithInterpreter(t *testing.T) {
	args := [6]uint64{^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0)}
	compat := has32(t)
	for name, caps := range capSets {
		f := defaultFilter(t, caps)
		var calls []kernelCall
		var want []syscall.Errno
		for _, a := range host().abis {
			if a.narrow && !compat {
				continue
			}
			for n := range uint32(1024) {
				c := kernelCall{Number: uint64(n + a.base), Args: args}
				in := Call{Number: n + a.base, Arch: a.token, Args: args}
				if a.narrow {
					c.Compat = 1
					in.Args = [6]uint64{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0}
				}
				if !a.narrow && n == 336 {
					continue // uprobe: kernels since 6.14 do not ask filters about it
				}
				if act, _ := f.Run(in); act&actionFull == Errno {
					calls, want = append(calls, c), append(want, syscall.Errno(act&dataMask))
				}
			}
		}
		for i, got := range results(t, f, calls) {
			if got != want[i] {
				t.Errorf("%s: call %#x (compat %d): %v, interpreter %v", name, calls[i].Number, calls[i].Compat, got, want[i])
			}
		}
		t.Logf("%s: %d calls, int 0x80: %v", name, len(calls), compat)
	}
}

// TestKernelCutsNarrowArguments is why narrow.go exists: bits 32 and up of int arguments change nothing for the kernel.
func TestKernelCutsNarrowArguments(t *testing.T) {
	pid := uint64(1)
	base := []kernelCall{
		{Number: unix.SYS_SOCKET, Args: [6]uint64{unix.AF_UNIX, unix.SOCK_STREAM, 0}},
		{Number: unix.SYS_PERSONALITY, Args: [6]uint64{0xffffffff}},
		{Number: unix.SYS_FCNTL, Args: [6]uint64{4, unix.F_GETFD}},
		{Number: unix.SYS_IOCTL, Args: [6]uint64{4, unix.TIOCINQ}},
		{Number: unix.SYS_KILL, Args: [6]uint64{pid, 0}},
		{Number: unix.SYS_LSEEK, Args: [6]uint64{4, 0, 2}},
		{Number: unix.SYS_PRCTL, Args: [6]uint64{unix.PR_GET_DUMPABLE}},
		{Number: unix.SYS_MEMBARRIER, Args: [6]uint64{0, 0}},
		{Number: unix.SYS_EVENTFD2, Args: [6]uint64{0, unix.EFD_CLOEXEC}},
		{Number: unix.SYS_GETPRIORITY, Args: [6]uint64{0, 0}},
		{Number: unix.SYS_PIDFD_OPEN, Args: [6]uint64{pid, 0}},
		{Number: unix.SYS_MLOCKALL, Args: [6]uint64{64}},
		{Number: unix.SYS_SETNS, Args: [6]uint64{4, unix.CLONE_NEWUTS}},
		{Number: unix.SYS_DUP3, Args: [6]uint64{4, 4, 0}},
	}
	for _, line := range base {
		name := CallName(host().abis[0].token, uint32(line.Number))
		high := []kernelCall{line}
		for a := range 6 {
			if host().narrow[name]&(1<<a) != 0 {
				c := line
				c.Args[a] |= 1<<32 | 1<<63
				high = append(high, c)
			}
		}
		if len(high) == 1 {
			t.Errorf("%s is not in narrow.go", name)
		}
		r := results(t, nil, high)
		for k, got := range r {
			if got != r[0] {
				t.Errorf("%s with %#x: %v, without high bits %v", name, high[k].Args, got, r[0])
			}
		}
	}
}

// TestKernelKillsForeignABI: int 0x80 where x86 is not included, and an x32 number where x32 is not, end the process with SIGSYS.
func TestKernelKillsForeignABI(t *testing.T) {
	if got := exitOf(t, []kernelCall{{Number: unix.SYS_GETPPID}}); got != "" {
		t.Errorf("native call: %s", got)
	}
	for _, c := range []kernelCall{{Compat: 1, Number: 20}, {Number: x32Bit + unix.SYS_GETPPID}} {
		if c.Compat == 1 && !has32(t) {
			continue
		}
		if got := exitOf(t, []kernelCall{c}); got != "signal: bad system call" && got != "signal: bad system call (core dumped)" {
			t.Errorf("call %+v: exit %q", c, got)
		}
	}
}

// TestKernelHighBitsPassNoDenyRule: rules in the three forms that let socket(AF_VSOCK | 1<<32) through libseccomp's filters.
func TestKernelHighBitsPassNoDenyRule(t *testing.T) {
	arg := func(op specs.LinuxSeccompOperator, v uint64) []specs.LinuxSeccompArg {
		return []specs.LinuxSeccompArg{{Value: v, Op: op}}
	}
	rule := func(a specs.LinuxSeccompAction, args []specs.LinuxSeccompArg) specs.LinuxSyscall {
		return specs.LinuxSyscall{Names: []string{"socket"}, Action: a, Args: args}
	}
	everything := specs.LinuxSeccomp{DefaultAction: specs.ActAllow}
	others := specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
	for _, c := range host().calls {
		if c.name != "socket" {
			others.Syscalls = append(others.Syscalls, specs.LinuxSyscall{Names: []string{c.name}, Action: specs.ActAllow})
		}
	}
	with := func(p specs.LinuxSeccomp, rules ...specs.LinuxSyscall) *specs.LinuxSeccomp {
		p.Syscalls = append(slices.Clone(p.Syscalls), rules...)
		return &p
	}
	for name, p := range map[string]*specs.LinuxSeccomp{
		"EQ denies": with(everything, rule(specs.ActErrno, arg(specs.OpEqualTo, unix.AF_VSOCK))),
		"NE allows": with(others, rule(specs.ActAllow, arg(specs.OpNotEqual, unix.AF_VSOCK))),
		"GT allows": with(others, rule(specs.ActAllow, arg(specs.OpLessThan, unix.AF_VSOCK)), rule(specs.ActAllow, arg(specs.OpGreaterThan, unix.AF_VSOCK))),
	} {
		f, err := Compile(p)
		if err != nil {
			t.Fatal(err)
		}
		calls := []kernelCall{{Number: unix.SYS_SOCKET, Args: [6]uint64{unix.AF_UNIX | high, unix.SOCK_STREAM}}}
		for _, bits := range []uint64{0, high, 1 << 63} {
			calls = append(calls, kernelCall{Number: unix.SYS_SOCKET, Args: [6]uint64{unix.AF_VSOCK | bits, unix.SOCK_STREAM}})
		}
		for i, got := range results(t, f, calls) {
			if want := map[bool]syscall.Errno{true: unix.EPERM}[i > 0]; got != want {
				t.Errorf("%s: socket(%#x): %v, want %v", name, calls[i].Args[0], got, want)
			}
		}
	}
}
