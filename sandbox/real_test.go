package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/oci"
)

// built is what the real tests need beside the test binary.
type built struct {
	rt     *oci.Runtime
	helper string // path of testdata/inside; the directory goes with the mount namespace's tmpfs
}

// buildAll builds vitrine-oci and the helper once, both static, and keeps them on a tmpfs of our own.
var buildAll = sync.OnceValues(func() (*built, error) {
	dir, err := cgroupOnce()
	if err != nil {
		return nil, err
	}
	dir += "-bin"
	if err := errors.Join(os.Mkdir(dir, 0o755), unix.Mount("t", dir, "tmpfs", 0, "")); err != nil {
		return nil, err
	}
	for out, pkg := range map[string]string{"vitrine-oci": "../cmd/vitrine-oci", "inside": "./testdata/inside"} {
		build := exec.Command("go", "build", "-o", filepath.Join(dir, out), pkg)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build %s: %w: %s", pkg, err, out)
		}
	}
	rt, err := oci.NewRuntime(filepath.Join(dir, "vitrine-oci"), -1)
	return &built{rt, filepath.Join(dir, "inside")}, err
})

func newRealNode(t *testing.T) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts, cgroups and namespaces")
	}
	b, err := buildAll()
	if err != nil {
		t.Fatal(err)
	}
	n := newNode(t, ociMonitors{b.rt})
	n.images.helper = b.helper
	return n
}

// exec runs a helper in a container.
func (n *node) exec(id string, cmd ...string) *runtimeapi.ExecSyncResponse {
	n.t.Helper()
	r, err := n.m.ExecSync(bg, id, append([]string{"/bin/helper-" + cmd[0]}, cmd[1:]...), 10*time.Second)
	if err != nil {
		n.t.Fatal(err)
	}
	return r
}

// must is an exec that has to succeed; it returns its output.
func (n *node) must(id string, cmd ...string) string {
	n.t.Helper()
	r := n.exec(id, cmd...)
	if r.ExitCode != 0 {
		n.t.Fatalf("%q: exit code %d, %s%s", cmd, r.ExitCode, r.Stdout, r.Stderr)
	}
	return string(r.Stdout)
}

// running makes a container that sleeps, and starts it.
func (n *node) running(pod, name string, edit func(*runtimeapi.ContainerConfig)) string {
	n.t.Helper()
	cfg := containerRequest(name, "sleep")
	if edit != nil {
		edit(cfg)
	}
	id := n.create(pod, cfg)
	n.start(id)
	return id
}

// TestRealPod walks the whole way with the real monitor: logs, exec, hostname, files, exit code.
func TestRealPod(t *testing.T) {
	n := newRealNode(t)
	cfg := podRequest("web")
	cfg.LogDirectory = filepath.Join(n.dir, "logs")
	cfg.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"10.96.0.10"}}
	pod := n.run(cfg)
	req := containerRequest("log", "print", "hello", "log")
	req.LogPath = "log/0.log"
	c := n.create(pod, req)
	n.start(c)
	if s := n.wait(c); s.ExitCode != 0 || s.Reason != "Completed" || s.LogPath != filepath.Join(cfg.LogDirectory, "log/0.log") {
		t.Errorf("%v", s)
	}
	eventually(t, "log", func() bool {
		b, _ := os.ReadFile(filepath.Join(cfg.LogDirectory, "log/0.log"))
		return strings.HasSuffix(string(b), " stdout F hello log\n")
	})
	c = n.running(pod, "files", nil)
	for file, want := range map[string]string{
		"/etc/resolv.conf": "nameserver 10.96.0.10\n", "/etc/hostname": "web\n", "/proc/sys/kernel/hostname": "web\n",
		"/proc/1/comm": "helper-sleep\n", "/proc/sys/net/ipv4/ip_unprivileged_port_start": "0\n",
	} {
		if got := n.must(c, "cat", file); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %q", file, got)
		}
	}
	if got := n.must(c, "cat", "/proc/self/cgroup"); !strings.Contains(got, "0::/exec-") {
		t.Errorf("cgroup: %q", got)
	}
	if got := n.must(c, "cat", "/etc/hosts"); !strings.Contains(got, "10.9.0.2\tweb\n") {
		t.Errorf("hosts: %q", got)
	}
	if st, err := os.Stat(fmt.Sprintf("/proc/%d/root/bin", n.pid(c))); err != nil || !st.IsDir() {
		t.Errorf("pid %d: %v", n.pid(c), err)
	}
	if err := n.m.StopContainer(bg, c, 10); err != nil {
		t.Fatal(err)
	}
	if s := n.status(c); s.ExitCode != 7 {
		t.Errorf("stop signal: %v", s)
	}
}

func TestRealStartErrors(t *testing.T) {
	n := newRealNode(t)
	pod := n.run(podRequest("web"))
	for path, code := range map[string]int32{"/bin/nothing": 127, "/bin": 126, "/etc/passwd": 126, "/bin/text": 126} {
		cfg := containerRequest(strings.ReplaceAll(path, "/", "-"), "x")
		cfg.Command = []string{path}
		c := n.create(pod, cfg)
		err := n.m.StartContainer(bg, c)
		if !errors.Is(err, ErrState) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
		eventually(t, "reason", func() bool { return n.wait(c).Reason == "StartError" })
		if s := n.status(c); s.ExitCode != code || s.StartedAt != 0 {
			t.Errorf("%s: %v", path, s)
		}
		if err := n.m.RemoveContainer(bg, c); err != nil {
			t.Error(err)
		}
	}
	if _, err := n.m.CreateContainer(bg, pod, &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "i"}, Image: &runtimeapi.ImageSpec{Image: "missing"}}, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("missing image: %v", err)
	}
}

func TestRealExec(t *testing.T) {
	n := newRealNode(t)
	pod := n.run(podRequest("web"))
	c := n.running(pod, "c", nil)
	if r := n.exec(c, "both"); string(r.Stdout) != "out" || string(r.Stderr) != "err" || r.ExitCode != 0 {
		t.Errorf("%v", r)
	}
	if r := n.exec(c, "exit", "42"); r.ExitCode != 42 {
		t.Errorf("%v", r)
	}
	begin := time.Now()
	if r := n.exec(c, "nothing"); r.ExitCode != 127 || len(r.Stderr) == 0 || time.Since(begin) > time.Second {
		t.Errorf("missing program after %v: %v", time.Since(begin), r)
	}
	if r := n.exec(c, "flood"); len(r.Stdout) != maxOutput || r.ExitCode != 0 {
		t.Errorf("flood: %d bytes, exit code %d", len(r.Stdout), r.ExitCode)
	}
	// The command ends, its child holds the pipes: the answer comes after the drain time, the child lives on.
	begin = time.Now()
	if r := n.exec(c, "spawn"); r.ExitCode != 0 || time.Since(begin) > drainTime+time.Second {
		t.Errorf("spawn after %v: %v", time.Since(begin), r)
	}
	if got := n.procs(c); got != 2 {
		t.Errorf("%d processes, want the container's and the child", got)
	}
	// The command does not end: it and its child are killed.
	begin = time.Now()
	_, err := n.m.ExecSync(bg, c, []string{"/bin/helper-spawn", "stay"}, time.Second)
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) > 3*time.Second {
		t.Errorf("time-out after %v: %v", time.Since(begin), err)
	}
	if got := n.procs(c); got != 2 {
		t.Errorf("%d processes after the time-out", got)
	}
	for _, bad := range [][]string{nil, {""}, {"a\x00"}} {
		if _, err := n.m.ExecSync(bg, c, bad, 0); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if err := n.m.StopContainer(bg, c, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := n.m.ExecSync(bg, c, []string{"/bin/helper-both"}, 0); !errors.Is(err, ErrState) {
		t.Errorf("exec in what has exited: %v", err)
	}
}

// procs counts the processes of a container.
func (n *node) procs(id string) int {
	n.t.Helper()
	pids, err := n.tree.Load(n.m.index.Load().containers[id].record.Cgroup).Procs()
	if err != nil {
		n.t.Fatal(err)
	}
	return len(pids)
}

func TestRealUsers(t *testing.T) {
	n := newRealNode(t)
	pod := n.run(podRequest("web"))
	c := n.running(pod, "app", func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.RunAsUsername = "app"
		c.Linux.SecurityContext.SupplementalGroups = []int64{1234}
		c.Linux.SecurityContext.NoNewPrivs = true
		c.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{}
	})
	if got := n.must(c, "ids"); got != "1000 1000 [1000 1234 50000]\n" {
		t.Errorf("%q", got)
	}
	if got := n.must(c, "env"); !strings.Contains(got, "HOME=/home/app\n") {
		t.Errorf("%q", got)
	}
	status := n.must(c, "cat", "/proc/self/status")
	for _, want := range []string{"NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000000000"} {
		if !strings.Contains(status, want) {
			t.Errorf("%s is missing in %s", want, status)
		}
	}
	if u := n.status(c).User.Linux; u.Uid != 1000 || u.Gid != 1000 || fmt.Sprint(u.SupplementalGroups) != "[1000 1234 50000]" {
		t.Errorf("%v", u)
	}
	bad := containerRequest("bad", "sleep")
	bad.Linux.SecurityContext.RunAsGroup = &runtimeapi.Int64Value{Value: 5}
	if _, err := n.m.CreateContainer(bg, pod, bad, nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("group without user: %v", err)
	}
}

// TestRealHostileAccounts: what an image may put where passwd should be.
func TestRealHostileAccounts(t *testing.T) {
	n := newRealNode(t)
	pod := n.run(podRequest("web"))
	outside := filepath.Join(n.dir, "outside")
	if err := os.WriteFile(outside, []byte("app:x:0:0::/:/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, plant := range map[string]func(path string) error{
		"fifo":           func(p string) error { return unix.Mkfifo(p, 0o644) },
		"device":         func(p string) error { return unix.Mknod(p, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))) },
		"link out":       func(p string) error { return os.Symlink(outside, p) },
		"link up":        func(p string) error { return os.Symlink("../../../../../../../"+outside, p) },
		"huge":           func(p string) error { return os.Truncate(mustCreate(p), maxAccountFile+1) },
		"proc magic":     func(p string) error { return os.Symlink("/proc/self/fd/0", p) },
		"directory":      func(p string) error { return os.Mkdir(p, 0o755) },
		"link to itself": func(p string) error { return os.Symlink("passwd", p) },
	} {
		n.images.plant = func(root string) error {
			p := filepath.Join(root, "etc", "passwd")
			if err := os.Remove(p); err != nil {
				return err
			}
			return plant(p)
		}
		cfg := containerRequest("c", "sleep")
		cfg.Linux.SecurityContext.RunAsUsername = "app"
		begin := time.Now()
		if _, err := n.m.CreateContainer(bg, pod, cfg, nil); err == nil || time.Since(begin) > 2*time.Second {
			t.Errorf("%s after %v: %v", name, time.Since(begin), err)
		} else if kind := map[string]string{"fifo": "regular", "device": "regular", "directory": "regular", "huge": "bytes"}[name]; !strings.Contains(err.Error(), kind) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func mustCreate(p string) string {
	if err := os.WriteFile(p, nil, 0o644); err != nil {
		panic(err)
	}
	return p
}

func TestRealSharedThings(t *testing.T) {
	n := newRealNode(t)
	cfg := podRequest("shared")
	cfg.Linux.SecurityContext.NamespaceOptions = nil // POD, also for pid
	pod := n.run(cfg)
	a, b := n.running(pod, "a", nil), n.running(pod, "b", nil)
	n.must(a, "write", "/dev/shm/x", "through shm")
	if got := n.must(b, "cat", "/dev/shm/x"); got != "through shm" {
		t.Errorf("%q", got)
	}
	if got := n.must(a, "cat", "/proc/1/comm"); strings.Contains(got, "helper") {
		t.Errorf("pid 1 is %q", got)
	}
	// It survives a restart of the daemon, also for containers that come later.
	n.restart()
	c := n.running(pod, "c", nil)
	if got := n.must(c, "cat", "/dev/shm/x"); got != "through shm" {
		t.Errorf("%q", got)
	}
	st, _, err := n.m.PodSandboxStatus(pod)
	if err != nil || st.Linux.Namespaces.Options.Pid != runtimeapi.NamespaceMode_POD {
		t.Errorf("%v, %v", st, err)
	}
}

func TestRealHostNamespaces(t *testing.T) {
	n := newRealNode(t)
	cfg := podRequest("host")
	cfg.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Network: 2, Pid: 2, Ipc: 2}
	pod := n.run(cfg)
	c := n.running(pod, "c", nil)
	for _, ns := range []string{"net", "ipc", "pid", "uts"} {
		host, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", n.pid(c), ns))
		if err != nil || got != host {
			t.Errorf("%s: %s instead of %s, %v", ns, got, host, err)
		}
	}
	if n.net.adds != 0 || len(names(n.cfg.NetNSDir)) != 0 {
		t.Error("a host's network was connected")
	}
}

func TestRealVolumes(t *testing.T) {
	n := newRealNode(t)
	cfg := podRequest("web")
	cfg.Linux.SecurityContext.Privileged = true
	pod := n.run(cfg)
	vol := filepath.Join(n.dir, "vol")
	shared := filepath.Join(n.dir, "shared")
	for _, d := range []string{vol + "/sub", shared + "/in", n.dir + "/src"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	check := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	check(os.WriteFile(vol+"/f", []byte("volume"), 0o644), os.WriteFile(n.dir+"/src/flag", []byte("flag"), 0o644),
		os.Symlink("vol", n.dir+"/link"), unix.Mount("t", vol+"/sub", "tmpfs", 0, ""),
		unix.Mount(shared, shared, "", unix.MS_BIND, ""), unix.Mount("", shared, "", unix.MS_SHARED, ""))
	t.Cleanup(func() { _, _ = unmountAll(shared), unmountAll(vol+"/sub") })
	mounts := []*runtimeapi.Mount{
		{HostPath: n.dir + "/link", ContainerPath: "/ro", Readonly: true},
		{HostPath: n.dir + "/link", ContainerPath: "/rro", Readonly: true, RecursiveReadOnly: true},
		{HostPath: n.dir + "/made/up", ContainerPath: "/made"},
		{HostPath: vol + "/f", ContainerPath: "/file"},
		{HostPath: shared, ContainerPath: "/shared", Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL},
		{HostPath: shared, ContainerPath: "/slave", Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
		{HostPath: shared, ContainerPath: "/private"},
	}
	c := n.running(pod, "c", func(c *runtimeapi.ContainerConfig) {
		c.Mounts = mounts
		c.Linux.SecurityContext.Privileged = true
	})
	if got := n.must(c, "cat", "/ro/f", "/file"); got != "volumevolume" {
		t.Errorf("%q", got)
	}
	for path, code := range map[string]int32{"/ro/x": 1, "/ro/sub/x": 0, "/rro/sub/y": 1, "/made/x": 0} {
		if r := n.exec(c, "write", path, "x"); r.ExitCode != code {
			t.Errorf("%s: %v", path, r)
		}
	}
	if _, err := os.Stat(n.dir + "/made/up/x"); err != nil {
		t.Error(err)
	}
	check(unix.Mount(n.dir+"/src", shared+"/in", "", unix.MS_BIND, ""))
	t.Cleanup(func() { _ = unmountAll(shared + "/in") })
	for path, code := range map[string]int32{"/shared/in/flag": 0, "/slave/in/flag": 0, "/private/in/flag": 1} {
		if r := n.exec(c, "cat", path); r.ExitCode != code {
			t.Errorf("%s: %v", path, r)
		}
	}
	if got := n.status(c).Mounts; len(got) != len(mounts) || got[4].Propagation != runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL {
		t.Errorf("%v", got)
	}
	bad := containerRequest("bad", "sleep")
	bad.Mounts = []*runtimeapi.Mount{{HostPath: "/proc/sys", ContainerPath: "/x", Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL}}
	if _, err := n.m.CreateContainer(bg, pod, bad, nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("a private mount that is to be shared: %v", err)
	}
}

// TestRealRestart: another manager finds the same processes, and learns how the others ended.
func TestRealRestart(t *testing.T) {
	n := newRealNode(t)
	pod := n.run(podRequest("web"))
	runs, ended, fresh := n.running(pod, "runs", nil), n.running(pod, "ended", nil), n.create(pod, containerRequest("fresh", "sleep"))
	pid := n.pid(runs)
	if err := n.m.Close(); err != nil {
		t.Fatal(err)
	}
	// pid 1 of a namespace hears TERM once it has its handler; helpers have one early, but not at once.
	eventually(t, "death", func() bool {
		_ = syscall.Kill(n.pid(ended), syscall.SIGTERM)
		_, err := os.Stat(filepath.Join(n.m.podDir(pod), ended, "exit.json"))
		return err == nil
	})
	n.open()
	if n.podState(pod) != runtimeapi.PodSandboxState_SANDBOX_READY || n.pid(runs) != pid || n.status(runs).State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("pod %v, container %v", n.podState(pod), n.status(runs))
	}
	if s := n.wait(ended); s.ExitCode != 7 {
		t.Errorf("%v", s)
	}
	if got := n.must(runs, "cat", "/proc/1/comm"); got != "helper-sleep\n" {
		t.Errorf("%q", got)
	}
	n.start(fresh)
	if err := n.m.StopContainer(bg, runs, 10); err != nil {
		t.Fatal(err)
	}
	if s := n.status(runs); s.ExitCode != 7 {
		t.Errorf("%v", s)
	}
}

// TestRealMonitorKilled: the pod is reported lost and nothing of it runs on.
func TestRealMonitorKilled(t *testing.T) {
	for _, shared := range []bool{false, true} {
		n := newRealNode(t)
		cfg := podRequest("web")
		if shared {
			cfg.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
		}
		pod := n.run(cfg)
		c, blocked := n.running(pod, "c", nil), n.create(pod, containerRequest("blocked", "sleep"))
		if err := syscall.Kill(n.m.index.Load().pods[pod].monitor().pid(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "loss", func() bool { return n.podState(pod) == runtimeapi.PodSandboxState_SANDBOX_NOTREADY })
		for _, id := range []string{c, blocked} {
			if s := n.wait(id); s.Reason != "Unknown" || s.ExitCode != 255 {
				t.Errorf("shared %v: %v", shared, s)
			}
		}
		if got := n.procs(c); got != 0 {
			t.Errorf("shared %v: %d processes live on", shared, got)
		}
		if _, err := n.m.CreateContainer(bg, pod, containerRequest("late", "sleep"), nil); !errors.Is(err, ErrState) {
			t.Errorf("create in a lost pod: %v", err)
		}
		if err := n.m.RemovePodSandbox(bg, pod); err != nil {
			t.Error(err)
		}
		n.wantClean()
	}
}

// A monitor that hangs does not put off the end of a stop, nor is what we kill then taken for the OOM killer's.
func TestRealStopWithHungMonitor(t *testing.T) {
	n := newRealNode(t)
	pod := n.run(podRequest("web"))
	c := n.running(pod, "c", nil)
	monitor := n.m.index.Load().pods[pod].monitor().pid()
	if err := syscall.Kill(monitor, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	stopped := make(chan error, 1)
	began := time.Now()
	go func() { stopped <- n.m.StopContainer(bg, c, 0) }()
	for n.procs(c) != 0 && time.Since(began) < n.cfg.StopTimeout {
		time.Sleep(5 * time.Millisecond)
	}
	if d := time.Since(began); d > n.cfg.StopTimeout/2 {
		t.Errorf("killed after %v", d)
	}
	if err := syscall.Kill(monitor, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if s := n.wait(c); s.Reason != "Error" || s.ExitCode != 137 {
		t.Errorf("%v", s)
	}
	if _, err := os.Stat(filepath.Join(n.m.index.Load().containers[c].dir, "killed")); err != nil {
		t.Errorf("no note of the kill: %v", err)
	}
}
