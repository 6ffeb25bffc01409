package main

import (
	"encoding/json"
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

// entry is the symbol where the kernel begins.
const entry = "github.com/vitrine-runtime/vitrine/internal/early.entry"

// built returns the binary as it is installed: it begins at entry.
func built(t *testing.T) string {
	t.Helper()
	if os.Getenv("VITRINE_VM") != "" { // a guest has no compiler, and what `make build` has made
		bin, err := filepath.Abs("../../bin/vitrine-oci")
		if err != nil {
			t.Fatal(err)
		}
		return bin
	}
	bin := filepath.Join(t.TempDir(), "vitrine-oci")
	cmd := exec.Command("go", "build", "-ldflags", "-s -w -E "+entry, "-o", bin, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return bin
}

// The binary that is installed is that.
func TestEntryIsInstalled(t *testing.T) {
	if os.Getenv("VITRINE_VM") != "" {
		t.Skip("needs the source tree: reads the Makefile")
	}
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil || !strings.Contains(string(makefile), `-E $(ENTRY)" -o $(BIN)/ ./cmd/vitrine-oci`) || !strings.Contains(string(makefile), ":= "+entry+"\n") {
		t.Errorf("make build links without an entry of ours: %v", err)
	}
}

// starts counts the Go runtimes that a use of the binary has started.
func (n *node) starts(args ...string) int {
	n.t.Helper()
	n.opens = "export GODEBUG=inittrace=1 && "
	defer func() { n.opens = "" }()
	r := n.oci(args...)
	if r.code != 0 {
		n.t.Errorf("%q: %+v", args, r)
	}
	return strings.Count(r.errs, "init runtime @")
}

// The verbs that fork into a container are executed from a read-only mount before there is a Go runtime (R4),
// the others as they are, and what the entry cannot do is done later.
func TestEntry(t *testing.T) {
	n := newNode(t)
	b := n.bundle("exec sleep 1000", nil)
	bin := built(t)
	t.Run("sealed", func(t *testing.T) {
		n := &node{t: t, state: n.state, tag: n.tag, self: bin}
		if got := n.starts("create", "--bundle", b, n.tag); got != 1 {
			t.Errorf("create: %d starts of Go", got)
		}
		var st unix.Statfs_t
		exe := fmt.Sprintf("/proc/%d/exe", n.stateOf(n.tag).Pid)
		if err := unix.Statfs(exe, &st); err != nil || st.Flags&unix.ST_RDONLY == 0 {
			t.Errorf("%s: flags %#x, %v", exe, st.Flags, err)
		}
		for _, args := range [][]string{{"start", n.tag}, {"exec", n.tag, "true"}, {"state", n.tag}, {"--debug", "list"}, {"delete", "--force", n.tag}, {"run", "-d", "--bundle", b, n.tag}, {"delete", "--force", n.tag}} {
			if got := n.starts(args...); got != 1 {
				t.Errorf("%q: %d starts of Go", args, got)
			}
		}
	})
	t.Run("verbs alike", func(t *testing.T) { // none of these is one
		n := &node{t: t, state: n.state, tag: n.tag, self: bin}
		for _, verb := range []string{"c", "create2", "creat", "runs", "ru", "execs", "starts", "", "star"} {
			n.fails("no verb", verb)
		}
		if r := n.oci(); r.code != 2 {
			t.Errorf("without a verb: %+v", r)
		}
	})
	t.Run("descriptor", func(t *testing.T) { // of a mount of nobody's: seal copies the binary
		n := &node{t: t, state: n.state, tag: n.tag, self: "/proc/self/fd/9"}
		n.opens = fmt.Sprintf("export GODEBUG=inittrace=1 && mkdir %[1]s.d && mount -t tmpfs none %[1]s.d && cp %[1]s %[1]s.d/x && exec 9<%[1]s.d/x && umount -l %[1]s.d && rmdir %[1]s.d && ", bin)
		r := n.oci("create", "--bundle", b, n.tag)
		if got := strings.Count(r.errs, "init runtime @"); r.code != 0 || got != 2 {
			t.Errorf("%d starts of Go, %+v", got, r)
		}
		n.opens, n.self = "", bin
		exe := fmt.Sprintf("/proc/%d/exe", n.stateOf(n.tag).Pid)
		if to, err := os.Readlink(exe); err != nil || !strings.HasPrefix(to, "/memfd:") {
			t.Errorf("%s is %s, %v", exe, to, err)
		}
		if f, err := os.OpenFile(exe, os.O_WRONLY, 0); err == nil {
			f.Close()
			t.Error("the binary behind a blocked container can be written")
		}
		n.must("delete", "--force", n.tag)
	})
}

// Who waits for a program passes signals on and is ended by none of them.
func TestSignalsArePassedOn(t *testing.T) {
	n := newNode(t)
	b := n.bundle(`for s in HUP INT QUIT USR1 USR2 TERM WINCH CONT 35 64; do trap "echo $s" $s; done; trap "exit 7" ALRM; echo ready; while :; do sleep 0.02; done`, nil)
	out := filepath.Join(t.TempDir(), "out")
	said := func(want string) {
		t.Helper()
		for range 250 {
			if text, _ := os.ReadFile(out); strings.Contains(string(text), want) {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		text, _ := os.ReadFile(out)
		t.Fatalf("%q is missing in %q", want, text)
	}
	for _, verb := range []string{"run", "exec"} {
		args := []string{"run", "--bundle", b, n.tag}
		if verb == "exec" {
			n.must("run", "-d", "--bundle", b, n.tag)
			spec, err := os.ReadFile(b + "/config.json")
			if err != nil {
				t.Fatal(err)
			}
			var s struct{ Process json.RawMessage }
			if err := json.Unmarshal(spec, &s); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(b+"/process.json", s.Process, 0o600); err != nil {
				t.Fatal(err)
			}
			args = []string{"exec", "--process", b + "/process.json", n.tag}
		}
		n.opens = fmt.Sprintf("echo $$ > %s.pid && exec > %s && ", out, out)
		done := make(chan result)
		go func() { done <- n.oci(args...) }()
		said("ready")
		n.opens = ""
		text, err := os.ReadFile(out + ".pid")
		if err != nil {
			t.Fatal(err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil {
			t.Fatal(err)
		}
		for s, want := range map[unix.Signal]string{unix.SIGHUP: "HUP", unix.SIGINT: "INT", unix.SIGQUIT: "QUIT", unix.SIGUSR1: "USR1", unix.SIGUSR2: "USR2",
			unix.SIGTERM: "TERM", unix.SIGWINCH: "WINCH", unix.SIGCONT: "CONT", 35: "35", 64: "64"} {
			if err := unix.Kill(pid, s); err != nil {
				t.Fatal(err)
			}
			said("\n" + want + "\n")
		}
		if err := unix.Kill(pid, unix.SIGALRM); err != nil {
			t.Fatal(err)
		}
		if r := <-done; r.code != 7 {
			t.Errorf("%s: %+v", verb, r)
		}
		os.Remove(out)
		os.Remove(out + ".pid")
	}
	n.must("delete", "--force", n.tag)
}
