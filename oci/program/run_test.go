package program_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/executor"
	"github.com/vitrine-runtime/vitrine/oci/program"
)

// These tests compile a spec and run the result against the real kernel, from
// a thread that stands in for a monitor: in a tiny mount namespace of its own.

var masked = []string{"/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/acpi", "/proc/scsi", "/sys/firmware"}

// testSpec is a container as the daemon would ask for it.
func testSpec(args ...string) *specs.Spec {
	caps := []string{"CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID"}
	return &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: "rootfs"},
		Process: &specs.Process{
			Args: args, Env: []string{"PATH=/bin", "WHO=me"}, Cwd: "/",
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
			Rlimits:      []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}},
		},
		Hostname: "glass",
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
		},
		Linux: &specs.Linux{
			Namespaces:  []specs.LinuxNamespace{{Type: "pid"}, {Type: "mount"}, {Type: "ipc"}, {Type: "uts"}, {Type: "network"}, {Type: "cgroup"}},
			MaskedPaths: masked, ReadonlyPaths: []string{"/proc/sys", "/proc/bus", "/proc/sysrq-trigger", "/proc/nothing"},
		},
	}
}

// rootTree makes a root filesystem from Debian's busybox.
func rootTree(t testing.TB) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes namespaces and mounts")
	}
	bb, err := os.ReadFile("/usr/bin/busybox")
	if err != nil {
		t.Skip("needs Debian's busybox-static: " + err.Error())
	}
	dir := t.TempDir()
	os.Chmod(dir, 0o755)
	for _, d := range []string{"bin", "tmp", "etc"} {
		os.Mkdir(filepath.Join(dir, d), 0o755)
	}
	os.WriteFile(filepath.Join(dir, "bin/busybox"), bb, 0o755)
	for _, a := range []string{"sh", "cat", "ls", "id", "true", "sleep", "grep", "mount", "hostname", "stat", "pwd", "touch", "readlink", "echo"} {
		os.Symlink("busybox", filepath.Join(dir, "bin", a))
	}
	return dir
}

type result struct {
	err    error
	out    string
	status unix.WaitStatus
}

// cell runs a compiled spec from a thread in a mount namespace like a
// monitor's. before is called while the child is blocked at its start wait.
func cell(t *testing.T, root string, in program.Input, before func(c *executor.Child)) result {
	t.Helper()
	return stage{root: root, in: in, before: before}.run(t)
}

// stage is a container with what is around it.
type stage struct {
	root    string
	in      program.Input
	sources []string                // of the bind mounts, by the number of their file minus one
	before  func(c *executor.Child) // while the child is blocked
	after   func(c *executor.Child) // while the program runs
	// namespaces are opened and stand behind the sources in the table, and behind
	// them copies of whole filesystems.
	namespaces, whole []string
	maps              *sys.IDMaps
	// gate is called while the child waits at a gate.
	gate func(c *executor.Child) error
	// prepare is called in the namespace that the sources are taken from.
	prepare  func() error
	detached *sys.FD // the root, if it was made elsewhere
	sockets  []int   // further files, behind the sources
	// change is done to the program after it was checked.
	change func(p *step.Program)
	more   []*sys.FD // files behind root and sources
}

func (s stage) run(t *testing.T) result {
	t.Helper()
	p, err := program.Compile(s.in)
	if err != nil {
		t.Fatal(err)
	}
	if err := program.Check(p); err != nil {
		t.Fatal(err)
	}
	if s.change != nil {
		s.change(p)
	}
	enc, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	proc, err := os.Open("/proc")
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Close()
	if err := executor.HideMemory(); err != nil {
		t.Fatal(err)
	}
	r, w, _ := os.Pipe()
	defer r.Close()
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		res := s.child(enc, proc, w)
		w.Close()
		done <- res
	}()
	outc := make(chan string)
	go func() { b, _ := io.ReadAll(r); outc <- string(b) }()
	res := <-done
	res.out = <-outc
	return res
}

// child runs the encoded program with its output in w.
func (s stage) child(enc []byte, proc, w *os.File) (res result) {
	null, _ := os.Open("/dev/null")
	defer null.Close()
	var more []int
	for _, n := range s.namespaces {
		fd, err := unix.Open(n, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return result{err: fmt.Errorf("open %v: %w", s.namespaces, err)}
		}
		defer unix.Close(fd)
		more = append(more, fd)
	}
	for _, dir := range s.whole {
		fd, err := sys.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE)
		if err != nil {
			return result{err: fmt.Errorf("open %v: %w", s.namespaces, err)}
		}
		defer fd.Close()
		more = append(more, fd.Int())
	}
	mounts, err := tinyNamespace(s.root, s.sources, s.prepare)
	if err != nil {
		res.err = err
		return res
	}
	if s.detached != nil {
		mounts[0] = s.detached
	}
	var files []int
	for _, m := range append(mounts, s.more...) {
		defer m.Close()
		files = append(files, m.Int())
	}
	files = append(append(files, s.sockets...), more...)
	c, err := executor.Start(executor.Attr{Program: enc, CgroupFD: -1, PIDNS: -1, ProcFD: int(proc.Fd()), IDMaps: s.maps,
		Stdio: [3]int{int(null.Fd()), int(w.Fd()), int(w.Fd())}, Files: files})
	if err != nil {
		res.err = err
		return res
	}
	defer c.Close()
	res.err = c.Ready()
	for res.err == nil && c.At() != "" {
		if s.gate != nil {
			if res.err = s.gate(c); res.err != nil {
				break
			}
		}
		res.err = c.Pass()
	}
	if res.err == nil {
		if s.before != nil {
			s.before(c)
		}
		if res.err = c.Release(); res.err == nil && s.after != nil {
			s.after(c)
		}
	}
	if res.err != nil {
		_ = unix.Kill(c.Pid(), unix.SIGKILL)
	}
	if _, err := unix.Wait4(c.Pid(), &res.status, 0, nil); err != nil && res.err == nil {
		res.err = err
	}
	return res
}

// tinyNamespace moves the thread into a mount namespace with nothing in it but
// what programs name, and returns detached copies of root and the sources.
func tinyNamespace(root string, sources []string, prepare func() error) (mounts []*sys.FD, err error) {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return nil, fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, err
	}
	if prepare != nil {
		if err := prepare(); err != nil {
			return nil, fmt.Errorf("prepare: %w", err)
		}
	}
	for _, dir := range append([]string{root}, sources...) {
		fd, err := sys.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.AT_RECURSIVE)
		if err != nil {
			return nil, err
		}
		mounts = append(mounts, fd)
	}
	if err := unix.Mount("tmpfs", "/mnt", "tmpfs", 0, "mode=755"); err != nil {
		return nil, err
	}
	for _, d := range []string{"root", "empty"} {
		if err := unix.Mkdir("/mnt/"+d, 0o755); err != nil {
			return nil, err
		}
	}
	if err := unix.Mknod("/mnt/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		return nil, err
	}
	if err := unix.Chdir("/mnt"); err != nil {
		return nil, err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return nil, fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return nil, err
	}
	return mounts, unix.Chdir("/")
}

func TestContainerPosture(t *testing.T) {
	root := rootTree(t)
	script := `
echo "host $(hostname) pid $$ who $WHO"
grep -E '^(Cap|Groups|Uid|Seccomp:|NoNewPrivs)' /proc/self/status
cat /proc/self/cgroup
ulimit -n
umask
pwd
ls /sys/firmware | grep -c .
cat /proc/timer_list | grep -c .
cat /proc/keys | grep -c .
touch /proc/sys/kernel/x 2>&1
echo 1 > /proc/sys/kernel/panic
touch /tmp/ok && echo written
ls /dev
ls -ld /dev/null /dev/fd
mount
`
	res := cell(t, root, program.Input{Spec: testSpec("sh", "-c", script)}, nil)
	if res.err != nil {
		t.Fatal(res.err)
	}
	for _, want := range []string{
		"host glass pid 1 who me\n", "CapInh:\t0000000000000000\n", "CapPrm:\t00000000000000e1\n", "CapBnd:\t00000000000000e1\n",
		"CapAmb:\t0000000000000000\n", "Seccomp:\t0\n", "0::/\n", "\n100\n", "0022\n", "can't create /proc/sys/kernel/panic: Read-only file system",
		"written\n", "fd\nfull\nmqueue\nnull\nptmx\npts\nrandom\nstderr\nstdin\nstdout\ntty\nurandom\nzero\n",
		"proc on /proc type proc (rw,nosuid,nodev,noexec", "cgroup on /sys/fs/cgroup type cgroup2 (ro,nosuid,nodev,noexec,relatime",
		"proc on /proc/sys type proc (ro,nosuid,nodev,noexec",
	} {
		if !strings.Contains(res.out, want) {
			t.Errorf("output lacks %q", want)
		}
	}
	if strings.Contains(res.out, "/empty") || strings.Contains(res.out, "oldroot") {
		t.Error("traces of the monitor's namespace")
	}
	if t.Failed() {
		t.Log(res.out)
	}
}

func TestUserAndDirectory(t *testing.T) {
	root := rootTree(t)
	s := testSpec("sh", "-c", "id -u; id -g; id -G; pwd; grep Cap /proc/self/status; touch /tmp/x 2>&1")
	s.Process.User = specs.User{UID: 1000, GID: 2000, AdditionalGids: []uint32{2000, 7}}
	s.Process.Cwd = "/work/here"
	s.Process.NoNewPrivileges = true
	s.Root.Readonly = true
	res := cell(t, root, program.Input{Spec: s}, nil)
	if res.err != nil {
		t.Fatal(res.err)
	}
	for _, want := range []string{"1000\n2000\n2000 7\n/work/here\n", "CapPrm:\t0000000000000000\n", "CapEff:\t0000000000000000\n", "CapBnd:\t00000000000000e1\n", "Read-only file system"} {
		if !strings.Contains(res.out, want) {
			t.Errorf("output lacks %q:\n%s", want, res.out)
		}
	}
}

func TestExecErrors(t *testing.T) {
	root := rootTree(t)
	os.WriteFile(filepath.Join(root, "bin/plain"), []byte("x"), 0o644)
	for _, tt := range []struct {
		arg  string
		want unix.Errno
	}{{"missing", unix.ENOENT}, {"/bin/missing", unix.ENOENT}, {"plain", unix.EACCES}, {"/bin/plain", unix.EACCES}, {"/tmp", unix.EACCES}} {
		res := cell(t, root, program.Input{Spec: testSpec(tt.arg)}, nil)
		if !errors.Is(res.err, tt.want) || !strings.Contains(res.err.Error(), tt.arg) {
			t.Errorf("%s: %v, want %v", tt.arg, res.err, tt.want)
		}
	}
}

// TestHostileRoots puts symlinks where the runtime makes or mounts things. The
// canary directory must stay as it is.
func TestHostileRoots(t *testing.T) {
	canary := t.TempDir()
	os.WriteFile(filepath.Join(canary, "ptmx"), []byte("mine"), 0o600)
	for _, tt := range []struct{ link, to, want string }{
		{"proc", "/other", "too many levels of symbolic links"},
		{"sys", canary, "too many levels of symbolic links"},
		{"dev", canary, ""},
		{"dev", "../../../../../../../../.." + canary, ""},
		{"work", canary, ""},
		{"dev", "/proc", ""},
	} {
		root := rootTree(t)
		if err := os.Symlink(tt.to, filepath.Join(root, tt.link)); err != nil {
			t.Fatal(err)
		}
		s := testSpec("true")
		s.Process.Cwd = "/work/here"
		res := cell(t, root, program.Input{Spec: s}, nil)
		switch {
		case tt.want == "":
		case res.err == nil || !strings.Contains(res.err.Error(), tt.want):
			t.Errorf("%s -> %s: %v, want %q", tt.link, tt.to, res.err, tt.want)
		}
		ents, _ := os.ReadDir(canary)
		if b, _ := os.ReadFile(filepath.Join(canary, "ptmx")); len(ents) != 1 || string(b) != "mine" {
			t.Fatalf("%s -> %s: the canary has changed: %v", tt.link, tt.to, ents)
		}
	}
}

// TestBlockedInit looks at a container between create and start.
func TestBlockedInit(t *testing.T) {
	root := rootTree(t)
	var fds []string
	res := cell(t, root, program.Input{Spec: testSpec("true")}, func(c *executor.Child) {
		ch := make(chan []string) // this thread has no /proc: look from another one
		go func() {
			var l []string
			ents, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", c.Pid()))
			for _, e := range ents {
				l = append(l, e.Name())
			}
			ch <- l
		}()
		fds = <-ch
	})
	if res.err != nil {
		t.Fatal(res.err)
	}
	if got := strings.Join(fds, " "); got != "0 1 2 3 4" {
		t.Errorf("descriptors %q of a blocked init, want 0 to 4", got)
	}
}

func TestRefusesByName(t *testing.T) {
	for name, change := range map[string]func(*specs.Spec){
		"process.terminal":        func(s *specs.Spec) { s.Process.Terminal = true },
		"hooks":                   func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "/x"}}} },
		"linux.sysctl":            func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"a": "b"} },
		"linux.rootfsPropagation": func(s *specs.Spec) { s.Linux.RootfsPropagation = "sideways" },
		"mounts[0].type":          func(s *specs.Spec) { s.Mounts[0].Type = "nfs" },
		"mounts[0].options":       func(s *specs.Spec) { s.Mounts[0].Options = []string{"tmpcopyup"} },
		"mounts[0].source":        func(s *specs.Spec) { s.Mounts[0].Type = "bind" },
		"process.capabilities":    func(s *specs.Spec) { s.Process.Capabilities.Bounding = []string{"CAP_NOPE"} },
		"process.rlimits":         func(s *specs.Spec) { s.Process.Rlimits = nil },
		"process.user":            func(s *specs.Spec) { s.Process.User.UID = 1<<32 - 1 },
		"linux.maskedPaths[0]":    func(s *specs.Spec) { s.Linux.MaskedPaths[0] = "relative" },
		"process.args":            func(s *specs.Spec) { s.Process.Args = nil },
		"process.apparmorProfile": func(s *specs.Spec) { s.Process.ApparmorProfile = "x\n" },
	} {
		b, _ := json.Marshal(testSpec("true"))
		s := &specs.Spec{}
		json.Unmarshal(b, s)
		change(s)
		_, err := program.Compile(program.Input{Spec: s})
		if err == nil || !strings.HasPrefix(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
		if !errors.Is(err, program.ErrUnsupported) && !errors.Is(err, program.ErrInvalid) {
			t.Errorf("%s: %v is neither unsupported nor invalid", name, err)
		}
	}
}

func TestCheckFindsBrokenRules(t *testing.T) {
	good, err := program.Compile(program.Input{Spec: testSpec("true"), Seccomp: make([]byte, 8)})
	if err != nil {
		t.Fatal(err)
	}
	if err := program.Check(good); err != nil {
		t.Fatal(err)
	}
	breaks(t, "a program with", good, map[string]func(*step.Program){
		"no execve":                func(p *step.Program) { p.Steps = p.Steps[:find(p, calls(unix.SYS_EXECVE))] },
		"open descriptors at wait": func(p *step.Program) { p.Steps[find(p, calls(unix.SYS_CLOSE_RANGE))].Args[0].Val = 9 },
		"descriptor over execve":   func(p *step.Program) { p.Steps[find(p, calls(unix.SYS_FSOPEN))].Args[1].Val = 0 },
		"path by name":             func(p *step.Program) { p.Steps[find(p, calls(unix.SYS_FSOPEN))].Nr = unix.SYS_MKDIR },
		"denial passed over": func(p *step.Program) {
			s := &p.Steps[find(p, calls(unix.SYS_CAPSET))]
			s.OnErr = []step.Branch{{Errno: uint16(unix.EPERM)}}
		},
		"call after filter":    func(p *step.Program) { p.Steps[find(p, calls(unix.SYS_EXECVE))-1].Nr = unix.SYS_GETPID },
		"openat2 not confined": func(p *step.Program) { s := &p.Steps[find(p, calls(unix.SYS_OPENAT2))]; s.Args[0] = step.Arg{Val: 9} },
	})
}

// TestCheckOfExecsBeforeTheirJoin: an exec begins in somebody else's file tree, the
// host's where there is no monitor, and follows no path there.
func TestCheckOfExecsBeforeTheirJoin(t *testing.T) {
	p := testSpec("true").Process
	p.SelinuxLabel = "a:b:c" // for a procfs
	good, err := program.CompileExec(program.ExecInput{Process: p})
	if err != nil {
		t.Fatal(err)
	}
	early := find(good, calls(unix.SYS_SETSID))
	path := find(good, calls(unix.SYS_CHDIR))
	breaks(t, "an exec that, before it joins,", good, map[string]func(*step.Program){
		"enters a directory": func(p *step.Program) { p.Steps[early] = p.Steps[path] },
		"makes a directory": func(p *step.Program) {
			p.Steps[early] = step.Step{Nr: unix.SYS_MKDIRAT, Result: step.NoResult, Args: p.Steps[path].Args}
		},
		"copies a tree": func(p *step.Program) {
			s := step.Step{Nr: unix.SYS_OPEN_TREE, Result: step.NoResult, Args: [step.MaxArgs]step.Arg{{Val: 0xffffffffffffff9c}, {}, {Val: unix.OPEN_TREE_CLOEXEC}}}
			s.Args[1] = p.Steps[find(p, calls(unix.SYS_EXECVE))].Args[0]
			p.Steps[early] = s
		},
	})
}

// breaks demands that Check refuses what each change makes of a good program.
func breaks(t *testing.T, what string, good *step.Program, changes map[string]func(*step.Program)) {
	t.Helper()
	b, err := good.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range changes {
		p, err := step.Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		change(p)
		if err := program.Check(p); !errors.Is(err, program.ErrRule) {
			t.Errorf("%s %s: Check = %v", what, name, err)
		}
	}
}

// find returns the first step that is chosen, which has to be there.
func find(p *step.Program, which func(s *step.Step) bool) int {
	return slices.IndexFunc(p.Steps, func(s step.Step) bool { return which(&s) })
}

// calls chooses steps by the number of their call.
func calls(nr uint32) func(s *step.Step) bool {
	return func(s *step.Step) bool { return s.Nr == nr }
}

func TestExplain(t *testing.T) {
	p, err := program.Compile(program.Input{Spec: testSpec("sh", "-c", "true")})
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := program.Explain(&b, p); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`fsopen        r2 = ("proc", 1)`, `openat2       r1 = (root, "proc", {PATH|DIRECTORY in root|no symlinks|no magic links}, 24)`,
		"mount proc on /proc", `execve        ("/bin/sh", ["sh", "-c", "true"], ["PATH=/bin", "WHO=me"])`, "NEWPID"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("explanation lacks %q", want)
		}
	}
	if os.Getenv("SHOW") != "" {
		t.Log("\n" + b.String())
	}
}
