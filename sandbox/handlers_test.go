package sandbox

import (
	"errors"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/sandbox/spec"
)

// TestHandlers: a pod has the rules of its handler for its life, also when a daemon comes back with another configuration, or
// without the handler. New pods have what is configured.
func TestHandlers(t *testing.T) {
	n := newNode(t, newFakes())
	n.cfg.Handlers = map[string]spec.Handler{"loose": {WritableCgroup: true}, "strict": {NoPrivileged: true}}
	n.restart()
	ask := func(name string) *runtimeapi.PodSandboxConfig {
		cfg := podRequest(name)
		cfg.Annotations = map[string]string{spec.WritableCgroup: "*"}
		return cfg
	}
	if _, err := n.m.RunPodSandbox(bg, podRequest("web"), "gone"); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), `runtime_handler "gone"`) {
		t.Errorf("unknown: %v", err)
	}
	if _, err := n.m.RunPodSandbox(bg, ask("web"), ""); !errors.Is(err, ErrInvalid) {
		t.Errorf("writable under the default handler: %v", err)
	}
	loose, err := n.m.RunPodSandbox(bg, ask("web"), "loose")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.m.RunPodSandbox(bg, ask("web"), "strict"); err == nil {
		t.Error("the same pod under another handler")
	}
	check := func(when string) {
		t.Helper()
		st, _, err := n.m.PodSandboxStatus(loose)
		if err != nil || st.RuntimeHandler != "loose" || st.State != runtimeapi.PodSandboxState_SANDBOX_READY {
			t.Fatalf("%s: %v, %v", when, st, err)
		}
		if l := n.m.ListPodSandbox(nil); len(l) != 1 || l[0].RuntimeHandler != "loose" {
			t.Errorf("%s: %v", when, l)
		}
		if !n.m.index.Load().pods[loose].plan.DelegatesCgroup("c") {
			t.Errorf("%s: the pod has lost what it was promised", when)
		}
	}
	check("at first")
	n.restart()
	check("after a restart")
	n.cfg.Handlers["loose"] = spec.Handler{NoPrivileged: true}
	n.restart()
	check("with a stricter handler")
	n.cfg.Handlers = nil
	n.restart()
	check("without the handler")
	n.create(loose, containerRequest("c", "sleep"))
	if _, err := n.m.RunPodSandbox(bg, ask("other"), "loose"); !errors.Is(err, ErrInvalid) {
		t.Errorf("a new pod without the handler: %v", err)
	}
}

// TestHandlerOfOldRecord: a pod of before the rules were kept has those of the configuration.
func TestHandlerOfOldRecord(t *testing.T) {
	m := &Manager{cfg: Config{Handlers: map[string]spec.Handler{"": {WritableCgroup: true}}}}
	if got := m.rulesOf(&podRecord{}); !got.WritableCgroup {
		t.Errorf("%+v", got)
	}
	if got := m.rulesOf(&podRecord{Rules: &spec.Handler{}}); got.WritableCgroup {
		t.Errorf("%+v", got)
	}
}

// TestRealHandlerSeccomp: a container that names no profile has the default one where its handler says so.
func TestRealHandlerSeccomp(t *testing.T) {
	n := newRealNode(t)
	n.cfg.Handlers = map[string]spec.Handler{"filtered": {DefaultSeccomp: true}}
	n.restart()
	for handler, want := range map[string]string{"": "Seccomp:\t0", "filtered": "Seccomp:\t2"} {
		pod, err := n.m.RunPodSandbox(bg, podRequest("pod"+handler), handler)
		if err != nil {
			t.Fatal(err)
		}
		if got := n.must(n.running(pod, "c", nil), "cat", "/proc/self/status"); !strings.Contains(got, want) {
			t.Errorf("%q: not %q in %s", handler, want, got)
		}
	}
}
