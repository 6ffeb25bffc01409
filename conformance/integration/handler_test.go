package integration

import (
	"os"
	"strings"
	"testing"

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
