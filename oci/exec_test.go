package oci

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/oci/seccomp/profile"
)

func TestExecRefusals(t *testing.T) {
	n := newNode(t)
	p := n.pod(nil)
	argv := func(a ...string) ExecConfig { return ExecConfig{Process: n.spec(a...).Process} }
	if _, err := p.Process("nobody").Exec(t.Context(), argv("true")); !errors.Is(err, ErrNotFound) {
		t.Errorf("exec in nothing: %v", err)
	}
	created := n.create(p, "created", "true")
	if _, err := created.Exec(t.Context(), argv("true")); !errors.Is(err, ErrState) {
		t.Errorf("exec before the start: %v", err)
	}
	pr := n.run(p, "c", "sleep", "1000")
	for range 50 { // its failure and its end are close together
		_, err := pr.Exec(t.Context(), argv("/bin/nothing"))
		var se *StartError
		if !errors.As(err, &se) || !errors.Is(err, syscall.ENOENT) {
			t.Fatalf("exec of nothing: %v", err)
		}
	}
	pr.Signal(t.Context(), unix.SIGKILL)
	exited(t, p, "c")
	if _, err := pr.Exec(t.Context(), argv("true")); !errors.Is(err, ErrState) {
		t.Errorf("exec in the dead: %v", err)
	}
}

// An exec is in all of the container's namespaces and in its own leaf of the
// cgroup, and its stdio is what the daemon gave.
func TestExecPlace(t *testing.T) {
	n := newNode(t)
	p := n.pod(nil)
	pr := n.run(p, "c", "sleep", "1000")
	leaf := n.leaf("c/exec-1")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	in, feed, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer feed.Close()
	e, err := pr.Exec(t.Context(), ExecConfig{Process: n.spec("cat").Process, Cgroup: leaf, Stdin: in, Stdout: w})
	w.Close()
	in.Close()
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"mnt", "pid", "net", "ipc", "uts", "cgroup"} {
		if nsOf(t, e.Pid(), kind) != nsOf(t, pr.Pid(), kind) {
			t.Errorf("exec has another %s namespace", kind)
		}
	}
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", e.Pid())); err != nil || !strings.HasSuffix(strings.TrimSpace(string(b)), "/c/exec-1") {
		t.Errorf("exec is in %q, %v", b, err)
	}
	if fds := fdsOf(t, e.Pid()); len(fds) != 3 || fds["2"] != "/null" {
		t.Errorf("exec holds %v", fds)
	}
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", e.Pid())); err != nil || !strings.Contains(string(b), "SECRET=xyzzy") {
		t.Errorf("environment %q, %v", b, err)
	}
	io.WriteString(feed, "through and back\n")
	feed.Close()
	if out, err := io.ReadAll(r); err != nil || string(out) != "through and back\n" {
		t.Errorf("output %q, %v", out, err)
	}
	if s, err := e.Wait(t.Context()); err != nil || s.ExitCode() != 0 {
		t.Errorf("status %+v, %v", s, err)
	}
}

// A long exec, a create that hangs and a start hold up nobody.
func TestNothingIsHeldUp(t *testing.T) {
	n := newNode(t)
	p := n.pod(nil)
	pr := n.run(p, "c", "sleep", "1000")
	e, err := pr.Exec(t.Context(), ExecConfig{Process: n.spec("sleep", "1000").Process})
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	var all sync.WaitGroup
	for i := range 40 {
		all.Go(func() {
			if out, s := run(t, pr, "sh", "-c", "echo $0; exit $0", strconv.Itoa(i)); out != fmt.Sprintln(i) || s.Code != i {
				t.Errorf("exec %d: %q, %+v", i, out, s)
			}
		})
	}
	all.Wait()
	if d := time.Since(start); d > time.Minute {
		t.Errorf("40 execs took %v", d)
	}
	if err := unix.Kill(e.Pid(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if s, err := e.Wait(t.Context()); err != nil || s.Signal != unix.SIGTERM || s.ExitCode() != 143 {
		t.Errorf("long exec: %+v, %v", s, err)
	}
}

// The profile of a container holds for it and for what is executed in it.
func TestSeccomp(t *testing.T) {
	n := newNode(t)
	p := n.pod(nil)
	filter, err := profile.Default(nil, "amd64")
	if err != nil {
		t.Fatal(err)
	}
	c := n.config(p, "c", "sleep", "1000")
	c.Spec.Linux.Seccomp = filter
	pr, err := p.Create(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := pr.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	e, err := pr.Exec(t.Context(), ExecConfig{Process: n.spec("sleep", "1000").Process, Seccomp: filter})
	if err != nil {
		t.Fatal(err)
	}
	for name, pid := range map[string]int{"container": pr.Pid(), "exec": e.Pid()} {
		if got := status(t, pid, "Seccomp"); got != "2" {
			t.Errorf("%s has seccomp mode %q", name, got)
		}
	}
}

// What has to do with the descriptors of a container: stdin, /dev/stdout for a
// user that is not root, and that none is left behind in the monitor.
func TestStdio(t *testing.T) {
	n := newNode(t)
	p := n.pod(nil)
	before := fdsOf(t, p.MonitorPid())
	c := n.config(p, "user", "sh", "-c", "echo one; echo two >/proc/self/fd/1; test -r /proc/self/fd/0 && echo three")
	c.Spec.Process.User = specs.User{UID: 1000, GID: 1000}
	pr, err := p.Create(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := pr.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	exited(t, p, "user")
	if got := n.log(p, "user"); got != "one\ntwo\nthree\n" {
		t.Errorf("log %q", got)
	}
	// stdin without /dev/null: open until the container ends.
	c = n.config(p, "stdin", "cat")
	c.Stdin = true
	if pr, err = p.Create(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if err := pr.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	// stdin as /dev/null: at its end.
	n.run(p, "null", "cat")
	exited(t, p, "null")
	if l, _ := p.List(t.Context()); len(l) != 3 || l[1].Phase != Running {
		t.Errorf("list %+v", l)
	}
	pr.Signal(t.Context(), unix.SIGKILL)
	exited(t, p, "stdin")
	// Without a log the output goes nowhere.
	c = n.config(p, "quiet", "sh", "-c", "echo nobody reads this")
	c.LogPath = ""
	if pr, err = p.Create(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if err := pr.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := exited(t, p, "quiet"); s.Code != 0 {
		t.Errorf("status %+v", s)
	}
	c = n.config(p, "tty", "true")
	c.TTY = true
	if _, err := p.Create(t.Context(), c); !errors.Is(err, ErrInvalid) {
		t.Errorf("terminal that the spec knows nothing of: %v", err)
	}
	eventually(t, "the monitor's descriptors are what they were", func() bool { return len(fresh(t, p.MonitorPid(), before)) == 0 })
	if t.Failed() {
		t.Logf("%v", fdsOf(t, p.MonitorPid()))
	}
}

func TestReopenLog(t *testing.T) {
	n := newNode(t)
	p := n.pod(nil)
	c := n.config(p, "c", "sh", "-c", "echo old; until test -e /tmp/go; do sleep 0.01; done; echo new")
	path := c.LogPath
	pr, err := p.Create(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := pr.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "old", func() bool { return n.log(p, "c") == "old\n" })
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := pr.ReopenLog(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.rootfs, "tmp/go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	exited(t, p, "c")
	if got := n.log(p, "c"); got != "new\n" {
		t.Errorf("after the rotation %q", got)
	}
	if err := pr.ReopenLog(t.Context()); !errors.Is(err, ErrState) {
		t.Errorf("reopen of the dead: %v", err)
	}
}

// oom_score_adj: what the spec asks for, as far as this root may; never the
// monitor's own.
func TestOOMScoreAdj(t *testing.T) {
	n := newNode(t)
	p := n.pod(nil)
	high := 777
	c := n.config(p, "high", "sleep", "1000")
	c.OOMScoreAdj = &high
	pr, err := p.Create(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if got := procFile(t, pr.Pid(), "oom_score_adj"); got != "777" || pr.OOMScoreAdj() != 777 || pr.Note() != "" {
		t.Errorf("oom_score_adj %q, note %q", got, pr.Note())
	}
	if err := pr.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out, _ := run(t, pr, "cat", "/proc/self/oom_score_adj"); strings.TrimSpace(out) != "777" {
		t.Errorf("an exec has %q", out)
	}
	low := -997
	c = n.config(p, "low", "sleep", "1000")
	c.OOMScoreAdj = &low
	if pr, err = p.Create(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	got := procFile(t, pr.Pid(), "oom_score_adj")
	if got == "-997" != (pr.Note() == "") || got != strconv.Itoa(pr.OOMScoreAdj()) {
		t.Errorf("oom_score_adj %s, reported %d, note %q", got, pr.OOMScoreAdj(), pr.Note())
	}
	own := procFile(t, os.Getpid(), "oom_score_adj")
	if got := procFile(t, n.create(p, "none", "true").Pid(), "oom_score_adj"); got != own {
		t.Errorf("unasked it has %s, and the daemon %s", got, own)
	}
}

func procFile(t *testing.T, pid int, name string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}
