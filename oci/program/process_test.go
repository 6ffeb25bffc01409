package program_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
	"github.com/vitrine-runtime/vitrine/oci/executor"
	"github.com/vitrine-runtime/vitrine/oci/program"
)

// filterOf is a seccomp filter that returns action for the call nr, or for
// every call if nr is negative, and allows the rest.
func filterOf(nr int, action uint32) []byte {
	insn := func(code uint16, jt, jf byte, k uint32) []byte {
		b := binary.NativeEndian.AppendUint16(nil, code)
		return binary.NativeEndian.AppendUint32(append(b, jt, jf), k)
	}
	b := insn(0x20, 0, 0, 0) // load the call's number
	b = append(b, insn(0x15, 0, 1, uint32(nr))...)
	b = append(b, insn(0x06, 0, 0, action)...)
	return append(b, insn(0x06, 0, 0, 0x7fff0000)...) // SECCOMP_RET_ALLOW
}

// TestCapabilitySets holds what the process really has against the spec, for
// each way in which the sets are computed by execve.
func TestCapabilitySets(t *testing.T) {
	root := rootTree(t)
	const bounding, one, none = "00000000000000e1", "0000000000000001", "0000000000000000"
	all := []string{"CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID"}
	chown := []string{"CAP_CHOWN"}
	for _, uid := range []uint32{0, 1000} {
		for _, nnp := range []bool{false, true} {
			for _, filtered := range []bool{false, true} {
				for _, ambient := range []bool{false, true} {
					name := fmt.Sprintf("uid %d nnp %v filter %v ambient %v", uid, nnp, filtered, ambient)
					s := newStage(root, "sh", "-c", "grep -E '^(Cap|Seccomp:|NoNew|Uid)' /proc/self/status")
					p := s.in.Spec.Process
					p.User.UID, p.NoNewPrivileges = uid, nnp
					p.Capabilities = &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all}
					if filtered {
						s.in.Seccomp = filterOf(unix.SYS_CAPSET, 0x00050001) // capset: EPERM
					}
					inh, amb, prm := none, none, bounding
					if uid != 0 {
						prm = none
					}
					if ambient {
						p.Capabilities.Inheritable, p.Capabilities.Ambient = chown, chown
						inh, amb = one, one
						if uid != 0 {
							prm = one
						}
					}
					res := s.run(t)
					for _, want := range []string{"CapInh:\t" + inh, "CapPrm:\t" + prm, "CapEff:\t" + prm, "CapBnd:\t" + bounding, "CapAmb:\t" + amb,
						fmt.Sprintf("NoNewPrivs:\t%d", b2i(nnp)), fmt.Sprintf("Seccomp:\t%d", 2*b2i(filtered)), fmt.Sprintf("Uid:\t%d\t%[1]d\t%[1]d", uid)} {
						if res.err != nil || !strings.Contains(res.out, want+"\n") && !strings.Contains(res.out, want+"\t") {
							t.Errorf("%s: %v, want %q in\n%s", name, res.err, want, res.out)
						}
					}
				}
			}
		}
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// TestNoMoreThanPermitted: with no_new_privs root gets what is permitted, though
// the bounding set has more.
func TestNoMoreThanPermitted(t *testing.T) {
	s := newStage(rootTree(t), "sh", "-c", "grep CapEff /proc/self/status")
	p := s.in.Spec.Process
	p.NoNewPrivileges = true
	p.Capabilities.Permitted, p.Capabilities.Effective = []string{"CAP_CHOWN"}, nil
	s.wants(t, "0000000000000001\n")
}

func TestCapabilitiesThatTheKernelWouldRefuse(t *testing.T) {
	for name, c := range map[string]specs.LinuxCapabilities{
		"inheritable over bounding":  {Inheritable: []string{"CAP_CHOWN"}},
		"effective over permitted":   {Bounding: []string{"CAP_CHOWN"}, Effective: []string{"CAP_CHOWN"}},
		"ambient without permitted":  {Bounding: []string{"CAP_CHOWN"}, Inheritable: []string{"CAP_CHOWN"}, Ambient: []string{"CAP_CHOWN"}},
		"ambient not inheritable":    {Bounding: []string{"CAP_CHOWN"}, Permitted: []string{"CAP_CHOWN"}, Ambient: []string{"CAP_CHOWN"}},
		"a number":                   {Bounding: []string{"CAP_99"}},
		"without prefix, lower case": {Bounding: []string{"chown"}},
	} {
		s := newStage("", "true")
		s.in.Spec.Process.Capabilities = &c
		if _, err := program.Compile(s.in); !errors.Is(err, program.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestVersionOfTheSpec(t *testing.T) {
	for version, ok := range map[string]bool{"1.3.0": true, "1.0.0": true, "1.3.0-dev": true, "": false, "2.0.0": false, "0.9": false, "x": false, "10.0.0": false} {
		s := newStage("", "true")
		s.in.Spec.Version = version
		if _, err := program.Compile(s.in); (err == nil) != ok || !ok && !errors.Is(err, program.ErrUnsupported) {
			t.Errorf("%q: %v", version, err)
		}
	}
}

func TestDomainname(t *testing.T) {
	s := newStage(rootTree(t), "cat", "/proc/sys/kernel/domainname", "/proc/sys/kernel/hostname")
	s.in.Spec.Domainname = "glass.example"
	s.wants(t, "glass.example\nglass\n")
	s.in.Spec.Domainname = strings.Repeat("d", 65)
	if _, err := program.Compile(s.in); !errors.Is(err, program.ErrInvalid) {
		t.Errorf("65 bytes: %v", err)
	}
}

func TestProfileWithoutFilter(t *testing.T) {
	s := newStage("", "true")
	s.in.Spec.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
	if _, err := program.Compile(s.in); !errors.Is(err, program.ErrInvalid) {
		t.Errorf("unconfined in spite of a profile: %v", err)
	}
}

func TestManyGroups(t *testing.T) {
	root := rootTree(t)
	s := newStage(root, "grep", "-c", "66535 66536", "/proc/self/status")
	for i := range uint32(65536) {
		s.in.Spec.Process.User.AdditionalGids = append(s.in.Spec.Process.User.AdditionalGids, 1001+i)
	}
	s.wants(t, "1\n")
	u := &s.in.Spec.Process.User
	u.AdditionalGids = append(u.AdditionalGids, 1)
	if _, err := program.Compile(s.in); !errors.Is(err, program.ErrInvalid) {
		t.Errorf("65,537 groups: %v", err)
	}
	u.AdditionalGids = []uint32{1<<32 - 1}
	if _, err := program.Compile(s.in); !errors.Is(err, program.ErrInvalid) {
		t.Errorf("group -1: %v", err)
	}
}

func TestWorkingDirectories(t *testing.T) {
	for _, tt := range []struct {
		cwd   string
		image func(root string)
		uid   uint32
		want  string
	}{
		{"/", nil, 0, "/\n"},
		{"/a/b/c", nil, 1000, "/a/b/c\n"},
		{"/a/../b//./c/", nil, 0, "/b/c\n"},
		{"/file", func(r string) { write(t, r+"/file", "") }, 0, "!enter the working directory: not a directory"},
		{"/file/x", func(r string) { write(t, r+"/file", "") }, 0, "!not a directory"},
		{"/link", func(r string) { os.Symlink("tmp", r+"/link") }, 0, "/tmp\n"},
		{"/link/new", func(r string) { os.Symlink("../../tmp", r+"/link") }, 0, "/tmp/new\n"},
		{"/closed", func(r string) { os.Mkdir(r+"/closed", 0o700) }, 1000, "/closed\n"}, // root opens it, as runc does
		{"/proc/self/fd/5", nil, 0, "!too many levels"},
		{"/proc/self/fd/0", nil, 0, "!too many levels"},
		{"/proc/self/cwd", nil, 0, "!too many levels"},
		{"/proc/1/root/tmp", nil, 0, "!too many levels"},
		{"/link", func(r string) { os.Symlink("/proc/self/fd/5", r+"/link") }, 0, "!too many levels"},
		{"/proc/sys", nil, 0, "/proc/sys\n"},
		{"/proc/new", nil, 0, "!make directory /proc/new"},
		{"/" + strings.Repeat("d/", 500) + "e", nil, 0, "/d/d/d/"},
	} {
		name := tt.cwd[:min(len(tt.cwd), 30)]
		t.Run(name, func(t *testing.T) {
			root := rootTree(t)
			if tt.image != nil {
				tt.image(root)
			}
			s := newStage(root, "/bin/busybox", "pwd")
			s.in.Spec.Process.Cwd = tt.cwd
			s.in.Spec.Process.User.UID = tt.uid
			s.wants(t, tt.want)
		})
	}
	for _, cwd := range []string{"", ".", "a", "/a\x00b", "/" + strings.Repeat("x/", 2048)} {
		s := newStage("", "true")
		s.in.Spec.Process.Cwd = cwd
		_, err := program.Compile(s.in)
		_, execErr := program.CompileExec(program.ExecInput{Process: s.in.Spec.Process})
		if !errors.Is(err, program.ErrInvalid) || !errors.Is(execErr, program.ErrInvalid) {
			t.Errorf("cwd %.10q: %v, exec %v", cwd, err, execErr)
		}
	}
}

func TestSearchPath(t *testing.T) {
	root := rootTree(t)
	write(t, root+"/tmp/hello", "#!/bin/sh\necho from cwd $0\n")
	os.Chmod(root+"/tmp/hello", 0o755)
	write(t, root+"/etc/hello", "not executable")
	write(t, root+"/etc/true", "not executable")
	write(t, root+"/file", "")
	os.Symlink("loop", root+"/loop")
	long := "/" + strings.Repeat("x", 300)
	for _, tt := range []struct{ path, arg, want string }{
		{"/bin", "hello", "!find hello in $PATH: no such file"},
		{":/bin", "hello", "from cwd /tmp/hello\n"},
		{"/bin:", "hello", "from cwd /tmp/hello\n"},
		{"/bin::/etc", "hello", "from cwd /tmp/hello\n"},
		{".", "hello", "from cwd /tmp/hello\n"},
		{"../tmp", "hello", "from cwd /tmp/hello\n"},
		{"/etc", "hello", "!execute hello from $PATH: permission denied"},
		{"/etc:/bin", "true", ""},
		{"/file:/loop:" + long + ":/none:/" + strings.Repeat("y/", 3000) + ":/bin", "true", ""},
		{strings.Repeat("/none/of/these:", 5000) + "/bin", "true", ""},
		{"", "true", ""}, // the default
		{"/bin", strings.Repeat("z", 300), "!file name too long"},
		{"/bin", "./hello", "from cwd ./hello\n"},
		{"/bin", "../tmp/hello", "from cwd ../tmp/hello\n"},
		{"/none", "/bin/true", ""},
		{"/bin", "/bin", "!permission denied"},
		{"/bin", "/file/x", "!not a directory"},
	} {
		s := newStage(root, tt.arg)
		s.in.Spec.Process.Cwd = "/tmp"
		s.in.Spec.Process.Env = []string{"PATH=" + tt.path}
		s.wants(t, tt.want)
	}
}

func TestArgumentSizes(t *testing.T) {
	root := rootTree(t)
	for _, tt := range []struct {
		n, size int
		want    string
	}{
		{1, 100 << 10, ""}, {1, 128 << 10, "!execute /bin/true: argument list too long"}, // MAX_ARG_STRLEN
		{10, 100 << 10, ""}, {30, 100 << 10, "!argument list too long"}, {50_000, 1, ""},
	} {
		for _, env := range []bool{false, true} {
			s := newStage(root, "true")
			var list []string
			for range tt.n {
				list = append(list, strings.Repeat("x", tt.size))
			}
			if env {
				s.in.Spec.Process.Env = append(s.in.Spec.Process.Env, list...)
			} else {
				s.in.Spec.Process.Args = append(s.in.Spec.Process.Args, list...)
			}
			if res := s.wants(t, tt.want); tt.want != "" && !errors.Is(res.err, unix.E2BIG) {
				t.Errorf("%d of %d: %v is not E2BIG", tt.n, tt.size, res.err)
			}
		}
	}
}

// TestRlimits sets each kind below what it is, and finds it there after the execve.
func TestRlimits(t *testing.T) {
	kinds := []string{"CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE", "MEMLOCK", "AS", "LOCKS", "SIGPENDING", "MSGQUEUE", "NICE", "RTPRIO", "RTTIME"}
	numbers := []int{unix.RLIMIT_CPU, unix.RLIMIT_FSIZE, unix.RLIMIT_DATA, unix.RLIMIT_STACK, unix.RLIMIT_CORE, unix.RLIMIT_RSS, unix.RLIMIT_NPROC,
		unix.RLIMIT_NOFILE, unix.RLIMIT_MEMLOCK, unix.RLIMIT_AS, unix.RLIMIT_LOCKS, unix.RLIMIT_SIGPENDING, unix.RLIMIT_MSGQUEUE, unix.RLIMIT_NICE,
		unix.RLIMIT_RTPRIO, unix.RLIMIT_RTTIME}
	s := newStage(rootTree(t))
	p := s.in.Spec.Process
	p.Rlimits = nil
	for i, k := range kinds {
		var now unix.Rlimit
		if err := unix.Getrlimit(numbers[i], &now); err != nil {
			t.Fatal(err)
		}
		hard := min(now.Max, 1<<30) // raising a hard limit wants CAP_SYS_RESOURCE
		p.Rlimits = append(p.Rlimits, specs.POSIXRlimit{Type: "RLIMIT_" + k, Soft: hard - hard/4, Hard: hard})
	}
	res := s.while(t, func(pid int) {
		for i, want := range p.Rlimits {
			var got unix.Rlimit
			if err := unix.Prlimit(pid, numbers[i], nil, &got); err != nil || got.Cur != want.Soft || got.Max != want.Hard {
				t.Errorf("%+v: %+v, %v", want, got, err)
			}
		}
	})
	if res.err != nil {
		t.Error(res.err)
	}
	for _, bad := range []specs.POSIXRlimit{{Type: "RLIMIT_X"}, {Type: "NOFILE"}, {Type: "RLIMIT_NOFILE"}, {Type: "RLIMIT_CPU", Soft: 2, Hard: 1}} {
		s := newStage("", "true")
		s.in.Spec.Process.Rlimits = append(s.in.Spec.Process.Rlimits, bad)
		if _, err := program.Compile(s.in); !errors.Is(err, program.ErrInvalid) || !strings.HasPrefix(err.Error(), "process.rlimits[1]") {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

func TestUmask(t *testing.T) {
	root := rootTree(t)
	for _, umask := range []uint32{0, 0o27, 0o777} {
		s := newStage(root, "sh", "-c", "umask")
		s.in.Spec.Process.User.Umask = &umask
		s.wants(t, fmt.Sprintf("%04o\n", umask))
	}
}

// TestFilterThatKills: what a filter does to the program itself. Death is not
// taken for a start, and an error is still told where the filter allows it.
func TestFilterThatKills(t *testing.T) {
	root := rootTree(t)
	const kill, deny = 0x80000000, 0x00050001
	for _, tt := range []struct {
		nr     int
		action uint32
		args   string
		want   error
	}{
		{unix.SYS_EXECVE, kill, "true", executor.ErrDied},
		{unix.SYS_EXECVE, deny, "/bin/true", unix.EPERM},
		{unix.SYS_WRITE, kill, "true", nil},
		{unix.SYS_WRITE, kill, "missing", executor.ErrDied},
		{unix.SYS_WRITE, deny, "missing", executor.ErrDied},
		{unix.SYS_SECCOMP, kill, "missing", unix.ENOENT},
	} {
		s := newStage(root, tt.args)
		s.in.Seccomp = filterOf(tt.nr, tt.action)
		if res := s.run(t); !errors.Is(res.err, tt.want) {
			t.Errorf("call %d, action %#x, %s: %v, want %v", tt.nr, tt.action, tt.args, res.err, tt.want)
		}
	}
}

// TestExec joins a running container.
func TestExec(t *testing.T) {
	root := rootTree(t)
	for _, tt := range []struct {
		name   string
		change func(p *specs.Process)
		want   string
	}{
		{"as it is", func(*specs.Process) {}, "0::/ glass\n0\n1\n2\n3\n"},
		{"directory", func(p *specs.Process) { p.Cwd = "/tmp" }, "/tmp 2 "},
		{"leaked descriptor", func(p *specs.Process) { p.Cwd = "/proc/self/fd/5" }, "!not a directory"},
		{"missing directory", func(p *specs.Process) { p.Cwd = "/none" }, "!enter the working directory: no such file"},
		{"missing command", func(p *specs.Process) { p.Args = []string{"none"} }, "!find none in $PATH"},
		{"more than there is", func(p *specs.Process) { p.Rlimits[0].Hard = 1 << 40 }, "!set RLIMIT_NOFILE: operation not permitted"},
		{"descriptors", func(p *specs.Process) { p.Args = []string{"ls", "/proc/self/fd"} }, "0\n1\n2\n3\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStage(root, "sleep", "60")
			var err error
			var out string
			s.after = func(c *executor.Child) {
				e := testSpec("sh", "-c", "echo $(pwd) $$ $(cat /proc/self/cgroup) $(hostname); ls /proc/$$/fd").Process
				tt.change(e)
				out, err = execIn(t, c, e)
				unix.Kill(c.Pid(), unix.SIGKILL)
			}
			if res := s.run(t); res.err != nil {
				t.Fatal(res.err)
			}
			if e, fails := strings.CutPrefix(tt.want, "!"); fails {
				if err == nil || !strings.Contains(err.Error(), e) {
					t.Errorf("%v, want %q", err, e)
				}
			} else if err != nil || !strings.Contains(out, tt.want) {
				t.Errorf("%v, %q, want %q", err, out, tt.want)
			}
		})
	}
}

// execIn runs a process in the container of c, and returns its output.
func execIn(t *testing.T, c *executor.Child, p *specs.Process) (string, error) {
	t.Helper()
	return execWith(t, c, program.ExecInput{Process: p, CgroupNS: true, Join: unix.CLONE_NEWUTS})
}

// execWith is execIn for who says how.
func execWith(t *testing.T, c *executor.Child, in program.ExecInput) (string, error) {
	t.Helper()
	prog, err := program.CompileExec(in)
	if err != nil {
		return "", err
	}
	enc, err := prog.Encode()
	if err != nil {
		return "", err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer r.Close()
	pidfd := c.PidFD().Int()
	null, err := unix.Dup(int(w.Fd())) // this thread has no /dev
	if err != nil {
		return "", err
	}
	pidns := pidfd
	if in.Sibling {
		pidns = -1
	}
	done := make(chan error)
	go func() { // a thread that still sees /proc
		e, err := executor.Start(executor.Attr{Program: enc, CgroupFD: -1, PIDNS: pidns, ProcFD: -1,
			Stdio: [3]int{null, int(w.Fd()), int(w.Fd())}, Files: []int{pidfd}})
		w.Close()
		unix.Close(null)
		if err == nil {
			err = e.Run()
			go func() { unix.Wait4(e.Pid(), nil, 0, nil); e.Close() }()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		return "", err
	}
	b, err := io.ReadAll(r)
	return string(b), err
}

// TestCheckByMutation takes each protection out of good programs, makes its
// failure harmless, and jumps over it.
func TestCheckByMutation(t *testing.T) {
	spec := testSpec("true")
	spec.Process.Cwd = "/work"
	spec.Process.NoNewPrivileges = true
	container, err := program.Compile(program.Input{Spec: spec, Seccomp: filterOf(1, 0)})
	if err != nil {
		t.Fatal(err)
	}
	exec, err := program.CompileExec(program.ExecInput{Process: spec.Process, Seccomp: filterOf(1, 0)})
	if err != nil {
		t.Fatal(err)
	}
	needed := []uint32{unix.SYS_PIVOT_ROOT, unix.SYS_UMOUNT2, unix.SYS_SETNS, unix.SYS_SETGROUPS, unix.SYS_SETRESGID, unix.SYS_SETRESUID, unix.SYS_CAPSET,
		unix.SYS_GETCWD, unix.SYS_CLOSE_RANGE, unix.SYS_READ}
	once := append(needed, unix.SYS_SECCOMP, unix.SYS_PRLIMIT64, unix.SYS_STATX, unix.SYS_UNSHARE, unix.SYS_FSMOUNT, unix.SYS_FSCONFIG, unix.SYS_UMASK, unix.SYS_RT_SIGPROCMASK)
	for which, good := range map[string]*step.Program{"container": container, "exec": exec} {
		mutant := func(what string, i int, change func(p *step.Program)) {
			t.Helper()
			breaks(t, fmt.Sprintf("%s, %s %d", which, what, i), good, map[string]func(p *step.Program){good.Steps[i].Name: change})
		}
		for i, s := range good.Steps {
			expected := s.Nr == step.OpExpect && i > 0 && (good.Steps[i-1].Nr == unix.SYS_GETCWD || good.Steps[i-1].Nr == unix.SYS_READ)
			private := s.Nr == unix.SYS_MOUNT_SETATTR && s.Args[0] == step.Arg{Val: step.FirstFD}
			if slices.Contains(needed, s.Nr) || expected || private {
				mutant("without", i, func(p *step.Program) { p.Steps[i] = step.Step{Nr: step.OpSet, Result: step.NoResult} })
			}
			if slices.Contains(once, s.Nr) || expected {
				mutant("jump over", i, func(p *step.Program) { p.Steps[i-1].Then = 1 })
			}
			if s.Nr < step.OpExpect && s.Nr != unix.SYS_EXECVE {
				mutant("forgiven", i, func(p *step.Program) { p.Steps[i].OnErr = []step.Branch{{Errno: uint16(unix.EIO)}} })
			}
			if s.Nr == unix.SYS_MOVE_MOUNT || s.Nr == unix.SYS_MOUNT_SETATTR {
				mutant("unless attached", i, func(p *step.Program) { p.Steps[i].OnErr = []step.Branch{{Errno: uint16(unix.ENOENT)}} })
			}
		}
		for name, s := range map[string]step.Step{
			"chmod":        {Nr: unix.SYS_CHMOD},
			"unknown":      {Nr: 999},
			"write to 5":   {Nr: unix.SYS_WRITE, Args: [6]step.Arg{{Val: 5}}},
			"close one":    {Nr: unix.SYS_CLOSE_RANGE, Args: [6]step.Arg{{Val: 5}, {Val: 5}}},
			"go elsewhere": {Nr: unix.SYS_CHDIR, Args: good.Steps[0].Args},
		} {
			s.Result = step.NoResult
			for i := range good.Steps {
				if good.Steps[i].Nr == unix.SYS_CLOSE_RANGE { // late, when all is given up
					mutant(name, i, func(p *step.Program) { p.Steps[i] = s })
				}
			}
		}
	}
}
