package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/cni"
)

var bg = context.Background()

// TestLifeOfAPod walks the way of every pod and looks at what a kubelet would see.
func TestLifeOfAPod(t *testing.T) {
	n := newNode(t, newFakes())
	cfg := podRequest("web")
	pod := n.run(cfg)
	if !isID(pod) {
		t.Errorf("pod id %q", pod)
	}
	st, info, err := n.m.PodSandboxStatus(pod[:8])
	if err != nil || st.State != runtimeapi.PodSandboxState_SANDBOX_READY || st.Network.Ip != "10.9.0.2" ||
		len(st.Network.AdditionalIps) != 1 || !maps.Equal(st.Annotations, cfg.Annotations) || info["info"] == "" {
		t.Errorf("status: %v, %v, %v", st, info, err)
	}
	c := n.create(pod, containerRequest("c", "sleep"))
	if s := n.status(c); s.State != runtimeapi.ContainerState_CONTAINER_CREATED || s.CreatedAt == 0 || s.StartedAt != 0 ||
		s.ImageId != "sha256:"+strings.Repeat("a", 64) || s.Image.Image != "localhost/test:latest" {
		t.Errorf("created: %v", s)
	}
	n.start(c)
	if err := n.m.StartContainer(bg, c); !errors.Is(err, ErrState) {
		t.Errorf("second start: %v", err)
	}
	if err := n.m.StopContainer(bg, c, 10); err != nil {
		t.Fatal(err)
	}
	if s := n.status(c); s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.ExitCode != 143 || s.Reason != "Error" || s.FinishedAt < s.StartedAt {
		t.Errorf("stopped: %v", s)
	}
	for range 2 {
		if err := errors.Join(n.m.StopContainer(bg, c, 10), n.m.StopPodSandbox(bg, pod)); err != nil {
			t.Errorf("stop of what has stopped: %v", err)
		}
	}
	if n.podState(pod) != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		t.Error("a stopped pod is ready")
	}
	if _, err := n.m.CreateContainer(bg, pod, containerRequest("d", "sleep"), nil); !errors.Is(err, ErrState) {
		t.Errorf("create in a stopped pod: %v", err)
	}
	for range 2 {
		if err := errors.Join(n.m.RemoveContainer(bg, c), n.m.RemovePodSandbox(bg, pod)); err != nil {
			t.Errorf("remove: %v", err)
		}
	}
	if _, _, err := n.m.ContainerStatus(c, true); !errors.Is(err, ErrNotFound) {
		t.Errorf("status of what is gone: %v", err)
	}
	n.wantClean()
}

func TestUnknownIDs(t *testing.T) {
	n := newNode(t, newFakes())
	no := strings.Repeat("f", 64)
	if err := errors.Join(n.m.StopPodSandbox(bg, no), n.m.RemovePodSandbox(bg, no), n.m.StopContainer(bg, no, 1), n.m.RemoveContainer(bg, no)); err != nil {
		t.Errorf("unknown ids are no errors here: %v", err)
	}
	if err := n.m.StopPodSandbox(bg, ""); !errors.Is(err, ErrInvalid) {
		t.Errorf("empty id: %v", err)
	}
	if err := n.m.StartContainer(bg, no); !errors.Is(err, ErrNotFound) {
		t.Errorf("start: %v", err)
	}
	if _, err := n.m.CreateContainer(bg, no, containerRequest("c", "sleep"), nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("create: %v", err)
	}
	if got := n.m.ListContainers(&runtimeapi.ContainerFilter{Id: "nope"}); len(got) != 0 {
		t.Errorf("list: %v", got)
	}
}

func TestPrefixesAndFilters(t *testing.T) {
	n := newNode(t, newFakes())
	a, b := n.run(podRequest("a")), n.run(podRequest("b"))
	if _, err := n.m.pod(""); !errors.Is(err, ErrInvalid) {
		t.Errorf("empty: %v", err)
	}
	sb, err := lookUp(map[string]*Sandbox{"abc1": {}, "abc2": {}, "x": {id: "x"}}, "pod", "abc")
	if sb != nil || !errors.Is(err, ErrInvalid) {
		t.Errorf("ambiguous: %v", err)
	}
	for _, id := range []string{strings.ToUpper(a), a + "\n", " " + a, a + "0"} {
		if _, err := n.m.pod(id); !errors.Is(err, ErrNotFound) {
			t.Errorf("%q: %v", id, err)
		}
	}
	if got := n.m.ListPodSandbox(&runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"app": "a"}}); len(got) != 1 || got[0].Id != a {
		t.Errorf("by label: %v", got)
	}
	if got := n.m.ListPodSandbox(nil); len(got) != 2 || got[0].Id != b {
		t.Errorf("newest first: %v", got)
	}
	if got := n.m.ListPodSandbox(&runtimeapi.PodSandboxFilter{State: &runtimeapi.PodSandboxStateValue{State: 99}}); len(got) != 0 {
		t.Errorf("state 99: %v", got)
	}
}

// TestRetryJoins: the first caller gives up; its retry gets the result of the same operation.
func TestRetryJoins(t *testing.T) {
	fakes := newFakes()
	wait := make(chan struct{})
	fakes.startWait = wait
	n := newNode(t, fakes)
	short, cancel := context.WithTimeout(bg, 50*time.Millisecond)
	defer cancel()
	_, err := n.m.RunPodSandbox(short, podRequest("web"), "")
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "start monitor") {
		t.Fatalf("the first caller: %v", err)
	}
	if got := n.m.ListPodSandbox(nil); len(got) != 0 {
		t.Errorf("a half-made pod is shown: %v", got)
	}
	other := podRequest("web")
	other.Hostname = "other"
	var wg sync.WaitGroup
	ids := make([]string, 3)
	for i := range ids {
		wg.Add(1)
		go func() {
			defer wg.Done()
			ids[i], _ = n.m.RunPodSandbox(bg, podRequest("web"), "")
		}()
	}
	wg.Add(1)
	go func() {
		defer wg.Done()
		if _, err := n.m.RunPodSandbox(bg, other, ""); !errors.Is(err, ErrExists) {
			t.Errorf("another config joined: %v", err)
		}
	}()
	time.Sleep(50 * time.Millisecond)
	close(wait)
	wg.Wait()
	if ids[0] == "" || ids[0] != ids[1] || ids[1] != ids[2] || n.net.adds != 1 {
		t.Errorf("ids %q, %d networks", ids, n.net.adds)
	}
	if _, err := n.m.RunPodSandbox(bg, podRequest("web"), ""); !errors.Is(err, ErrExists) {
		t.Errorf("after the id was told: %v", err)
	}
}

// TestResultWaits: nobody is there when the operation ends; the retry gets what it made.
func TestResultWaits(t *testing.T) {
	n := newNode(t, newFakes())
	pod := n.run(podRequest("web"))
	n.images.block = make(chan struct{})
	short, cancel := context.WithTimeout(bg, 50*time.Millisecond)
	defer cancel()
	if _, err := n.m.CreateContainer(short, pod, containerRequest("c", "sleep"), nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	close(n.images.block)
	eventually(t, "creation", func() bool { return len(n.m.ListContainers(nil)) == 1 })
	want := n.m.ListContainers(nil)[0].Id
	if got := n.create(pod, containerRequest("c", "sleep")); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if _, err := n.m.CreateContainer(bg, pod, containerRequest("c", "sleep"), nil); !errors.Is(err, ErrExists) {
		t.Errorf("after the id was told: %v", err)
	}
	next := containerRequest("c", "sleep")
	next.Metadata.Attempt = 1
	n.create(pod, next)
}

// TestFailuresLeaveNothing fails every step of a pod and of a container, and then does it right.
func TestFailuresLeaveNothing(t *testing.T) {
	boom := errors.New("boom")
	fakes := newFakes()
	n := newNode(t, fakes)
	for name, fail := range map[string]func(error){
		"monitor": func(err error) { fakes.set(func(f *fakeMonitors) { f.startErr = err }) },
		"network": func(err error) { n.net.set(func(n *testNetwork) { n.addErr = err }) },
		"record":  func(err error) { n.m.disk.fs = failingDisk(err) },
	} {
		fail(boom)
		if _, err := n.m.RunPodSandbox(bg, podRequest("web"), ""); !errors.Is(err, boom) {
			t.Errorf("%s: %v", name, err)
		}
		fail(nil)
		n.wantClean()
		pod := n.run(podRequest("web"))
		if err := n.m.RemovePodSandbox(bg, pod); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		n.wantClean()
	}
	pod := n.run(podRequest("web"))
	for name, fail := range map[string]func(error){
		"root file system": func(err error) { n.images.fail = err },
		"process":          func(err error) { fakes.set(func(f *fakeMonitors) { f.createErr = err }) },
		"record":           func(err error) { n.m.disk.fs = failingDisk(err) },
	} {
		fail(boom)
		if _, err := n.m.CreateContainer(bg, pod, containerRequest("c", "sleep"), nil); !errors.Is(err, boom) {
			t.Errorf("%s: %v", name, err)
		}
		fail(nil)
		if got := n.images.left(); len(got) != 0 {
			t.Errorf("%s: root file systems are left: %q", name, got)
		}
		if got := cgroupsBelow(filepath.Join(n.cgroot, pod)); len(got) != 0 {
			t.Errorf("%s: cgroups are left: %q", name, got)
		}
		for _, e := range names(n.m.podDir(pod)) {
			if isID(e) {
				t.Errorf("%s: directory %s is left", name, e)
			}
		}
	}
	if err := n.m.RemoveContainer(bg, n.create(pod, containerRequest("c", "sleep"))); err != nil {
		t.Error(err)
	}
}

// TestNetworkThatCannotBeDeleted: processes end, the error is told, the rest is done by the retry.
func TestNetworkThatCannotBeDeleted(t *testing.T) {
	boom := errors.New("boom")
	n := newNode(t, newFakes())
	pod := n.run(podRequest("web"))
	c := n.create(pod, containerRequest("c", "sleep"))
	n.start(c)
	n.net.set(func(n *testNetwork) { n.delErr = boom })
	if err := n.m.StopPodSandbox(bg, pod); !errors.Is(err, boom) {
		t.Errorf("stop: %v", err)
	}
	if n.status(c).State != runtimeapi.ContainerState_CONTAINER_EXITED || n.podState(pod) != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		t.Error("the processes live on")
	}
	if len(names(n.cfg.NetNSDir)) != 1 {
		t.Error("the namespace is gone before its network")
	}
	if err := n.m.RemovePodSandbox(bg, pod); !errors.Is(err, boom) {
		t.Errorf("remove: %v", err)
	}
	n.net.set(func(n *testNetwork) { n.delErr = fmt.Errorf("test: %w", cni.ErrStuck) })
	if err := n.m.RemovePodSandbox(bg, pod); !errors.Is(err, ErrUnavailable) || !errors.Is(err, cni.ErrStuck) {
		t.Errorf("remove: %v", err)
	}
	n.net.set(func(n *testNetwork) { n.delErr = nil })
	if err := n.m.RemovePodSandbox(bg, pod); err != nil {
		t.Error(err)
	}
	n.wantClean()

	// A failed run whose network cannot be deleted is nobody's to retry but ours.
	n.net.set(func(n *testNetwork) { n.addErr, n.delErr = fmt.Errorf("%w: %w", boom, cni.ErrStuck), boom })
	if _, err := n.m.RunPodSandbox(bg, podRequest("web"), ""); !errors.Is(err, boom) || !errors.Is(err, ErrUnavailable) {
		t.Error(err)
	}
	if len(n.net.left()) != 1 || len(n.m.leftovers) != 1 || len(n.m.ListPodSandbox(nil)) != 0 {
		t.Errorf("left: %v, shown: %v", n.m.leftovers, n.m.ListPodSandbox(nil))
	}
	n.net.set(func(n *testNetwork) { n.addErr, n.delErr = nil, nil })
	n.m.sweepOnce(bg)
	n.wantClean()
}

// TestShorterStopWins: a stop that would take ten minutes ends when a second one has less patience.
func TestShorterStopWins(t *testing.T) {
	n := newNode(t, newFakes())
	pod := n.run(podRequest("web"))
	c := n.create(pod, containerRequest("c", "deaf"))
	n.start(c)
	first := make(chan error, 1)
	go func() { first <- n.m.StopContainer(bg, c, 600) }()
	short, cancel := context.WithTimeout(bg, 100*time.Millisecond)
	defer cancel()
	if err := n.m.StopContainer(short, c, 1<<62); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a longer stop: %v", err)
	}
	begin := time.Now()
	if err := n.m.StopContainer(bg, c, 1); err != nil {
		t.Error(err)
	}
	if err := <-first; err != nil {
		t.Error(err)
	}
	if d := time.Since(begin); d < 900*time.Millisecond || d > 5*time.Second {
		t.Errorf("took %v", d)
	}
	if s := n.status(c); s.ExitCode != 137 || s.Reason != "Error" {
		t.Errorf("%v", s)
	}
}

// TestExecWhileTheContainerEnds: the scope goes with its last process, before the daemon knows of the end.
func TestExecWhileTheContainerEnds(t *testing.T) {
	n := newNode(t, newFakes())
	gone := n.tree.Load(n.cfg.CgroupParent + "/vitrine-" + newID())
	_, made := gone.Leaf("exec-1")
	_, opened := gone.OpenDir()
	if !errors.Is(leafError(made), ErrState) || !errors.Is(leafError(opened), ErrState) {
		t.Errorf("make: %v; open: %v", leafError(made), leafError(opened))
	}
	if going := leafError(&fs.PathError{Op: "mkdir", Path: "exec-1", Err: syscall.ENODEV}); !errors.Is(going, ErrState) {
		t.Errorf("make in what is just being removed: %v", going)
	}
}

// TestVerbsWhileThePodIsStopped: the container ran when the verb looked, and when it came to ask there was no monitor any more. While
// the container lives, it is the monitor that lacks.
func TestVerbsWhileThePodIsStopped(t *testing.T) {
	n := newNode(t, newFakes())
	pod := n.run(podRequest("web"))
	c, err := n.m.container(n.create(pod, containerRequest("c", "sleep")))
	if err != nil {
		t.Fatal(err)
	}
	verbs := map[string]func() error{
		"start": func() error { return c.start(bg) },
		"exec": func() error {
			_, err := c.exec(bg, []string{"true"})
			return err
		},
		"streamed exec": func() error {
			_, err := (&streamedExec{c: c, cmd: []string{"true"}, s: &Streams{}}).run(bg)
			return err
		},
		"answer": func() error { return c.orEnded(fmt.Errorf("wait: %w: %w", errNoMonitor, ErrUnavailable)) },
	}
	mon := c.pod.swapMonitor(nil)
	for verb, f := range verbs {
		if err := f(); !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrState) {
			t.Errorf("%s without a monitor: %v", verb, err)
		}
	}
	c.pod.swapMonitor(mon)
	if err := n.m.StopPodSandbox(bg, pod); err != nil {
		t.Fatal(err)
	}
	for verb, f := range verbs {
		if err := f(); !errors.Is(err, ErrState) || errors.Is(err, ErrUnavailable) {
			t.Errorf("%s after the pod's end: %v", verb, err)
		}
	}
}

func TestStopBeforeStart(t *testing.T) {
	n := newNode(t, newFakes())
	pod := n.run(podRequest("web"))
	c := n.create(pod, containerRequest("c", "sleep"))
	if err := n.m.StopContainer(bg, c, 600); err != nil {
		t.Fatal(err)
	}
	if s := n.status(c); s.StartedAt != 0 || s.ExitCode != 137 {
		t.Errorf("%v", s)
	}
	if err := n.m.StartContainer(bg, c); !errors.Is(err, ErrState) {
		t.Errorf("start of what was killed: %v", err)
	}
}

func TestStartThatFails(t *testing.T) {
	fakes := newFakes()
	n := newNode(t, fakes)
	pod := n.run(podRequest("web"))
	for errno, code := range map[syscall.Errno]int32{syscall.ENOENT: 127, syscall.EACCES: 126, syscall.ENOEXEC: 126, syscall.E2BIG: 128} {
		fakes.set(func(f *fakeMonitors) { f.execErr = errno })
		cfg := containerRequest("c", "sleep")
		cfg.Metadata.Attempt = uint32(errno)
		c := n.create(pod, cfg)
		if err := n.m.StartContainer(bg, c); !errors.Is(err, errno) || !errors.Is(err, ErrState) {
			t.Errorf("%v: %v", errno, err)
		}
		eventually(t, "exit", func() bool { return n.status(c).Reason == "StartError" })
		if s := n.wait(c); s.ExitCode != code || s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.Message == "" {
			t.Errorf("%v: %v", errno, s)
		}
	}
}

func TestExitCodes(t *testing.T) {
	n := newNode(t, newFakes())
	pod := n.run(podRequest("web"))
	for code, reason := range map[string]string{"0": "Completed", "3": "Error"} {
		c := n.create(pod, containerRequest("c"+code, "exit", code))
		n.start(c)
		if s := n.wait(c); itoa(int(s.ExitCode)) != code || s.Reason != reason || s.StartedAt == 0 {
			t.Errorf("%v", s)
		}
	}
}

// TestStopEndsCreations: a creation that hangs does not hold the stop of its pod up.
func TestStopEndsCreations(t *testing.T) {
	n := newNode(t, newFakes())
	pod := n.run(podRequest("web"))
	n.images.block = make(chan struct{}) // for ever
	result := make(chan error, 1)
	go func() {
		_, err := n.m.CreateContainer(bg, pod, containerRequest("c", "sleep"), nil)
		result <- err
	}()
	eventually(t, "creation begins", func() bool { return len(n.m.index.Load().pods[pod].containers()) == 1 })
	if err := n.m.StopPodSandbox(bg, pod); err != nil {
		t.Fatal(err)
	}
	if err := <-result; !errors.Is(err, ErrState) || errors.Is(err, context.Canceled) { // that it was cancelled would be the code
		t.Errorf("the creation: %v", err)
	}
	if got := n.m.index.Load().pods[pod].containers(); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
}

// TestReadsNeverWait: lists and statuses answer while a pod's record is being written by somebody stuck.
func TestReadsNeverWait(t *testing.T) {
	n := newNode(t, newFakes())
	pod := n.run(podRequest("web"))
	c := n.create(pod, containerRequest("c", "sleep"))
	sb, ct := n.m.index.Load().pods[pod], n.m.index.Load().containers[c]
	ct.mu.Lock() // whoever writes the records
	defer ct.mu.Unlock()
	sb.mu.Lock()
	defer sb.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.m.ListContainers(nil)
		n.m.ListPodSandbox(nil)
		_, _, _ = n.m.ContainerStatus(c, true)
		_, _, _ = n.m.PodSandboxStatus(sb.id)
	}()
	select {
	case <-done:
	case <-time.After(2 * time.Second):
		t.Fatal("a read waits for a writer")
	}
}

// TestEarlyExit: the report of the exit overtakes the answer to the creation.
func TestEarlyExit(t *testing.T) {
	n := newNode(t, newFakes())
	pod := n.run(podRequest("web"))
	sb := n.m.index.Load().pods[pod]
	c, err := sb.newContainer(newID(), containerRequest("c", "sleep"))
	if err == nil {
		err = c.makeDir()
	}
	if err != nil {
		t.Fatal(err)
	}
	sb.watched.Store(c.id, c)
	c.ended(exit{code: 3, at: 2})
	if err := c.update(event{what: created, at: 1, pid: 7}); err != nil {
		t.Error(err)
	}
	if f := c.facts.Load(); f.Finished != 2 || f.ExitCode != 3 {
		t.Errorf("%+v", f)
	}
	select {
	case <-c.done:
	default:
		t.Error("nobody is told")
	}
}

// TestWhoseVolume: the source of a mount that the request names is its caller's fault and named by its field; any other's is not.
func TestWhoseVolume(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	bad := specs.Mount{Type: "bind", Source: file + "/below", Destination: "/v", Options: []string{"rprivate"}}
	private := specs.Mount{Type: "bind", Source: file + ".missing", Destination: "/v", Options: []string{"rshared"}}
	v := newVolumeOpener(time.Minute)
	for _, m := range []specs.Mount{bad, private} {
		for _, asked := range []bool{true, false} {
			kind := ErrState
			if asked {
				kind = ErrInvalid
			}
			c := &Container{pod: &Sandbox{dir: "/nowhere"}, config: &runtimeapi.ContainerConfig{Mounts: []*runtimeapi.Mount{{HostPath: "/other", ContainerPath: "/v"}}}}
			if asked {
				c.config.Mounts[0].HostPath = m.Source + "/"
			}
			_, err := v.openAll(bg, &operation{}, c.openers(nil), []specs.Mount{m})
			if !errors.Is(err, kind) || errors.Is(err, ErrInvalid) != asked || !strings.Contains(err.Error(), m.Source) || strings.Contains(err.Error(), "config.") != asked {
				t.Errorf("%s, in the request %v: %v", m.Source, asked, err)
			}
		}
	}
	gone := fmt.Errorf("open: %w", unix.ESTALE)
	for _, o := range []openers{{}, {asked: map[place]bool{{bad.Source, bad.Destination}: true}}} {
		if err := o.refuse(bad, gone); !errors.Is(err, ErrUnavailable) {
			t.Errorf("a server that is gone: %v", err)
		}
	}
}

// TestStuckVolume: a volume that does not answer costs its own request a deadline and one thread, no more.
func TestStuckVolume(t *testing.T) {
	v := newVolumeOpener(50 * time.Millisecond)
	stuck, err := v.claim(bg, "/nfs") // somebody's thread hangs in there
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := v.open(bg, specs.Mount{Type: "bind", Source: "/nfs"}, true); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%v", err)
		}
	}
	if len(v.stuck) != 1 {
		t.Errorf("%d threads", len(v.stuck))
	}
	close(stuck)
}
