package bundle

import (
	"errors"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/executor"
	"github.com/vitrine-runtime/vitrine/oci/program"
)

// ExecOptions say what Exec is to do.
type ExecOptions struct {
	// Process is what to run.
	Process *specs.Process
	// Stdio, PidFile and ConsoleSocket are as in CreateOptions.
	Stdio         [3]int
	PidFile       string
	ConsoleSocket string
	// PreserveFDs is as in CreateOptions.
	PreserveFDs int
	// Detach returns as soon as the program runs.
	Detach bool
	// IgnorePaused lets it be made in a paused container, where it goes on when that
	// does.
	IgnorePaused bool
}

// Exec runs a further process in a created or running container. Unless it is
// detached it passes on the signals that come, and returns the exit code. The
// container is not locked longer than it takes to start.
func (c *Container) Exec(o ExecOptions) (code int, err error) {
	states := []specs.ContainerState{specs.StateRunning, specs.StateCreated}
	if o.IgnorePaused {
		states = append(states, StatePaused)
	}
	if err := c.want("exec in", states...); err != nil {
		return 0, err
	}
	e := &execution{c: c, opts: o}
	defer e.close()
	if err := e.compile(); err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", c.rec.ID, err)
	}
	if !o.Detach {
		if err := catchAll(); err != nil { // the program may be sent one at once
			return 0, err
		}
	}
	if err := e.start(); err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", c.rec.ID, err)
	}
	defer e.child.Close()
	if o.Detach {
		return 0, nil
	}
	if err := c.Close(); err != nil { // for others to kill it
		return 0, err
	}
	return e.wait()
}

// execution makes one exec.
type execution struct {
	c       *Container
	opts    ExecOptions
	spec    *specs.Spec
	pidfd   *sys.FD // of init
	socket  *sys.FD
	fds     []*sys.FD // for the process, from 3 on
	screen  *screen   // of ours, where nobody else takes the terminal
	program []byte
	child   *executor.Child
	path    string // to execute in place of the first argument
}

func (e *execution) compile() (err error) {
	if e.spec, err = e.c.Spec(); err != nil {
		return err
	}
	l := e.spec.Linux
	p := *e.opts.Process
	if p.ExecCPUAffinity == nil && e.spec.Process != nil {
		p.ExecCPUAffinity = e.spec.Process.ExecCPUAffinity // there for execs only
	}
	p.Rlimits = withFileLimit(p.Rlimits)
	code, flags, keep, err := e.c.r.filter(l.Seccomp)
	if err != nil {
		return err
	}
	if keep != nil {
		keep()
	}
	in := program.ExecInput{Process: &p, Seccomp: code, SeccompFlags: flags, Personality: l.Personality, MemoryPolicy: l.MemoryPolicy, Path: e.path, KeepGroups: keepsGroups(),
		UIDMappings: l.UIDMappings, GIDMappings: l.GIDMappings}
	for _, ns := range l.Namespaces {
		switch ns.Type {
		case specs.PIDNamespace, specs.MountNamespace:
		case specs.CgroupNamespace:
			in.CgroupNS = true
		default:
			in.Join |= program.NamespaceFlag(ns.Type)
		}
	}
	if p.Terminal && e.opts.ConsoleSocket == "" && !e.opts.Detach {
		e.screen, e.socket, err = newScreen()
	} else {
		e.socket, err = socketFor(&p, e.opts.ConsoleSocket)
	}
	if err != nil {
		return err
	}
	if e.socket != nil {
		in.ConsoleSocket = 1
	}
	if e.fds, err = inherited(e.c.r.firstFD(), e.opts.PreserveFDs); err != nil {
		return err
	}
	in.Preserve = len(e.fds)
	prog, err := program.CompileExec(in)
	if err != nil {
		return err
	}
	e.program, err = prog.Encode()
	return err
}

// start forks the process and lets it go as far as its execve.
func (e *execution) start() (err error) {
	if e.pidfd, err = e.c.rec.Init.open(); err != nil {
		return err
	}
	if err := e.fork(); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = sys.PidfdSignal(e.child.PidFD(), unix.SIGKILL)
			_, _ = reap(e.child.PidFD()) // it is ours
			e.child.Close()
		}
	}()
	adj := e.opts.Process.OOMScoreAdj
	if adj == nil {
		adj = e.spec.Process.OOMScoreAdj
	}
	if adj != nil {
		if err := setOOM(e.child.Pid(), *adj); err != nil {
			return err
		}
	}
	if err := e.c.listen(e.child, e.child.Hands()); err != nil {
		return err
	}
	if err := e.child.Run(); err != nil {
		return err
	}
	return writePidFile(e.opts.PidFile, e.child.Pid())
}

// fork starts the program in the container's cgroup. One that has been divided by
// the container takes no processes itself: then it is where init is.
func (e *execution) fork() error {
	if err := harden(); err != nil {
		return err
	}
	raiseLimits(e.spec.Linux, e.opts.Process.Rlimits)
	proc, err := openProc()
	if err != nil {
		return err
	}
	a := executor.Attr{Program: e.program, CgroupFD: -1, PIDNS: e.pidfd.Int(), ProcFD: proc.Disown(), Stdio: e.opts.Stdio, Files: []int{e.pidfd.Int()}}
	if e.socket != nil {
		a.Files = append(a.Files, e.socket.Int())
	}
	for _, f := range e.fds {
		a.Files = append(a.Files, f.Int())
	}
	dir, err := e.c.openCgroup()
	if err != nil {
		return err
	}
	if dir != nil {
		defer dir.Close()
		a.CgroupFD = dir.Int()
	}
	if e.child, err = executor.Start(a); !errors.Is(err, unix.EBUSY) || dir == nil {
		return err
	}
	own, err := cgroupOf(e.c.rec.Init.Pid)
	if err != nil {
		return err
	}
	defer own.Close()
	a.CgroupFD = own.Int()
	e.child, err = executor.Start(a)
	return err
}

// openCgroup opens the directory of the container's cgroup; nil where it has none.
func (c *Container) openCgroup() (*sys.FD, error) {
	g, err := c.group()
	if g == nil || err != nil {
		return nil, err
	}
	defer g.close()
	return g.scope.OpenDir()
}

// wait waits for the process's end.
func (e *execution) wait() (int, error) {
	if e.screen == nil {
		return attend(e.child.PidFD(), attendant{})
	}
	e.socket.Close() // the child has its own
	e.socket = nil
	return e.screen.serve(e.child.PidFD())
}

func (e *execution) close() {
	for _, f := range e.fds {
		f.Close()
	}
	e.pidfd.Close()
	e.socket.Close()
	e.screen.close()
}
