package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/conformance/stage"
)

// TestPolicyOfANamespace: a namespace with a policy of its own gets nothing that the policy does not allow, neither by a
// pull nor of what is here already, and a kubelet can tell why; another namespace is as it was, on the same node at the
// same time. A policy holds as soon as its file is there.
func TestPolicyOfANamespace(t *testing.T) {
	s := open(t)
	in := func(namespace string) func(*runtimeapi.PodSandboxConfig) {
		return func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Namespace = namespace }
	}
	strict, free := s.runPod("strict", in("strict")), s.runPod("free", in("free"))
	file := filepath.Join(s.PolicyDir, "strict.json")
	if err := os.MkdirAll(s.PolicyDir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(s.PolicyDir) })
	pull := func(p *pod) error {
		_, err := s.cri.Images.PullImage(s.ctx, &runtimeapi.ImageSpec{Image: busybox}, nil, p.cfg)
		return err
	}
	create := func(p *pod) error {
		id, err := s.cri.CreateContainer(s.ctx, p.id, stage.ContainerConfig("c", busybox, "sleep", "1000"), p.cfg)
		if err == nil {
			err = s.cri.RemoveContainer(s.ctx, id)
		}
		return err
	}
	if err := create(strict); err != nil {
		t.Fatalf("before there is a policy: %v", err)
	}
	if err := os.WriteFile(file, []byte(`{"default":[{"type":"reject"}]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	for what, call := range map[string]func(*pod) error{"pull": pull, "create": create} {
		err := call(strict)
		if code(err) != codes.PermissionDenied || !strings.HasPrefix(status.Convert(err).Message(), "SignatureValidationFailed") {
			t.Errorf("%s in the namespace: %v", what, err)
		}
		if err := call(free); err != nil {
			t.Errorf("%s in another: %v", what, err)
		}
	}
	if _, err := s.cri.Pull(s.ctx, busybox); err != nil {
		t.Errorf("pull for nobody: %v", err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	for what, call := range map[string]func(*pod) error{"pull": pull, "create": create} {
		if err := call(strict); err != nil {
			t.Errorf("%s once the policy is gone: %v", what, err)
		}
	}
}
