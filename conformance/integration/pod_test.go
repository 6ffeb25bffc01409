package integration

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/conformance/stage"
)

// serve is a script that answers HTTP on a port with a text.
func serve(port, text string) string {
	return "mkdir -p /tmp/www && echo " + text + " >/tmp/www/index.html && echo ready && exec httpd -f -p " + port + " -h /tmp/www"
}

func TestTwoContainersShareANetwork(t *testing.T) {
	s := open(t)
	p := s.runPod("two")
	ip := p.ip()
	web := p.run("web", serve("8080", "hello from web"))
	side := p.run("side", serve("8081", "hello from side"))
	s.eventually("both serve", func() bool { return len(p.logText("web", "stdout")) == 1 && len(p.logText("side", "stdout")) == 1 })

	fetch := func(from, url string) string {
		return s.exec(from, "for i in 1 2 3 4 5 6 7 8 9; do wget -q -O - "+url+" && exit; sleep 0.2; done; exit 1")
	}
	if got := fetch(side, "http://127.0.0.1:8080/"); got != "hello from web" {
		t.Errorf("side to web over localhost: %q", got)
	}
	if got := fetch(web, "http://"+ip+":8081/"); got != "hello from side" {
		t.Errorf("web to side over the pod's address: %q", got)
	}
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + ip + ":8080/")
	if err != nil {
		t.Fatalf("host to pod: %v", err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if string(body) != "hello from web\n" {
		t.Errorf("host to pod: %q", body)
	}
	url, stop, err := stage.ServeHost("hello from the host")
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	if got := fetch(web, url); got != "hello from the host" {
		t.Errorf("pod to host: %q", got)
	}
}

func TestTwoPodsReachEachOther(t *testing.T) {
	s := open(t)
	a, b := s.runPod("pod-a"), s.runPod("pod-b")
	if a.ip() == b.ip() {
		t.Fatalf("both pods have the address %s", a.ip())
	}
	a.run("web", serve("80", "hello from a"))
	asker := b.run("asker", "sleep 1000")
	s.eventually("a serves", func() bool { return len(a.logText("web", "stdout")) == 1 })
	if got := s.exec(asker, "for i in 1 2 3 4 5; do wget -q -O - http://"+a.ip()+"/ && exit; sleep 0.2; done; exit 1"); got != "hello from a" {
		t.Errorf("b to a: %q", got)
	}
}

func TestLifeOfAContainer(t *testing.T) {
	s := open(t)
	p := s.runPod("life")
	id := p.create(stage.ContainerConfig("c", busybox, "/bin/sh", "-c", "echo out; echo err >&2; sleep 1000"))
	if st := s.status(id); st.State != runtimeapi.ContainerState_CONTAINER_CREATED || st.CreatedAt == 0 || st.StartedAt != 0 {
		t.Errorf("after create: %v", st)
	}
	if err := s.cri.StartContainer(s.ctx, id); err != nil {
		t.Fatal(err)
	}
	st := s.status(id)
	if st.State != runtimeapi.ContainerState_CONTAINER_RUNNING || st.StartedAt < st.CreatedAt || st.LogPath != p.logFile("c") {
		t.Errorf("after start: %v", st)
	}
	if st.Image.GetImage() == "" || !strings.HasPrefix(st.ImageRef, "sha256:") && !strings.Contains(st.ImageRef, "@sha256:") {
		t.Errorf("image %q, image ref %q", st.Image.GetImage(), st.ImageRef)
	}
	s.eventually("both streams are in the log", func() bool {
		return strings.Join(p.logText("c", "stdout"), "") == "out" && strings.Join(p.logText("c", "stderr"), "") == "err"
	})
	if err := s.cri.StopContainer(s.ctx, id, 0); err != nil {
		t.Fatal(err)
	}
	st = s.status(id)
	if st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 137 || st.FinishedAt < st.StartedAt || st.Reason != "Error" {
		t.Errorf("after stop: %v", st)
	}
	if pids := p.pids(id); len(pids) != 0 {
		t.Errorf("processes after stop: %v", pids)
	}
	if err := s.cri.RemoveContainer(s.ctx, id); err != nil {
		t.Fatal(err)
	}
	if list, err := s.cri.ListContainers(s.ctx, &runtimeapi.ContainerFilter{PodSandboxId: p.id}); err != nil || len(list) != 0 {
		t.Errorf("after remove: %v (%v)", list, err)
	}
}

// TestStopSendsTERMFirst: StopContainer ends a container that listens within its grace, by its own exit code.
func TestStopSendsTERMFirst(t *testing.T) {
	s := open(t)
	p := s.runPod("term")
	id := p.run("c", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.1; done")
	s.eventually("the trap is set", func() bool { return len(p.logText("c", "stdout")) == 1 })
	begin := time.Now()
	if err := s.cri.StopContainer(s.ctx, id, 20); err != nil {
		t.Fatal(err)
	}
	if st := s.status(id); st.ExitCode != 5 || time.Since(begin) > 10*time.Second {
		t.Errorf("exit code %d after %v", st.ExitCode, time.Since(begin))
	}
}

// TestStopSignals: the stop signal of the request, else of the image, else TERM, is what reaches the first process, which ends by it
// within its grace, and is what ContainerStatus shows. The shell has a trap for each signal and ends with its number; busybox knows
// the real-time ones by number only.
func TestStopSignals(t *testing.T) {
	s := open(t)
	images := map[string]string{"": busybox}
	for name, signal := range map[string]string{"stop-usr1": "SIGUSR1", "stop-rt": "SIGRTMIN+3", "stop-number": "37", "stop-nonsense": "SIGNONSENSE"} {
		images[signal] = s.pullWith(name, nil, func(i *ocispec.Image) { i.Config.StopSignal = signal })
	}
	p := s.runPod("signals")
	const none, term = runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT, runtimeapi.Signal_SIGNAL_SIGTERM
	const usr1, rt = runtimeapi.Signal_SIGNAL_SIGUSR1, runtimeapi.Signal_SIGNAL_SIGRTMINPLUS3
	for _, c := range []struct {
		name    string
		request runtimeapi.Signal
		image   string
		code    int32
		shown   runtimeapi.Signal
	}{
		{"neither", none, "", 15, term},
		{"request-usr1", usr1, "", 10, usr1},
		{"request-rt", rt, "", 37, rt},
		{"image-usr1", none, "SIGUSR1", 10, usr1},
		{"image-rt", none, "SIGRTMIN+3", 37, rt},
		{"image-number", none, "37", 37, rt},
		{"image-nonsense", none, "SIGNONSENSE", 15, term},
		{"request-over-image", usr1, "SIGRTMIN+3", 10, usr1},
		{"request-term-over-image", term, "SIGUSR1", 15, term},
	} {
		const traps = `for n in 1 2 3 10 12 15 34 35 36 37 38 64; do trap "exit $n" $n; done; echo ready; while :; do sleep 0.1; done`
		id := p.run(c.name, traps, func(cfg *runtimeapi.ContainerConfig) {
			cfg.StopSignal, cfg.Image.Image = c.request, images[c.image]
		})
		s.eventually("the traps are set", func() bool { return len(p.logText(c.name, "stdout")) == 1 })
		if st := s.status(id); st.StopSignal != c.shown {
			t.Errorf("%s: shown before as %v, want %v", c.name, st.StopSignal, c.shown)
		}
		grace, begin := s.Scale(20*time.Second), time.Now()
		if err := s.cri.StopContainer(s.ctx, id, int64(grace/time.Second)); err != nil {
			t.Fatal(err)
		}
		st := s.status(id)
		if took := time.Since(begin); st.ExitCode != c.code || st.StopSignal != c.shown || took > grace/2 {
			t.Errorf("%s: exit code %d after %v, %v is shown; want %d, %v", c.name, st.ExitCode, took, st.StopSignal, c.code, c.shown)
		}
	}
}

func TestExitCodes(t *testing.T) {
	s := open(t)
	p := s.runPod("codes")
	for name, c := range map[string]struct {
		script string
		code   int32
		reason string
	}{
		"zero":   {"exit 0", 0, "Completed"},
		"seven":  {"exit 7", 7, "Error"},
		"killed": {"kill -9 $$", 137, "Error"},
	} {
		// The shell is pid 1 of its namespace, so SIGKILL from within needs a child.
		if name == "killed" {
			c.script = "sh -c 'kill -9 $$'; exit $?"
		}
		if st := s.exited(p.run(name, c.script)); st.ExitCode != c.code || st.Reason != c.reason {
			t.Errorf("%s: exit code %d, reason %q; want %d, %q", name, st.ExitCode, st.Reason, c.code, c.reason)
		}
	}
}

func TestExecSync(t *testing.T) {
	s := open(t)
	p := s.runPod("exec")
	id := p.run("c", "sleep 1000")
	out, errOut, err := s.cri.ExecSync(s.ctx, id, []string{"/bin/sh", "-c", "echo to-out; echo to-err >&2"}, 10*time.Second)
	if err != nil || string(out) != "to-out\n" || string(errOut) != "to-err\n" {
		t.Errorf("out %q, err %q: %v", out, errOut, err)
	}
	var status interface{ ExitStatus() int }
	_, _, err = s.cri.ExecSync(s.ctx, id, []string{"/bin/sh", "-c", "exit 3"}, 10*time.Second)
	if s, ok := err.(interface{ ExitStatus() int }); ok {
		status = s
	}
	if status == nil || status.ExitStatus() != 3 {
		t.Errorf("exit 3: %v", err)
	}
	if _, _, err := s.cri.ExecSync(s.ctx, id, []string{"/no/such/program"}, 10*time.Second); err == nil {
		t.Error("a program that does not exist was executed")
	}
	large, _, err := s.cri.ExecSync(s.ctx, id, []string{"/bin/sh", "-c", "dd if=/dev/zero bs=1024 count=1024 2>/dev/null"}, 20*time.Second)
	if err != nil || len(large) != 1<<20 || len(bytes.Trim(large, "\x00")) != 0 {
		t.Errorf("1 MiB through exec: %d bytes (%v)", len(large), err)
	}
}

// TestExecTimeoutKillsTheTree: the time-out is DeadlineExceeded, comes in time, and nothing of the command lives on (critest L210), whatever its
// processes have done to be nobody's children, to be in a session of their own or to hear no signal. The container notices nothing.
func TestExecTimeoutKillsTheTree(t *testing.T) {
	s := open(t)
	p := s.runPod("exec-timeout")
	id := p.run("c", "sleep 1000")
	before := p.pids(id)
	const tree = `
		(trap '' TERM HUP INT; exec sleep 771) &
		setsid sleep 772 &
		(sleep 773 &)
		(setsid sh -c 'trap "" TERM; sleep 774 & sleep 775' </dev/null >/dev/null 2>&1 &)
		exec sleep 776`
	asks, limit := []string{"sleep 771", "sleep 772", "sleep 773", "sleep 774", "sleep 775", "sleep 776"}, s.Scale(time.Second)
	request := &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"/bin/sh", "-c", tree}, Timeout: int64(limit / time.Second)}
	type answer struct {
		r    *runtimeapi.ExecSyncResponse
		err  error
		took time.Duration
	}
	answers := make(chan answer, 1)
	client := runtimeapi.NewRuntimeServiceClient(s.bareConn())
	go func() { // ends with the answer
		begin := time.Now()
		r, err := client.ExecSync(s.ctx, request)
		answers <- answer{r, err, time.Since(begin)}
	}()
	grown := false
	var a answer
	for waiting := true; waiting; {
		select {
		case a = <-answers:
			waiting = false
		case <-time.After(20 * time.Millisecond):
			grown = grown || slices.Equal(p.commandsOf(p.execLeaves(id)), asks)
		}
	}
	if !grown {
		t.Errorf("the whole tree has never been there, %v", asks)
	}
	if code(a.err) != codes.DeadlineExceeded || a.r != nil || a.took < limit || a.took > limit+s.Scale(2*time.Second) {
		t.Errorf("after %v: %v, %v; want DeadlineExceeded after %v", a.took, a.r, a.err, limit)
	}
	if left := p.execLeaves(id); len(left) != 0 {
		t.Errorf("cgroups of the exec are left: %v", left)
	}
	out := s.exec(id, "ps -o args")
	for _, one := range asks {
		if slices.Contains(strings.Split(out, "\n"), one) {
			t.Errorf("%s lives on", one)
		}
	}
	if after := p.pids(id); !slices.Equal(after, before) {
		t.Errorf("the container has processes %v, it had %v", after, before)
	}
	if st := s.status(id); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING || len(s.exec(id, "cat /etc/vitrine-image")) == 0 {
		t.Errorf("the container is %v", st)
	}
}

// execLeaves returns the cgroups of what is executed in a container.
func (p *pod) execLeaves(id string) (found []string) {
	p.Helper()
	_ = filepath.WalkDir("/sys/fs/cgroup"+p.cfg.Linux.CgroupParent, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(path, id) && strings.HasPrefix(d.Name(), "exec-") {
			found = append(found, path)
		}
		return nil // one may go while we look
	})
	return found
}

// commandsOf returns what the processes of cgroups were executed as, in order.
func (p *pod) commandsOf(cgroups []string) (commands []string) {
	for _, dir := range cgroups {
		text, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		for _, pid := range strings.Fields(string(text)) {
			args, _ := os.ReadFile("/proc/" + pid + "/cmdline")
			if line := strings.TrimRight(strings.ReplaceAll(string(args), "\x00", " "), " "); strings.HasPrefix(line, "sleep ") {
				commands = append(commands, line)
			}
		}
	}
	slices.Sort(commands)
	return commands
}

// TestExecInADeadPIDNamespace: when the first process of a pid namespace has been killed, nobody new can be born there: ENOMEM of
// clone3. A container in it that is still on its way out runs by all that anybody was told. A command at that moment has come too
// late, which is FailedPrecondition, and not a node without memory.
func TestExecInADeadPIDNamespace(t *testing.T) {
	s := open(t)
	shared := func(o *runtimeapi.NamespaceOption) { o.Pid = runtimeapi.NamespaceMode_POD }
	p := s.runPod("exec-dead", func(c *runtimeapi.PodSandboxConfig) { shared(c.Linux.SecurityContext.NamespaceOptions) })
	id := p.run("c", "echo ready; exec sleep 1000", func(c *runtimeapi.ContainerConfig) { shared(c.Linux.SecurityContext.NamespaceOptions) })
	pids := p.pids(id)
	if len(pids) != 1 {
		t.Fatalf("processes %v, want one", pids)
	}
	s.exec(id, "true") // the legal case
	let, err := stopAtExit(t, pids[0])
	if err != nil {
		t.Fatal(err)
	}
	defer let()
	if err := syscall.Kill(firstBeside(t, pids[0]), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.eventually("the container is on its way out", func() bool { return processState(pids[0]) == 't' })
	answer := make(chan error, 1)
	go func() { // ends with the answer
		_, _, err := s.cri.ExecSync(s.ctx, id, []string{"/bin/true"}, 10*time.Second)
		answer <- err
	}()
	select {
	case err := <-answer:
		t.Errorf("before the container has ended: %v", err)
	case <-time.After(200 * time.Millisecond):
		let()
		if err := <-answer; code(err) != codes.FailedPrecondition {
			t.Errorf("%v, want FailedPrecondition", err)
		}
	}
}

// firstBeside returns the process that is the first in the pid namespace of another.
func firstBeside(t *testing.T, pid int) int {
	t.Helper()
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
	if err != nil {
		t.Fatal(err)
	}
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range all {
		text, _ := os.ReadFile(dir + "/status")
		_, rest, _ := strings.Cut(string(text), "\nNSpid:")
		line, _, _ := strings.Cut(rest, "\n")
		if its, _ := os.Readlink(dir + "/ns/pid"); its == ns && strings.HasSuffix(line, "\t1") {
			first, _ := strconv.Atoi(filepath.Base(dir))
			return first
		}
	}
	t.Fatalf("%s has no first process", ns)
	return 0
}

// stopAtExit traces a process, so that it stops with all its namespaces when it has been killed, until let is called.
func stopAtExit(t *testing.T, pid int) (let func(), err error) {
	over, traced, done := make(chan struct{}), make(chan error, 1), make(chan struct{})
	go func() { // ends with over
		defer close(done)
		runtime.LockOSThread() // who traces is a thread
		defer runtime.UnlockOSThread()
		_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(pid), 0, unix.PTRACE_O_TRACEEXIT, 0, 0)
		if errno != 0 {
			traced <- fmt.Errorf("trace %d: %w", pid, errno)
			return
		}
		traced <- nil
		<-over
		if err := unix.PtraceDetach(pid); err != nil {
			t.Errorf("let %d go: %v", pid, err)
		}
	}()
	return sync.OnceFunc(func() { close(over); <-done }), <-traced
}

// processState is the state of a process as in /proc/PID/stat, 0 for one that is gone.
func processState(pid int) byte {
	text, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	_, rest, _ := bytes.Cut(text, []byte(") "))
	if len(rest) == 0 {
		return 0
	}
	return rest[0]
}

func TestPodSandboxStatusAndList(t *testing.T) {
	s := open(t)
	p := s.runPod("listed", func(c *runtimeapi.PodSandboxConfig) {
		c.Annotations = map[string]string{"vitrine.test/key": "a value, unaltered: {}\n"}
	})
	st, err := s.cri.PodSandboxStatus(s.ctx, p.id, false)
	if err != nil {
		t.Fatal(err)
	}
	if st.Status.State != runtimeapi.PodSandboxState_SANDBOX_READY || st.Status.Annotations["vitrine.test/key"] != "a value, unaltered: {}\n" || st.Status.Metadata.GetUid() != p.cfg.Metadata.Uid {
		t.Errorf("status: %v", st.Status)
	}
	list, err := s.cri.ListPodSandbox(s.ctx, &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"io.kubernetes.pod.uid": p.cfg.Metadata.Uid}})
	if err != nil || len(list) != 1 || list[0].Id != p.id {
		t.Errorf("list by label: %v (%v)", list, err)
	}
	if err := s.cri.StopPodSandbox(s.ctx, p.id); err != nil {
		t.Fatal(err)
	}
	if st, err := s.cri.PodSandboxStatus(s.ctx, p.id, false); err != nil || st.Status.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("after stop: %v (%v)", st, err)
	}
	if _, err := s.cri.CreateContainer(s.ctx, p.id, stage.ContainerConfig("late", busybox, "true"), p.cfg); err == nil {
		t.Error("a container was created in a stopped pod")
	}
}
