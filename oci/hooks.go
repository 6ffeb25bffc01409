package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/program"
	"github.com/vitrine-runtime/vitrine/oci/wire"
)

// Hooks of a container whose init a monitor has forked:
//
//	daemon                    monitor                init
//	Create ────────────────►  fork ───────────────►  runs its program to the gate
//	vitrine-oci hooks ─────────────────────────────► runs the hooks around it
//	Start ─────────────────►  opens the gate ──────► goes on to its start wait
//
// The monitor has none of the host's files, where hooks are, and the daemon forks nobody, which is what those in the
// container's namespaces take. So a process of our own binary does it, which ends with them.

// HookTimeout is how long a hook may take whose spec says nothing.
const HookTimeout = 30 * time.Second

// hooksGrace is what the process takes beside the hooks.
const hooksGrace = 10 * time.Second

// createHooks has the hooks that are run while a container is created.
func createHooks(h *specs.Hooks) []specs.Hook {
	if h == nil {
		return nil
	}
	var all []specs.Hook
	//nolint:staticcheck // Prestart is deprecated, and in use
	for _, l := range [][]specs.Hook{h.Prestart, h.CreateRuntime, h.CreateContainer} {
		all = append(all, l...)
	}
	return all
}

// gateForHooks takes the hooks that are run elsewhere out of the compiler's sight and has the program wait for them. Others
// stay there, and are refused.
func gateForHooks(in *program.Input, version uint16) error {
	h := in.Spec.Hooks
	if len(createHooks(h)) == 0 {
		return nil
	}
	if version < 6 {
		return fmt.Errorf("hooks in a pod whose monitor an older version has started: %w", ErrNotYet)
	}
	s := *in.Spec
	s.Hooks = &specs.Hooks{StartContainer: h.StartContainer, Poststart: h.Poststart, Poststop: h.Poststop}
	in.Spec, in.HookGate = &s, true
	return nil
}

// passHooks runs the hooks of a container that waits for them, and has it go on. If one fails the container is taken back.
func (p *Pod) passHooks(ctx context.Context, c *ContainerConfig, pid int) error {
	hooks := createHooks(c.Spec.Hooks)
	if len(hooks) == 0 {
		return nil
	}
	err := p.runHooks(ctx, c, pid, hooks)
	if err == nil {
		_, err = ask[*wire.Done](ctx, p, wire.NewStart(c.ID))
	}
	if err == nil {
		return nil
	}
	// Who asked may have given up: that is no reason to leave it.
	clear, cancel := context.WithTimeout(context.WithoutCancel(ctx), monitorEnd)
	defer cancel()
	return errors.Join(err, p.Process(c.ID).discard(clear))
}

// runHooks starts our binary and waits for its end, however long that takes: what is killed half way leaves the host in a state that
// nobody knows. Every hook has a time-out, so there is an end.
func (p *Pod) runHooks(ctx context.Context, c *ContainerConfig, pid int, hooks []specs.Hook) error {
	if c.Runtime == nil {
		return fmt.Errorf("hooks: nobody runs them here: %w", ErrInvalid)
	}
	init, err := sys.PidfdOpen(pid)
	if err != nil {
		return err
	}
	defer init.Close()
	// The number was its own when the monitor said it; if it still waits there, so is what we hold.
	if err := p.waits(ctx, c.ID); err != nil {
		return err
	}
	limit := hooksGrace
	for i := range hooks {
		if t := hooks[i].Timeout; t != nil {
			limit += time.Duration(*t) * time.Second
		} else {
			limit += HookTimeout
		}
	}
	return c.Runtime.sendForHooks(c, pid, init, limit)
}

// waits says whether a container is there and not dead.
func (p *Pod) waits(ctx context.Context, id string) error {
	list, err := p.List(ctx)
	if err != nil {
		return err
	}
	for _, s := range list {
		if s.ID == id && s.Phase == Created {
			return nil
		}
	}
	return fmt.Errorf("hooks: %w", ErrDied)
}

// sendForHooks runs the binary with the descriptors that package bundle calls ErrandPidFD and ErrandRootFD.
func (r *Runtime) sendForHooks(c *ContainerConfig, pid int, init *sys.FD, limit time.Duration) error {
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	for _, fd := range []*sys.FD{init, c.Rootfs} {
		n, err := highFD(fd.Int())
		if err != nil {
			return err
		}
		files = append(files, os.NewFile(uintptr(n), "for hooks"))
	}
	bundle := c.Bundle
	if bundle == "" {
		bundle = c.Dir
	}
	var said bytes.Buffer
	cmd := &exec.Cmd{
		Path: "/proc/self/fd/" + strconv.Itoa(r.Monitor.Int()), Args: []string{"vitrine-oci", "hooks", c.ID, bundle, strconv.Itoa(pid)},
		Env: monitorEnv, Dir: "/", Stderr: &said, ExtraFiles: files, SysProcAttr: &syscall.SysProcAttr{Setsid: true}, WaitDelay: time.Second,
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("run hooks: %w", err)
	}
	late := time.AfterFunc(limit, func() { _ = cmd.Process.Kill() })
	err := cmd.Wait()
	switch {
	case !late.Stop():
		return fmt.Errorf("hooks: not at their end after %v: %w", limit, context.DeadlineExceeded)
	case err != nil && said.Len() > 0:
		return &HookError{Text: said.String()}
	case err != nil:
		return fmt.Errorf("run hooks: %w", err)
	}
	return nil
}

// HookError says which hook of a spec failed, and what it said.
type HookError struct{ Text string }

// Error returns the hook's phase, number and path, and how it ended.
func (e *HookError) Error() string { return e.Text }

// discard kills a container that is not to be, and makes the monitor forget it.
func (pr *Process) discard(ctx context.Context) error {
	if err := pr.Signal(ctx, unix.SIGKILL); err != nil && !errors.Is(err, ErrState) {
		return err
	}
	for {
		err := pr.Remove(ctx)
		if err == nil || !errors.Is(err, ErrState) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(5 * time.Millisecond):
		}
	}
}
