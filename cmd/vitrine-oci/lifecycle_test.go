package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go/features"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/oci/bundle"
)

// These tests use the binary as others do: in a mount namespace with a cgroup2 of its
// own on /sys/fs/cgroup, and as the one who reaps what it leaves.

const reaperEnv = "VITRINE_OCI_TEST"

func TestMain(m *testing.M) {
	if os.Getenv(reaperEnv) == "oci" {
		main()
	}
	os.Exit(m.Run())
}

// node is a place where containers are made.
type node struct {
	t     *testing.T
	state string
	opens string // for the shell: what it opens before it executes the binary
	self  string // the binary; "" for this one, which is that, too
	tag   string // unique, in every id: ids are names of cgroups

	with func(cmd *exec.Cmd) // changes the command, if not nil
}

// newNode skips where it cannot be had. Containers that a test leaves are deleted, and
// count as a failure.
func newNode(t *testing.T) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes namespaces and mounts")
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, state: filepath.Join(t.TempDir(), "state"), tag: fmt.Sprintf("test-%d-%d", os.Getpid(), time.Now().UnixNano()%1e6)}
	t.Cleanup(func() {
		for _, id := range strings.Fields(n.must("list", "-q")) {
			t.Errorf("container %s is left", id)
			n.oci("delete", "--force", id)
		}
		if left, _ := os.ReadDir(n.state); len(left) > 0 {
			t.Errorf("left in the state directory: %v", left)
		}
		n.reap()
	})
	return n
}

// reap collects the processes whose parents have ended: a pid namespace does not end
// before that.
func (n *node) reap() {
	for {
		if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); pid <= 0 || err != nil {
			return
		}
	}
}

// result is what a use of the binary came to.
type result struct {
	code      int
	out, errs string
}

// oci runs the binary.
func (n *node) oci(args ...string) result {
	n.t.Helper()
	return n.ociIn("", args...)
}

// ociIn runs the binary with a text on stdin. Output goes to files: what a container
// leaves behind may hold pipes open.
func (n *node) ociIn(in string, args ...string) (r result) {
	n.t.Helper()
	dir := n.t.TempDir()
	out, errs := filepath.Join(dir, "out"), filepath.Join(dir, "err")
	script := `mount --make-rprivate / && { umount -R /sys/fs/cgroup || :; } 2>/dev/null && mount -t cgroup2 -o nsdelegate none /sys/fs/cgroup && ` + n.opens + `exec "$0" "$@"`
	self, err := n.self, error(nil)
	if self == "" {
		self, err = os.Executable()
	}
	if err != nil {
		n.t.Fatal(err)
	}
	cmd := exec.Command("unshare", append([]string{"-m", "sh", "-c", script, self, "--root", n.state}, args...)...)
	cmd.Env = append(os.Environ(), reaperEnv+"=oci")
	cmd.Stdin = strings.NewReader(in)
	if in == "" {
		cmd.Stdin = nil
	}
	fo, err1 := os.Create(out)
	fe, err2 := os.Create(errs)
	if err := errors.Join(err1, err2); err != nil {
		n.t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = fo, fe
	if n.with != nil {
		n.with(cmd)
	}
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		n.t.Fatal(err)
	}
	fo.Close()
	fe.Close()
	o, _ := os.ReadFile(out)
	e, _ := os.ReadFile(errs)
	return result{cmd.ProcessState.ExitCode(), string(o), string(e)}
}

// must is oci for what has to work.
func (n *node) must(args ...string) string {
	n.t.Helper()
	r := n.oci(args...)
	if r.code != 0 {
		n.t.Fatalf("%q: code %d: %s%s", args, r.code, r.out, r.errs)
	}
	return r.out
}

// fails is oci for what has to fail, with that in its error.
func (n *node) fails(want string, args ...string) {
	n.t.Helper()
	if r := n.oci(args...); r.code == 0 || !strings.Contains(r.errs, want) {
		n.t.Errorf("%q: code %d, %q, want %q in it", args, r.code, r.errs, want)
	}
}

// state returns a container's.
func (n *node) stateOf(id string) (s bundle.State) {
	n.t.Helper()
	if err := json.Unmarshal([]byte(n.must("state", id)), &s); err != nil {
		n.t.Fatal(err)
	}
	return s
}

// await waits for a status.
func (n *node) await(id, status string) {
	n.t.Helper()
	for range 200 {
		n.reap()
		if s := n.stateOf(id); string(s.Status) == status {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	n.t.Fatalf("%s does not become %s", id, status)
}

// bundle makes a bundle whose process is a shell with that script.
func (n *node) bundle(script string, change func(spec map[string]any)) string {
	n.t.Helper()
	dir := bundleOf(n.t, "")
	for _, a := range []string{"ls", "id", "true", "hostname", "env", "kill", "touch", "ps", "echo", "grep"} {
		_ = os.Symlink("busybox", dir+"/rootfs/bin/"+a) // some are there
	}
	for _, d := range []string{"proc", "dev", "sys", "tmp"} {
		_ = os.Mkdir(dir+"/rootfs/"+d, 0o755)
	}
	os.Remove(dir + "/config.json")
	n.must("spec", "--bundle", dir)
	text, err := os.ReadFile(dir + "/config.json")
	if err != nil {
		n.t.Fatal(err)
	}
	spec := map[string]any{}
	if err := json.Unmarshal(text, &spec); err != nil {
		n.t.Fatal(err)
	}
	p := spec["process"].(map[string]any)
	p["terminal"], p["args"] = false, []string{"sh", "-c", script}
	spec["root"].(map[string]any)["readonly"] = false
	spec["annotations"] = map[string]string{"color": "blue"}
	if change != nil {
		change(spec)
	}
	if text, err = json.Marshal(spec); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/config.json", text, 0o600); err != nil {
		n.t.Fatal(err)
	}
	return dir
}

func TestLifecycle(t *testing.T) {
	n := newNode(t)
	b, id, pidFile := n.bundle("echo started; exec sleep 1000", nil), n.tag, filepath.Join(t.TempDir(), "pid")
	n.must("create", "--bundle", b, "--pid-file", pidFile, id)
	s := n.stateOf(id)
	pid, _ := os.ReadFile(pidFile)
	if s.Status != "created" || s.Version != "1.3.0" || s.ID != id || s.Bundle != b || s.Rootfs != b+"/rootfs" || s.Annotations["color"] != "blue" || strconv.Itoa(s.Pid) != string(pid) {
		t.Errorf("state %+v, pid file %s", s, pid)
	}
	n.fails("already exists", "create", "--bundle", b, id)
	n.fails("it is created", "resume", id)
	if comm, _ := os.ReadFile("/proc/" + string(pid) + "/comm"); strings.HasPrefix(string(comm), "sh") {
		t.Error("the program runs before the start")
	}
	// What is changed in the bundle now concerns nobody.
	if err := os.Remove(b + "/config.json"); err != nil {
		t.Fatal(err)
	}
	n.must("start", id)
	n.fails("it is running", "start", id)
	n.fails("not stopped", "delete", id)
	if out := n.must("ps", "--format", "json", id); strings.TrimSpace(out) != "["+string(pid)+"]" {
		t.Errorf("ps: %s", out)
	}
	if out := n.must("ps", id); !strings.Contains(out, "sleep 1000") || !strings.HasPrefix(out, "UID") {
		t.Errorf("ps: %s", out)
	}
	n.must("pause", id)
	if s := n.stateOf(id); s.Status != "paused" {
		t.Errorf("paused: %s", s.Status)
	}
	n.fails("it is paused", "exec", id, "true")
	n.must("resume", id)
	var list []bundle.State
	if err := json.Unmarshal([]byte(n.must("list", "--format", "json")), &list); err != nil || len(list) != 1 || list[0].Status != "running" {
		t.Errorf("list: %+v, %v", list, err)
	}
	if out := n.must("events", "--stats", id); !strings.HasPrefix(out, `{"type":"stats","id":"`+id) {
		t.Errorf("events: %s", out)
	}
	if out := n.must("explain", id); !strings.Contains(out, "pivot_root") {
		t.Errorf("explain: %s", out)
	}
	n.must("kill", id, "KILL")
	n.await(id, "stopped")
	n.fails("container not running", "kill", id)
	n.fails("not running", "start", id)
	n.fails("not running", "exec", id, "true")
	n.must("delete", id)
	n.fails("does not exist", "state", id)
	n.fails("does not exist", "delete", id)
	n.must("delete", "--force", id)
}

func TestExitCodes(t *testing.T) {
	n := newNode(t)
	for _, c := range []struct {
		script string
		code   int
	}{{"exit 0", 0}, {"exit 7", 7}, {"trap 'exit 4' TERM; kill $$; exit 5", 4}} {
		if r := n.oci("run", "--bundle", n.bundle(c.script, nil), n.tag); r.code != c.code {
			t.Errorf("%s: code %d, want %d: %s", c.script, r.code, c.code, r.errs)
		}
	}
	n.must("run", "--detach", "--bundle", n.bundle("exec sleep 1000", nil), n.tag)
	for _, c := range []struct {
		args []string
		code int
		out  string
	}{
		{[]string{"sh", "-c", "echo out; exit 9"}, 9, "out\n"}, {[]string{"sh", "-c", "kill -9 $$"}, 137, ""}, {[]string{"nothing"}, 255, ""},
	} {
		if r := n.oci(append([]string{"exec", n.tag}, c.args...)...); r.code != c.code || r.out != c.out {
			t.Errorf("exec %q: code %d, out %q, %s", c.args, r.code, r.out, r.errs)
		}
	}
	r := n.oci("exec", "--user", "5:6", "--additional-gids", "7", "--env", "X=y", "--cwd", "/tmp", n.tag, "sh", "-c", "id; pwd; echo $X")
	if r.code != 0 || !strings.Contains(r.out, "uid=5 gid=6 groups=6,7") && !strings.Contains(r.out, "groups=7") || !strings.HasSuffix(r.out, "/tmp\ny\n") {
		t.Errorf("exec: %+v", r)
	}
	process := filepath.Join(t.TempDir(), "process.json")
	if err := os.WriteFile(process, []byte(`{"args":["sh","-c","echo $A"],"env":["PATH=/bin","A=b"],"cwd":"/","user":{"uid":0,"gid":0}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := n.oci("exec", "--process", process, n.tag); r.code != 0 || r.out != "b\n" {
		t.Errorf("exec --process: %+v", r)
	}
	pidFile := filepath.Join(t.TempDir(), "pid")
	n.must("exec", "--detach", "--pid-file", pidFile, n.tag, "sleep", "1000")
	pid, _ := os.ReadFile(pidFile)
	if out := n.must("ps", "--format", "json", n.tag); !strings.Contains(out, ","+string(pid)+"]") {
		t.Errorf("detached exec %s is not in %s", pid, out)
	}
	n.must("delete", "--force", n.tag)
}

// Whatever goes wrong, nothing is left: the cleanup of the node looks.
func TestFailuresLeaveNothing(t *testing.T) {
	n := newNode(t)
	good := n.bundle("true", nil)
	bad := func(change func(map[string]any)) string { return n.bundle("true", change) }
	for _, c := range []struct{ want, bundle, id string }{
		{"container id", good, "../x"}, {"container id", good, ""}, {"container id", good, "a b"}, {"container id", good, strings.Repeat("x", 300)},
		{"no such file", "/nonexistent", n.tag},
		{"root.path", bad(func(s map[string]any) { s["root"] = nil }), n.tag},
		{"no such file", bad(func(s map[string]any) { s["root"] = map[string]any{"path": "nothing"} }), n.tag},
		{"process.args", bad(func(s map[string]any) { s["process"].(map[string]any)["args"] = nil }), n.tag},
		{"unknown", bad(func(s map[string]any) {
			s["linux"].(map[string]any)["seccomp"] = map[string]any{"defaultAction": "NONE"}
		}), n.tag},
		{"mounts[7].source", bad(func(s map[string]any) {
			s["mounts"] = append(s["mounts"].([]any), map[string]any{"destination": "/x", "type": "bind", "source": "/nofs", "options": []string{"bind"}})
		}), n.tag},
		{"pids.max", bad(func(s map[string]any) {
			s["linux"].(map[string]any)["resources"] = map[string]any{"pids": map[string]any{"limit": 5}}
		}), n.tag},
		{"timeout", bad(func(s map[string]any) {
			s["hooks"] = map[string]any{"poststop": []any{map[string]any{"path": "/x", "timeout": 0}}}
		}), n.tag},
	} {
		r := n.oci("create", "--bundle", c.bundle, c.id)
		if r.code == 0 && c.want == "pids.max" { // this machine has the controller
			n.must("delete", "--force", c.id)
			continue
		}
		if r.code != 1 || r.errs == "" {
			t.Errorf("%s: code %d, %q", c.want, r.code, r.errs)
		} else if !strings.Contains(r.errs, c.want) {
			t.Errorf("%q, want %q in it", r.errs, c.want)
		}
	}
	// A start that fails leaves a container that is stopped.
	b := bad(func(s map[string]any) { s["process"].(map[string]any)["args"] = []string{"/nothing"} })
	n.must("create", "--bundle", b, n.tag)
	n.fails("execute /nothing: no such file", "start", n.tag)
	n.await(n.tag, "stopped")
	n.must("delete", n.tag)
	if r := n.oci("run", "--bundle", b, n.tag); r.code != 1 || !strings.Contains(r.errs, "no such file") {
		t.Errorf("run: %+v", r)
	}
}

// A file that somebody has put where the pid file is made is not written through, and a
// directory of states that others may write to is not used.
func TestOtherPeoplesDirectories(t *testing.T) {
	n := newNode(t)
	dir := t.TempDir()
	canary := filepath.Join(dir, "canary")
	if err := errors.Join(os.WriteFile(canary, []byte("content"), 0o644), os.Symlink(canary, filepath.Join(dir, ".pid.new"))); err != nil {
		t.Fatal(err)
	}
	b := n.bundle("true", nil)
	n.must("create", "--bundle", b, "--pid-file", filepath.Join(dir, "pid"), n.tag)
	if text, _ := os.ReadFile(canary); string(text) != "content" {
		t.Errorf("the pid went to another file: %s", text)
	}
	if pid, err := os.ReadFile(filepath.Join(dir, "pid")); err != nil || string(pid) != strconv.Itoa(n.stateOf(n.tag).Pid) {
		t.Errorf("pid file: %s, %v", pid, err)
	}
	n.must("delete", "--force", n.tag)
	for _, mode := range []os.FileMode{0o777, 0o777 | os.ModeSticky, 0o770} {
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		n.fails("others may write there", "--root", dir, "create", "--bundle", b, n.tag)
	}
}

// A container's cgroup that is gone, and another's that is there by its name: the
// other one stays.
func TestOthersCgroupIsLeft(t *testing.T) {
	n := newNode(t)
	b := n.bundle("exec sleep 1000", func(s map[string]any) { s["linux"].(map[string]any)["cgroupsPath"] = "/" + n.tag })
	first, second := n.tag+"-1", n.tag+"-2"
	n.must("run", "--detach", "--bundle", b, first)
	n.must("kill", first, "KILL")
	n.await(first, "stopped")
	n.opens = "rmdir /sys/fs/cgroup/" + n.tag + " && "
	r := n.oci("run", "--detach", "--bundle", b, second)
	n.opens = ""
	if r.code != 0 {
		t.Fatalf("%+v", r)
	}
	n.must("kill", "--all", first, "KILL")
	n.must("delete", first)
	if s := n.stateOf(second); s.Status != "running" {
		t.Errorf("the other container is %s", s.Status)
	}
	n.must("delete", "--force", second)
}

// A signal for all reaches execs, and not only the first process, which ignores this one.
func TestKillAll(t *testing.T) {
	n := newNode(t)
	n.must("run", "--detach", "--bundle", n.bundle("exec sleep 1000", nil), n.tag)
	n.must("exec", "--detach", n.tag, "sleep", "1000")
	count := func() int { n.reap(); return strings.Count(n.must("ps", "--format", "json", n.tag), ",") + 1 }
	if c := count(); c != 2 {
		t.Fatalf("%d processes", c)
	}
	n.must("kill", "--all", n.tag, "TERM")
	for try := 0; count() != 1; try++ {
		if try == 200 {
			t.Fatal("the exec does not end")
		}
		time.Sleep(20 * time.Millisecond)
	}
	n.must("delete", "--force", n.tag)
}

func TestLogs(t *testing.T) {
	n := newNode(t)
	log := filepath.Join(t.TempDir(), "log")
	n.fails("does not exist", "--log", log, "--log-format", "json", "state", "x")
	var line struct{ Level, Msg, Time string }
	text, _ := os.ReadFile(log)
	if err := json.Unmarshal(text, &line); err != nil || line.Level != "error" || !strings.Contains(line.Msg, "does not exist") {
		t.Errorf("%v: %s", err, text)
	}
	os.Remove(log)
	n.fails("does not exist", "--log", log, "state", "x")
	if text, _ = os.ReadFile(log); !bytes.Contains(text, []byte(`level=error msg="container x: container does not exist"`)) {
		t.Errorf("%s", text)
	}
	n.fails("text or json", "--log-format", "xml", "list")
}

func TestFeatures(t *testing.T) {
	code, out, errs := cli("features")
	var f features.Features
	if err := json.Unmarshal([]byte(out), &f); code != 0 || err != nil {
		t.Fatal(code, errs, err)
	}
	if f.OCIVersionMax != "1.3.0" || len(f.Hooks) != 6 || len(f.Linux.Namespaces) != 8 || !*f.Linux.Cgroup.Systemd || *f.Linux.Cgroup.V1 || len(f.Linux.Seccomp.Operators) != 7 {
		t.Errorf("%s", out)
	}
}

// What a container may get hold of as /proc/self/exe cannot be written (R4).
func TestBinaryIsReadOnly(t *testing.T) {
	n := newNode(t)
	b := n.bundle("", func(s map[string]any) {
		s["process"].(map[string]any)["args"] = []string{"/proc/self/exe", "-test.list", "TestBinary"}
	})
	n.must("create", "--bundle", b, n.tag)
	exe := fmt.Sprintf("/proc/%d/exe", n.stateOf(n.tag).Pid)
	var st unix.Statfs_t
	if err := unix.Statfs(exe, &st); err != nil || st.Flags&unix.ST_RDONLY == 0 {
		t.Errorf("flags %#x, %v", st.Flags, err)
	}
	if f, err := os.OpenFile(exe, os.O_WRONLY, 0); err == nil {
		f.Close()
		t.Error("the binary behind a blocked container can be written")
	} else if !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.ETXTBSY) { // while it is executed
		t.Errorf("open %s: %v, want a read-only file system", exe, err)
	}
	n.must("delete", "--force", n.tag)
	if r := n.oci("run", "--bundle", b, n.tag); r.code != 0 || !strings.Contains(r.out, "TestBinaryIsReadOnly") {
		t.Errorf("/proc/self/exe in a container: %+v", r)
	}
}

// Descriptors from 3 on come through create, start and exec, and none but those. A
// failure behind them is still reported, and not to them.
func TestPreserveFDs(t *testing.T) {
	n := newNode(t)
	dir := t.TempDir()
	script := "for i in 3 4 5 6; do if [ -e /proc/self/fd/$i ]; then echo from $i >&$i; fi; done 2>/dev/null; ls /proc/self/fd"
	b := n.bundle("("+script+") > /tmp/said; exec sleep 1000", nil)
	// The shell of the node opens them; 7 is not asked for.
	with := func(args ...string) result {
		for _, f := range []string{"a", "b", "c", "d"} {
			os.Remove(filepath.Join(dir, f))
		}
		n.opens = fmt.Sprintf("exec 3>%s/a 4>%s/b 5>%s/c 7>%s/d && ", dir, dir, dir, dir)
		defer func() { n.opens = "" }()
		return n.oci(args...)
	}
	want := func(when string) {
		t.Helper()
		for i, f := range []string{"a", "b", "c"} {
			if text, _ := os.ReadFile(filepath.Join(dir, f)); string(text) != fmt.Sprintf("from %d\n", 3+i) {
				t.Errorf("%s: descriptor %d got %q", when, 3+i, text)
			}
		}
		if text, _ := os.ReadFile(filepath.Join(dir, "d")); len(text) > 0 {
			t.Errorf("%s: descriptor 7 got %q", when, text)
		}
	}
	if r := with("create", "--preserve-fds", "3", "--bundle", b, n.tag); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	n.must("start", n.tag)
	for range 100 {
		if text, _ := os.ReadFile(b + "/rootfs/tmp/said"); len(text) > 0 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	want("create and start")
	if r := with("exec", "--preserve-fds", "3", n.tag, "sh", "-c", script); r.code != 0 || strings.Contains(r.out, "\n7\n") {
		t.Errorf("%+v", r)
	}
	want("exec")
	if r := with("exec", n.tag, "sh", "-c", "ls /proc/self/fd"); strings.TrimSpace(r.out) != "0\n1\n2\n3" { // 3 is the directory
		t.Errorf("descriptors without being asked for: %q", r.out)
	}
	if r := with("exec", "--preserve-fds", "3", n.tag, "/nothing"); r.code != 255 || !strings.Contains(r.errs, "execute /nothing: no such file") {
		t.Errorf("failure: %+v", r)
	}
	if text, _ := os.ReadFile(filepath.Join(dir, "a")); len(text) > 0 {
		t.Errorf("the report went to descriptor 3: %q", text)
	}
	n.fails("preserve descriptor", "exec", "--preserve-fds", "900", n.tag, "true")
	n.must("delete", "--force", n.tag)
}

// A filter that was kept does what it did, for create and for exec, and goes with the last container.
func TestFilterIsKept(t *testing.T) {
	n := newNode(t)
	b := n.bundle("mkdir /tmp/x || echo denied > /tmp/said; exec sleep 1000", func(s map[string]any) {
		s["linux"].(map[string]any)["seccomp"] = map[string]any{"defaultAction": "SCMP_ACT_ALLOW",
			"syscalls": []any{map[string]any{"names": []string{"mkdir", "mkdirat"}, "action": "SCMP_ACT_ERRNO", "errnoRet": 62}}}
	})
	for _, id := range []string{n.tag, n.tag + "b"} {
		n.must("run", "-d", "--bundle", b, id)
		for i := 0; ; i++ {
			if text, _ := os.ReadFile(b + "/rootfs/tmp/said"); len(text) > 0 {
				break
			}
			if i == 200 {
				t.Fatal("the container makes directories")
			}
			time.Sleep(20 * time.Millisecond)
		}
		os.Remove(b + "/rootfs/tmp/said")
		if r := n.oci("exec", id, "mkdir", "/tmp/y"); r.code != 1 || !strings.Contains(r.errs, "Timer expired") {
			t.Errorf("%+v", r)
		}
	}
	if kept, _ := os.ReadDir(n.state + "/.filters"); len(kept) != 1 {
		t.Errorf("kept: %v", kept)
	}
	n.must("delete", "--force", n.tag)
	if kept, _ := os.ReadDir(n.state + "/.filters"); len(kept) != 1 {
		t.Errorf("kept for the other: %v", kept)
	}
	n.must("delete", "--force", n.tag+"b")
}
