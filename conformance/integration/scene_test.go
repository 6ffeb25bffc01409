package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/conformance/stage"
)

// place and busybox are shared by all tests: one stage, one daemon (until a test kills it), one image.
var (
	place   *stage.Stage
	busybox string
)

func TestMain(m *testing.M) {
	standIn()
	s, err := stage.Enter()
	if errors.Is(err, stage.ErrNotRoot) {
		os.Exit(m.Run())
	}
	if err == nil {
		place = s
		err = begin(s)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "begin:", err)
		os.Exit(1)
	}
	code := m.Run()
	if err := s.Close(); err != nil {
		fmt.Fprintln(os.Stderr, "end:", err)
		code = 1
	}
	os.Exit(code)
}

// begin starts the daemon and pulls the image, so that what these leave on disk is not counted to a test.
func begin(s *stage.Stage) error {
	ctx, cancel := context.WithTimeout(context.Background(), s.Scale(time.Minute))
	defer cancel()
	if _, err := s.StartDaemon(ctx); err != nil {
		return err
	}
	ref, _, err := s.SeedBusybox(ctx, "test/busybox", "1")
	if err != nil {
		return err
	}
	busybox = ref
	c, err := s.Connect(ctx)
	if err != nil {
		return err
	}
	_, err = c.Pull(ctx, ref)
	return errors.Join(err, c.Close(ctx))
}

// scene is one test's view of the stage. When the test ends, everything must be as it was when it began.
type scene struct {
	*stage.Stage
	*testing.T
	cri    *stage.Client
	ctx    context.Context
	before stage.Traces // what was there when the scene began
}

// open begins a scene; its leak check and the connection's end are left to the test's cleanup.
func open(t *testing.T) *scene {
	t.Helper()
	return openFor(t, 2*time.Minute)
}

// openFor is open for a test that may take so long.
func openFor(t *testing.T, most time.Duration) *scene {
	t.Helper()
	if place == nil {
		t.Skip("needs root: starts pods in private namespaces")
	}
	ctx, cancel := context.WithTimeout(context.Background(), place.Scale(most))
	s := &scene{Stage: place, T: t, ctx: ctx}
	if err := place.EnsureDaemon(ctx); err != nil {
		cancel()
		t.Fatal(err)
	}
	s.before = place.TracesAtRest()
	s.connect()
	t.Cleanup(func() {
		defer cancel()
		if err := s.cri.Close(ctx); err != nil {
			t.Error(err)
		}
		for _, left := range place.Settle(s.before) {
			t.Errorf("left behind: %s", left)
		}
		if t.Failed() {
			t.Logf("the daemon's last lines:\n%s", place.Daemon().Tail(40))
		}
	})
	return s
}

// connect dials the daemon, anew where it was restarted.
func (s *scene) connect() {
	s.Helper()
	if s.cri != nil {
		_ = s.cri.Close(s.ctx)
	}
	c, err := s.Connect(s.ctx)
	if err != nil {
		s.Fatal(err)
	}
	s.cri = c
}

// bareConn is a connection without the kubelet's client, which has words of its own for some errors. The test's cleanup ends it.
func (s *scene) bareConn(options ...grpc.DialOption) *grpc.ClientConn {
	s.Helper()
	conn, err := grpc.NewClient("unix://"+s.Socket, append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { conn.Close() })
	return conn
}

// configured starts the daemon anew with a configuration file. The test's cleanup does so without.
func (s *scene) configured(text string) {
	s.Helper()
	configure := func(text string) error {
		err := s.Configure(s.ctx, text)
		s.connect()
		return err
	}
	s.Cleanup(func() {
		if err := configure(""); err != nil {
			s.Error(err)
		}
	})
	if err := configure(text); err != nil {
		s.Fatal(err)
	}
}

// pod is a sandbox of a scene. The test's cleanup stops and removes it, which must succeed even if the test has
// done so before.
type pod struct {
	*scene
	id  string
	cfg *runtimeapi.PodSandboxConfig
}

// runPod runs a sandbox. The name must be unique among the pods of a test.
func (s *scene) runPod(name string, change ...func(*runtimeapi.PodSandboxConfig)) *pod {
	s.Helper()
	return s.runPodAs("", name, change...)
}

// runPodAs is runPod under a runtime handler.
func (s *scene) runPodAs(handler, name string, change ...func(*runtimeapi.PodSandboxConfig)) *pod {
	s.Helper()
	cfg, err := s.PodConfig(name)
	if err != nil {
		s.Fatal(err)
	}
	for _, f := range change {
		f(cfg)
	}
	p := &pod{scene: s, cfg: cfg}
	s.Cleanup(p.end)
	if p.id, err = s.cri.RunPodSandbox(s.ctx, cfg, handler); err != nil {
		s.Fatalf("run pod %s: %v", name, err)
	}
	return p
}

// end removes the pod and what the kubelet's part made for it.
func (p *pod) end() {
	if p.id != "" {
		if err := p.cri.StopPodSandbox(p.ctx, p.id); err != nil {
			p.Errorf("stop pod: %v", err)
		}
		if err := p.cri.RemovePodSandbox(p.ctx, p.id); err != nil {
			p.Errorf("remove pod: %v", err)
		}
	}
	if err := p.Forget(p.cfg); err != nil {
		p.Error(err)
	}
}

// ip returns the pod's first address.
func (p *pod) ip() string {
	p.Helper()
	st, err := p.cri.PodSandboxStatus(p.ctx, p.id, false)
	if err != nil {
		p.Fatal(err)
	}
	if st.Status.GetNetwork().GetIp() == "" {
		p.Fatalf("pod %s has no address: %v", p.cfg.Metadata.Name, st.Status)
	}
	return st.Status.Network.Ip
}

// create creates a container; start starts it.
func (p *pod) create(cfg *runtimeapi.ContainerConfig) string {
	p.Helper()
	id, err := p.cri.CreateContainer(p.ctx, p.id, cfg, p.cfg)
	if err != nil {
		p.Fatalf("create %s: %v", cfg.Metadata.Name, err)
	}
	return id
}

// run creates and starts a container that runs a shell script.
func (p *pod) run(name, script string, change ...func(*runtimeapi.ContainerConfig)) string {
	p.Helper()
	cfg := stage.ContainerConfig(name, busybox, "/bin/sh", "-c", script)
	for _, f := range change {
		f(cfg)
	}
	id := p.create(cfg)
	if err := p.cri.StartContainer(p.ctx, id); err != nil {
		p.Fatalf("start %s: %v", name, err)
	}
	return id
}

// exec runs a shell script in a container and returns its standard output without the end of line.
func (s *scene) exec(id, script string) string {
	s.Helper()
	out, errOut, err := s.cri.ExecSync(s.ctx, id, []string{"/bin/sh", "-c", script}, s.Scale(20*time.Second))
	if err != nil {
		s.Fatalf("exec %q: %v\n%s%s", script, err, out, errOut)
	}
	return strings.TrimRight(string(out), "\n")
}

// status returns a container's status.
func (s *scene) status(id string) *runtimeapi.ContainerStatus {
	s.Helper()
	st, err := s.cri.ContainerStatus(s.ctx, id, false)
	if err != nil {
		s.Fatalf("status: %v", err)
	}
	return st.Status
}

// exited waits until the container has exited and returns its status.
func (s *scene) exited(id string) *runtimeapi.ContainerStatus {
	s.Helper()
	var st *runtimeapi.ContainerStatus
	s.eventually("container exits", func() bool {
		st = s.status(id)
		return st.State == runtimeapi.ContainerState_CONTAINER_EXITED
	})
	return st
}

// eventually fails the test if ok does not come true within 15 seconds, or what that is here.
func (s *scene) eventually(what string, ok func() bool) {
	s.Helper()
	for deadline := time.Now().Add(s.Scale(15 * time.Second)); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.Fatalf("not in time: %s", what)
		}
	}
}

// logFile returns the path of a container's log.
func (p *pod) logFile(name string) string { return filepath.Join(p.cfg.LogDirectory, name+".log") }

// logText returns the lines of one stream of a log, put together from their partial records, and fails on a line that
// is not in the CRI format.
func (p *pod) logText(name, stream string) []string {
	p.Helper()
	var raw []byte
	p.eventually(name+".log ends with a whole record", func() bool { // the kernel shows a write that goes over a page in two steps
		var err error
		if raw, err = os.ReadFile(p.logFile(name)); err != nil {
			p.Fatal(err)
		}
		return len(raw) == 0 || raw[len(raw)-1] == '\n'
	})
	if len(raw) == 0 {
		return nil
	}
	var lines []string
	part := ""
	for n, line := range strings.Split(strings.TrimSuffix(string(raw), "\n"), "\n") {
		f := strings.SplitN(line, " ", 4)
		if len(f) != 4 {
			p.Fatalf("%s.log:%d: not in CRI format: %q", name, n+1, line)
		}
		if _, err := time.Parse(time.RFC3339Nano, f[0]); err != nil || !slices.Contains([]string{"stdout", "stderr"}, f[1]) || !slices.Contains([]string{"F", "P"}, f[2]) {
			p.Fatalf("%s.log:%d: not in CRI format: %q (%v)", name, n+1, line, err)
		}
		if f[1] != stream {
			continue
		}
		part += f[3]
		if f[2] == "F" {
			lines, part = append(lines, part), ""
		}
	}
	return lines
}

// pids returns the processes of a container as the stage sees them, by its cgroup, without those of an exec.
func (p *pod) pids(id string) []int {
	p.Helper()
	var found []int
	root := "/sys/fs/cgroup" + p.cfg.Linux.CgroupParent
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.Name() != "cgroup.procs" || !strings.Contains(path, id) || strings.Contains(path, "/exec-") {
			return nil //nolint:nilerr // a cgroup may go while we look
		}
		text, _ := os.ReadFile(path)
		for _, f := range strings.Fields(string(text)) {
			pid, err := strconv.Atoi(f)
			if err != nil {
				return err
			}
			found = append(found, pid)
		}
		return nil
	})
	if err != nil {
		p.Fatal(err)
	}
	slices.Sort(found)
	return found
}
