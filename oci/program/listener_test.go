package program_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/executor"
	"github.com/vitrine-runtime/vitrine/oci/notify"
	"github.com/vitrine-runtime/vitrine/oci/notify/notifytest"
	"github.com/vitrine-runtime/vitrine/oci/program"
	"github.com/vitrine-runtime/vitrine/oci/seccomp"
)

func TestMain(m *testing.M) {
	notifytest.Main()
	os.Exit(m.Run())
}

// startAgent starts who answers notifications, and returns its socket.
func startAgent(t *testing.T) (path string, a *notifytest.Agent) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "sock")
	return path, notifytest.Start(t, path)
}

// notifying is a profile that asks about calls.
func notifying(t *testing.T, path string, names ...string) *seccomp.Filter {
	t.Helper()
	f, err := seccomp.CompileWith(&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, ListenerPath: path, ListenerMetadata: "for the test",
		Syscalls: []specs.LinuxSyscall{{Names: names, Action: specs.ActNotify}}}, seccomp.Options{Notify: true})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// passOn has a child's listener sent to the agent.
func passOn(c *executor.Child, path string, state specs.State) error {
	sock, err := notify.Dial(path)
	if err != nil {
		return err
	}
	message, err := notify.Message(state, "for the test")
	if err != nil {
		return err
	}
	c.Receive(c.Hands(), func(fd *sys.FD) error {
		defer sock.Close()
		defer fd.Close()
		return notify.Send(sock.Int(), message, c.Pid(), fd)
	})
	return nil
}

// TestNotify: a real process gets the listener with the state of the container,
// and answers; with and without no_new_privs, as root and as a user, whatever the
// filter asks about, for the init of a container and for an exec.
func TestNotify(t *testing.T) {
	every := []string{"write", "writev", "sendmsg", "sendto", "read", "close", "close_range", "execve", "exit_group", "openat", "mkdir", "rt_sigaction", "futex", "getpid", "pidfd_getfd", "ptrace"}
	for _, tt := range []struct {
		name  string
		calls []string
		nnp   bool
		uid   uint32
	}{
		{"one call", []string{"mkdir"}, false, 0},
		{"one call, no new privileges", []string{"mkdir"}, true, 0},
		{"a user", []string{"mkdir"}, false, 1000},
		{"a user, no new privileges", []string{"mkdir"}, true, 1000},
		{"every call", every, false, 0},
		{"every call, no new privileges", every, true, 1000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := rootTree(t)
			os.Symlink("busybox", root+"/bin/mkdir")
			path, agent := startAgent(t)
			s := newStage(root, "sh", "-c", "mkdir /tmp/x; ls /proc/self/fd; grep Seccomp: /proc/self/status")
			s.in.Spec.Process.NoNewPrivileges, s.in.Spec.Process.User.UID = tt.nnp, tt.uid
			f := notifying(t, path, tt.calls...)
			s.in.Seccomp, s.in.SeccompFlags = f.Bytes(), f.Flags
			pid := 0
			s.before = func(c *executor.Child) {
				pid = c.Pid()
				state := specs.State{Version: specs.Version, ID: "tester", Status: specs.StateCreated, Pid: notify.Unknown, Bundle: "/b", Annotations: map[string]string{"pid": `"pid":-1`}}
				if err := elsewhere(func() error { return passOn(c, path, state) }); err != nil {
					t.Error(err)
				}
			}
			res := s.run(t)
			if res.err != nil {
				t.Fatal(res.err)
			}
			if !strings.Contains(res.out, "can't create directory '/tmp/x': Level 2 halted") || !strings.Contains(res.out, "Seccomp:\t2") || strings.Contains(res.out, "4\n") {
				t.Errorf("output %q", res.out)
			}
			asked := heard(t, agent, pid, pid)
			if !slices.Contains(asked, unix.SYS_MKDIR) || len(tt.calls) > 1 && asked[0] != unix.SYS_EXECVE {
				t.Errorf("asked about %v", asked)
			}
		})
	}
	t.Run("exec", func(t *testing.T) {
		root := rootTree(t)
		os.Symlink("busybox", root+"/bin/mkdir")
		path, agent := startAgent(t)
		s := newStage(root, "sleep", "60")
		var err error
		var pid, init int
		var status unix.WaitStatus
		s.after = func(c *executor.Child) {
			defer unix.Kill(c.Pid(), unix.SIGKILL)
			init = c.Pid()
			err = elsewhere(func() error {
				f := notifying(t, path, every...)
				p := testSpec("sh", "-c", "mkdir /tmp/x 2>/tmp/err; grep -q halted /tmp/err && exit 9").Process
				prog, err := program.CompileExec(program.ExecInput{Process: p, Seccomp: f.Bytes(), SeccompFlags: f.Flags})
				if err != nil {
					return err
				}
				e, err := startExec(c, prog)
				if err != nil {
					return err
				}
				defer e.Close()
				pid = e.Pid()
				err = passOn(e, path, specs.State{Version: specs.Version, ID: "tester", Status: specs.StateRunning, Pid: init})
				if err == nil {
					err = e.Run()
				}
				unix.Wait4(pid, &status, 0, nil)
				return err
			})
		}
		if res := s.run(t); res.err != nil || err != nil || status.ExitStatus() != 9 {
			t.Fatalf("%v, %v, status %v", res.err, err, status)
		}
		if asked := heard(t, agent, pid, init); asked[0] != unix.SYS_EXECVE || !slices.Contains(asked, unix.SYS_MKDIR) {
			t.Errorf("asked about %v", asked)
		}
	})
}

// TestNotifyInUserNamespace: whoever made the namespace may look into it.
func TestNotifyInUserNamespace(t *testing.T) {
	for _, nnp := range []bool{false, true} {
		root := mappedRoot(t)
		os.Symlink("busybox", root+"/bin/mkdir")
		path, agent := startAgent(t)
		spec := userSpec("sh", "-c", "mkdir /tmp/x; id -u")
		spec.Process.User.UID, spec.Process.NoNewPrivileges = 1000, nnp
		s := userStage(t, root, spec)
		f := notifying(t, path, "mkdir", "write", "execve")
		s.in.Seccomp, s.in.SeccompFlags = f.Bytes(), f.Flags
		pid := 0
		s.before = func(c *executor.Child) {
			pid = c.Pid()
			if err := elsewhere(func() error {
				return passOn(c, path, specs.State{Version: specs.Version, ID: "tester", Pid: notify.Unknown})
			}); err != nil {
				t.Error(err)
			}
		}
		s.wants(t, "Level 2 halted\n1000\n")
		heard(t, agent, pid, pid)
	}
}

// startExec starts the program of an exec in the container of c.
func startExec(c *executor.Child, prog *step.Program) (*executor.Child, error) {
	enc, err := prog.Encode()
	if err != nil {
		return nil, err
	}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	n, pidfd := int(null.Fd()), c.PidFD().Int()
	return executor.Start(executor.Attr{Program: enc, CgroupFD: -1, PIDNS: pidfd, ProcFD: -1, Stdio: [3]int{n, n, n}, Files: []int{pidfd}})
}

// heard checks what the agent was told, and returns what it was asked.
func heard(t *testing.T, agent *notifytest.Agent, pid, init int) (asked []int) {
	t.Helper()
	s := agent.Told()
	if s.Pid != pid || s.State.Pid != init || s.State.ID != "tester" || s.Metadata != "for the test" || !slices.Equal(s.Fds, []string{"seccompFd"}) || s.Version == "" {
		t.Errorf("state %+v of process %d, container %d", s, pid, init)
	}
	if a := s.State.Annotations["pid"]; a != "" && a != `"pid":-1` {
		t.Errorf("annotation %q", a)
	}
	return agent.Asked()
}

// TestNotifyFails: a filter that cannot be loaded says so, a listener that is
// taken by nobody starts nothing.
func TestNotifyFails(t *testing.T) {
	root := rootTree(t)
	f := notifying(t, "/run/none", "mkdir")
	start := func(flags uint64, take func(*sys.FD) error) result {
		s := newStage(root, "sh", "-c", "echo ran")
		s.in.Seccomp, s.in.SeccompFlags = f.Bytes(), flags
		s.before = func(c *executor.Child) { c.Receive(c.Hands(), take) }
		return s.run(t)
	}
	refuse := func(fd *sys.FD) error { fd.Close(); return io.ErrClosedPipe }
	if res := start(f.Flags|1<<20, refuse); !errors.Is(res.err, unix.EINVAL) || !strings.Contains(res.err.Error(), "load the seccomp filter") {
		t.Errorf("unknown flag: %v", res.err)
	}
	if res := start(f.Flags, refuse); !errors.Is(res.err, io.ErrClosedPipe) || res.out != "" || res.status.Signal() != unix.SIGKILL {
		t.Errorf("refused: %v, %q, %v", res.err, res.out, res.status)
	}
	// The listener is closed: what it was to be asked about is ENOSYS.
	s := newStage(root, "sh", "-c", "mkdir /tmp/x; echo ran")
	os.Symlink("busybox", root+"/bin/mkdir")
	s.in.Seccomp, s.in.SeccompFlags = f.Bytes(), f.Flags
	s.before = func(c *executor.Child) { c.Receive(c.Hands(), func(fd *sys.FD) error { return fd.Close() }) }
	s.wants(t, "Function not implemented\nran\n")

	began := time.Now()
	if _, err := notify.Dial(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) || time.Since(began) > 5*time.Second {
		t.Errorf("nobody: %v", err)
	}
}

// TestCheckOfListeners: the step that follows a filter that notifies is fixed.
func TestCheckOfListeners(t *testing.T) {
	f := notifying(t, "/run/x", "mkdir")
	s := testSpec("true")
	s.Linux.Seccomp = &specs.LinuxSeccomp{}
	good, err := program.Compile(program.Input{Spec: s, Seccomp: f.Bytes(), SeccompFlags: f.Flags})
	if err != nil {
		t.Fatal(err)
	}
	load := slices.IndexFunc(good.Steps, func(s step.Step) bool { return s.Nr == unix.SYS_SECCOMP })
	breaks(t, "a listener", good, map[string]func(p *step.Program){
		"not handed over":   func(p *step.Program) { p.Steps[load+1] = step.Step{Nr: step.OpSet, Result: step.NoResult} },
		"jumped over":       func(p *step.Program) { p.Steps[load].Then = 1 },
		"forgiven":          func(p *step.Program) { p.Steps[load+1].OnErr = []step.Branch{{Errno: 1}} },
		"another":           func(p *step.Program) { p.Steps[load+1].Args[0].Val = 9 },
		"a number":          func(p *step.Program) { p.Steps[load+1].Args[0].Kind = step.Const },
		"not kept":          func(p *step.Program) { p.Steps[load].Result = step.NoResult },
		"without listening": func(p *step.Program) { p.Steps[load].Args[1].Val = 0 },
		"flags unseen":      func(p *step.Program) { p.Steps[load].Args[1].Kind = step.Reg },
		"earlier":           func(p *step.Program) { p.Steps[load-1] = p.Steps[load+1] },
	})
}
