package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/cni"
	"github.com/vitrine-runtime/vitrine/image"
	"github.com/vitrine-runtime/vitrine/internal/atomicfile"
	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci"
	"github.com/vitrine-runtime/vitrine/oci/cgroup"
)

// node is a private machine for one test: directories, a cgroup subtree, images, a network, and whatever
// monitors the test wants.
type node struct {
	t      *testing.T
	dir    string
	images *testImages
	net    *testNetwork
	tree   *cgroup.Tree
	cgroot string
	cfg    Config
	m      *Manager
}

var cgroupOnce = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "cgroup2")
	if err != nil {
		return "", err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return "", err
	}
	if err := unix.Mount("none", dir, "cgroup2", 0, "nsdelegate"); err != nil {
		return "", err
	}
	return dir, sweepCgroups(dir)
})

// cgroupPrefix begins the names of our cgroups, which are machine-wide; the pid of the test follows.
const cgroupPrefix = "vitrine-test-sandbox-"

// sweepCgroups removes what test binaries left that were killed or panicked.
func sweepCgroups(root string) error {
	tree, err := cgroup.Open(cgroup.Config{Root: root, Driver: "cgroupfs", AllowUnenforced: true, Prefix: "vitrine-"})
	if err != nil {
		return err
	}
	for _, name := range names(root) {
		var pid int
		if _, err := fmt.Sscanf(name, cgroupPrefix+"%d-", &pid); err != nil || syscall.Kill(pid, 0) == nil {
			continue
		}
		if err := removeCgroup(context.Background(), tree, name); err != nil {
			return err
		}
	}
	return nil
}

func newNode(t *testing.T, mons monitors) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts, cgroups and namespaces")
	}
	root, err := cgroupOnce()
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, dir: t.TempDir()}
	sub := filepath.Join(root, fmt.Sprintf("%s%d-%s", cgroupPrefix, os.Getpid(), newID()[:8]))
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	n.cgroot = sub
	if n.tree, err = cgroup.Open(cgroup.Config{Root: root, Driver: "cgroupfs", AllowUnenforced: true, Prefix: "vitrine-"}); err != nil {
		t.Fatal(err)
	}
	n.images = &testImages{dir: filepath.Join(n.dir, "images"), roots: map[string]string{}}
	n.net = &testNetwork{pending: map[string]string{}}
	n.cfg = Config{
		RunDir: filepath.Join(n.dir, "run"), NetNSDir: filepath.Join(n.dir, "netns"), CgroupParent: filepath.Base(sub),
		Images: n.images, Network: n.net, Cgroups: n.tree, StopTimeout: 10 * time.Second, OperationTimeout: 20 * time.Second,
		monitors: mons, sweep: time.Hour,
	}
	n.open()
	t.Cleanup(n.leave)
	return n
}

func (n *node) open() {
	n.t.Helper()
	m, err := Open(context.Background(), n.cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	n.m = m
}

// restart is what a daemon's restart is to the Manager: everything in memory is gone.
func (n *node) restart() {
	n.t.Helper()
	if err := n.m.Close(); err != nil {
		n.t.Fatal(err)
	}
	n.open()
}

// leave removes all pods and then wants the machine to be as it was.
func (n *node) leave() {
	for _, p := range n.m.ListPodSandbox(nil) {
		if err := n.m.RemovePodSandbox(context.Background(), p.Id); err != nil {
			n.t.Errorf("remove pod %s: %v", p.Id, err)
		}
	}
	n.m.sweepOnce(context.Background())
	n.wantClean()
	if err := n.m.Close(); err != nil {
		n.t.Error(err)
	}
	_ = unmountAll(n.cfg.NetNSDir)
	_ = removeCgroup(context.Background(), n.tree, filepath.Base(n.cgroot))
}

// wantClean finds whatever a pod could have left.
func (n *node) wantClean() {
	n.t.Helper()
	for what, got := range map[string][]string{
		"directories": names(filepath.Join(n.cfg.RunDir, "pods")), "pins": names(n.cfg.NetNSDir),
		"root file systems": n.images.left(), "networks": n.net.left(), "cgroups": cgroupsBelow(n.cgroot), "mounts": mountsBelow(filepath.Join(n.cfg.RunDir)),
	} {
		if len(got) != 0 {
			n.t.Errorf("%s are left: %q", what, got)
		}
	}
}

func names(dir string) []string {
	entries, _ := os.ReadDir(dir)
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func cgroupsBelow(dir string) []string {
	var out []string
	for _, name := range names(dir) {
		if st, err := os.Stat(filepath.Join(dir, name)); err == nil && st.IsDir() {
			out = append(out, name)
		}
	}
	return out
}

func mountsBelow(dir string) []string {
	b, _ := os.ReadFile("/proc/self/mountinfo")
	var out []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			out = append(out, f[4])
		}
	}
	return out
}

// testImages is an image store with one image: the helper in /bin.
type testImages struct {
	dir    string
	helper string // "" for fake monitors, which execute nothing
	config ocispec.ImageConfig
	fail   error // of NewRootfs
	noMaps bool  // the kernel cannot map the ids of layers
	block  chan struct{}
	plant  func(root string) error                                       // puts something into new root file systems
	walk   func(ctx context.Context, id string, pace func() error) error // guarded by mu: before a root file system is measured

	mu    sync.Mutex
	roots map[string]string
}

func (s *testImages) Permit(_ context.Context, _, _, asked string) error {
	if asked == "forbidden" {
		return fmt.Errorf("use image: %w", image.ErrSignature)
	}
	return nil
}

func (s *testImages) Resolve(_ context.Context, ref string) (*image.Image, error) {
	if ref == "missing" {
		return nil, fmt.Errorf("image %s: %w", ref, image.ErrNotFound)
	}
	return &image.Image{ID: "sha256:" + strings.Repeat("a", 64), RepoTags: []string{"localhost/test:latest"},
		RepoDigests: []string{"localhost/test@sha256:" + strings.Repeat("b", 64)}, Config: s.config}, nil
}

func (s *testImages) NewRootfs(ctx context.Context, id, _ string, _ ...string) error {
	if s.block != nil {
		select {
		case <-s.block:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if s.fail != nil {
		return s.fail
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	root := filepath.Join(s.dir, id)
	for _, d := range []string{"bin", "etc", "proc", "dev", "sys", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	for _, h := range helpers {
		if s.helper == "" {
			break
		}
		if err := copyFile(s.helper, filepath.Join(root, "bin", "helper-"+h)); err != nil {
			return err
		}
	}
	_ = os.WriteFile(filepath.Join(root, "bin", "text"), []byte("no program"), 0o755)
	_ = os.WriteFile(filepath.Join(root, "etc", "passwd"), []byte("root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n"), 0o644)
	_ = os.WriteFile(filepath.Join(root, "etc", "group"), []byte("root:x:0:\nextra:x:50000:app\n"), 0o644)
	s.roots[id] = root
	if s.plant != nil {
		return s.plant(root)
	}
	return nil
}

// helpers are the names under which testdata/inside is found in /bin.
var helpers = []string{"exit", "print", "both", "flood", "env", "write", "cat", "burn", "ids", "sleep", "spawn", "deaf"}

// copyFile makes a hard link where that is possible.
func copyFile(from, to string) error {
	if err := os.Link(from, to); err == nil || errors.Is(err, os.ErrExist) {
		return nil
	}
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o755)
}

func (s *testImages) IDMaps() bool { return !s.noMaps }

func (s *testImages) Mount(_ context.Context, id string, v image.View) (*sys.FD, error) {
	if v.IDs != nil {
		return nil, errors.ErrUnsupported // the real store has tests of that
	}
	s.mu.Lock()
	root := s.roots[id]
	s.mu.Unlock()
	return sys.OpenTree(unix.AT_FDCWD, root, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
}

func (s *testImages) MountVolume(_ context.Context, _, id, sub string, _ image.View) (*sys.FD, error) {
	if sub == "missing" {
		return nil, fmt.Errorf("mount image %s: %w", id, image.ErrSubPath)
	}
	return sys.OpenTree(unix.AT_FDCWD, s.dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
}

func (s *testImages) RemoveRootfs(_ context.Context, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.roots, id)
	return os.RemoveAll(filepath.Join(s.dir, id))
}

func (s *testImages) Rootfses() ([]string, error) { return s.left(), nil }

func (s *testImages) left() []string { return names(s.dir) }

// testNetwork remembers what was asked of it and fails when told to.
type testNetwork struct {
	mu      sync.Mutex
	pending map[string]string // pod id -> path of the namespace
	addErr  error
	delErr  error
	delay   time.Duration
	adds    int
	last    cni.Pod // that was added
}

func (n *testNetwork) Add(ctx context.Context, p cni.Pod) (*cni.Result, error) {
	n.mu.Lock()
	n.pending[p.ID], n.adds, n.last = p.NetNS, n.adds+1, p
	err, delay := n.addErr, n.delay
	n.mu.Unlock()
	if delay != 0 {
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if err != nil {
		return nil, err
	}
	if _, serr := os.Stat(p.NetNS); serr != nil {
		return nil, serr
	}
	return &cni.Result{IPs: []netip.Addr{netip.MustParseAddr("10.9.0.2"), netip.MustParseAddr("fd00::2")}}, nil
}

func (n *testNetwork) Del(_ context.Context, id string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.delErr != nil {
		return n.delErr
	}
	delete(n.pending, id)
	return nil
}

func (n *testNetwork) Pending() ([]string, error) { return n.left(), nil }

func (n *testNetwork) left() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []string
	for id := range n.pending {
		out = append(out, id)
	}
	sort.Strings(out)
	return out
}

func (n *testNetwork) set(f func(*testNetwork)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f(n)
}

// podRequest is a sandbox request as a kubelet makes it, without the log directory.
func podRequest(name string) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata:    &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name},
		Hostname:    name,
		Labels:      map[string]string{"app": name},
		Annotations: map[string]string{"a.b/c": "kept\nas it is"},
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}}},
	}
}

func containerRequest(name string, command ...string) *runtimeapi.ContainerConfig {
	command[0] = "/bin/helper-" + command[0]
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: "test"},
		Command:  command,
		Labels:   map[string]string{"c": name},
		Linux:    &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{}},
	}
}

func (n *node) run(cfg *runtimeapi.PodSandboxConfig) string {
	n.t.Helper()
	id, err := n.m.RunPodSandbox(context.Background(), cfg, "")
	if err != nil {
		n.t.Fatal(err)
	}
	return id
}

func (n *node) create(pod string, cfg *runtimeapi.ContainerConfig) string {
	n.t.Helper()
	id, err := n.m.CreateContainer(context.Background(), pod, cfg, nil)
	if err != nil {
		n.t.Fatal(err)
	}
	return id
}

func (n *node) start(id string) {
	n.t.Helper()
	if err := n.m.StartContainer(context.Background(), id); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) status(id string) *runtimeapi.ContainerStatus {
	n.t.Helper()
	st, _, err := n.m.ContainerStatus(id, true)
	if err != nil {
		n.t.Fatal(err)
	}
	return st
}

func (n *node) pid(id string) int { return n.m.index.Load().containers[id].facts.Load().Pid }

// wait waits for a container to exit.
func (n *node) wait(id string) *runtimeapi.ContainerStatus {
	n.t.Helper()
	select {
	case <-n.m.index.Load().containers[id].done:
	case <-time.After(10 * time.Second):
		n.t.Fatalf("container does not exit: %v", n.status(id))
	}
	return n.status(id)
}

func (n *node) podState(id string) runtimeapi.PodSandboxState {
	n.t.Helper()
	st, _, err := n.m.PodSandboxStatus(id)
	if err != nil {
		n.t.Fatal(err)
	}
	return st.State
}

// patience is how long something may take before it counts as never: an emulated guest on a busy machine is slow.
const patience = time.Minute

// eventually polls a condition that some other goroutine brings about.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("%s: not within %v", what, patience)
}

// fakeMonitors runs helpers as plain children in the container's cgroup. It fails where it is told to, and
// "survives" a manager, as real monitors do.
type fakeMonitors struct {
	mu        sync.Mutex
	startErr  error
	createErr error
	execErr   error // of start
	startWait chan struct{}
	dialErr   error
	dialed    func() // as each dial ends
	killed    int
	pods      map[string]*fakeMonitor // by directory
}

func newFakes() *fakeMonitors { return &fakeMonitors{pods: map[string]*fakeMonitor{}} }

func (f *fakeMonitors) set(change func(*fakeMonitors)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

func (f *fakeMonitors) start(ctx context.Context, c oci.PodConfig) (monitor, error) {
	f.mu.Lock()
	err, wait := f.startErr, f.startWait
	f.mu.Unlock()
	if wait != nil {
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if err != nil {
		return nil, err
	}
	m := &fakeMonitor{f: f, dir: c.Dir, procs: map[string]*fakeProcess{}}
	m.ev = make(chan podEvent, 64)
	f.mu.Lock()
	f.pods[c.Dir] = m
	f.mu.Unlock()
	return m, nil
}

func (f *fakeMonitors) dial(_ context.Context, dir string) (monitor, error) {
	f.mu.Lock()
	m, err, dialed := f.pods[dir], f.dialErr, f.dialed
	f.mu.Unlock()
	if dialed != nil {
		defer dialed()
	}
	if m == nil {
		return nil, errNoMonitor
	}
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ev = make(chan podEvent, 64)
	return m, nil
}

func (f *fakeMonitors) kill(_ context.Context, dir string) error {
	f.mu.Lock()
	m := f.pods[dir]
	f.mu.Unlock()
	if m == nil {
		return errNoMonitor
	}
	f.set(func(f *fakeMonitors) { f.killed++ })
	m.die()
	return nil
}

func (f *fakeMonitors) readExit(dir string) (exit, error) {
	b, err := os.ReadFile(filepath.Join(dir, "exit.json"))
	if err != nil {
		return exit{}, err
	}
	x := exit{at: now()}
	_, err = fmt.Sscan(string(b), &x.code)
	return x, err
}

// fakeMonitor is one pod's.
type fakeMonitor struct {
	f   *fakeMonitors
	dir string

	mu    sync.Mutex
	ev    chan podEvent // nil while nobody is connected
	gone  bool
	procs map[string]*fakeProcess
}

// die is the end of the monitor, not of its containers.
func (m *fakeMonitor) die() {
	m.f.mu.Lock()
	delete(m.f.pods, m.dir)
	m.f.mu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gone = true
	if m.ev != nil {
		m.ev <- podEvent{what: monitorDied}
		close(m.ev)
		m.ev = nil
	}
}

func (m *fakeMonitor) pid() int { return 1 }

func (m *fakeMonitor) userns(context.Context) (*sys.FD, error) { return nil, errNoMonitor }

func (m *fakeMonitor) netns() (*sys.FD, error) {
	return sys.OpenAt2(unix.AT_FDCWD, "/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
}

func (m *fakeMonitor) events() <-chan podEvent {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ev
}

func (m *fakeMonitor) close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ev != nil {
		m.ev <- podEvent{what: disconnected}
		close(m.ev)
		m.ev = nil
	}
	return nil
}

func (m *fakeMonitor) stop(context.Context) error {
	m.mu.Lock()
	for id, p := range m.procs {
		if !p.dead {
			m.mu.Unlock()
			return fmt.Errorf("container %s lives: %w", id, ErrState)
		}
	}
	m.mu.Unlock()
	m.f.mu.Lock()
	delete(m.f.pods, m.dir)
	m.f.mu.Unlock()
	return m.close()
}

func (m *fakeMonitor) create(_ context.Context, c oci.ContainerConfig) (process, error) {
	c.Rootfs.Close()
	for _, fd := range c.Mounts {
		fd.Close()
	}
	defer c.Cgroup.Close()
	m.f.mu.Lock()
	err := m.f.createErr
	m.f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	p := &fakeProcess{m: m, id: c.ID, dir: c.Dir, args: c.Spec.Process.Args}
	// Blocked before its start: a process that only waits.
	p.cmd = exec.Command("/proc/self/exe")
	p.cmd.Env = []string{napEnv + "=1"}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: c.Cgroup.Int()}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	runtime.KeepAlive(c.Cgroup)
	m.mu.Lock()
	m.procs[c.ID] = p
	m.mu.Unlock()
	go p.reap() // ends with the process
	return p, nil
}

func (m *fakeMonitor) process(id string) process {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.procs[id]; p != nil {
		return p
	}
	return &fakeProcess{m: m, id: id, unknown: true}
}

func (m *fakeMonitor) list(context.Context) ([]processState, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []processState
	for _, p := range m.procs {
		out = append(out, processState{id: p.id, pid: p.cmd.Process.Pid, started: p.started, dead: p.dead, exit: p.exit})
	}
	return out, nil
}

type fakeProcess struct {
	m       *fakeMonitor
	id, dir string
	args    []string
	cmd     *exec.Cmd
	unknown bool

	// guarded by m.mu
	started int64
	dead    bool
	exit    exit
	code    *int32 // what "exit N" wants
}

func (p *fakeProcess) reap() {
	_ = p.cmd.Wait()
	ws := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	code := int32(ws.ExitStatus())
	if ws.Signaled() {
		code = 128 + int32(ws.Signal())
	}
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	if p.m.gone {
		return // nobody was there to see it
	}
	if p.code != nil {
		code = *p.code
	}
	p.exit, p.dead = exit{code: code, at: now()}, true
	_ = os.WriteFile(filepath.Join(p.dir, "exit.json"), []byte(itoa(int(code))), 0o600)
	if p.m.ev != nil {
		p.m.ev <- podEvent{what: containerExited, id: p.id, exit: p.exit}
	}
}

func (p *fakeProcess) note() string { return "" }

func (p *fakeProcess) pid() int { return p.cmd.Process.Pid }

func (p *fakeProcess) start(context.Context) error {
	p.m.f.mu.Lock()
	err := p.m.f.execErr
	p.m.f.mu.Unlock()
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	if err != nil {
		_ = p.cmd.Process.Kill()
		return &startFailure{err}
	}
	p.started = now()
	if strings.HasSuffix(p.args[0], "-exit") {
		var code int32
		fmt.Sscan(p.args[1], &code)
		p.code = &code
		_ = p.cmd.Process.Kill()
	}
	return nil
}

func (p *fakeProcess) signal(_ context.Context, sig unix.Signal) error {
	if strings.HasSuffix(p.args[0], "-deaf") && sig != unix.SIGKILL {
		return nil
	}
	return p.cmd.Process.Signal(sig)
}

func (p *fakeProcess) reopenLog(context.Context) error { return nil }

func (p *fakeProcess) remove(context.Context) error {
	if p.unknown {
		return ErrNotFound
	}
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	if !p.dead {
		return ErrState
	}
	delete(p.m.procs, p.id)
	return nil
}

func (p *fakeProcess) exec(context.Context, oci.ExecConfig) (execution, error) {
	return nil, errors.New("not here")
}

func (p *fakeProcess) attach(context.Context, oci.AttachConfig) (*oci.Attachment, error) {
	return nil, errors.New("not here")
}

func (p *fakeProcess) endStdin(context.Context) error { return errors.New("not here") }

// failingDisk fails every write with err; nil is the real disk.
func failingDisk(err error) atomicfile.FS {
	if err == nil {
		return nil
	}
	return brokenDisk{atomicfile.Disk, err}
}

type brokenDisk struct {
	atomicfile.FS
	err error
}

func (d brokenDisk) Create(string, os.FileMode) (atomicfile.File, error) { return nil, d.err }
