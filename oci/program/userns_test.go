package program_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/executor"
	"github.com/vitrine-runtime/vitrine/oci/program"
)

// firstID is the host's id of a test container's root.
const firstID = 200000

// userSpec is testSpec in a user namespace of its own. Its /dev is bound, since
// nobody makes devices there.
func userSpec(args ...string) *specs.Spec {
	s := testSpec(args...)
	s.Mounts[1] = specs.Mount{Destination: "/dev", Type: "bind", Options: []string{"rbind"}}
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	s.Linux.UIDMappings = []specs.LinuxIDMapping{{HostID: firstID, Size: 65536}}
	s.Linux.GIDMappings = []specs.LinuxIDMapping{{HostID: firstID + 1, Size: 65536}}
	return s
}

// maps are the spec's mappings as the parent writes them.
func maps(s *specs.Spec) *sys.IDMaps {
	m := &sys.IDMaps{}
	for _, l := range s.Linux.UIDMappings {
		m.UIDs = append(m.UIDs, sys.IDMap{Inside: l.ContainerID, Outside: l.HostID, Count: l.Size})
	}
	for _, l := range s.Linux.GIDMappings {
		m.GIDs = append(m.GIDs, sys.IDMap{Inside: l.ContainerID, Outside: l.HostID, Count: l.Size})
	}
	return m
}

// mappedRoot is a root filesystem that belongs to the root of a user namespace.
func mappedRoot(t *testing.T) string {
	root := rootTree(t)
	err := filepath.WalkDir(root, func(p string, _ os.DirEntry, err error) error {
		if err == nil {
			err = os.Lchown(p, firstID, firstID+1)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for p := filepath.Dir(root); p != "/tmp" && p != "/"; p = filepath.Dir(p) {
		os.Chmod(p, 0o755)
	}
	return root
}

// sleeper holds a process in namespaces of its own, and returns the directory of
// their links.
func sleeper(t *testing.T, clone, unshare uintptr) string {
	t.Helper()
	return sleep(t, exec.Command("sleep", "1000"), &syscall.SysProcAttr{Cloneflags: clone, Unshareflags: unshare})
}

func sleep(t *testing.T, cmd *exec.Cmd, attr *syscall.SysProcAttr) string {
	t.Helper()
	cmd.SysProcAttr = attr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return fmt.Sprintf("/proc/%d/ns/", cmd.Process.Pid)
}

// mappedSleeper is a sleeper in a user and a network namespace. Go's own fork into a
// user namespace needs the memory that the executor hides from children.
func mappedSleeper(t *testing.T, m *sys.IDMaps) string {
	t.Helper()
	there := sleep(t, exec.Command("unshare", "--user", "--net", "sleep", "1000"), nil)
	pid, _ := strconv.Atoi(strings.Split(there, "/")[2])
	for ns(t, there+"net") == ns(t, "/proc/self/ns/net") {
		time.Sleep(time.Millisecond)
	}
	if err := m.Write(-1, pid); err != nil {
		t.Fatal(err)
	}
	if err := m.Write(-1, pid); !errors.Is(err, unix.EPERM) {
		t.Errorf("maps written a second time: %v", err)
	}
	return there
}

func ns(t *testing.T, link string) string {
	t.Helper()
	s, err := os.Readlink(link)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func setPath(s *specs.Spec, t specs.LinuxNamespaceType, path string) {
	for i := range s.Linux.Namespaces {
		if s.Linux.Namespaces[i].Type == t {
			s.Linux.Namespaces[i].Path = path
			return
		}
	}
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: t, Path: path})
}

const showNamespaces = `for n in cgroup ipc mnt net pid time user uts; do readlink /proc/self/ns/$n; done; echo pid $$`

// TestJoinNamespaces joins each kind of namespace by descriptor, one at a time
// and all at once.
func TestJoinNamespaces(t *testing.T) {
	root := rootTree(t)
	there := sleeper(t, unix.CLONE_NEWNET|unix.CLONE_NEWIPC|unix.CLONE_NEWUTS|unix.CLONE_NEWCGROUP|unix.CLONE_NEWPID, unix.CLONE_NEWTIME)
	files := map[specs.LinuxNamespaceType]string{
		specs.NetworkNamespace: there + "net", specs.IPCNamespace: there + "ipc", specs.UTSNamespace: there + "uts",
		specs.CgroupNamespace: there + "cgroup", specs.TimeNamespace: there + "time_for_children", specs.PIDNamespace: there + "pid_for_children",
	}
	all := []specs.LinuxNamespaceType{}
	for k := range files {
		all = append(all, k)
	}
	for i := range len(all) + 1 {
		which := all
		if i < len(all) {
			which = all[i : i+1]
		}
		t.Run(fmt.Sprint(which), func(t *testing.T) {
			s := testSpec("sh", "-c", showNamespaces)
			s.Hostname = ""
			in := program.Input{Spec: s, Join: map[specs.LinuxNamespaceType]int{}}
			st := stage{root: root}
			for n, k := range which {
				setPath(s, k, files[k])
				in.Join[k] = n + 1
				st.namespaces = append(st.namespaces, files[k])
			}
			st.in = in
			res := st.run(t)
			if res.err != nil {
				t.Fatal(res.err)
			}
			for _, k := range which {
				if want := ns(t, files[k]); !strings.Contains(res.out, want+"\n") {
					t.Errorf("not in %s:\n%s", want, res.out)
				}
			}
			if in.Join[specs.PIDNamespace] == 0 && !strings.Contains(res.out, "pid 1\n") {
				t.Errorf("not pid 1 of its own pid namespace:\n%s", res.out)
			}
			for _, l := range []string{"mnt", "ipc", "net"} {
				if strings.Contains(res.out, ns(t, "/proc/self/ns/"+l)+"\n") {
					t.Errorf("in the host's %s namespace", l)
				}
			}
		})
	}
}

// TestUserNamespace makes a container in a new user namespace and looks at what it
// is inside and outside.
func TestUserNamespace(t *testing.T) {
	root := mappedRoot(t)
	s := userSpec("sh", "-c", `id -u; id -g; id -G; cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups; grep -E '^Cap(Bnd|Eff)' /proc/self/status
		touch /tmp/mine; stat -c '%u %g' /tmp/mine; mount; hostname; echo 1 2>&1 >/proc/sys/kernel/panic; cat /proc/self/cgroup; ls -ld /proc/1/ns/user`)
	s.Process.User.AdditionalGids = []uint32{7}
	var outside string
	st := userStage(t, root, s)
	st.before = func(c *executor.Child) {
		elsewhere(func() error {
			b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.Pid()))
			outside = string(b)
			return nil
		})
	}
	res := st.run(t)
	if res.err != nil {
		t.Fatal(res.err)
	}
	for _, want := range []string{"0\n0\n0 7\n", fmt.Sprintf(" %d ", firstID), fmt.Sprintf(" %d ", firstID+1), "allow\n", "CapEff:\t00000000000000e1", "CapBnd:\t00000000000000e1",
		"0 0\n", "proc on /proc type proc (rw,nosuid,nodev,noexec", "sysfs on /sys type sysfs (ro,", "mqueue on /dev/mqueue", "devpts on /dev/pts", "cgroup on /sys/fs/cgroup type cgroup2 (ro",
		"glass\n", "Read-only file system", "0::/\n"} {
		if !strings.Contains(res.out, want) {
			t.Errorf("output lacks %q", want)
		}
	}
	if want := fmt.Sprintf("Uid:\t%d\t%d\t%d\t%d\nGid:\t%d\t", firstID, firstID, firstID, firstID, firstID+1); !strings.Contains(outside, want) {
		t.Errorf("outside it is not %q:\n%s", want, outside)
	}
	if t.Failed() {
		t.Log(res.out)
	}
}

// devices is a /dev for userSpec.
func devices(t *testing.T) string {
	dir := t.TempDir()
	for _, d := range []string{"pts", "mqueue"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		t.Fatal(err)
	}
	os.Chmod(filepath.Join(dir, "null"), 0o666)
	return dir
}

// userStage has what a user namespace needs of the outside.
func userStage(t *testing.T, root string, s *specs.Spec) stage {
	return stage{root: root, sources: []string{devices(t)}, in: program.Input{Spec: s, Visible: []int{2, 3}, Binds: map[int]program.Bind{1: {File: 1, Dir: true}}}, maps: maps(s), whole: []string{"/proc", "/sys"}}
}

// TestUserNamespaceIDs: ids other than root's, also where root is not mapped.
func TestUserNamespaceIDs(t *testing.T) {
	root := mappedRoot(t)
	s := userSpec("sh", "-c", "id -u; id -g; cat /proc/self/uid_map; touch /tmp/x 2>&1; grep CapEff /proc/self/status")
	s.Process.User = specs.User{UID: 1000, GID: 1000}
	res := userStage(t, root, s).run(t)
	if res.err != nil || !strings.HasPrefix(res.out, "1000\n1000\n") || !strings.Contains(res.out, "Permission denied") || !strings.Contains(res.out, "CapEff:\t0000000000000000") {
		t.Errorf("uid 1000: %v\n%s", res.err, res.out)
	}
	s.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 1000, HostID: firstID, Size: 1}}
	s.Linux.GIDMappings = []specs.LinuxIDMapping{{ContainerID: 1000, HostID: firstID + 1, Size: 1}}
	s.Mounts = s.Mounts[:2]
	res = userStage(t, root, s).run(t)
	if res.err != nil || !strings.HasPrefix(res.out, "1000\n1000\n") || strings.Contains(res.out, "denied") {
		t.Errorf("without a root: %v\n%s", res.err, res.out)
	}
}

// TestExecInUserNamespace joins a container in a user namespace: born in its pid
// namespace, and by a sibling that is.
func TestExecInUserNamespace(t *testing.T) {
	root := mappedRoot(t)
	for _, sibling := range []bool{false, true} {
		for _, user := range []specs.User{{AdditionalGids: []uint32{7}}, {UID: 1000, GID: 1000}, {UID: 70000}} {
			st := userStage(t, root, userSpec("sleep", "60"))
			var out string
			var err error
			st.after = func(c *executor.Child) {
				p := testSpec("sh", "-c", "id -u; id -G; "+showNamespaces+"; ls -d /proc/[0-9]*; cat /proc/self/uid_map; hostname; grep CapEff /proc/self/status; readlink /proc/1/ns/user").Process
				p.User = user
				out, err = execWith(t, c, program.ExecInput{Process: p, CgroupNS: true, Sibling: sibling,
					Join: unix.CLONE_NEWUSER | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWNET})
				unix.Kill(c.Pid(), unix.SIGKILL)
			}
			if res := st.run(t); res.err != nil {
				t.Fatal(res.err)
			}
			if user.UID == 70000 {
				if !errors.Is(err, unix.EINVAL) || !strings.HasPrefix(err.Error(), "set the uid") {
					t.Errorf("id that is not mapped: %v", err)
				}
				continue
			}
			want := []string{"0\n0 7\n", "CapEff:\t00000000000000e1"}
			if user.UID > 0 {
				want = []string{"1000\n1000\n", "CapEff:\t0000000000000000"}
			}
			for _, w := range append(want, fmt.Sprint(firstID), "glass\n", "pid 2\n", "/proc/1\n/proc/2\n") {
				if !strings.Contains(out, w) {
					t.Errorf("sibling %v, user %d: output lacks %q", sibling, user.UID, w)
				}
			}
			if t.Failed() {
				t.Fatal(err, out)
			}
		}
	}
}

// TestExecIsHidden: who is root in the user namespace and may trace others cannot
// look into an exec that has not executed anything yet (CVE-2016-9962).
func TestExecIsHidden(t *testing.T) {
	root := mappedRoot(t)
	s := userSpec("sh", "-c", `while :; do for p in /proc/[0-9]*; do [ $p = /proc/1 ] || ls -l $p/fd $p/cwd/ $p/root/ 2>&1; done; done`)
	caps := append(s.Process.Capabilities.Bounding, "CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE")
	s.Process.Capabilities.Bounding, s.Process.Capabilities.Effective, s.Process.Capabilities.Permitted = caps, caps, caps
	for _, sibling := range []bool{false, true} {
		st := userStage(t, root, s)
		var err error
		var owner string
		st.after = func(c *executor.Child) {
			prog, e := program.CompileExec(program.ExecInput{Process: testSpec("true").Process, CgroupNS: true, Sibling: sibling, Join: unix.CLONE_NEWUSER})
			if e != nil {
				t.Error(e)
				return
			}
			enc, _ := prog.Encode()
			pidfd, _ := unix.PidfdOpen(c.Pid(), 0)
			err = elsewhere(func() error {
				a := executor.Attr{Program: enc, CgroupFD: -1, PIDNS: pidfd, ProcFD: -1, Files: []int{pidfd}}
				if sibling {
					a.PIDNS = -1
				}
				x, err := executor.Start(a)
				if err != nil {
					return err
				}
				defer func() { x.Close(); unix.Wait4(x.Pid(), nil, 0, nil) }()
				if err := x.Ready(); err != nil {
					return err
				}
				time.Sleep(100 * time.Millisecond)
				// What the container sees as owner of a process's files is whom it could be.
				var st unix.Stat_t
				err = unix.Stat(fmt.Sprintf("/proc/%d/fd", x.Pid()), &st)
				owner = fmt.Sprint(st.Uid, " ", st.Gid)
				return err
			})
			unix.Close(pidfd)
			unix.Kill(c.Pid(), unix.SIGKILL)
		}
		res := st.run(t)
		if res.err != nil || err != nil {
			t.Fatal(res.err, err)
		}
		if owner != "0 0" {
			t.Errorf("sibling %v: files of a blocked exec belong to %s: it can be traced", sibling, owner)
		}
		for _, line := range strings.Split(res.out, "\n") {
			if strings.Contains(line, "->") || strings.HasPrefix(line, "d") {
				t.Errorf("sibling %v: the container has seen %q", sibling, line)
				break
			}
		}
	}
}

// TestJoinUserNamespace: everything new belongs to the namespace that was joined.
func TestJoinUserNamespace(t *testing.T) {
	root := mappedRoot(t)
	there := mappedSleeper(t, maps(userSpec()))
	s := userSpec("sh", "-c", showNamespaces+"; hostname; mount; grep CapEff /proc/self/status; touch /tmp/mine && echo written")
	setPath(s, specs.UserNamespace, there+"user")
	setPath(s, specs.NetworkNamespace, there+"net")
	st := userStage(t, root, s)
	st.maps = nil
	st.in.Join = map[specs.LinuxNamespaceType]int{specs.UserNamespace: 2, specs.NetworkNamespace: 3}
	st.in.Visible = []int{4, 5}
	st.namespaces = []string{there + "user", there + "net"}
	res := st.run(t)
	if res.err != nil {
		t.Fatal(res.err)
	}
	for _, want := range []string{ns(t, there+"user"), ns(t, there+"net"), "pid 1\n", "glass\n", "sysfs on /sys", "mqueue on", "CapEff:\t00000000000000e1", "written\n"} {
		if !strings.Contains(res.out, want) {
			t.Errorf("output lacks %q", want)
		}
	}
	if t.Failed() {
		t.Log(res.out)
	}
}

// TestNewUserJoinsOthers: a new user namespace with a network of the host's, which
// it could not join from inside.
func TestNewUserJoinsOthers(t *testing.T) {
	root := mappedRoot(t)
	there := sleeper(t, unix.CLONE_NEWNET, 0)
	s := userSpec("sh", "-c", showNamespaces+"; cat /proc/self/uid_map")
	setPath(s, specs.NetworkNamespace, there+"net")
	s.Mounts = s.Mounts[:2] // a sysfs would be the network's owner's
	st := userStage(t, root, s)
	st.in.Join = map[specs.LinuxNamespaceType]int{specs.NetworkNamespace: 2}
	st.in.Visible = []int{3, 4}
	st.namespaces = []string{there + "net"}
	res := st.run(t)
	if res.err != nil || !strings.Contains(res.out, ns(t, there+"net")) || !strings.Contains(res.out, fmt.Sprint(firstID)) || !strings.Contains(res.out, "pid 1\n") {
		t.Errorf("%v\n%s", res.err, res.out)
	}
}

// TestJoinFails: a descriptor that is no namespace, or one of another kind, ends the
// first child; the error names the step, and nobody is left.
func TestJoinFails(t *testing.T) {
	root := rootTree(t)
	for _, tt := range []struct {
		kind specs.LinuxNamespaceType
		file string
	}{{specs.UserNamespace, "/dev/null"}, {specs.PIDNamespace, "/proc/self/ns/uts"}, {specs.NetworkNamespace, "/proc/self/ns/uts"}, {specs.UserNamespace, "/proc/self/ns/user"}} {
		s := userSpec("true")
		s.Linux.Namespaces = s.Linux.Namespaces[:6]
		s.Linux.UIDMappings, s.Linux.GIDMappings = nil, nil
		s.Hostname = ""
		setPath(s, tt.kind, tt.file)
		st := userStage(t, root, s)
		st.in.Visible, st.whole = nil, nil
		st.in.Join = map[specs.LinuxNamespaceType]int{tt.kind: 2}
		st.namespaces = []string{tt.file}
		res := st.run(t)
		var se *executor.StepError
		if !errors.As(res.err, &se) || !errors.Is(res.err, unix.EINVAL) || se.Name != "join the "+string(tt.kind)+" namespace" {
			t.Errorf("%s by %s: %v", tt.kind, tt.file, res.err)
		}
	}
}

func TestRefusesBadNamespaces(t *testing.T) {
	for name, change := range map[string]func(*program.Input){
		"linux.uidMappings: ":     func(in *program.Input) { in.Spec.Linux.Namespaces = in.Spec.Linux.Namespaces[:6] },
		"linux.uidMappings: a":    func(in *program.Input) { in.Spec.Linux.UIDMappings = nil },
		"linux.gidMappings[0]: 0": func(in *program.Input) { in.Spec.Linux.GIDMappings[0].Size = 0 },
		"linux.uidMappings[0]":    func(in *program.Input) { in.Spec.Linux.UIDMappings[0].HostID = 1<<32 - 10 },
		"linux.uidMappings[1]: overlaps": func(in *program.Input) {
			in.Spec.Linux.UIDMappings = append(in.Spec.Linux.UIDMappings, specs.LinuxIDMapping{ContainerID: 65535, HostID: 1, Size: 1})
		},
		"linux.gidMappings[1]: overlaps": func(in *program.Input) {
			in.Spec.Linux.GIDMappings = append(in.Spec.Linux.GIDMappings, specs.LinuxIDMapping{ContainerID: 70000, HostID: firstID + 1, Size: 1})
		},
		"linux.uidMappings: 341":          func(in *program.Input) { in.Spec.Linux.UIDMappings = make([]specs.LinuxIDMapping, 341) },
		"process.user.uid":                func(in *program.Input) { in.Spec.Process.User.UID = 65536 },
		"process.user.gid":                func(in *program.Input) { in.Spec.Process.User.GID = 1 << 31 },
		"process.user.additionalGids[1]":  func(in *program.Input) { in.Spec.Process.User.AdditionalGids = []uint32{1, 100000} },
		"process.user.additionalGids: in": func(in *program.Input) { in.Spec.Process.User.AdditionalGids = []uint32{1}; in.KeepGroups = true },
		"linux.namespaces[0].path":        func(in *program.Input) { in.Spec.Linux.Namespaces[0].Path = "/x" },
		"linux.namespaces[1].path": func(in *program.Input) {
			in.Spec.Linux.Namespaces[1].Path = "/x"
			in.Join = map[specs.LinuxNamespaceType]int{specs.MountNamespace: 2}
		},
		"linux.namespaces[4].path":          func(in *program.Input) { in.Join = map[specs.LinuxNamespaceType]int{specs.NetworkNamespace: 2} },
		"linux.namespaces: descriptor 0 of": func(in *program.Input) { in.Join = map[specs.LinuxNamespaceType]int{specs.NetworkNamespace: 0} },
		"linux.namespaces: descriptor of":   func(in *program.Input) { in.Join = map[specs.LinuxNamespaceType]int{specs.TimeNamespace: 2} },
		"linux.namespaces[7].type":          func(in *program.Input) { setPath(in.Spec, "window", "/x") },
		"linux.namespaces[7]: second": func(in *program.Input) {
			in.Spec.Linux.Namespaces = append(in.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		},
		"visible filesystem":           func(in *program.Input) { in.Visible = []int{2, 2} },
		"descriptor 2 of 4 has no use": func(in *program.Input) { in.Visible = []int{3} },
	} {
		in := program.Input{Spec: userSpec("true"), Binds: map[int]program.Bind{1: {File: 1, Dir: true}}}
		change(&in)
		_, err := program.Compile(in)
		if err == nil || !strings.HasPrefix(err.Error(), name) || !errors.Is(err, program.ErrInvalid) && !errors.Is(err, program.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCheckFindsBrokenHops takes each condition of a second clone away.
func TestCheckFindsBrokenHops(t *testing.T) {
	s := userSpec("true")
	setPath(s, specs.UserNamespace, "/x")
	good, err := program.Compile(program.Input{Spec: s, Binds: map[int]program.Bind{1: {File: 1, Dir: true}}, Join: map[specs.LinuxNamespaceType]int{specs.UserNamespace: 2}})
	if err != nil {
		t.Fatal(err)
	}
	i := 0
	for ; good.Steps[i].Nr != unix.SYS_CLONE3; i++ {
	}
	args := func(p *step.Program) []byte { return p.Data[p.Steps[i].Args[0].Val:][:64] }
	breaks(t, "a second clone that", good, map[string]func(*step.Program){
		"shares its memory":       func(p *step.Program) { args(p)[1] |= unix.CLONE_VM >> 8 },
		"makes a child":           func(p *step.Program) { args(p)[1] &^= unix.CLONE_PARENT >> 8 },
		"has no pid":              func(p *step.Program) { args(p)[2] &^= unix.CLONE_PARENT_SETTID >> 16 },
		"writes a pid elsewhere":  func(p *step.Program) { p.Relocs = p.Relocs[:0] },
		"has an exit signal":      func(p *step.Program) { args(p)[32] = 9 },
		"has a stack":             func(p *step.Program) { args(p)[40] = 9 },
		"has longer arguments":    func(p *step.Program) { p.Steps[i].Args[1].Val = 88 },
		"may fail":                func(p *step.Program) { p.Steps[i].OnErr = []step.Branch{{Errno: 1}} },
		"lets both go on":         func(p *step.Program) { p.Steps[i+1].OnErr[0].Skip = 2 },
		"lets nobody go on":       func(p *step.Program) { p.Steps[i+1].Then = 0 },
		"is not told from itself": func(p *step.Program) { p.Steps[i+1].Args[0] = step.Arg{} },
		"is not reported":         func(p *step.Program) { p.Steps[i+2].Nr = step.OpSet },
		"is reported as a step":   func(p *step.Program) { clear(p.Data[p.Steps[i+2].Args[1].Val:][:8]) },
		"leaves its maker":        func(p *step.Program) { p.Steps[i+3].Nr = step.OpSet },
		"comes again":             func(p *step.Program) { p.Steps[i+4] = p.Steps[i] },
		"comes late":              func(p *step.Program) { p.Steps[0].Nr = unix.SYS_SETSID },
		"comes after a clone":     func(p *step.Program) { p.Clone = unix.CLONE_NEWNS },
		"ends later":              func(p *step.Program) { p.Steps[i+5].Nr = unix.SYS_EXIT_GROUP },
		"joins a mount namespace": func(p *step.Program) { p.Steps[i-1].Args[1].Val = unix.CLONE_NEWNS },
		"joins anything":          func(p *step.Program) { p.Steps[i-1].Args[1].Val = 0 },
		"can be traced":           func(p *step.Program) { p.Steps[0].Args[1].Val = 1 },
		"keeps groups": func(p *step.Program) {
			for j := range p.Steps {
				if s := &p.Steps[j]; s.Nr == unix.SYS_SETGROUPS {
					s.Args[0].Val = 3
					s.OnErr = []step.Branch{{Errno: uint16(unix.EPERM)}}
				}
			}
		},
		"unshares mounts": func(p *step.Program) {
			for j := range p.Steps {
				if s := &p.Steps[j]; s.Nr == unix.SYS_UNSHARE {
					s.Args[0].Val = unix.CLONE_NEWNS
				}
			}
		},
	})
}

// TestVisibleIsNotShared: the copies of the host's /proc and /sys that a user namespace is shown for a moment are shared
// with the host's on a machine whose root is (under systemd it is). What is attached on top of them would cover the host's.
func TestVisibleIsNotShared(t *testing.T) {
	st := userStage(t, mappedRoot(t), userSpec("true"))
	good, err := program.Compile(st.in)
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for i := range good.Steps {
		if good.Steps[i].Name != "keep what comes on top to ourselves" {
			continue
		}
		found++
		was := good.Steps[i]
		good.Steps[i] = step.Step{Nr: unix.SYS_UMASK, Result: step.NoResult}
		if err := program.Check(good); !errors.Is(err, program.ErrRule) {
			t.Errorf("without it: %v", err)
		}
		good.Steps[i] = was
	}
	if found != 2 {
		t.Errorf("%d steps keep mounts to ourselves", found)
	}
}
