package monitor

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/pause"
	"github.com/vitrine-runtime/vitrine/internal/step"
	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/executor"
)

// pauseUser is nobody in particular, as in the pause images: no file of the
// host and no other process belongs to it.
const pauseUser = 65535

// pauseOOM is what the kubelet asks for sandboxes: the pause's death would take
// the whole pod, and it has nothing to give back.
const pauseOOM = -998

// startPause makes pid 1 of the pod's pid namespace: a process whose
// life is the namespace's, and who makes the kernel reap the pod's orphans.
func (m *monitor) startPause() error {
	elf, err := sys.SealedMemfd("pause", pause.ELF(), true)
	if err != nil {
		return err
	}
	defer elf.Close()
	// Whoever executes a file that he may not read is not dumpable afterwards: a
	// container with the same uid and SYS_PTRACE cannot trace pid 1 of its pod.
	if err := unix.Fchmod(elf.Int(), 0o111); err != nil {
		return fmt.Errorf("chmod pause: %w", err)
	}
	b, err := pauseProgram(m.setup.UserNS).Encode()
	if err != nil {
		return err
	}
	prog, err := sys.SealedMemfd("pause-program", b, false)
	if err != nil {
		return err
	}
	a := executor.Attr{CgroupFD: -1, PIDNS: -1, ProcFD: m.proc.root.Int(), Files: []int{elf.Int()}}
	for i := range a.Stdio {
		a.Stdio[i] = m.null.Int()
	}
	if m.setup.UserNS {
		user, err := unix.IoctlRetInt(m.ns[1].Int(), unix.NS_GET_USERNS) // whose the ipc namespace is
		if err != nil {
			return fmt.Errorf("find user namespace: %w", err)
		}
		defer unix.Close(user)
		a.Files = append(a.Files, user)
	}
	if m.setup.Cgroup {
		cgroup := sys.NewFD(CgroupFD)
		defer cgroup.Close()
		a.CgroupFD = cgroup.Int()
	}
	p, err := m.family.start(prog, a)
	if err != nil {
		return fmt.Errorf("start pause: %w", err)
	}
	_, m.note = m.proc.setOOM(p.Pid(), pauseOOM)
	if err := p.Ready(); err != nil {
		p.kill()
		p.wait()
		return fmt.Errorf("start pause: %w", err)
	}
	p.settle()
	m.pause = p
	go p.wait() // ends with the pause
	return nil
}

// pauseProgram is the pause's way from a fork of ours to its execve. Ignored
// signals survive execve, and a parent that ignores SIGCHLD has its children
// reaped by the kernel. With userns the pid namespace is to belong to the user namespace
// behind the second file.
func pauseProgram(userns bool) *step.Program {
	p := &step.Program{Clone: unix.CLONE_NEWPID, Wait: step.NoWait, Files: []string{"pause"}}
	add := func(name string, nr uint32, args ...step.Arg) *step.Step {
		s := step.Step{Nr: nr, Result: step.NoResult, Name: name}
		copy(s.Args[:], args)
		p.Steps = append(p.Steps, s)
		return &p.Steps[len(p.Steps)-1]
	}
	ignore := data(p, []uint64{sigIgn, 0, 0, 0}) // struct sigaction
	none := data(p, []uint64{0})                 // a signal set, an empty string, a vector's end
	name := data(p, []uint64{0x6573756170})      // "pause"
	argv := data(p, []uint64{0, 0})
	p.Relocs = append(p.Relocs, step.Reloc{At: uint32(argv.Val), To: uint32(name.Val)})
	if userns {
		// What is cloned by who is in a user namespace belongs to that; so a sibling goes on.
		p.Clone, p.Files = 0, append(p.Files, "user namespace")
		born := data(p, []uint64{step.Born << 32}) // a step.Record
		args := data(p, []uint64{unix.CLONE_NEWPID | unix.CLONE_PARENT | unix.CLONE_PARENT_SETTID, 0, 0, 0, 0, 0, 0, 0})
		p.Relocs = append(p.Relocs, step.Reloc{At: uint32(args.Val) + 24, To: uint32(born.Val)}) // parent_tid
		add("join the user namespace", unix.SYS_SETNS, num(step.FirstFD+1), num(unix.CLONE_NEWUSER))
		add("go on in a sibling", unix.SYS_CLONE3, args, num(64)).Result = 0
		s := add("be the sibling", step.OpExpect, step.Arg{Kind: step.Reg}, num(0), num(uint64(unix.ECHILD)), num(^uint64(0)))
		s.Then, s.OnErr = 2, []step.Branch{{Errno: uint16(unix.ECHILD)}}
		add("report its birth", unix.SYS_WRITE, num(step.ReportFD), born, num(step.RecordSize))
		add("leave the rest to it", unix.SYS_EXIT_GROUP, num(0))
		// Where there are fewer ids than pauseUser needs, it stays the namespace's root, without capabilities.
		add("be the first group", unix.SYS_SETRESGID, num(0), num(0), num(0))
		add("be the first user", unix.SYS_SETRESUID, num(0), num(0), num(0))
	}
	add("ignore SIGCHLD", unix.SYS_RT_SIGACTION, num(uint64(unix.SIGCHLD)), ignore, num(0), num(8))
	add("unblock all signals", unix.SYS_RT_SIGPROCMASK, num(unix.SIG_SETMASK), none, num(0), num(8))
	add("leave the session", unix.SYS_SETSID)
	for c := uint64(0); c < 64; c++ {
		s := add("drop a capability from the bounding set", unix.SYS_PRCTL, num(unix.PR_CAPBSET_DROP), num(c))
		s.OnErr = []step.Branch{{Errno: uint16(unix.EINVAL)}} // behind the last that this kernel has
	}
	add("drop groups", unix.SYS_SETGROUPS, num(0), num(0))
	gid := add("set gid", unix.SYS_SETRESGID, num(pauseUser), num(pauseUser), num(pauseUser))
	if userns {
		gid.OnErr = []step.Branch{{Errno: uint16(unix.EINVAL), Skip: 1}}
	}
	add("set uid", unix.SYS_SETRESUID, num(pauseUser), num(pauseUser), num(pauseUser))
	add("set no_new_privs", unix.SYS_PRCTL, num(unix.PR_SET_NO_NEW_PRIVS), num(1), num(0), num(0), num(0))
	add("execute pause", unix.SYS_EXECVEAT, num(step.FirstFD), none, argv, none, num(unix.AT_EMPTY_PATH))
	return p
}

//go:noinline
func num(v uint64) step.Arg { return step.Arg{Kind: step.Const, Val: v} }

func data(p *step.Program, words []uint64) step.Arg {
	at := len(p.Data)
	for _, w := range words {
		p.Data = binary.NativeEndian.AppendUint64(p.Data, w)
	}
	return step.Arg{Kind: step.Addr, Val: uint64(at)}
}
