package oci

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/oci/notify/notifytest"
	"github.com/vitrine-runtime/vitrine/oci/seccomp"
)

// TestListener: a filter of a container and of an exec asks a process of the
// host, which gets the listener through the monitor. While nobody is there,
// nothing is started.
func TestListener(t *testing.T) {
	n := newNode(t)
	os.Symlink("busybox", filepath.Join(n.rootfs, "bin/mkdir"))
	p := n.pod(nil)
	path := filepath.Join(t.TempDir(), strings.Repeat("long/", 30), "agent.sock") // longer than an address
	os.MkdirAll(filepath.Dir(path), 0o700)
	profile := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, ListenerPath: path, ListenerMetadata: "secret word",
		Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir", "write", "execve", "close", "read", "sendmsg"}, Action: specs.ActNotify}}}
	c := n.config(p, "c", "sh", "-c", "mkdir /tmp/x 2>/tmp/err; exec sleep 1000")
	c.Spec.Linux.Seccomp = profile
	c.Spec.Annotations = map[string]string{"a": "b"}
	bundle := c.Dir
	pr, err := p.Create(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := pr.Start(t.Context()); !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "seccomp listener") {
		t.Fatalf("start with nobody there: %v", err)
	}

	agent := notifytest.Start(t, path)
	told := func(pid int, status specs.ContainerState) {
		t.Helper()
		s := agent.Told()
		if s.Pid != pid || s.State.Pid != pr.Pid() || s.State.ID != "c" || s.State.Status != status || s.State.Bundle != bundle || s.State.Annotations["a"] != "b" || s.Metadata != "secret word" {
			t.Errorf("told %+v of process %d", s, pid)
		}
	}
	if err := pr.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	told(pr.Pid(), specs.StateCreated)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	e, err := pr.Exec(t.Context(), ExecConfig{Process: n.spec("sh", "-c", "until test -s /tmp/err; do sleep 0.01; done; cat /tmp/err; mkdir /tmp/y").Process, Seccomp: profile,
		Bundle: bundle, Annotations: c.Spec.Annotations, Stdout: w, Stderr: w})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	told(e.Pid(), specs.StateRunning)
	text, _ := io.ReadAll(r)
	if strings.Count(string(text), "Level 2 halted") != 2 {
		t.Errorf("output %q", text)
	}
	if s, err := e.Wait(t.Context()); err != nil || s.Code != 1 {
		t.Errorf("status %+v, %v", s, err)
	}
	agent.Asked() // to the end of the exec
	pr.Signal(t.Context(), unix.SIGKILL)
	exited(t, p, "c")
	agent.Asked() // and of the container
	if _, _, _, err := compileSeccomp(profile, 3); !errors.Is(err, seccomp.ErrNotify) {
		t.Errorf("for an older monitor: %v", err)
	}
}
