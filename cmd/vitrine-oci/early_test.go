package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A process whose spec says nothing of its descriptors may have as many as the caller of the runtime, whose Go raises that for
// itself, or lowers it while it starts.
func TestFileLimit(t *testing.T) {
	n := newNode(t)
	var own unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &own); err != nil || own.Max < 800 {
		t.Fatalf("may have %+v, %v", own, err)
	}
	b := n.bundle("ulimit -Sn; ulimit -Hn; exec sleep 1000", func(s map[string]any) { delete(s["process"].(map[string]any), "rlimits") })
	for name, self := range map[string]string{"with the entry": built(t), "without": ""} {
		n := &node{t: t, state: n.state, tag: n.tag, self: self, opens: "ulimit -Sn 777 && "}
		want := fmt.Sprintf("777\n%d\n", own.Max)
		if r := n.oci("run", "-d", "--bundle", b, n.tag); r.code != 0 {
			t.Fatalf("%s: %+v", name, r)
		}
		pid := n.stateOf(n.tag).Pid
		limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
		if f := strings.Fields(string(limits[max(0, bytes.Index(limits, []byte("Max open files"))):])); err != nil || len(f) < 5 || f[3] != "777" || f[4] != strconv.FormatUint(own.Max, 10) {
			t.Errorf("%s: %v: %s", name, err, limits)
		}
		if got := n.must("exec", n.tag, "sh", "-c", "ulimit -Sn; ulimit -Hn"); got != want {
			t.Errorf("exec %s: %q, not %q", name, got, want)
		}
		n.must("delete", "--force", n.tag)
	}
}

// executions counts those of a use of the binary, by strace.
func executions(t *testing.T, options []string, args ...string) (count int, said string) {
	t.Helper()
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("needs Debian's strace: " + err.Error())
	}
	out := filepath.Join(t.TempDir(), "calls")
	cmd := exec.Command(strace, append(append([]string{"-f", "-qq", "-o", out, "-e", "trace=execve,execveat,prctl"}, options...), args...)...)
	text, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	calls, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(calls, []byte("execve")), string(text)
}

// What is executed is put on the copy of its mount in place; where the kernel does not have that it is executed again.
func TestEntryInPlace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes a mount")
	}
	bin := built(t)
	args := []string{bin, "--root", t.TempDir(), "start", "nobody"}
	for _, c := range []struct {
		name    string
		options []string
		want    int
	}{
		{"in place", nil, 1},
		{"without", []string{"-e", "inject=prctl:error=EINVAL:when=1"}, 2},
		{"no descriptor left", []string{"-e", "trace=execve,execveat,open", "-e", "inject=open:error=EMFILE:when=1"}, 2},
	} {
		if got, said := executions(t, c.options, args...); got != c.want || !strings.Contains(said, "nobody: container does not exist") {
			t.Errorf("%s: %d executions: %s", c.name, got, said)
		}
	}
}

// To others a process that was put elsewhere in place looks like any.
func TestEntryLooksLikeItself(t *testing.T) {
	n := newNode(t)
	b, bin := n.bundle("exec sleep 1000", nil), built(t)
	for _, c := range []struct{ name, opens, environ string }{
		{"environment", "exec env -i COLOR=blue FORM=round ", "COLOR=blue\x00FORM=round\x00"},
		{"no environment", "exec env -i ", ""},
	} {
		n := &node{t: t, state: n.state, tag: n.tag, self: bin}
		pidFile := filepath.Join(t.TempDir(), "pid")
		n.opens = "echo $$ > " + pidFile + " && " + strings.Replace(c.opens, "exec ", "set -- "+bin+` "$@" && exec `, 1) + `"$@"; `
		done := make(chan result)
		go func() { done <- n.oci("run", "--bundle", b, n.tag) }()
		quiet := &node{t: t, state: n.state, tag: n.tag}
		for i := 0; i < 250 && quiet.oci("state", n.tag).code != 0; i++ {
			time.Sleep(20 * time.Millisecond)
		}
		quiet.await(n.tag, "running")
		text, err := os.ReadFile(pidFile)
		if err != nil {
			t.Fatal(err)
		}
		proc := "/proc/" + strings.TrimSpace(string(text))
		read := func(file string) string {
			b, err := os.ReadFile(proc + file)
			if err != nil {
				t.Error(err)
			}
			return string(b)
		}
		want := strings.Join([]string{bin, "--root", n.state, "run", "--bundle", b, n.tag}, "\x00") + "\x00"
		if got := read("/cmdline"); got != want {
			t.Errorf("%s: command line %q, not %q", c.name, got, want)
		}
		if got := read("/environ"); got != c.environ {
			t.Errorf("%s: environment %q, not %q", c.name, got, c.environ)
		}
		if got := read("/comm"); got != "vitrine-oci\n" {
			t.Errorf("%s: called %q", c.name, got)
		}
		var st unix.Statfs_t
		if err := unix.Statfs(proc+"/exe", &st); err != nil || st.Flags&unix.ST_RDONLY == 0 {
			t.Errorf("%s: %s/exe: flags %#x, %v", c.name, proc, st.Flags, err)
		}
		if maps := read("/maps"); strings.Contains(maps, bin) {
			t.Errorf("%s: parts of the binary are still where they can be written:\n%s", c.name, maps)
		}
		quiet.must("kill", n.tag, "KILL")
		if r := <-done; r.code != 137 {
			t.Errorf("%s: %+v", c.name, r)
		}
	}
}

// What the entry has opened is nobody's to preserve.
func TestEntryPreservesNothingOfItsOwn(t *testing.T) {
	n := newNode(t)
	b := n.bundle("ls /proc/self/fd", nil)
	n = &node{t: t, state: n.state, tag: n.tag, self: built(t), opens: "exec 3</dev/null && "}
	if r := n.oci("run", "--preserve-fds", "1", "--bundle", b, n.tag); r.code != 0 || !strings.Contains(r.out, "3\n") {
		t.Errorf("%+v", r)
	}
	if r := n.oci("run", "--preserve-fds", "2", "--bundle", b, n.tag); r.code == 0 || !strings.Contains(r.errs, "preserve descriptor 4: bad file descriptor") {
		t.Errorf("%+v", r)
	}
}

// Who has closed his stdin has nothing there, and not what the entry has opened meanwhile.
func TestEntryWithoutStdin(t *testing.T) {
	n := newNode(t)
	b := n.bundle("ls -l /proc/self/fd/0", nil)
	n = &node{t: t, state: n.state, tag: n.tag, self: built(t), opens: "exec 0<&- && "}
	if r := n.oci("run", "--bundle", b, n.tag); r.code != 0 || !strings.HasSuffix(r.out, "-> /dev/null\n") {
		t.Errorf("%+v", r)
	}
}
