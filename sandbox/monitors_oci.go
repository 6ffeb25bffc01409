package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci"
	"github.com/vitrine-runtime/vitrine/oci/program"
)

// stopPatience is how long a monitor may take to end before it is killed.
const stopPatience = 10 * time.Second

// startFailure says that a program could not be executed, as opposed to the monitor not being there to try.
// Its text names the step and the file; errors.Is reaches the errno.
type startFailure struct{ err error }

func (e *startFailure) Error() string { return e.err.Error() }
func (e *startFailure) Unwrap() error { return e.err }

// ociError gives errors of package oci our kinds, and keeps everything else of them.
func ociError(err error) error {
	var errno syscall.Errno
	var hook *oci.HookError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &hook): // a program of the node's, which may do better next time
		return fmt.Errorf("%w: %w", ErrState, err)
	case errors.Is(err, oci.ErrNoMonitor):
		return fmt.Errorf("%w: %w: %w", errNoMonitor, ErrUnavailable, err)
	case errors.Is(err, oci.ErrStuck):
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	case errors.Is(err, oci.ErrNotFound):
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	case errors.Is(err, oci.ErrState):
		return fmt.Errorf("%w: %w", ErrState, err)
	case errors.Is(err, oci.ErrNotYet), errors.Is(err, program.ErrUnsupported):
		return fmt.Errorf("%w: %w", ErrUnimplemented, err)
	case errors.Is(err, oci.ErrInvalid), errors.Is(err, program.ErrInvalid):
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	case errors.As(err, &errno) && exhausted(errno): // of a step, or of the fork: pids.max is EAGAIN
		return fmt.Errorf("%w: %w", ErrExhausted, err)
	}
	return err
}

// exhausted tells errnos that say "too many" or "too much" from those that say "wrong".
func exhausted(e syscall.Errno) bool {
	switch e {
	case syscall.EAGAIN, syscall.ENOMEM, syscall.ENOSPC, syscall.EMFILE, syscall.ENFILE, syscall.EDQUOT:
		return true
	}
	return false
}

// startError tells a program that cannot be executed from everything else.
func startError(err error) error {
	var step *oci.StartError
	if errors.As(err, &step) && !exhausted(step.Errno) {
		return &startFailure{err}
	}
	return ociError(err)
}

// createError tells what this image, this pod or this kernel has no place for, as a file where a directory is to be entered, from
// everything else. Steps are what was asked for; one that the kernel refuses is no fault of ours.
func createError(err error) error {
	var step *oci.StartError
	if errors.As(err, &step) && !exhausted(step.Errno) {
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	if errors.Is(err, oci.ErrDied) { // killed from outside: with its pod, with the pid namespace of its target, or by the OOM killer
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	return ociError(err)
}

func exitOf(s oci.ExitStatus) exit {
	x := exit{code: int32(s.ExitCode()), oom: s.OOMKilled, kills: s.OOMKills}
	if !s.At.IsZero() {
		x.at = s.At.UnixNano()
	}
	return x
}

// ociMonitors are the real ones.
type ociMonitors struct{ rt *oci.Runtime }

func (o ociMonitors) start(ctx context.Context, c oci.PodConfig) (monitor, error) {
	p, err := o.rt.StartPod(ctx, c)
	if err != nil {
		return nil, ociError(err)
	}
	return newOCIMonitor(o.rt, p), nil
}

func (o ociMonitors) dial(ctx context.Context, dir string) (monitor, error) {
	p, err := oci.DialPod(ctx, dir)
	if err != nil {
		return nil, ociError(err)
	}
	return newOCIMonitor(o.rt, p), nil
}

func (ociMonitors) kill(ctx context.Context, dir string) error {
	return ociError(oci.KillMonitor(ctx, dir))
}

func (ociMonitors) readExit(dir string) (exit, error) {
	r, err := oci.ReadExit(dir)
	if err != nil {
		return exit{}, err
	}
	return exitOf(r.Status()), nil
}

type ociMonitor struct {
	*oci.Pod
	rt *oci.Runtime
	ev chan podEvent
}

func newOCIMonitor(rt *oci.Runtime, p *oci.Pod) *ociMonitor {
	m := &ociMonitor{Pod: p, rt: rt, ev: make(chan podEvent)}
	go m.translate() // ends with the pod's events
	return m
}

// translate hands the events on. It never outlives its reader: the watcher reads until the channel closes.
func (m *ociMonitor) translate() {
	defer close(m.ev)
	for e := range m.Events() {
		switch e.Kind {
		case oci.Exited:
			m.ev <- podEvent{what: containerExited, id: e.ID, exit: exitOf(e.Status)}
		case oci.MonitorLost:
			m.ev <- podEvent{what: monitorDied}
		case oci.Disconnected:
			m.ev <- podEvent{what: disconnected}
		}
	}
}

func (m *ociMonitor) pid() int                  { return m.MonitorPid() }
func (m *ociMonitor) events() <-chan podEvent   { return m.ev }
func (m *ociMonitor) close() error              { return m.Close() }
func (m *ociMonitor) process(id string) process { return ociProcess{m.Process(id)} }

func (m *ociMonitor) netns() (*sys.FD, error) {
	fd, err := m.NetNS()
	return fd, ociError(err)
}

func (m *ociMonitor) userns(ctx context.Context) (*sys.FD, error) {
	fd, err := m.UserNS(ctx)
	return fd, ociError(err)
}

func (m *ociMonitor) create(ctx context.Context, c oci.ContainerConfig) (process, error) {
	c.Runtime = m.rt
	p, err := m.Create(ctx, c)
	if err != nil {
		return nil, createError(err)
	}
	return ociProcess{p}, nil
}

func (m *ociMonitor) list(ctx context.Context) ([]processState, error) {
	list, err := m.List(ctx)
	if err != nil {
		return nil, ociError(err)
	}
	var out []processState
	for _, s := range list {
		p := processState{id: s.ID, pid: s.Pid, dead: s.Phase == oci.Dead}
		if !s.StartedAt.IsZero() {
			p.started = s.StartedAt.UnixNano()
		}
		if p.dead {
			p.exit = exitOf(s.Exit)
		}
		out = append(out, p)
	}
	return out, nil
}

// stop ends the monitor, by force if it does not do it itself.
func (m *ociMonitor) stop(ctx context.Context) error {
	polite, cancel := context.WithTimeout(ctx, stopPatience)
	defer cancel()
	err := m.Stop(polite)
	if err == nil || errors.Is(err, oci.ErrState) || errors.Is(err, oci.ErrNoMonitor) {
		return ociError(err)
	}
	if kerr := m.Kill(); kerr != nil && !errors.Is(kerr, oci.ErrNoMonitor) {
		return errors.Join(err, kerr)
	}
	return nil
}

type ociProcess struct{ p *oci.Process }

func (p ociProcess) pid() int                            { return p.p.Pid() }
func (p ociProcess) note() string                        { return p.p.Note() }
func (p ociProcess) reopenLog(ctx context.Context) error { return ociError(p.p.ReopenLog(ctx)) }
func (p ociProcess) remove(ctx context.Context) error    { return ociError(p.p.Remove(ctx)) }

func (p ociProcess) start(ctx context.Context) error {
	err := p.p.Start(ctx)
	if errors.Is(err, oci.ErrDied) {
		return &startFailure{err} // no step failed, but the program will never run
	}
	return startError(err)
}

func (p ociProcess) signal(ctx context.Context, sig unix.Signal) error {
	return ociError(p.p.Signal(ctx, sig))
}

func (p ociProcess) exec(ctx context.Context, c oci.ExecConfig) (execution, error) {
	e, err := p.p.Exec(ctx, c)
	if err != nil {
		return nil, startError(err)
	}
	return ociExecution{e}, nil
}

type ociExecution struct{ e *oci.Exec }

func (e ociExecution) pid() int { return e.e.Pid() }

func (e ociExecution) wait(ctx context.Context) (exit, error) {
	s, err := e.e.Wait(ctx)
	return exitOf(s), ociError(err)
}

func (e ociExecution) terminal() *os.File                { return e.e.Terminal() }
func (e ociExecution) resize(width, height uint16) error { return e.e.Resize(width, height) }

func (p ociProcess) attach(ctx context.Context, c oci.AttachConfig) (*oci.Attachment, error) {
	a, err := p.p.Attach(ctx, c)
	return a, ociError(err)
}

func (p ociProcess) endStdin(ctx context.Context) error { return ociError(p.p.EndStdin(ctx)) }
