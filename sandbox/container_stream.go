package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/vitrine-runtime/vitrine/oci"
	"github.com/vitrine-runtime/vitrine/oci/cgroup"
)

// firstSize is how long a command waits for the size of its window: clients send it
// at once, and some programs ask for it only once.
const firstSize = 50 * time.Millisecond

// Exec runs a command in a running container between a client's streams and returns its exit code, as
// ExecSync would. A slow client holds up the command, and nothing else.
//
// When ctx ends the client has gone, and the command is hung up on: its stdin ends, its output is a broken pipe,
// and of a terminal it gets SIGHUP. It is not killed: who runs something that outlives a lost connection
// wants it to. What it leaves behind lives on in the container.
func (m *Manager) Exec(ctx context.Context, id string, cmd []string, s Streams) (code int32, err error) {
	c, err := m.runningContainer(id)
	if err != nil {
		return 0, err
	}
	if err := checkCommand(cmd, 0); err != nil {
		return 0, err
	}
	e := &streamedExec{c: c, cmd: cmd, s: &s}
	code, err = e.run(ctx)
	if err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", c.id, c.orEnded(err))
	}
	return code, nil
}

// streamedExec is one Exec.
type streamedExec struct {
	c    *Container
	cmd  []string
	s    *Streams
	leaf *cgroup.Scope

	child          [3]*os.File // of the command, closed once it has them
	stdin          *os.File    // ours
	stdout, stderr *outlet     // ours; a terminal has the first only
}

func (e *streamedExec) run(ctx context.Context) (int32, error) {
	spec, err := e.c.ociSpec()
	if err != nil {
		return 0, err
	}
	pr, err := e.c.process()
	if err != nil {
		return 0, err
	}
	if e.leaf, err = e.c.pod.m.cfg.Cgroups.Load(e.c.record.Cgroup).Leaf("exec-" + newID()[:16]); err != nil {
		return 0, fmt.Errorf("make cgroup: %w", leafError(err))
	}
	ex, err := e.start(ctx, spec, pr)
	var failed *startFailure
	if errors.As(err, &failed) {
		endLeaf(e.leaf, true)
		e.complain(err)
		return startCode(err), nil
	}
	if err != nil {
		endLeaf(e.leaf, true)
		return 0, whyEnded(ctx, err)
	}
	return e.attend(ctx, ex)
}

// start runs the command with pipes, or a terminal, that lead straight here.
func (e *streamedExec) start(ctx context.Context, spec *specs.Spec, pr process) (_ execution, err error) {
	p := *spec.Process
	p.Args, p.Terminal, p.ConsoleSize = e.cmd, e.s.TTY, nil
	if e.s.TTY {
		p.ConsoleSize = e.window(ctx)
		if !slices.ContainsFunc(p.Env, func(v string) bool { return strings.HasPrefix(v, "TERM=") }) {
			p.Env = append(slices.Clone(p.Env), "TERM=xterm")
		}
	}
	defer func() {
		for _, f := range e.child {
			if f != nil {
				f.Close()
			}
		}
		if err != nil {
			e.hangUp()
		}
	}()
	if err := e.openPipes(e.c.outside(p.User)); err != nil {
		return nil, err
	}
	dir, err := e.leaf.OpenDir()
	if err != nil {
		return nil, leafError(err)
	}
	// Not for as long as the client is there only: it may have seen the first words of a command, and gone, before we hear that
	// the command has begun. That is a hang-up like any other, and no reason to kill.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), e.c.pod.m.cfg.OperationTimeout)
	defer cancel()
	return e.c.execBy(ctx, pr, oci.ExecConfig{Process: &p, Seccomp: spec.Linux.Seccomp, Cgroup: dir, Bundle: e.c.dir, Annotations: spec.Annotations, UserNS: e.c.pod.plan.UserNS != nil,
		Stdin: e.child[0], Stdout: e.child[1], Stderr: e.child[2]})
}

// window waits a moment for the size of the client's window.
func (e *streamedExec) window(ctx context.Context) *specs.Box {
	wait := time.NewTimer(firstSize)
	defer wait.Stop()
	select {
	case s, ok := <-e.s.Resize:
		if ok && s.Width > 0 && s.Height > 0 {
			return &specs.Box{Width: uint(s.Width), Height: uint(s.Height)}
		}
	case <-wait.C:
	case <-ctx.Done():
	}
	return nil
}

// openPipes makes a pipe for each stream that is wanted. With a terminal there are none.
func (e *streamedExec) openPipes(uid, gid int) error {
	if e.s.TTY {
		return nil
	}
	for i, want := range []bool{e.s.Stdin != nil, e.s.Stdout != nil, e.s.Stderr != nil} {
		if !want {
			continue
		}
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			return os.NewSyscallError("pipe2", err)
		}
		ours, theirs := p[0], p[1]
		if i == 0 {
			ours, theirs = p[1], p[0]
		}
		// Only our end is non-blocking: the flag belongs to the end. The pipe is the command's user's, who may open
		// /dev/stdout again.
		err := errors.Join(unix.SetNonblock(ours, true), unix.Fchown(theirs, uid, gid))
		mine := os.NewFile(uintptr(ours), "exec stream")
		e.child[i] = os.NewFile(uintptr(theirs), "exec stream")
		switch i {
		case 0:
			e.stdin = mine
		case 1:
			e.stdout = pump(mine, e.s.Stdout)
		case 2:
			e.stderr = pump(mine, e.s.Stderr)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// attend passes on what there is until the command has ended and its output was read, or the client has gone.
func (e *streamedExec) attend(ctx context.Context, ex execution) (code int32, err error) {
	defer e.hangUp()
	if tty := ex.terminal(); tty != nil {
		e.stdin = tty
		out := io.Discard
		if e.s.Stdout != nil {
			out = e.s.Stdout
		}
		e.stdout = pump(tty, out)
	}
	following, stop := context.WithCancel(ctx)
	defer stop()
	go e.s.follow(following, ex.resize) // ends with attend
	if e.s.Stdin != nil {
		fed := feed(e.stdin, e.s.Stdin)
		go func() { // ends with the client's connection
			if <-fed; !e.s.TTY {
				e.stdin.Close() // a terminal has no end but the hang-up
			}
		}()
	}
	select {
	case r := <-e.watch(ex):
		if r.err != nil {
			return 0, r.err
		}
		code = r.exit.code
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	e.stdout.finish(ctx)
	e.stderr.finish(ctx)
	return code, nil
}

// ending is how a command ended.
type ending struct {
	exit exit
	err  error
}

// watch waits for the command, also without its client, and then takes its cgroup away.
func (e *streamedExec) watch(ex execution) <-chan ending {
	m := e.c.pod.m
	ended := make(chan ending, 1)
	m.running.Add(1)
	go func() { // ends with the command, or with the manager
		defer m.running.Done()
		x, err := ex.wait(m.flights.base)
		endLeaf(e.leaf, false)
		ended <- ending{x, err}
	}()
	return ended
}

// hangUp closes our ends of everything.
func (e *streamedExec) hangUp() {
	if e.stdin != nil {
		e.stdin.Close()
	}
	e.stdout.close()
	e.stderr.close()
}

// complain tells the client in words that people know what kept a command from being executed.
func (e *streamedExec) complain(err error) {
	why := err.Error()
	var errno syscall.Errno
	switch {
	case errors.Is(err, fs.ErrNotExist) && !strings.Contains(e.cmd[0], "/"):
		why = "executable file not found in $PATH"
	case errors.As(err, &errno):
		why = errno.Error()
	}
	to := e.s.Stderr
	if e.s.TTY || to == nil {
		to = e.s.Stdout
	}
	if to != nil {
		_, _ = fmt.Fprintf(to, "exec: %q: %s\n", e.cmd[0], why)
	}
	klog.V(4).InfoS("Command not executed", "container", e.c.id, "err", err)
}
