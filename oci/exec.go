package oci

import (
	"context"
	"fmt"
	"os"
	"runtime"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/program"
	"github.com/vitrine-runtime/vitrine/oci/wire"
)

// ExecConfig says what to run in a running container.
type ExecConfig struct {
	Process *specs.Process
	Seccomp *specs.LinuxSeccomp // the container's own, as a rule
	// Bundle and Annotations are what is said of the container to who answers the
	// notifications of such a profile.
	Bundle      string
	Annotations map[string]string
	// UserNS says that the container is in a user namespace of its pod.
	UserNS bool
	// Cgroup is the exec's leaf, so that all that it starts can be killed as one;
	// nil runs it in the monitor's cgroup. It moves into Exec.
	Cgroup *sys.FD
	// Stdin, Stdout and Stderr go straight to the child; nil is /dev/null. They stay
	// the caller's, who closes his copies to see the end of the output. They become
	// blocking, as by File.Fd. With Process.Terminal they are not looked at.
	Stdin, Stdout, Stderr *os.File
}

// Exec is a further process of a container. It lives on when the daemon
// dies; what it does then, and its exit code, nobody hears.
type Exec struct {
	pod  *Pod
	id   uint64
	call *call
	pid  int
	tty  *os.File
}

// Exec starts a process in the container and returns when its execve succeeded.
// A step that failed is a *StartError (ENOENT: no such command). ErrState: the
// container does not run.
func (pr *Process) Exec(ctx context.Context, c ExecConfig) (*Exec, error) {
	defer c.Cgroup.Close()
	e, err := pr.exec(ctx, &c)
	return e, pr.wrap("exec in", err)
}

func (pr *Process) exec(ctx context.Context, c *ExecConfig) (*Exec, error) {
	filter, flags, asked, err := compileSeccomp(c.Seccomp, pr.pod.version)
	if err != nil {
		return nil, err
	}
	tty, err := newConsole(c.Process.Terminal)
	if err != nil {
		return nil, err
	}
	defer tty.close()
	// A cgroup namespace that is the host's can be joined as well as any other.
	in := program.ExecInput{Process: c.Process, Seccomp: filter, SeccompFlags: flags, CgroupNS: true, NoWait: pr.pod.version < 3,
		ConsoleSocket: tty.index()}
	if c.UserNS {
		in.Join = unix.CLONE_NEWUSER
	}
	p, err := encodeExec(in)
	if err != nil {
		return nil, fmt.Errorf("compile process: %w", err)
	}
	defer func() { p.done() }()
	mem, err := sys.SealedMemfd("vitrine-program", p.code, false)
	if err != nil {
		return nil, err
	}
	defer mem.Close()
	r := wire.Exec{ID: pr.id, Cgroup: c.Cgroup != nil}
	files := []int{mem.Int()}
	if c.Cgroup != nil {
		files = append(files, c.Cgroup.Int())
	}
	for i, f := range []*os.File{c.Stdin, c.Stdout, c.Stderr} {
		if f == nil || tty != nil {
			continue
		}
		// Fd makes the open file blocking, which is what a program expects of its stdio.
		raw := int(f.Fd())
		if raw < 0 {
			return nil, fmt.Errorf("stdio of exec: %w", os.ErrClosed)
		}
		r.Stdio |= 1 << i
		files = append(files, raw)
	}
	if asked != nil {
		state := specs.State{Version: specs.Version, ID: pr.id, Status: specs.StateRunning, Pid: pr.Pid(), Bundle: c.Bundle, Annotations: c.Annotations}
		dir, message, name, err := openListener(asked, state)
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		defer message.Close()
		r.Listener, files = name, append(files, dir.Int(), message.Int())
	}
	if tty != nil {
		r.Table, files = 1, append(files, tty.child.Int())
	}
	id, call, err := pr.pod.send(&r, files, true)
	runtime.KeepAlive(c)
	if err != nil {
		return nil, err
	}
	mem.BriefClose() // the monitor has it
	p.done()
	packet, err := pr.pod.await(ctx, id, call)
	if err != nil {
		return nil, err
	}
	defer packet.Close()
	started, ok := packet.Body.(*wire.ExecStarted)
	if !ok {
		return nil, fmt.Errorf("answer to exec is %T: %w", packet.Body, wire.ErrMalformed)
	}
	master, err := tty.take()
	if err != nil {
		return nil, err
	}
	return &Exec{pod: pr.pod, id: id, call: call, pid: int(started.Pid), tty: master}, nil
}

// Terminal returns the master of the process's terminal, or nil without one. It is the
// caller's, who closes it and thereby hangs up; its name is of no use, and Resize sets its size.
func (e *Exec) Terminal() *os.File { return e.tty }

// Resize sets the size of the process's terminal; without one it does nothing.
func (e *Exec) Resize(width, height uint16) error {
	if e.tty == nil {
		return nil
	}
	return setSize(e.tty, width, height)
}

// Pid returns the process id as the host sees it.
func (e *Exec) Pid() int { return e.pid }

// Wait returns how the process ended. It is called once. If ctx ends before,
// the process goes on, and nobody hears of its end: the caller kills its
// cgroup. After the loss of the monitor the status is unknown, and the error is
// ErrNoMonitor.
func (e *Exec) Wait(ctx context.Context) (ExitStatus, error) {
	packet, err := e.pod.await(ctx, e.id, e.call)
	if err != nil {
		return ExitStatus{}, fmt.Errorf("wait for exec: %w", err)
	}
	defer packet.Close()
	x, ok := packet.Body.(*wire.ExecExited)
	if !ok {
		return ExitStatus{}, fmt.Errorf("wait for exec: %T: %w", packet.Body, wire.ErrMalformed)
	}
	return statusOf(x.Status), nil
}
