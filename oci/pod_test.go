package oci

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/monitor"
	"github.com/vitrine-runtime/vitrine/oci/notify/notifytest"
)

// The test binary is also the monitor: StartPod copies it into a memfd.
func TestMain(m *testing.M) {
	notifytest.Main()
	if len(os.Args) == 2 && os.Args[1] == "monitor" {
		os.Exit(monitor.Main())
	}
	if len(os.Args) > 1 && (os.Args[0] == "hostile" || os.Args[1] == "/bin/evil") {
		hostileMain(os.Args[1:])
		os.Exit(0)
	}
	os.Exit(m.Run())
}

var nofile = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 1024}}

const busybox = "/usr/bin/busybox"

// node is what a test needs to run pods: a runtime, a directory for pods, a
// root filesystem, and a subtree of the cgroup hierarchy that is attached
// nowhere.
type node struct {
	t      testing.TB
	rt     *Runtime
	dir    string
	rootfs string
	cgroup *sys.FD
}

var runs atomic.Int64

func newNode(t testing.TB) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes namespaces and mounts")
	}
	if _, err := os.Stat(busybox); err != nil {
		t.Skip("needs Debian's busybox-static: " + err.Error())
	}
	n := &node{t: t, dir: t.TempDir(), rootfs: t.TempDir(), cgroup: testCgroup(t)}
	monitors := n.leaf("monitors")
	t.Cleanup(func() { monitors.Close() })
	// make bench sets this to the binary that is shipped.
	binary := os.Getenv("VITRINE_OCI")
	if binary == "" {
		binary = "/proc/self/exe"
	}
	rt, err := NewRuntime(binary, monitors.Int())
	if err != nil {
		t.Fatal(err)
	}
	n.rt = rt
	t.Cleanup(func() { rt.Monitor.Close() })
	for _, d := range []string{"bin", "proc", "dev", "tmp", "sys"} {
		if err := os.Mkdir(filepath.Join(n.rootfs, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.rootfs, "bin/busybox"), b, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, l := range []string{"sh", "sleep", "true", "cat", "echo", "kill", "ps", "id", "hostname", "test", "seq"} {
		if err := os.Symlink("busybox", filepath.Join(n.rootfs, "bin", l)); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// testCgroup makes a subtree of the machine's cgroup2 hierarchy that belongs to
// this test. The mount is detached: nothing of the host's tree changes.
func testCgroup(t testing.TB) *sys.FD {
	t.Helper()
	fs, err := sys.FSOpen("cgroup2")
	if err != nil {
		t.Fatal(err)
	}
	defer fs.Close()
	if err := sys.FSConfigFlag(fs, "nsdelegate"); err != nil { // it is the hierarchy's, and others need it
		t.Fatal(err)
	}
	if err := sys.FSConfigCreate(fs); err != nil {
		t.Fatal(err)
	}
	top, err := sys.FSMount(fs, 0)
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("vitrine-test-oci-%d-%d", os.Getpid(), runs.Add(1))
	if err := unix.Mkdirat(top.Int(), name, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := sys.OpenAt2(top.Int(), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		writeAt(f, "cgroup.kill", "1")
		eventually(t, "the test's cgroups are empty", func() bool { return removeTree(f) })
		if err := unix.Unlinkat(top.Int(), name, unix.AT_REMOVEDIR); err != nil {
			t.Errorf("remove cgroup %s: %v", name, err)
		}
		f.Close()
		top.Close()
	})
	return f
}

func removeTree(dir *sys.FD) bool {
	d, err := os.ReadDir("/proc/self/fd/" + strconv.Itoa(dir.Int()))
	if err != nil {
		return false
	}
	ok := true
	for _, e := range d {
		if !e.IsDir() {
			continue
		}
		sub, err := sys.OpenAt2(dir.Int(), e.Name(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return false
		}
		ok = removeTree(sub) && unix.Unlinkat(dir.Int(), e.Name(), unix.AT_REMOVEDIR) == nil && ok
		sub.Close()
	}
	return ok
}

func writeAt(dir *sys.FD, name, value string) error {
	return os.WriteFile("/proc/self/fd/"+strconv.Itoa(dir.Int())+"/"+name, []byte(value), 0)
}

func readAt(dir *sys.FD, name string) string {
	b, _ := os.ReadFile("/proc/self/fd/" + strconv.Itoa(dir.Int()) + "/" + name)
	return string(b)
}

// leaf makes a cgroup below the test's.
func (n *node) leaf(name string) *sys.FD {
	n.t.Helper()
	if err := unix.Mkdirat(n.cgroup.Int(), name, 0o755); err != nil && err != unix.EEXIST {
		n.t.Fatal(err)
	}
	f, err := sys.OpenAt2(n.cgroup.Int(), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		n.t.Fatal(err)
	}
	return f
}

// patience is how long something may take before it counts as never: an emulated guest on a busy machine is slow.
const patience = time.Minute

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Errorf("after %v still not: %s", patience, what)
}

// pod starts a pod that is killed at the test's end, if it still lives then.
func (n *node) pod(change func(*PodConfig)) *Pod {
	n.t.Helper()
	c := n.podConfig(change)
	p, err := n.rt.StartPod(n.t.Context(), c)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { n.end(p) })
	return p
}

func (n *node) podConfig(change func(*PodConfig)) PodConfig {
	n.t.Helper()
	c := PodConfig{ID: "pod" + strconv.FormatInt(runs.Add(1), 10), Hostname: "glass", PauseCgroup: -1}
	c.Dir = filepath.Join(n.dir, c.ID)
	if err := os.Mkdir(c.Dir, 0o700); err != nil {
		n.t.Fatal(err)
	}
	if change != nil {
		change(&c)
	}
	return c
}

func (n *node) end(p *Pod) {
	if b, err := os.ReadFile(filepath.Join(n.dir, p.ID(), logName)); err != nil || len(b) > 0 {
		n.t.Errorf("last words of the monitor: %s, %v", b, err)
	}
	writeAt(n.cgroup, "cgroup.kill", "1") // everybody, the monitor included
	p.Close()
}

// spec returns what a container needs that runs argv in the rootfs.
func (n *node) spec(argv ...string) *specs.Spec {
	return &specs.Spec{
		Version:  "1.3.0",
		Process:  &specs.Process{Args: argv, Cwd: "/", Env: []string{"PATH=/bin", "SECRET=xyzzy"}, NoNewPrivileges: true, Capabilities: &specs.LinuxCapabilities{}, Rlimits: nofile},
		Root:     &specs.Root{Path: "rootfs"},
		Hostname: "glass",
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755"}},
		},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.CgroupNamespace},
			{Type: specs.NetworkNamespace, Path: "/run/netns/x"}, {Type: specs.IPCNamespace, Path: "/run/ipcns/x"}, {Type: specs.UTSNamespace, Path: "/run/utsns/x"},
		}},
	}
}

// config returns the config of a container of that id, which logs into its own
// directory.
func (n *node) config(p *Pod, id string, argv ...string) ContainerConfig {
	n.t.Helper()
	c := ContainerConfig{ID: id, Spec: n.spec(argv...), Dir: filepath.Join(n.dir, p.ID(), id), Cgroup: n.leaf(id)}
	if err := os.Mkdir(c.Dir, 0o700); err != nil {
		n.t.Fatal(err)
	}
	c.LogPath = filepath.Join(c.Dir, "0.log")
	if p.PausePid() != 0 {
		withoutPID(c.Spec) // it is in the pod's
	}
	tree, err := sys.OpenTree(unix.AT_FDCWD, n.rootfs, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		n.t.Fatal(err)
	}
	c.Rootfs = tree
	return c
}

func (n *node) create(p *Pod, id string, argv ...string) *Process {
	n.t.Helper()
	pr, err := p.Create(n.t.Context(), n.config(p, id, argv...))
	if err != nil {
		n.t.Fatal(err)
	}
	return pr
}

func (n *node) run(p *Pod, id string, argv ...string) *Process {
	n.t.Helper()
	pr := n.create(p, id, argv...)
	if err := pr.Start(n.t.Context()); err != nil {
		n.t.Fatal(err)
	}
	return pr
}

// exited waits for the event of a container's death.
func exited(t testing.TB, p *Pod, id string) ExitStatus {
	t.Helper()
	for {
		select {
		case e, ok := <-p.Events():
			if !ok || e.Kind != Exited {
				t.Fatalf("waiting for %s: event %+v, open %v", id, e, ok)
			}
			if e.ID == id {
				return e.Status
			}
		case <-time.After(patience):
			t.Fatalf("no exit of %s", id)
		}
	}
}

// log returns what a container has written, without stamps.
func (n *node) log(p *Pod, id string) string {
	n.t.Helper()
	b, err := os.ReadFile(filepath.Join(n.dir, p.ID(), id, "0.log"))
	if err != nil {
		n.t.Fatal(err)
	}
	var out strings.Builder
	for line := range bytes.Lines(b) {
		if f := bytes.SplitN(line, []byte(" "), 4); len(f) == 4 {
			out.Write(f[3])
		}
	}
	return out.String()
}

// exec runs argv in the container and returns its output and status.
func run(t *testing.T, pr *Process, argv ...string) (string, ExitStatus) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	e, err := pr.Exec(t.Context(), ExecConfig{
		Process: &specs.Process{Args: argv, Cwd: "/", Env: []string{"PATH=/bin"}, NoNewPrivileges: true, Capabilities: &specs.LinuxCapabilities{}, Rlimits: nofile},
		Stdout:  w, Stderr: w,
	})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if _, err := out.ReadFrom(r); err != nil {
		t.Fatal(err)
	}
	s, err := e.Wait(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return out.String(), s
}

func TestPodRuns(t *testing.T) {
	n := newNode(t)
	before := fdsOf(t, os.Getpid())
	p := n.pod(nil)
	pr := n.create(p, "c", "sh", "-c", "echo out; echo err >&2; hostname; exec sleep 1000")
	if b, err := os.ReadFile(filepath.Join(n.dir, p.ID(), "c", "0.log")); err != nil || len(b) != 0 {
		t.Errorf("log before the start: %q, %v", b, err)
	}
	if l, err := p.List(t.Context()); err != nil || len(l) != 1 || l[0].Phase != Created || l[0].Pid != pr.Pid() || !l[0].StartedAt.IsZero() {
		t.Errorf("list %+v, %v", l, err)
	}
	if err := pr.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "log has three lines", func() bool { return strings.Count(n.log(p, "c"), "\n") == 3 })
	if got := n.log(p, "c"); !strings.Contains(got, "out\n") || !strings.Contains(got, "err\n") || !strings.Contains(got, "glass\n") {
		t.Errorf("log %q", got)
	}
	if out, s := run(t, pr, "sh", "-c", "cat /proc/1/environ; exit 3"); s.Code != 3 || !strings.Contains(out, "SECRET=xyzzy") {
		t.Errorf("exec: %q, %+v", out, s)
	}
	if err := pr.Start(t.Context()); !errors.Is(err, ErrState) {
		t.Errorf("second start: %v", err)
	}
	if err := p.Stop(t.Context()); !errors.Is(err, ErrState) {
		t.Errorf("stop with a running container: %v", err)
	}
	if err := pr.Signal(t.Context(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s := exited(t, p, "c")
	if s.Signal != unix.SIGKILL || s.ExitCode() != 137 || s.OOMKilled {
		t.Errorf("status %+v", s)
	}
	r, err := ReadExit(filepath.Join(n.dir, p.ID(), "c"))
	if err != nil || r.Status() != s || r.ID != "c" || r.Pid != pr.Pid() || r.StartedAt < r.CreatedAt || r.FinishedAt < r.StartedAt || r.CreatedAt == 0 {
		t.Errorf("exit record %+v, %v", r, err)
	}
	if err := pr.Signal(t.Context(), unix.SIGTERM); !errors.Is(err, ErrState) {
		t.Errorf("signal to the dead: %v", err)
	}
	if err := pr.Remove(t.Context()); err != nil {
		t.Error(err)
	}
	if err := pr.Remove(t.Context()); !errors.Is(err, ErrNotFound) {
		t.Errorf("second remove: %v", err)
	}
	dir := filepath.Join(n.dir, p.ID())
	if err := p.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if e, ok := <-p.Events(); ok && e.Kind != Disconnected {
		t.Errorf("after stop: %+v", e)
	}
	if _, err := DialPod(t.Context(), dir); !errors.Is(err, ErrNoMonitor) {
		t.Errorf("dial after stop: %v", err)
	}
	eventually(t, "this side's descriptors are what they were", func() bool { return len(fdsOf(t, os.Getpid())) <= len(before) })
	if t.Failed() {
		t.Logf("before %v\nafter %v", before, fdsOf(t, os.Getpid()))
	}
}

// The daemon goes and comes back: another connection finds the same process, the
// log whole, and the true exit code of what ended meanwhile.
func TestDaemonComesBack(t *testing.T) {
	n := newNode(t)
	p := n.pod(nil)
	pr := n.run(p, "chatty", "sh", "-c", "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; exec sleep 1000")
	n.run(p, "short", "sh", "-c", "sleep 0.2; exit 42")
	dir := filepath.Join(n.dir, p.ID())
	p.Close()
	if _, err := p.List(t.Context()); !errors.Is(err, ErrNoMonitor) {
		t.Errorf("list on a closed handle: %v", err)
	}
	eventually(t, "exit record of short", func() bool { _, err := ReadExit(filepath.Join(dir, "short")); return err == nil })
	again, err := DialPod(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	l, err := again.List(t.Context())
	if err != nil || len(l) != 2 {
		t.Fatalf("list %+v, %v", l, err)
	}
	if l[0].ID != "chatty" || l[0].Phase != Running || l[0].Pid != pr.Pid() || again.Process("chatty").Pid() != pr.Pid() {
		t.Errorf("chatty: %+v", l[0])
	}
	if l[1].ID != "short" || l[1].Phase != Dead || l[1].Exit.ExitCode() != 42 {
		t.Errorf("short: %+v", l[1])
	}
	eventually(t, "the log is whole", func() bool { return strings.HasSuffix(n.log(p, "chatty"), "line 19999\n") })
	var want strings.Builder
	for i := range 20000 {
		fmt.Fprintf(&want, "line %d\n", i)
	}
	if n.log(p, "chatty") != want.String() {
		t.Error("the log has gaps")
	}
	if out, s := run(t, again.Process("chatty"), "echo", "hello"); out != "hello\n" || s.Code != 0 {
		t.Errorf("exec %q, %+v", out, s)
	}
	if err := again.Process("chatty").Signal(t.Context(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if s := exited(t, again, "chatty"); s.Signal != unix.SIGKILL {
		t.Errorf("status %+v", s)
	}
}
