package bundle

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/scratch"
	"github.com/vitrine-runtime/vitrine/internal/step"
	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/executor"
	"github.com/vitrine-runtime/vitrine/oci/program"
)

// view is what createContainer hooks see. They are the runtime's programs in the
// container's namespaces, and want both file trees: the host's, for their own binary
// and the bundle, and the root with all its mounts at its path in there. The mount
// namespace of the child has neither, so for the time of the hooks
//
//	/             the tiny root
//	├── empty     a private copy of the host's tree; the hooks' root
//	│   └── …/rootfs    the container's root, moved here from
//	└── root
//
// and back afterwards. The child does not mind where its root is attached: it has a
// descriptor.
type view struct {
	pidfd *sys.FD // the child's
	root  *sys.FD // the container's root
	host  *sys.FD // copy of the host's tree
	dir   string  // the root's path in the copy
}

// inMounts calls f in the mount namespace of a process, on a thread that ends.
func inMounts(pidfd *sys.FD, f func() error) error {
	return sys.OnLostThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("unshare CLONE_FS: %w", err)
		}
		if err := unix.Setns(pidfd.Int(), unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("join the mount namespace: %w", err)
		}
		return f()
	})
}

func openView(child, root *sys.FD, rootfs string) (v *view, err error) {
	v = &view{root: root, dir: rootfs}
	defer func() {
		if err != nil {
			v.close()
		}
	}()
	if v.pidfd, err = child.Dup(); err != nil {
		return nil, err
	}
	if v.host, err = sys.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE|unix.AT_RECURSIVE); err != nil {
		return nil, err
	}
	// Or what is mounted in the copy would be mounted on the host.
	private := &unix.MountAttr{Propagation: unix.MS_PRIVATE}
	if err := sys.MountSetattr(v.host.Int(), "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, private); err != nil {
		return nil, err
	}
	return v, inMounts(v.pidfd, func() error {
		empty, err := sys.OpenAt2(unix.AT_FDCWD, scratch.EmptyDir, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		defer empty.Close()
		if err := sys.MoveMount(v.host, empty); err != nil {
			return fmt.Errorf("show the host's files: %w", err)
		}
		to, err := sys.OpenAt2(v.host.Int(), rootfs, unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS)
		if err != nil {
			return err
		}
		defer to.Close()
		if err := sys.MoveMount(v.root, to); err != nil {
			return fmt.Errorf("move the root to %s: %w", rootfs, err)
		}
		return nil
	})
}

// undo puts everything back.
func (v *view) undo() error {
	return inMounts(v.pidfd, func() error {
		to, err := sys.OpenAt2(unix.AT_FDCWD, scratch.Root, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		defer to.Close()
		if err := sys.MoveMount(v.root, to); err != nil {
			return fmt.Errorf("move the root back: %w", err)
		}
		if err := unix.Unmount(scratch.EmptyDir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("hide the host's files: %w", err)
		}
		return nil
	})
}

func (v *view) close() {
	v.pidfd.Close()
	v.host.Close()
}

// start runs a hook in the namespaces of the child, with the copy as its root.
func (v *view) start(h *specs.Hook, l *specs.Linux, stdio [3]*os.File) (*executor.Child, error) {
	b, err := hookProgram(h, v.dir, l).Encode()
	if err != nil {
		return nil, err
	}
	if err := harden(); err != nil {
		return nil, err
	}
	c, err := executor.Start(executor.Attr{Program: b, CgroupFD: -1, PIDNS: v.pidfd.Int(), ProcFD: -1, Stdio: descriptors(stdio),
		Files: []int{v.pidfd.Int(), v.host.Int()}})
	if err != nil {
		return nil, err
	}
	if err := c.Ready(); err != nil {
		_ = sys.PidfdSignal(c.PidFD(), unix.SIGKILL)
		_, _ = reap(c.PidFD()) // it is ours
		c.Close()
		return nil, err
	}
	return c, nil
}

// hookProgram is a hook's way from a fork of ours to its execve. Files: the child's
// pidfd, the root of the copy.
func hookProgram(h *specs.Hook, dir string, l *specs.Linux) *step.Program {
	p := &hookBuilder{step.Program{Wait: step.NoWait, Files: []string{"init process of the container", "the host's files"}}}
	flags := uint64(unix.CLONE_NEWNS)
	for _, ns := range l.Namespaces {
		if ns.Type != specs.PIDNamespace { // the forking thread's business
			flags |= program.NamespaceFlag(ns.Type)
		}
	}
	p.add("become leader of a session", unix.SYS_SETSID)
	p.add("join the namespaces of the container", unix.SYS_SETNS, num(step.FirstFD), num(flags))
	if flags&unix.CLONE_NEWUSER != 0 {
		p.add("be group 0 of the user namespace", unix.SYS_SETRESGID, num(0), num(0), num(0))
		p.add("be user 0 of the user namespace", unix.SYS_SETRESUID, num(0), num(0), num(0))
	}
	p.add("enter the host's files", unix.SYS_FCHDIR, num(step.FirstFD+1))
	p.add("make them the root", unix.SYS_CHROOT, p.str("."))
	p.add("enter the container's root", unix.SYS_CHDIR, p.str(dir))
	p.add("close what is no longer needed", unix.SYS_CLOSE_RANGE, num(step.FirstFD), num(uint64(^uint32(0))), num(0))
	p.add("execute "+h.Path, unix.SYS_EXECVE, p.str(h.Path), p.vector(hookArgs(h)), p.vector(h.Env))
	return &p.Program
}

// hookBuilder makes a program by hand: what a hook needs is no container's.
type hookBuilder struct{ step.Program }

func num(v uint64) step.Arg { return step.Arg{Kind: step.Const, Val: v} }

//go:noinline
func (p *hookBuilder) add(name string, nr uint32, args ...step.Arg) {
	s := step.Step{Nr: nr, Result: step.NoResult, Name: name}
	copy(s.Args[:], args)
	p.Steps = append(p.Steps, s)
}

func (p *hookBuilder) str(s string) step.Arg {
	at := len(p.Data)
	p.Data = append(append(p.Data, s...), 0)
	return step.Arg{Kind: step.Addr, Val: uint64(at)}
}

// words are 64-bit words in the data.
func (p *hookBuilder) words(list ...uint64) step.Arg {
	p.Data = append(p.Data, make([]byte, (8-len(p.Data)%8)%8)...)
	at := len(p.Data)
	for _, w := range list {
		p.Data = binary.NativeEndian.AppendUint64(p.Data, w)
	}
	return step.Arg{Kind: step.Addr, Val: uint64(at)}
}

// gate is a wait for the parent, as programs have it: end of file is that it has died.
func (p *hookBuilder) gate(name string) {
	record := p.words(uint64(len(p.Steps) + 1)) // number of the read, and no errno
	p.add("report that it is time", unix.SYS_WRITE, num(step.ReportFD), record, num(step.RecordSize))
	p.add(name, unix.SYS_READ, num(step.StartFD), p.words(0), num(1))
	p.Steps[len(p.Steps)-1].Result = 0
	p.add("go on, not abandoned", step.OpExpect, step.Arg{Kind: step.Reg}, num(1), num(uint64(unix.EPIPE)), num(math.MaxUint64))
}

// vector is a NULL-terminated array of pointers.
func (p *hookBuilder) vector(list []string) step.Arg {
	to := make([]step.Arg, 0, len(list))
	for _, s := range list {
		to = append(to, p.str(s))
	}
	p.Data = append(p.Data, make([]byte, (8-len(p.Data)%8)%8)...)
	at := len(p.Data)
	for i := range to {
		p.Relocs = append(p.Relocs, step.Reloc{At: uint32(at + 8*i), To: uint32(to[i].Val)})
		p.Data = binary.NativeEndian.AppendUint64(p.Data, 0)
	}
	p.Data = binary.NativeEndian.AppendUint64(p.Data, 0)
	return step.Arg{Kind: step.Addr, Val: uint64(at)}
}
