package bundle

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/specjson"
	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/executor"
)

// Hooks are the caller's programs, run at six points of a container's life:
//
//	create   prestart, createRuntime   here        at the gate, before the root is entered
//	         createContainer           inside      at the gate; the host's files and the root both in sight
//	start    startContainer            inside      in the root, as the container's user and no more
//	         poststart                 here
//	delete   poststop                  here        failures are warnings
//
// "inside" is in all namespaces of the container: a second child joins them, nothing
// forks in the program. Each gets the state on stdin, nothing but its own environment,
// and as long as its time-out says.

// phases of hooks, as the specification calls them.
const (
	prestart        = "prestart"
	createRuntime   = "createRuntime"
	createContainer = "createContainer"
	startContainer  = "startContainer"
	poststart       = "poststart"
	poststop        = "poststop"
)

// HookPhases are the names of all phases, in their order.
func HookPhases() []string {
	return []string{prestart, createRuntime, createContainer, startContainer, poststart, poststop}
}

// hooksOf returns the hooks of a phase.
func hooksOf(h *specs.Hooks, phase string) []specs.Hook {
	if h == nil {
		return nil
	}
	switch phase {
	case prestart:
		return h.Prestart //nolint:staticcheck // deprecated, and in use
	case createRuntime:
		return h.CreateRuntime
	case createContainer:
		return h.CreateContainer
	case startContainer:
		return h.StartContainer
	case poststart:
		return h.Poststart
	}
	return h.Poststop
}

// hasCreateHooks says whether there are hooks for the gate.
func hasCreateHooks(h *specs.Hooks) bool {
	return len(hooksOf(h, prestart))+len(hooksOf(h, createRuntime))+len(hooksOf(h, createContainer)) > 0
}

// checkHooks finds what is wrong with hooks before anything is made.
func checkHooks(h *specs.Hooks) error {
	for _, phase := range HookPhases() {
		for i, hook := range hooksOf(h, phase) {
			switch {
			case !filepath.IsAbs(hook.Path):
				return fmt.Errorf("hooks.%s[%d].path: %q is not absolute: %w", phase, i, hook.Path, ErrInvalid)
			case hook.Timeout != nil && *hook.Timeout <= 0:
				return fmt.Errorf("hooks.%s[%d].timeout: %d: %w", phase, i, *hook.Timeout, ErrInvalid)
			case strings.ContainsRune(strings.Join(append(append([]string{hook.Path}, hook.Args...), hook.Env...), ""), 0):
				return fmt.Errorf("hooks.%s[%d]: NUL in a string: %w", phase, i, ErrInvalid)
			}
		}
	}
	return nil
}

// hooked is a hook that runs.
type hooked interface {
	// kill ends it, and who of those that it has started is still in its process group.
	kill()
	// wait returns when it has ended, with its exit code.
	wait() (int, error)
}

// runHooks runs the hooks of a phase, in their order, up to the first that fails.
// start begins one with its three descriptors, or is nil for those that run here.
func (c *Container) runHooks(phase string, status specs.ContainerState, pid int, start func(h *specs.Hook, stdio [3]*os.File) (hooked, error)) error {
	spec, err := c.Spec()
	if err != nil {
		return err
	}
	list := hooksOf(spec.Hooks, phase)
	if len(list) == 0 {
		return nil
	}
	outside := false
	s := c.rec.oci()
	s.Status, s.Pid = status, pid
	state, err := specjson.Marshal(s)
	if err != nil {
		return err
	}
	if start == nil {
		start = hostHookOf(c.rec.Bundle)
		outside = c.r.Inside
	}
	for i := range list {
		if outside {
			err = askOutside(errand{Bundle: c.rec.Bundle, State: string(state), Hook: list[i]})
		} else {
			err = runHook(&list[i], state, start)
		}
		if err != nil {
			return fmt.Errorf("hooks.%s[%d] (%s): %w", phase, i, list[i].Path, err)
		}
	}
	return nil
}

// maxHookOutput is how much of what a hook says goes into an error.
const maxHookOutput = 4096

// runHook runs one hook. Its output goes to a file in memory and not to a pipe:
// a hook may leave somebody behind who holds that open.
func runHook(h *specs.Hook, state []byte, start func(*specs.Hook, [3]*os.File) (hooked, error)) error {
	in, err := memoryFile("state", state)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := memoryFile("hook-output", nil)
	if err != nil {
		return err
	}
	defer out.Close()
	p, err := start(h, [3]*os.File{in, out, out})
	if err != nil {
		return err
	}
	if h.Timeout != nil {
		d := time.Duration(*h.Timeout) * time.Second
		timer := time.AfterFunc(d, p.kill)
		code, err := p.wait()
		if !timer.Stop() {
			return fmt.Errorf("killed after its time-out of %s: %w", d, os.ErrDeadlineExceeded)
		}
		return hookError(code, err, out)
	}
	code, err := p.wait()
	return hookError(code, err, out)
}

func hookError(code int, err error, out *os.File) error {
	if err != nil || code == 0 {
		return err
	}
	text := make([]byte, maxHookOutput)
	n, _ := out.ReadAt(text, 0)
	if said := strings.TrimSpace(string(text[:n])); said != "" {
		return fmt.Errorf("exit code %d: %s", code, said)
	}
	return fmt.Errorf("exit code %d", code)
}

// memoryFile returns a file with a content, to be read from its beginning.
func memoryFile(name string, content []byte) (*os.File, error) {
	n, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(n), name)
	if _, err := f.WriteAt(content, 0); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// hostHooks runs the hooks of a phase here.
func (c *Container) hostHooks(phase string, status specs.ContainerState, pid int) error {
	return c.runHooks(phase, status, pid, nil)
}

// hostHookOf starts hooks of a bundle here.
func hostHookOf(bundle string) func(*specs.Hook, [3]*os.File) (hooked, error) {
	return func(h *specs.Hook, stdio [3]*os.File) (hooked, error) {
		env := h.Env
		if env == nil {
			env = []string{} // nil would be ours
		}
		p, err := os.StartProcess(h.Path, hookArgs(h), &os.ProcAttr{Dir: bundle, Env: env, Files: stdio[:], Sys: &syscall.SysProcAttr{Setpgid: true}})
		if err != nil {
			return nil, err
		}
		return hostHook{p}, nil
	}
}

func hookArgs(h *specs.Hook) []string {
	if len(h.Args) == 0 {
		return []string{h.Path}
	}
	return h.Args
}

// hostHook is a hook that is our own child, at the head of a process group.
type hostHook struct{ p *os.Process }

func (h hostHook) kill() { _ = unix.Kill(-h.p.Pid, unix.SIGKILL) } // it may have ended

func (h hostHook) wait() (int, error) {
	s, err := h.p.Wait()
	if err != nil {
		return 0, err
	}
	if ws, ok := s.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal()), nil
	}
	return s.ExitCode(), nil
}

// insideHook is a hook in the container's namespaces, a session of its own.
type insideHook struct{ child *executor.Child }

func (h insideHook) kill() {
	_ = unix.Kill(-h.child.Pid(), unix.SIGKILL) // it may have ended
	_ = sys.PidfdSignal(h.child.PidFD(), unix.SIGKILL)
}

func (h insideHook) wait() (int, error) {
	defer h.child.Close()
	return reap(h.child.PidFD())
}

// createHooks runs the hooks of create while the child, whose pidfd stays the caller's, waits at its gate.
func (c *Container) createHooks(pid int, pidfd, root *sys.FD) error {
	for _, phase := range []string{prestart, createRuntime} {
		if err := c.hostHooks(phase, specs.StateCreating, pid); err != nil {
			return err
		}
	}
	spec, err := c.Spec()
	if err != nil || len(hooksOf(spec.Hooks, createContainer)) == 0 {
		return err
	}
	v, err := openView(pidfd, root, c.rec.Rootfs)
	if err != nil {
		return fmt.Errorf("hooks.createContainer: %w", err)
	}
	defer v.close()
	inside, err := pidInside(pid)
	if err != nil {
		return err
	}
	err = c.runHooks(createContainer, specs.StateCreating, inside, func(h *specs.Hook, stdio [3]*os.File) (hooked, error) {
		p, err := v.start(h, spec.Linux, stdio)
		if err != nil {
			return nil, err
		}
		return insideHook{p}, nil
	})
	return errors.Join(err, v.undo())
}

// startHooks runs the hooks of start inside a container that waits for its start, as
// its process would be: what they execute is the container's.
func (c *Container) startHooks() error {
	spec, err := c.Spec()
	if err != nil || len(hooksOf(spec.Hooks, startContainer)) == 0 {
		return err
	}
	inside, err := pidInside(c.rec.Init.Pid)
	if err != nil {
		return err
	}
	return c.runHooks(startContainer, specs.StateCreated, inside, func(h *specs.Hook, stdio [3]*os.File) (hooked, error) {
		p := *spec.Process
		p.Args, p.Env, p.Cwd, p.Terminal, p.ConsoleSize = hookArgs(h), h.Env, "/", false, nil
		e := &execution{c: c, opts: ExecOptions{Process: &p, Stdio: descriptors(stdio)}, path: h.Path}
		defer e.close()
		if err := e.compile(); err != nil {
			return nil, err
		}
		if err := e.start(); err != nil {
			return nil, err
		}
		return insideHook{e.child}, nil
	})
}

func descriptors(f [3]*os.File) (n [3]int) {
	for i := range f {
		n[i] = int(f[i].Fd())
	}
	return n
}

// pidInside is the number of a process in the innermost pid namespace that it is
// in.
func pidInside(pid int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if list, ok := strings.CutPrefix(line, "NSpid:"); ok {
			f := strings.Fields(list)
			if len(f) > 0 {
				return strconv.Atoi(f[len(f)-1])
			}
		}
	}
	return pid, nil
}
