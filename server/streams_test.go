package server

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/sandbox"
)

// TestStreams: B-97 to B-107. What is wrong is refused before there is a URL, and what is right arrives with the whole id.
func TestStreams(t *testing.T) {
	c, f := serve(t, nil)
	exec := func(q *runtimeapi.ExecRequest) func() (string, error) {
		return func() (string, error) { r, err := c.Exec(t.Context(), q); return r.GetUrl(), err }
	}
	attach := func(q *runtimeapi.AttachRequest) func() (string, error) {
		return func() (string, error) { r, err := c.Attach(t.Context(), q); return r.GetUrl(), err }
	}
	forward := func(q *runtimeapi.PortForwardRequest) func() (string, error) {
		return func() (string, error) { r, err := c.PortForward(t.Context(), q); return r.GetUrl(), err }
	}
	sh := []string{"sh"}
	for _, test := range []struct {
		id    string
		call  func() (string, error)
		field string // "" for what is right
	}{
		{"exec", exec(&runtimeapi.ExecRequest{ContainerId: "bb", Cmd: sh, Stdin: true, Stdout: true, Stderr: true}), ""},
		{"exec with a terminal", exec(&runtimeapi.ExecRequest{ContainerId: "bb", Cmd: sh, Stdin: true, Stdout: true, Tty: true}), ""},
		{"B-97 no command", exec(&runtimeapi.ExecRequest{ContainerId: "bb", Stdout: true}), "cmd"},
		{"B-97 empty command", exec(&runtimeapi.ExecRequest{ContainerId: "bb", Cmd: []string{""}, Stdout: true}), "cmd[0]"},
		{"B-97 NUL", exec(&runtimeapi.ExecRequest{ContainerId: "bb", Cmd: []string{"a\x00"}, Stdout: true}), "cmd[0]"},
		{"B-98 no id", exec(&runtimeapi.ExecRequest{Cmd: sh, Stdout: true}), "container_id"},
		{"B-102 terminal and stderr", exec(&runtimeapi.ExecRequest{ContainerId: "bb", Cmd: sh, Stdout: true, Stderr: true, Tty: true}), "tty and stderr cannot both be true"},
		{"B-103 no stream", exec(&runtimeapi.ExecRequest{ContainerId: "bb", Cmd: sh}), "one of stdin, stdout, or stderr must be set"},
		{"attach", attach(&runtimeapi.AttachRequest{ContainerId: "bb", Stdin: true}), ""},
		{"B-98 no id", attach(&runtimeapi.AttachRequest{Stdout: true}), "container_id"},
		{"B-102 terminal and stderr", attach(&runtimeapi.AttachRequest{ContainerId: "bb", Stderr: true, Tty: true}), "tty and stderr"},
		{"B-103 no stream", attach(&runtimeapi.AttachRequest{ContainerId: "bb", Tty: true}), "one of stdin, stdout, or stderr must be set"},
		{"port-forward to any", forward(&runtimeapi.PortForwardRequest{PodSandboxId: "aa"}), ""},
		{"port-forward", forward(&runtimeapi.PortForwardRequest{PodSandboxId: "aa", Port: []int32{1, 65535}}), ""},
		{"B-106 no id", forward(&runtimeapi.PortForwardRequest{}), "pod_sandbox_id"},
		{"B-107 0", forward(&runtimeapi.PortForwardRequest{PodSandboxId: "aa", Port: []int32{80, 0}}), "port[1]"},
		{"B-107 65536", forward(&runtimeapi.PortForwardRequest{PodSandboxId: "aa", Port: []int32{65536}}), "port[0]"},
		{"B-107 many", forward(&runtimeapi.PortForwardRequest{PodSandboxId: "aa", Port: make([]int32, 10000)}), "port"},
	} {
		f.took()
		url, err := test.call()
		calls := f.took()
		if test.field != "" {
			wantError(t, err, codes.InvalidArgument, test.field)
			if len(calls) != 0 {
				t.Errorf("%s: refused after %v", test.id, calls)
			}
			continue
		}
		if err != nil || url == "" || len(calls) != 2 || !strings.Contains(calls[1], podID) && !strings.Contains(calls[1], containerID) {
			t.Errorf("%s: %q, %v, calls %v", test.id, url, err, calls)
		}
	}
	// B-99, B-106: what the manager has against it, nobody is sent to.
	for _, kind := range []struct {
		err  error
		code codes.Code
	}{{sandbox.ErrNotFound, codes.NotFound}, {sandbox.ErrState, codes.FailedPrecondition}} {
		f.do = func(_ context.Context, call string) error {
			if call == "Add" {
				t.Error("a URL for what cannot be")
			}
			return fmt.Errorf("container is exited: %w", kind.err)
		}
		_, err := exec(&runtimeapi.ExecRequest{ContainerId: "bb", Cmd: sh, Stdout: true})()
		wantError(t, err, kind.code, "exited")
		_, err = attach(&runtimeapi.AttachRequest{ContainerId: "bb", Stdout: true})()
		wantError(t, err, kind.code, "exited")
		_, err = forward(&runtimeapi.PortForwardRequest{PodSandboxId: "aa"})()
		wantError(t, err, kind.code, "exited")
	}
}
