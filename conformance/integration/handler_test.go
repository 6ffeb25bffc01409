package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestRuntimeHandlers: the daemon tells of its handlers what is true of each, a pod under one has its rules, and keeps
// handler and rules when a daemon comes back that has never heard of it.
func TestRuntimeHandlers(t *testing.T) {
	s := open(t)
	configure := func(text string) {
		t.Helper()
		if err := os.WriteFile(s.Config, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		s.killDaemon()
		s.restart()
	}
	t.Cleanup(func() { _ = os.WriteFile(s.Config, nil, 0o644) })
	configure("[handlers.strict]\nrefuse_privileged = true\nuser_namespaces = 'required'\nseccomp = 'runtime/default'\nallow_writable_cgroups = false\n[handlers.plain]\nuser_namespaces = 'refused'\n")
	st, err := s.cri.Status(s.ctx, false)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, h := range st.GetRuntimeHandlers() {
		name := h.GetName()
		if h.GetFeatures().GetUserNamespaces() {
			name += "+userns"
		}
		if !h.GetFeatures().GetRecursiveReadOnlyMounts() {
			name += "-rro"
		}
		got = append(got, name)
	}
	if strings.Join(got, " ") != "+userns plain strict+userns" {
		t.Errorf("handlers %q", got)
	}

	refused := func(handler string, change func(*runtimeapi.PodSandboxConfig), field string) {
		t.Helper()
		cfg, err := s.PodConfig("refused")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = s.Forget(cfg) }()
		change(cfg)
		if _, err := s.cri.RunPodSandbox(s.ctx, cfg, handler); code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v, want %s", handler, err, field)
		}
	}
	nothing := func(*runtimeapi.PodSandboxConfig) {}
	refused("unknown", nothing, "runtime_handler")
	refused("strict", nothing, "userns_options")
	refused("plain", mapped, "userns_options")
	refused("strict", func(c *runtimeapi.PodSandboxConfig) {
		mapped(c)
		c.Linux.SecurityContext.Privileged = true
	}, "privileged")

	p := s.runPodAs("strict", "strict", mapped)
	one := p.run("one", "sleep 1000", inMapped)
	if got := s.exec(one, "grep Seccomp: /proc/self/status"); got != "Seccomp:\t2" {
		t.Errorf("%q", got)
	}
	configure("")
	pod, err := s.cri.PodSandboxStatus(s.ctx, p.id, false)
	if err != nil || pod.Status.State != runtimeapi.PodSandboxState_SANDBOX_READY || pod.Status.RuntimeHandler != "strict" {
		t.Errorf("without the handler: %v, %v", pod, err)
	}
	two := p.run("two", "sleep 1000", inMapped)
	for _, id := range []string{one, two} {
		if got := s.exec(id, "grep Seccomp: /proc/self/status"); got != "Seccomp:\t2" {
			t.Errorf("%s without the handler: %q", id, got)
		}
	}
	refused("strict", mapped, "runtime_handler")
}

// full is the handler of which privileged containers have the host's devices, and bare the one of which they have not.
const full, bare = "[handlers.full]\nprivileged_devices = 'host'\n", "[handlers.bare]\nprivileged_devices = 'none'\n"

// privilegedPod and inPrivileged are what the kubelet sends for a privileged container and its pod.
func privilegedPod(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true }

func inPrivileged(c *runtimeapi.ContainerConfig) {
	sc := c.Linux.SecurityContext
	sc.Privileged, sc.Seccomp, sc.MaskedPaths, sc.ReadonlyPaths = true, nil, nil, nil
}

// TestPrivilegedWithoutHostDevices: a privileged container of a handler without the host's devices has the standard ones and what its
// request names, and may open no other, whoever makes the node; also one that is made after the handler is gone. With them, it has all.
func TestPrivilegedWithoutHostDevices(t *testing.T) {
	s := open(t)
	if _, err := os.Stat("/dev/kmsg"); err != nil {
		t.Fatalf("the host has no device to look for: %v", err)
	}
	// Nobody drives it: whoever may open it is told so, and whoever may not is told that.
	node := filepath.Join(s.Scratch, "undriven")
	if err := unix.Mknod(node, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 2))); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(node)
	s.configured(full + bare)
	s.describe("undriven", `{"deviceNodes": [{"path": "/dev/described", "hostPath": "`+node+`"}]}`)
	asks := func(c *runtimeapi.ContainerConfig) {
		inPrivileged(c)
		device("undriven")(c)
		c.Devices = []*runtimeapi.Device{{HostPath: node, ContainerPath: "/dev/named", Permissions: "rw"}}
	}
	const kmsg = "(: </dev/kmsg) 2>&1; true"
	const made = "rm -f /tmp/k; mknod /tmp/k c 1 11 && (: </tmp/k) 2>&1; true"
	const none, denied = "No such device or address", "Operation not permitted"
	holds := func(id, script, want string) {
		t.Helper()
		// The shell's own words are longer, and say the same.
		got := strings.ReplaceAll(s.exec(id, script), "nonexistent directory", none)
		if got != want && (want == "" || !strings.HasSuffix(got, ": "+want)) {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	without := func(id string) {
		t.Helper()
		holds(id, "ls /dev/kmsg 2>&1; true", "No such file or directory")
		holds(id, made, denied)
		holds(id, "echo x >/dev/null && head -c 4 /dev/zero | wc -c", "4")
	}
	for _, handler := range []string{"", "full"} {
		p := s.runPodAs(handler, "with"+handler, privilegedPod)
		id := p.run("c", "sleep 1000", inPrivileged)
		holds(id, kmsg, "")
		holds(id, made, "")
	}
	p := s.runPodAs("bare", "bare", privilegedPod)
	plain := p.run("plain", "sleep 1000", inPrivileged)
	without(plain)
	asking := p.run("asking", "sleep 1000", asks)
	without(asking)
	for _, dev := range []string{"/dev/named", "/dev/described"} {
		holds(asking, "cat "+dev+" 2>&1; true", none)
	}
	if err := s.Configure(s.ctx, ""); err != nil {
		t.Fatal(err)
	}
	s.connect()
	without(plain)
	without(p.run("late", "sleep 1000", inPrivileged))
}
