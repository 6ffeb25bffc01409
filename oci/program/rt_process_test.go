package program_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
	"github.com/vitrine-runtime/vitrine/oci/executor"
	"github.com/vitrine-runtime/vitrine/oci/program"
)

// TestRT07LongLists is CVE-2021-43784: a length that did not fit its field made
// the rest of a long list a setting. Lengths here are of 32 bits, are checked
// when a program is encoded and again when it arrives, and what was asked for
// is what is there.
func TestRT07LongLists(t *testing.T) {
	root := rootTree(t)
	long := strings.Repeat("x", 70<<10)
	s := newStage(root, "sh", "-c", "echo $# ${#1} ${#LONG}; cat /proc/self/limits; readlink /proc/1/ns/uts /proc/1/ns/mnt")
	s.in.Spec.Process.Args = append(s.in.Spec.Process.Args, "sh", long, long, long, long)
	s.in.Spec.Process.Env = append(s.in.Spec.Process.Env, "LONG="+long)
	res := s.run(t)
	host, _ := os.Readlink("/proc/self/ns/uts")
	if res.err != nil || !strings.HasPrefix(res.out, "4 71680 71680\n") || strings.Contains(res.out, host) {
		t.Errorf("%v: %.200q", res.err, res.out)
	}
	for what, change := range map[string]func(*specs.Spec){
		"3 MiB of environment":     func(s *specs.Spec) { s.Process.Env = []string{strings.Repeat("E", 3<<20)} },
		"namespace path of 70 KiB": func(s *specs.Spec) { s.Linux.Namespaces[4].Path = "/" + long },
		"70 KiB of mappings": func(s *specs.Spec) {
			for i := range uint32(70 << 10 / 12) {
				s.Linux.UIDMappings = append(s.Linux.UIDMappings, specs.LinuxIDMapping{ContainerID: i, HostID: i, Size: 1})
			}
		},
		"host name of 64 KiB and 6": func(s *specs.Spec) { s.Hostname = long[:1<<16+6] },
		"mask of 70 KiB":            func(s *specs.Spec) { s.Linux.MaskedPaths = []string{"/" + long} },
		"mount option of 70 KiB":    func(s *specs.Spec) { s.Mounts[1].Options = []string{"size=" + long} },
	} {
		s := newStage(root, "true")
		change(s.in.Spec)
		p, err := program.Compile(s.in)
		if err != nil { // refused, and by name
			if !errors.Is(err, program.ErrInvalid) && !errors.Is(err, program.ErrUnsupported) {
				t.Errorf("%s: %v", what, err)
			}
			continue
		}
		// Or taken: then the kernel says what is too long, and nothing has moved.
		if _, err := p.Encode(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if res := s.run(t); res.err == nil {
			t.Errorf("%s: runs", what)
		}
	}
}

// TestRT09FileCapabilities is CVE-2022-29162 and its sisters: with an
// inheritable set that is not empty, a file with inheritable capabilities gives
// them to a user who was to have none. The second half is the row without the
// protection: with the set that runtimes used to give, the kernel does give it.
func TestRT09FileCapabilities(t *testing.T) {
	for _, inheritable := range []bool{false, true} {
		root := rootTree(t)
		b, err := os.ReadFile(root + "/bin/busybox")
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.Mkdir(root+"/raised", 0o755), os.WriteFile(root+"/raised/grep", b, 0o755)); err != nil {
			t.Fatal(err)
		}
		// struct vfs_cap_data: revision 2 with the effective bit, then permitted and
		// inheritable of each half.
		var xattr []byte
		for _, v := range []uint32{0x02000001, 0, 1 << unix.CAP_CHOWN, 0, 0} {
			xattr = binary.LittleEndian.AppendUint32(xattr, v)
		}
		if err := unix.Setxattr(root+"/raised/grep", "security.capability", xattr, 0); err != nil {
			t.Skip("needs a file system with file capabilities: " + err.Error())
		}
		for _, uid := range []uint32{0, 1000} {
			s := newStage(root, "sh", "-c", "/raised/grep ^Cap /proc/self/status")
			s.in.Spec.Process.User.UID = uid
			c := s.in.Spec.Process.Capabilities
			if inheritable {
				c.Inheritable = []string{"CAP_CHOWN"}
			}
			res := s.run(t)
			const none, chown = "0000000000000000", "0000000000000001"
			want := "CapInh:\t" + none
			if uid != 0 {
				want += "\nCapPrm:\t" + none + "\nCapEff:\t" + none
			}
			if inheritable && uid != 0 {
				want = "CapEff:\t" + chown
			} else if inheritable {
				want = "CapInh:\t" + chown
			}
			if res.err != nil || !strings.Contains(res.out, want) || !strings.Contains(res.out, "CapAmb:\t"+none) {
				t.Errorf("uid %d, inheritable %v: %v\n%s", uid, inheritable, res.err, res.out)
			}
		}
	}
}

// TestRT12LeakedDirectories is CVE-2024-21626: a descriptor of the host that is
// left open is a working directory outside. The program is given a directory of
// the host in its table, as a leak would; no number leads to it.
func TestRT12LeakedDirectories(t *testing.T) {
	root := rootTree(t)
	leak := func(cwd string, weaken func(p *step.Program)) result {
		s := hostile(root, newCanary(t), "/bin/busybox", "readlink", "/proc/self/cwd")
		s.in.Spec.Process.Cwd = cwd
		s.in.Spec.Linux.MaskedPaths = nil
		s.addBind(s.canary, "/somewhere", true)
		s.weaken = weaken
		return s.lay(t)
	}
	for n := range 64 {
		cwd := fmt.Sprintf("/proc/self/fd/%d", n)
		if res := leak(cwd, nil); res.err == nil {
			t.Errorf("%s: works, in %s", cwd, res.out)
		}
	}
	for _, cwd := range []string{"/proc/self/cwd", "/proc/1/cwd", "/proc/1/root", "/proc/thread-self/fd/5", "/proc/self/task/1/fd/5"} {
		if res := leak(cwd, nil); res.err == nil {
			t.Errorf("%s: works, in %s", cwd, res.out)
		}
	}
	// The same without the first look at it, so that chdir meets the descriptor of
	// a host's directory: getcwd has the last word. And without that too.
	dir := func(p *step.Program) {
		nothing := step.Step{Nr: step.OpSet, Result: step.NoResult}
		for i := range p.Steps { // the table: 5 is the root, 6 the source of the bind
			switch s := &p.Steps[i]; {
			case strings.HasPrefix(s.Name, "bind /somewhere"):
				*s = nothing // it stays a detached mount, outside of all
			case s.Name == "look for the working directory":
				p.Steps[i+1+int(s.Then)] = nothing // closes what was found
				then := s.Then
				*s = nothing
				s.Then = then
			}
		}
	}
	if res := leak("/proc/self/fd/6", dir); !errors.Is(res.err, unix.EXDEV) {
		t.Errorf("in a leaked directory: %v, %s", res.err, res.out)
	}
	if res := leak("/proc/self/fd/6", func(p *step.Program) { dir(p); nullify(named("be inside the root"))(p) }); res.err != nil {
		t.Errorf("without the look at getcwd the leak is not reached: %v", res.err)
	}
	s := newStage(root, "pwd")
	s.in.Spec.Process.Cwd = "/tmp"
	s.wants(t, "/tmp\n")
}

// TestRT01NothingElseIsOpen looks at a container before its execve: at each of its
// steps it holds its stdio, the two pipes, its table, and the little that it has just
// opened itself. Of the many that its parent has, none was left to it.
func TestRT01NothingElseIsOpen(t *testing.T) {
	secret := t.TempDir()
	for range 50 {
		f, err := os.Open(secret)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := unix.FcntlInt(f.Fd(), unix.F_SETFD, 0); err != nil { // who forgot close-on-exec
			t.Fatal(err)
		}
	}
	s := &siege{stage: *newStage(rootTree(t), "ls", "/proc/self/fd")}
	s.addBind(t.TempDir(), "/v", true)
	const table = step.FirstFD + 4 // the root, the source, two gates
	held := func(pid int) (numbers []int) {
		err := elsewhere(func() error {
			dir := fmt.Sprintf("/proc/%d/fd", pid)
			list, err := os.ReadDir(dir)
			for _, e := range list {
				n, _ := strconv.Atoi(e.Name())
				numbers = append(numbers, n)
				if to, _ := os.Readlink(filepath.Join(dir, e.Name())); strings.Contains(to, secret) {
					err = fmt.Errorf("descriptor %d is %s", n, to)
				}
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
		slices.Sort(numbers)
		return numbers
	}
	stops, most := 0, 0
	s.act = func(pl place) {
		n := held(pl.pid)
		if stops++; len(n) < table || n[table-1] != table-1 {
			t.Errorf("%s: descriptors %v", pl.s.Name, n)
		}
		most = max(most, len(n)-table)
	}
	s.before = func(c *executor.Child) {
		if n := held(c.Pid()); !slices.Equal(n, []int{0, 1, 2, step.ReportFD, step.StartFD}) {
			t.Errorf("before the start: descriptors %v", n)
		}
	}
	res := s.lay(t)
	res.ends(t, "0\n1\n2\n3\n") // the last is the directory that is listed
	if stops < 100 || most < 1 || most > 5 {
		t.Errorf("%d stops, at most %d descriptors of its own", stops, most)
	}
	t.Logf("%d stops, at most %d descriptors of its own", stops, most)
}

// TestRT12ExecDirectories is the same for an exec, which has a descriptor of its
// own on the way: the pidfd of the container's init.
func TestRT12ExecDirectories(t *testing.T) {
	root := rootTree(t)
	s := newStage(root, "sleep", "60")
	s.after = func(c *executor.Child) {
		for n := range 64 {
			e := testSpec("readlink", "/proc/self/cwd").Process
			e.Cwd = fmt.Sprintf("/proc/self/fd/%d", n)
			if out, err := execIn(t, c, e); err == nil {
				t.Errorf("%s: works, in %s", e.Cwd, out)
			}
		}
		e := testSpec("readlink", "/proc/self/cwd").Process
		e.Cwd = "/proc/1/root"
		if out, err := execIn(t, c, e); err == nil && out != "/\n" {
			t.Errorf("%s: in %q", e.Cwd, out)
		}
		unix.Kill(c.Pid(), unix.SIGKILL)
	}
	if res := s.run(t); res.err != nil {
		t.Fatal(res.err)
	}
}

// TestRT14MasksAreOurs is CVE-2025-31133: masks were bind mounts of the
// container's own /dev/null, which an image could make a link to a file of
// procfs, or could take away. Ours come from the monitor's namespace.
func TestRT14MasksAreOurs(t *testing.T) {
	const secret = "/proc/timer_list"
	show := []string{"sh", "-c", "cat " + secret + " | head -c 4; echo x >" + secret + "; stat -c %t:%T " + secret + "; stat -c %F /v/null"}
	run := func(weaken func(*step.Program), act func(vol string)) (result, string) {
		root, vol := rootTree(t), t.TempDir()
		if err := os.Symlink("busybox", root+"/bin/head"); err != nil {
			t.Fatal(err)
		}
		for _, n := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
			unix.Mknod(filepath.Join(vol, n), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3)))
		}
		s := hostile(root, newCanary(t), show...)
		s.gate = named("find directory " + secret)
		s.without("/dev")
		s.addBind(vol, "/dev", true)
		s.addBind(vol, "/v", true)
		s.in.Spec.Linux.MaskedPaths = []string{secret}
		s.weaken = weaken
		s.act = func(place) {
			done := make(chan struct{})
			go func() { act(vol); close(done) }()
			<-done
		}
		before := outside(t, s.canary)
		res := s.lay(t)
		if outside(t, s.canary) != before {
			t.Error("the host has changed")
		}
		return res, vol
	}
	// Masks from the container's own /dev/null, as others made them.
	theirs := func(p *step.Program) {
		for i := range p.Steps {
			if s := &p.Steps[i]; s.Name == "copy the null device" {
				s.Args[1] = addData(p, []byte(program.ScratchRoot+"/dev/null\x00"))
			}
		}
	}
	for what, act := range map[string]func(vol string){
		"a link to a file of procfs": func(vol string) { os.Remove(vol + "/null"); os.Symlink("/root/proc/uptime", vol+"/null") },
		"gone":                       func(vol string) { os.Remove(vol + "/null") },
	} {
		res, _ := run(nil, act)
		if res.err != nil || !strings.Contains(res.out, "1:3\n") || len(res.out) > 30 && !strings.HasPrefix(res.out, "1:3") {
			t.Errorf("%s: %v, %q", what, res.err, res.out)
		}
		res, _ = run(theirs, act)
		if res.err == nil && strings.Contains(res.out, "1:3\n") {
			t.Errorf("%s: masks of the container's own make no difference: %q", what, res.out)
		}
	}
}

// TestRT14MasksFindTheirFiles: masks were looked for by name. Who may write to the root
// meanwhile has /proc (or /sys) under another name just while its files are masked, and
// back before the end.
func TestRT14MasksFindTheirFiles(t *testing.T) {
	for _, tt := range []struct{ path, masked string }{{"/proc/timer_list", "1:3"}, {"/proc/sys", "ro"}, {"/sys/firmware", "tmpfs"}} {
		top := strings.Split(tt.path, "/")[1]
		root := rootTree(t)
		s := hostile(root, newCanary(t), "sh", "-c", "stat -c %t:%T "+tt.path+"; grep ' "+tt.path+" ' /proc/self/mounts")
		l := s.in.Spec.Linux
		l.MaskedPaths, l.ReadonlyPaths = nil, nil
		if tt.masked == "ro" {
			l.ReadonlyPaths = []string{tt.path}
		} else {
			l.MaskedPaths = []string{tt.path}
		}
		away := false
		rename := func(from, to string) {
			if err := unix.Renameat(int(s.root.Fd()), from, int(s.root.Fd()), to); err != nil {
				t.Error(err)
			}
		}
		s.gate = nil
		s.act = func(pl place) {
			switch {
			case strings.HasSuffix(pl.s.Name, tt.path) && pl.s.Nr == unix.SYS_OPENAT2 && !away:
				rename(top, "away")
				away = true
			case pl.s.Nr == unix.SYS_PIVOT_ROOT && away:
				rename("away", top)
			}
		}
		if res := s.lay(t); !away || res.err == nil && !strings.Contains(res.out, tt.masked) {
			t.Errorf("%s: %v, %q, and it was away: %v", tt.path, res.err, res.out, away)
		}
	}
}

// TestRT24NothingIsPassedOver: each protection that cannot be had ends the start
// (rule R16). What the kernel refuses here stands for whatever it may refuse.
func TestRT24NothingIsPassedOver(t *testing.T) {
	root := rootTree(t)
	compile := map[string]func(s *stage){
		"no mount namespace": func(s *stage) { s.in.Spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: "pid"}} },
		"profile without its filter": func(s *stage) {
			s.in.Spec.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
		},
		"soft limit above the hard one": func(s *stage) {
			s.in.Spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 2, Hard: 1}}
		},
		"capability that nobody knows": func(s *stage) { s.in.Spec.Process.Capabilities.Bounding = []string{"CAP_NEW"} },
		"mask of the root":             func(s *stage) { s.in.Spec.Linux.MaskedPaths = []string{"/"} },
		"read-only root by path":       func(s *stage) { s.in.Spec.Linux.ReadonlyPaths = []string{"/"} },
	}
	for what, change := range compile {
		s := newStage(root, "true")
		change(s)
		if _, err := program.Compile(s.in); !errors.Is(err, program.ErrInvalid) && !errors.Is(err, program.ErrUnsupported) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := os.Symlink("loop", root+"/loop"); err != nil {
		t.Fatal(err)
	}
	for what, tt := range map[string]struct {
		change func(s *stage)
		step   string // whose failure it is
	}{
		"hard limit above the own": {func(s *stage) {
			s.in.Spec.Process.Rlimits = append(s.in.Spec.Process.Rlimits, specs.POSIXRlimit{Type: "RLIMIT_MEMLOCK", Soft: 1 << 60, Hard: 1 << 60})
			s.in.Spec.Process.Rlimits[0].Hard = 1 << 40 // above what any root may have
			s.in.Spec.Process.Rlimits[0].Soft = 1
		}, "set RLIMIT_"},
		"flag of a filter":    {func(s *stage) { s.in.Seccomp, s.in.SeccompFlags = filterOf(1, 0x7fff0000), 1<<20 }, "load the seccomp filter"},
		"filter that is none": {func(s *stage) { s.in.Seccomp = make([]byte, 8) }, "load the seccomp filter"},
		"mask behind a loop": {func(s *stage) {
			s.in.Spec.Linux.MaskedPaths = []string{"/loop"}
		}, "find directory /loop"},
		"read-only behind a loop":                {func(s *stage) { s.in.Spec.Linux.ReadonlyPaths = []string{"/loop"} }, "find /loop"},
		"option that a filesystem does not have": {func(s *stage) { s.tmpfs("/t", "nonsense") }, "with nonsense"},
	} {
		s := newStage(root, "true")
		tt.change(s)
		res := s.run(t)
		var se *executor.StepError
		if !errors.As(res.err, &se) || !strings.HasPrefix(se.Name, tt.step) {
			t.Errorf("%s: %v", what, res.err)
		}
	}
	// The same rule over compiled programs: TestCheckByMutation. And seen here: a
	// program that passes over what it may not is not accepted.
	p, err := program.Compile(newStage(root, "true").in)
	if err != nil {
		t.Fatal(err)
	}
	for i := range p.Steps {
		if s := &p.Steps[i]; strings.HasPrefix(s.Name, "mask /") || strings.HasPrefix(s.Name, "make it read-only") {
			old := s.OnErr
			s.OnErr = []step.Branch{{Errno: uint16(unix.ENOENT)}}
			if err := program.Check(p); !errors.Is(err, program.ErrRule) {
				t.Errorf("%s may fail: %v", s.Name, err)
			}
			s.OnErr = old
		}
	}
	newStage(root, "true").wants(t, "")
}

// TestRT28ManyMasks: what tells neighbours apart by time and power is masked,
// each of the paths of a large machine, by the same empty read-only directory.
func TestRT28ManyMasks(t *testing.T) {
	root := rootTree(t)
	var paths []string
	for cpu := range 128 {
		p := fmt.Sprintf("/etc/cpu/cpu%d/thermal_throttle", cpu)
		write(t, filepath.Join(root, p, "core_throttle_count"), "7\n")
		paths = append(paths, p)
	}
	for _, d := range []string{"/etc/powercap/rapl:0", "/etc/firmware"} {
		write(t, filepath.Join(root, d, "energy_uj"), "7\n")
		paths = append(paths, d)
	}
	write(t, root+"/etc/interrupts", "7\n")
	script := `cd /etc; set -- cpu/*/thermal_throttle powercap/* firmware; { stat -c %d $@; for d; do for f in $d/*; do test -e $f && echo $f; done; true > $d/x; done; } 2>&1 |
		sed 's/.*Read-only.*/1/' | sort | uniq -c; cat interrupts; stat -c %t:%T interrupts`
	run := func(weaken func(p *step.Program)) string {
		s := hostile(root, newCanary(t), "sh", "-c", script)
		os.Symlink("busybox", root+"/bin/sort")
		os.Symlink("busybox", root+"/bin/uniq")
		os.Symlink("busybox", root+"/bin/sed")
		s.gate = func(*step.Step) bool { return false }
		s.in.Spec.Linux.MaskedPaths = append(paths, "/etc/interrupts", "/proc/interrupts", "/sys/devices/virtual/powercap", "/sys/devices/system/cpu/cpu0/thermal_throttle")
		s.weaken = weaken
		res := s.lay(t)
		if res.err != nil {
			t.Fatal(res.err)
		}
		return res.out
	}
	good := func(out string) bool { // one device number, 130 times; 130 refusals; nothing else
		f := strings.Fields(out)
		return len(f) == 5 && f[0] == "130" && f[2] == "130" && (f[1] == "1" || f[3] == "1") && f[4] == "1:3"
	}
	if out := run(nil); !good(out) {
		t.Errorf("masked:\n%s", out)
	}
	n := 0
	if out := run(nullify(func(s *step.Step) bool { // without the mask of one processor in the middle
		if strings.HasPrefix(s.Name, "mask /etc/cpu/") {
			n++
		}
		return n == 77 && strings.HasPrefix(s.Name, "mask /etc/cpu/")
	})); good(out) {
		t.Error("one mask less is not seen")
	}
}
