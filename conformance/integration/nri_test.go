package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/conformance/stage"
)

// podEvents and ctrEvents are what a plugin hears of a life without incidents.
var (
	podEvents = []string{"RunPodSandbox", "StopPodSandbox", "RemovePodSandbox"}
	ctrEvents = []string{"CreateContainer", "PostCreateContainer", "StartContainer", "PostStartContainer", "StopContainer", "RemoveContainer"}
)

// TestNRIOrder: a plugin hears of everything once and in order, also of a container that ends by itself, before it is removed; and of
// a pod's containers before the pod. While it thinks about a pod nobody sees that.
func TestNRIOrder(t *testing.T) {
	s := open(t)
	s.withNRI("")
	pl := s.plugin("10", "order")
	listed := -1
	pl.set(func() {
		pl.say = func(event string) error {
			if event == "RunPodSandbox" {
				pods, err := s.cri.ListPodSandbox(s.ctx, nil)
				listed = len(pods)
				return err
			}
			return nil
		}
	})
	p := s.runPod("order")
	if listed != 0 {
		t.Errorf("%d pods are listed while a plugin is asked about the first", listed)
	}
	p.run("short", "exit 3")
	p.run("long", "sleep 1000")
	s.eventually("the exit is told", func() bool { return slices.Contains(pl.of("short"), "StopContainer") })
	if c := pl.ctr("short"); c.GetExitCode() != 3 || c.GetState() != api.ContainerState_CONTAINER_STOPPED || c.GetPid() == 0 {
		t.Errorf("the container that ended: %v", c)
	}
	for range 2 {
		if err := s.cri.StopPodSandbox(s.ctx, p.id); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.cri.RemovePodSandbox(s.ctx, p.id); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]string{"order": podEvents, "short": ctrEvents, "long": ctrEvents} {
		if got := pl.of(name); !slices.Equal(got, want) {
			t.Errorf("%s: heard %q, want %q", name, got, want)
		}
	}
	pl.set(func() {
		if stop, end := slices.Index(pl.events, "StopPodSandbox order"), slices.Index(pl.events, "StopContainer long"); end > stop {
			t.Errorf("the pod's stop was told before its container's: %q", pl.events)
		}
		pod := pl.pods["order"]
		if ns := pod.GetLinux().GetNamespaces(); len(ns) != 1 || ns[0].GetType() != "network" || len(pod.GetIps()) == 0 || pod.GetUid() == "" {
			t.Errorf("the pod: %v", pod)
		}
	})
}

// TestNRIAdjust: each adjustment is seen from inside the container.
func TestNRIAdjust(t *testing.T) {
	s := open(t)
	s.withNRI("")
	dir := filepath.Join(s.Scratch, "nri")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("from the plugin"), 0o644); err != nil {
		t.Fatal(err)
	}
	pl := s.plugin("10", "adjust")
	pl.set(func() {
		pl.adjust = func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate) {
			a := &api.ContainerAdjustment{}
			a.AddAnnotation("vitrine.test/seen", "yes")
			a.AddEnv("ADDED", "by plugin")
			a.RemoveEnv("GONE")
			a.SetArgs([]string{"/bin/sh", "-c", "echo adjusted; sleep 1000"})
			a.AddMount(&api.Mount{Destination: "/plugin", Type: "bind", Source: dir, Options: []string{"ro", "noexec"}})
			a.AddMount(&api.Mount{Destination: "/scratch", Type: "tmpfs", Options: []string{"size=4096"}})
			a.AddRlimit("RLIMIT_NOFILE", 77, 66)
			a.AddDevice(&api.LinuxDevice{Path: "/dev/mine", Type: "c", Major: 1, Minor: 5, FileMode: api.FileMode(os.FileMode(0o600))})
			a.SetLinuxMemoryLimit(64 << 20)
			a.SetLinuxPidLimits(55)
			a.SetLinuxOomScoreAdj(&[]int{321}[0])
			return a, nil
		}
	})
	p := s.runPod("adjust")
	id := p.run("c", "sleep 1000", func(c *runtimeapi.ContainerConfig) {
		c.Envs = append(c.Envs, &runtimeapi.KeyValue{Key: "GONE", Value: []byte("1")}, &runtimeapi.KeyValue{Key: "KEPT", Value: []byte("1")})
	})
	s.eventually("the arguments are the plugin's", func() bool { return slices.Equal(p.logText("c", "stdout"), []string{"adjusted"}) })
	for script, want := range map[string]string{
		`tr '\0' '\n' < /proc/1/environ | grep -E '^(ADDED|GONE|KEPT)' | sort | tr '\n' ' '`: "ADDED=by plugin KEPT=1 ",
		"cat /plugin/f": "from the plugin",
		"touch /plugin/g 2>&1 | grep -o 'Read-only.*'":              "Read-only file system",
		"grep -E ' /plugin .*noexec' /proc/self/mountinfo | wc -l":  "1",
		"df -k /scratch | tail -1 | awk '{print $2}'":               "4",
		"grep 'open files' /proc/1/limits | awk '{print $4, $5}'":   "66 77",
		"stat -c '%t:%T %a' /dev/mine; head -c 3 /dev/mine | wc -c": "1:5 600\n3",
		"cat /proc/1/oom_score_adj":                                 "321",
	} {
		if got := s.exec(id, script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	if r := p.spec(id).Linux.Resources; r.Memory == nil || *r.Memory.Limit != 64<<20 || r.Unified["pids.max"] != "55" {
		t.Errorf("limits that were asked for: %+v", r)
	}
	if len(stage.MissingControllers()) == 0 {
		st := s.status(id).GetResources().GetLinux()
		if st.GetMemoryLimitInBytes() != 64<<20 || st.GetUnified()["pids.max"] != "55" {
			t.Errorf("limits: %v", st)
		}
	}
	if c := pl.ctr("c"); c.GetAnnotations()["vitrine.test/seen"] != "yes" {
		t.Errorf("annotations afterwards: %v", c.GetAnnotations())
	}
}

// spec reads what a container was made of, with its limits as they were asked for last.
func (p *pod) spec(id string) *specs.Spec {
	p.Helper()
	b, err := os.ReadFile(filepath.Join(p.RunDir, "pods", p.id, id, "config.json"))
	if err != nil {
		p.Fatal(err)
	}
	s := &specs.Spec{}
	if err := json.Unmarshal(b, s); err != nil {
		p.Fatal(err)
	}
	return s
}

// TestNRIRefused: what a plugin cannot have is refused by its name, is no fault of the caller's, and leaves nothing behind.
func TestNRIRefused(t *testing.T) {
	s := open(t)
	s.withNRI("")
	pl := s.plugin("10", "refused")
	p := s.runPod("refused")
	for field, f := range map[string]func(*api.ContainerAdjustment){
		"hooks.create_runtime[0].path": func(a *api.ContainerAdjustment) {
			a.AddHooks(&api.Hooks{CreateRuntime: []*api.Hook{{Path: "bin/true"}}})
		},
		"hooks.createContainer[0] (/bin/false): exit code 1": func(a *api.ContainerAdjustment) {
			a.AddHooks(&api.Hooks{CreateContainer: []*api.Hook{{Path: "/bin/false"}}})
		},
		"hooks.start_container": func(a *api.ContainerAdjustment) {
			a.AddHooks(&api.Hooks{StartContainer: []*api.Hook{{Path: "/bin/true"}}})
		},
		"hooks.poststart": func(a *api.ContainerAdjustment) {
			a.AddHooks(&api.Hooks{Poststart: []*api.Hook{{Path: "/bin/true"}}})
		},
		"hooks.poststop": func(a *api.ContainerAdjustment) {
			a.AddHooks(&api.Hooks{Poststop: []*api.Hook{{Path: "/bin/true"}}})
		},
		"linux.cgroups_path": func(a *api.ContainerAdjustment) { a.SetLinuxCgroupsPath("/elsewhere") },
		"linux.namespaces": func(a *api.ContainerAdjustment) {
			a.AddOrReplaceNamespace(&api.LinuxNamespace{Type: "network", Path: "/proc/1/ns/net"})
		},
		"CDI_devices[0].name":       func(a *api.ContainerAdjustment) { a.AddCDIDevice(&api.CDIDevice{Name: "/dev/null"}) },
		"no such device":            func(a *api.ContainerAdjustment) { a.AddCDIDevice(&api.CDIDevice{Name: "v.com/c=d"}) },
		"linux.sysctl":              func(a *api.ContainerAdjustment) { a.SetLinuxSysctl("net.ipv4.ip_forward", "1") },
		"linux.resources.rdt_class": func(a *api.ContainerAdjustment) { a.SetLinuxRDTClass("gold") },
		"linux.rdt.clos_id":         func(a *api.ContainerAdjustment) { a.SetLinuxRDTClosID("gold") },
		"mounts[0].destination": func(a *api.ContainerAdjustment) {
			a.AddMount(&api.Mount{Destination: "/proc/sys", Type: "bind", Source: "/tmp"})
		},
		"mounts[0].type": func(a *api.ContainerAdjustment) {
			a.AddMount(&api.Mount{Destination: "/x", Type: "overlay", Source: "/tmp"})
		},
	} {
		pl.set(func() {
			pl.adjust = func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate) {
				a := &api.ContainerAdjustment{}
				f(a)
				return a, nil
			}
		})
		_, err := s.cri.CreateContainer(s.ctx, p.id, stage.ContainerConfig("c", busybox, "sleep", "1000"), p.cfg)
		if code(err) != codes.FailedPrecondition || !strings.Contains(status.Convert(err).Message(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
	if list, err := s.cri.ListContainers(s.ctx, nil); err != nil || len(list) != 0 {
		t.Errorf("left behind: %v, %v", list, err)
	}
	if got, want := pl.of("c")[:3], []string{"CreateContainer", "StopContainer", "RemoveContainer"}; !slices.Equal(got, want) {
		t.Errorf("heard %q, want %q", got, want)
	}
}

// TestNRIDevices: a device that a plugin gives brings what one of a request brings, in pods with and without a user namespace, and what the
// container has by its request already it does not get again. Hooks of plugins run in their place, before those of the device.
func TestNRIDevices(t *testing.T) {
	s := open(t)
	s.withNRI("")
	pl := s.plugin("10", "devices")
	dir := filepath.Join(s.mappable(), "nri-devices")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	// Where a hook runs it says who it is: in the container's root if it is one of createContainer, else here.
	script := func(name, to string) string {
		path := filepath.Join(dir, name)
		text := fmt.Sprintf("#!/bin/sh\ncat >/dev/null\necho $1 $WHO >>%s\n", to)
		if err := errors.Join(os.WriteFile(path, []byte(text), 0o755), os.Chmod(dir, 0o755)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if err := os.WriteFile(filepath.Join(dir, "lib"), []byte("library\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	inside, outside := script("inside", "ran"), script("outside", filepath.Join(dir, "ran"))
	for name, node := range map[string]string{"asked": "/dev/full", "given": "/dev/zero"} {
		s.describe(name, fmt.Sprintf(`{"env": ["%[1]s=1"], "additionalGids": [4711], "deviceNodes": [{"path": "/dev/%[1]s", "hostPath": %[4]q}],
			"mounts": [{"hostPath": %[2]q, "containerPath": "/lib/%[1]s", "options": ["ro"]}],
			"hooks": [{"hookName": "createContainer", "path": %[3]q, "args": ["h", %[1]q]}]}`,
			name, dir, inside, node))
	}
	hook := func(path, arg string) []*api.Hook {
		return []*api.Hook{{Path: path, Args: []string{"h", arg}, Env: []string{"WHO=plugin"}, Timeout: &api.OptionalInt{Value: 9}}}
	}
	pl.set(func() {
		pl.adjust = func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate) {
			a := &api.ContainerAdjustment{}
			a.AddCDIDevice(&api.CDIDevice{Name: "test.com/thing=asked"})
			a.AddCDIDevice(&api.CDIDevice{Name: "test.com/thing=given"})
			a.AddHooks(&api.Hooks{Prestart: hook(outside, "prestart"), CreateRuntime: hook(outside, "runtime"), CreateContainer: hook(inside, "container")})
			return a, nil
		}
	})
	for name, c := range map[string]struct {
		pod *pod
		in  func(*runtimeapi.ContainerConfig)
	}{
		"own ids":    {s.runPod("given"), func(*runtimeapi.ContainerConfig) {}},
		"mapped ids": {s.runPod("given-mapped", mapped), inMapped},
	} {
		if err := os.WriteFile(filepath.Join(dir, "ran"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		id := c.pod.run("c", "sleep 1000", device("asked"), c.in)
		for script, want := range map[string]string{
			"echo $asked $given; id -G": "1 1\n0 4711",
			"cat /lib/given/lib; stat -c %u /lib/given/lib; touch /lib/given/x 2>&1 | grep -o 'Read-only.*'": "library\n0\nRead-only file system",
			"(echo x >/dev/asked) 2>&1; head -c 3 /dev/given | wc -c":                                        "sh: write error: No space left on device\n3",
			"cat /ran": "asked\ncontainer plugin\ngiven",
		} {
			if got := s.exec(id, script); got != want {
				t.Errorf("%s: %s: %q, want %q", name, script, got, want)
			}
		}
		if got, err := os.ReadFile(filepath.Join(dir, "ran")); err != nil || string(got) != "prestart plugin\nruntime plugin\n" {
			t.Errorf("%s: outside: %q, %v", name, got, err)
		}
		if got := pl.ctr("c").GetHooks(); len(got.GetPrestart()) != 1 || len(got.GetCreateContainer()) != 3 {
			t.Errorf("%s: the plugin is told of hooks %v", name, got)
		}
	}
	// A missing source is not made, as with a device of a request.
	s.describe("given", fmt.Sprintf(`{"mounts": [{"hostPath": %q, "containerPath": "/x"}]}`, filepath.Join(dir, "nothing")))
	p := s.runPod("poor")
	_, err := s.cri.CreateContainer(s.ctx, p.id, stage.ContainerConfig("c", busybox, "sleep", "1000"), p.cfg)
	if code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), filepath.Join(dir, "nothing")) {
		t.Errorf("a device's source that is missing: %v", err)
	}
}

// TestNRIUpdate: a plugin changes an update, changes another container with a creation, and changes and hears of limits by itself.
func TestNRIUpdate(t *testing.T) {
	s := open(t)
	s.withNRI("")
	pl := s.plugin("10", "update")
	p := s.runPod("update")
	first := p.run("first", "sleep 1000")
	limit := func(n int64) []*api.ContainerUpdate {
		u := &api.ContainerUpdate{}
		u.SetContainerId(first)
		u.SetLinuxMemoryLimit(n)
		return []*api.ContainerUpdate{u}
	}
	is := func(when string, n int64) {
		t.Helper()
		if got := p.spec(first).Linux.Resources.Memory; got == nil || *got.Limit != n {
			t.Errorf("%s: the limit is %+v, want %d", when, got, n)
		}
		if got := s.status(first).GetResources().GetLinux().GetMemoryLimitInBytes(); got != n && len(stage.MissingControllers()) == 0 {
			t.Errorf("%s: the kernel's limit is %d, want %d", when, got, n)
		}
	}
	pl.set(func() {
		pl.update = func(*api.Container, *api.LinuxResources) ([]*api.ContainerUpdate, error) { return limit(80 << 20), nil }
		pl.adjust = func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate) { return nil, limit(90 << 20) }
	})
	if err := s.cri.UpdateContainerResources(s.ctx, first, &runtimeapi.ContainerResources{Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 70 << 20}}); err != nil {
		t.Fatal(err)
	}
	is("after an update that a plugin changed", 80<<20)
	p.create(stage.ContainerConfig("second", busybox, "sleep", "1000"))
	is("after a creation by which a plugin changed it", 90<<20)
	if failed, err := pl.stub.UpdateContainers(limit(100 << 20)); err != nil || len(failed) != 0 {
		t.Errorf("update by a plugin: %v, %v", failed, err)
	}
	is("after an update of a plugin's own", 100<<20)
	if got, want := pl.of("first")[4:], []string{"UpdateContainer", "PostUpdateContainer"}; !slices.Equal(got, want) {
		t.Errorf("heard %q, want %q", got, want)
	}
}

// TestNRIRequired: without a required plugin, with one that says no, and with one that hangs, nothing is made and nothing is left
// behind; and what runs already can be stopped.
func TestNRIRequired(t *testing.T) {
	s := open(t)
	s.withNRI("required = [\"guard\"]\nrequest_seconds = 1")
	cfg, err := s.PodConfig("required")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Forget(cfg) })
	refused := func(when string, want codes.Code) {
		t.Helper()
		id, err := s.cri.RunPodSandbox(s.ctx, cfg, "")
		if code(err) != want || !strings.Contains(err.Error(), "guard") && want == codes.Unavailable {
			t.Errorf("%s: %s, %v; want %v", when, id, err, want)
		}
		name := map[string]string{"io.kubernetes.pod.name": "required"}
		if pods, err := s.cri.ListPodSandbox(s.ctx, &runtimeapi.PodSandboxFilter{LabelSelector: name}); err != nil || len(pods) != 0 {
			t.Errorf("%s: left behind %v, %v", when, pods, err)
		}
	}
	refused("not there", codes.Unavailable)
	pl := s.plugin("10", "guard")
	pl.set(func() { pl.say = func(string) error { return errors.New("not today") } })
	refused("it says no", codes.FailedPrecondition)
	pl.set(func() { pl.say = nil })
	p := s.runPod("running")
	id := p.run("c", "sleep 1000")
	end := make(chan struct{})
	t.Cleanup(func() { close(end) })
	pl.set(func() {
		pl.say = func(string) error {
			<-end
			return nil
		}
	})
	begin := time.Now()
	_, err = s.cri.CreateContainer(s.ctx, p.id, stage.ContainerConfig("d", busybox, "sleep", "1000"), p.cfg)
	if code(err) != codes.Unavailable || !strings.Contains(err.Error(), "guard") {
		t.Errorf("it hangs: %v after %v", err, time.Since(begin))
	}
	refused("it was hung up on", codes.Unavailable)
	if err := s.cri.StopContainer(s.ctx, id, 0); err != nil {
		t.Errorf("stop: %v", err)
	}
	if list, err := s.cri.ListContainers(s.ctx, nil); err != nil || len(list) != 1 {
		t.Errorf("containers afterwards: %v, %v", list, err)
	}
}

// TestNRIRestart: a daemon that was killed tells a plugin that connects again all that it finds.
func TestNRIRestart(t *testing.T) {
	s := open(t)
	s.withNRI("")
	pl := s.plugin("10", "restart")
	p := s.runPod("restart")
	p.run("runs", "sleep 1000", func(c *runtimeapi.ContainerConfig) { c.Labels = map[string]string{"a": "b"} })
	p.exited(p.run("ended", "exit 3"))
	p.create(stage.ContainerConfig("waits", busybox, "sleep", "1000"))
	s.eventually("the exit is told", func() bool { return slices.Contains(pl.of("ended"), "StopContainer") })
	s.killDaemon()
	s.restart()
	again := s.plugin("11", "again")
	again.set(func() {
		want := []string{"ended CONTAINER_STOPPED", "restart", "runs CONTAINER_RUNNING", "waits CONTAINER_CREATED"}
		if !slices.Equal(again.synced, want) {
			t.Errorf("got %q, want %q", again.synced, want)
		}
		c := again.ctrs["runs"]
		if c.GetLabels()["a"] != "b" || c.GetPid() == 0 || len(c.GetArgs()) != 3 || len(c.GetMounts()) == 0 {
			t.Errorf("the container that runs: %v", c)
		}
	})
	if err := s.cri.StopPodSandbox(s.ctx, p.id); err != nil {
		t.Fatal(err)
	}
	if err := s.cri.RemovePodSandbox(s.ctx, p.id); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]string{"restart": podEvents[1:], "runs": ctrEvents[4:], "waits": ctrEvents[4:], "ended": ctrEvents[5:]} {
		if got := again.of(name); !slices.Equal(got, want) {
			t.Errorf("%s: heard %q, want %q", name, got, want)
		}
	}
}

// TestNRIOff: nobody listens where nobody asked for it.
func TestNRIOff(t *testing.T) {
	s := open(t)
	out, err := s.RunDaemon(s.ctx, "--nri-required", "guard")
	if err == nil || !strings.Contains(out, "nri.required") {
		t.Errorf("required without plugins: %v\n%s", err, out)
	}
	if _, err := os.Stat(s.nriSocket()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a socket for plugins: %v", err)
	}
}

// TestNRIEviction: a container that a plugin evicts with its answer about another one is stopped with grace, and only that one; to evict one
// that is not there fails nothing.
func TestNRIEviction(t *testing.T) {
	s := open(t)
	s.withNRI("")
	pl := s.plugin("10", "evict")
	p := s.runPod("evict")
	const polite = "trap 'exit 9' TERM; echo trapped; while :; do sleep 0.1; done"
	first, second, stays := p.run("first", polite), p.run("second", polite), p.run("stays", polite)
	for _, name := range []string{"first", "second"} { // a signal before the trap would end it otherwise
		s.eventually(name+" has its trap", func() bool { return slices.Contains(p.logText(name, "stdout"), "trapped") })
	}
	evict := func(id string) { pl.set(func() { pl.evict = id }) }

	evict(first)
	made := p.run("made", polite)
	if st := s.exited(first); st.ExitCode != 9 {
		t.Errorf("evicted with a creation: %v", st)
	}
	evict(second)
	if err := s.cri.UpdateContainerResources(s.ctx, made, &runtimeapi.ContainerResources{Linux: &runtimeapi.LinuxContainerResources{CpuShares: 512}}); err != nil {
		t.Error(err)
	}
	if st := s.exited(second); st.ExitCode != 9 {
		t.Errorf("evicted with an update: %v", st)
	}
	evict(strings.Repeat("0", 64))
	last := p.run("last", polite)
	for _, id := range []string{stays, made, last} {
		if st := s.status(id); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Errorf("%s, whom nobody evicted: %v", st.Metadata.Name, st.State)
		}
	}
	s.eventually("the plugin hears of the ends", func() bool {
		return slices.Contains(pl.of("first"), "StopContainer") && slices.Contains(pl.of("second"), "StopContainer")
	})
}

// rawEnv gives a container variables that are no text, beside one that is.
func rawEnv(c *runtimeapi.ContainerConfig) {
	for _, kv := range [][2]string{{"RAW", "\xff\xfe\x80"}, {"TAKEN", "\xff"}, {"TEXT", "\u00e9"}} {
		c.Envs = append(c.Envs, &runtimeapi.KeyValue{Key: kv[0], Value: []byte(kv[1])})
	}
}

// envBytes are these variables and one of a plugin's, as a program writes all, in hexadecimal.
const envBytes = `%s | grep -aE '^(RAW|TAKEN|TEXT|ADDED)=' | sort | od -An -v -tx1 | tr -d ' \n'`

// sameEnv wants the variables in an exec and in the first process.
func (s *scene) sameEnv(when, id string, want ...string) {
	s.Helper()
	text := fmt.Sprintf("%x", strings.Join(want, "\n")+"\n")
	for _, by := range []string{`tr '\0' '\n' < /proc/1/environ`, "env"} {
		if got := s.exec(id, fmt.Sprintf(envBytes, by)); got != text {
			s.Errorf("%s: %s says %s, want %s", when, by, got, text)
		}
	}
}

// TestEnvIsBytes: a variable that is not UTF-8 is the same for the first process and for execs of this daemon and the next.
func TestEnvIsBytes(t *testing.T) {
	s := open(t)
	p := s.runPod("bytes")
	id := p.run("c", "sleep 1000", rawEnv)
	want := []string{"RAW=\xff\xfe\x80", "TAKEN=\xff", "TEXT=\u00e9"}
	s.sameEnv("at first", id, want...)
	s.killDaemon()
	s.restart()
	s.sameEnv("after a restart", id, want...)
	if err := s.cri.UpdateContainerResources(s.ctx, id, &runtimeapi.ContainerResources{Linux: &runtimeapi.LinuxContainerResources{CpuShares: 77}}); err != nil {
		t.Fatal(err)
	}
	s.killDaemon()
	s.restart()
	s.sameEnv("after an update and a restart", id, want...)
}

// TestStartErrorIsText: what cannot be executed has a name of any bytes, by PATH, and the reason of the failure is in statuses, events and what
// plugins are told: they can be sent all the same, and the container removed.
func TestStartErrorIsText(t *testing.T) {
	s := open(t)
	s.withNRI("")
	p := s.runPod("bytes")
	volume := filepath.Join(s.Scratch, "volume")
	if err := os.MkdirAll(volume+"/\xff", 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(volume)
	if err := os.WriteFile(volume+"/\xff/x", []byte{0x7f, 'E', 'L', 'F'}, 0o755); err != nil { // no program
		t.Fatal(err)
	}
	cfg := stage.ContainerConfig("c", busybox, "x")
	cfg.Command = []string{"x"}
	cfg.Mounts = []*runtimeapi.Mount{{HostPath: volume, ContainerPath: "/data"}}
	cfg.Envs = []*runtimeapi.KeyValue{{Key: "PATH", Value: []byte("/data/\xff")}}
	id, err := s.cri.CreateContainer(s.ctx, p.id, cfg, p.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cri.StartContainer(s.ctx, id); code(err) != codes.FailedPrecondition {
		t.Fatalf("start: %v", err)
	}
	st := s.status(id)
	if st.Reason != "StartError" || !strings.Contains(st.Message, "/data/?/x") {
		t.Errorf("%s: %q", st.Reason, st.Message)
	}
	if got := s.plugin("10", "late").ctr("c").GetStatusMessage(); got != st.Message {
		t.Errorf("a plugin is told %q", got)
	}
	if err := s.cri.RemoveContainer(s.ctx, id); err != nil {
		t.Error(err)
	}
}

// TestNRIEnvIsBytes: a variable that no message can hold keeps no plugin from connecting and no container from being made. It is told to
// none, at the creation or at the first look; the container has it, unless a plugin takes it away by its name, and what plugins
// add is beside it after a restart as well.
func TestNRIEnvIsBytes(t *testing.T) {
	s := open(t)
	s.withNRI("")
	p := s.runPod("bytes")
	early := p.run("early", "sleep 1000", rawEnv)
	pl := s.plugin("10", "first")
	pl.set(func() {
		pl.adjust = func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate) {
			a := &api.ContainerAdjustment{}
			a.AddEnv("ADDED", "by plugin")
			a.RemoveEnv("TAKEN")
			return a, nil
		}
	})
	id := p.run("c", "sleep 1000", rawEnv)
	told := func(pl *nriPlugin, name, when string, want ...string) {
		t.Helper()
		got := slices.DeleteFunc(slices.Clone(pl.ctr(name).GetEnv()), func(kv string) bool {
			return !slices.Contains([]string{"RAW", "TAKEN", "TEXT", "ADDED"}, kv[:strings.Index(kv, "=")])
		})
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s: told %q, want %q", when, got, want)
		}
	}
	told(pl, "early", "who came late", "TEXT=\u00e9")
	told(pl, "c", "with the creation", "ADDED=by plugin", "TEXT=\u00e9")
	want := []string{"ADDED=by plugin", "RAW=\xff\xfe\x80", "TEXT=\u00e9"}
	s.sameEnv("at first", id, want...)
	s.sameEnv("early", early, "RAW=\xff\xfe\x80", "TAKEN=\xff", "TEXT=\u00e9")
	s.killDaemon()
	s.restart()
	again := s.plugin("11", "bytes")
	told(again, "c", "after a restart", "ADDED=by plugin", "TEXT=\u00e9")
	s.sameEnv("after a restart", id, want...)
}
