package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// hookScript writes down what a hook sees. $1 is where, and what ends the name of
// its files.
const hookScript = `#!/usr/bin/busybox sh
BB=/usr/bin/busybox
[ -x $BB ] || BB=/bin/busybox
{ $BB cat; echo; $BB env; $BB pwd; $BB hostname; $BB id -u; $BB grep CapEff: /proc/self/status; } >"$1.log" 2>&1
[ -n "$SAY" ] && echo "$SAY" >&2
[ -n "$SLEEP" ] && $BB sleep $SLEEP
exit ${CODE:-0}
`

// hooked makes a bundle with one hook of each phase, changed by change, and returns
// the directory where they write to. Those inside write to /tmp of the container.
func hooked(n *node, phases []string, env ...string) (bundle, dir string) {
	n.t.Helper()
	dir = n.t.TempDir()
	script := filepath.Join(dir, "hook")
	if err := os.WriteFile(script, []byte(hookScript), 0o755); err != nil {
		n.t.Fatal(err)
	}
	bundle = n.bundle("cat /tmp/startContainer.log; [ ! -e /tmp/moved ] || echo moved; true", func(s map[string]any) {
		hooks := map[string]any{}
		for _, p := range phases {
			at := filepath.Join(dir, p)
			path := script
			if p == "startContainer" {
				path, at = "/bin/hook", "/tmp/"+p
			}
			hooks[p] = []any{map[string]any{"path": path, "args": []string{"a hook", at}, "env": append([]string{"PHASE=" + p}, env...), "timeout": 2}}
		}
		s["hooks"] = hooks
	})
	inside := strings.Replace(hookScript, "#!/usr/bin/busybox sh", "#!/bin/sh", 1)
	if err := os.WriteFile(bundle+"/rootfs/bin/hook", []byte(inside), 0o755); err != nil {
		n.t.Fatal(err)
	}
	return bundle, dir
}

var allPhases = []string{"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"}

// saw is what a hook wrote down.
type saw struct {
	state     specs.State
	text, cwd string
	host, uid string
	caps      string
}

func parseHook(t *testing.T, text string) (s saw) {
	t.Helper()
	state, rest, _ := strings.Cut(text, "\n")
	if err := json.Unmarshal([]byte(state), &s.state); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
	lines := strings.Split(strings.TrimSpace(rest), "\n")
	if len(lines) < 4 {
		t.Fatalf("a hook says %q", text)
	}
	s.text = rest
	s.cwd, s.host, s.uid, s.caps = lines[len(lines)-4], lines[len(lines)-3], lines[len(lines)-2], lines[len(lines)-1]
	return s
}

// Each hook runs once, at its point, in its namespaces, with the state on stdin and
// its own environment only.
func TestHooks(t *testing.T) {
	n := newNode(t)
	b, dir := hooked(n, allPhases)
	t.Setenv("SECRET", "of the caller")
	log := func(phase string) string {
		text, _ := os.ReadFile(filepath.Join(dir, phase+".log"))
		return string(text)
	}
	n.must("create", "--bundle", b, n.tag)
	for _, p := range allPhases {
		if (log(p) != "") != strings.HasPrefix(p, "create") && p != "prestart" {
			t.Errorf("after create: %s said %q", p, log(p))
		}
	}
	pid := n.stateOf(n.tag).Pid
	n.must("start", n.tag)
	n.await(n.tag, "stopped")
	if log("poststop") != "" {
		t.Error("poststop ran before delete")
	}
	n.must("delete", n.tag)
	own, _ := os.Hostname()
	for _, c := range []struct {
		phase, status string
		pid           int
		cwd, host     string
	}{
		{"prestart", "creating", pid, b, own}, {"createRuntime", "creating", pid, b, own},
		{"createContainer", "creating", 1, b + "/rootfs", "vitrine"},
		{"poststart", "running", pid, b, own}, {"poststop", "stopped", 0, b, own},
	} {
		s := parseHook(t, log(c.phase))
		if string(s.state.Status) != c.status || s.state.Pid != c.pid || s.state.ID != n.tag || s.state.Bundle != b || s.state.Annotations["color"] != "blue" {
			t.Errorf("%s: state %+v", c.phase, s.state)
		}
		if s.cwd != c.cwd || s.host != c.host || !strings.Contains(s.text, "PHASE="+c.phase) || strings.Contains(s.text, "SECRET") {
			t.Errorf("%s: %s", c.phase, s.text)
		}
	}
	// The one inside has what the container has, and no more.
	text, _ := os.ReadFile(b + "/rootfs/tmp/startContainer.log")
	s := parseHook(t, string(text))
	if s.state.Status != "created" || s.state.Pid != 1 || s.cwd != "/" || s.host != "vitrine" || !strings.HasSuffix(s.caps, "0000000020000420") {
		t.Errorf("startContainer: %+v", s)
	}
}

// A createContainer hook sees the host's files and, at its path, the root with the
// mounts of the container; what it mounts there is the container's, and nothing of it the
// host's. In a user namespace it is that one's root, and no more to the host's files.
func TestCreateContainerHookMounts(t *testing.T) {
	const text = "#!/usr/bin/busybox sh\nset -e\nBB=/usr/bin/busybox\n[ -e proc/sys ]\n[ -e \"$PWD/proc/sys\" ]\n$BB mkdir -p tmp/new\n" +
		"$BB mount -t tmpfs hooked \"$PWD/tmp/new\"\n$BB touch tmp/new/file tmp/moved\n$BB id -u >tmp/new/id\n$BB cat /proc/self/uid_map >tmp/new/map\n" +
		"if [ \"$1\" ]; then ! $BB touch \"$1\"; fi\n"
	for name, change := range map[string]func(map[string]any){"the host's": nil, "of its own": inUserNS} {
		t.Run("user namespace "+name, func(t *testing.T) {
			n := newNode(t)
			dir := t.TempDir()
			script, canary := filepath.Join(dir, "hook"), filepath.Join(dir, "canary")
			if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
				t.Fatal(err)
			}
			args, want := []string{script}, "file\nid\nmap\n1\n0\n0 0 4294967295\n"
			if change != nil {
				args, want = append(args, canary), "file\nid\nmap\n1\n0\n0 300000 65536\n"
			}
			const look = "ls /tmp/new; grep -c ' /tmp/new tmpfs' /proc/mounts; cat /tmp/new/id; echo $(cat /tmp/new/map); ls /empty 2>/dev/null; :"
			b := n.bundle(look, func(s map[string]any) {
				s["hooks"] = map[string]any{"createContainer": []any{map[string]any{"path": script, "args": args}}}
				if change != nil {
					change(s)
				}
			})
			if change != nil {
				give(t, b+"/rootfs", 300000)
				reachable(t, script, b)
			}
			if r := n.oci("run", "--bundle", b, n.tag); r.code != 0 || r.out != want {
				t.Errorf("%+v, want %q", r, want)
			}
			if mounts, _ := os.ReadFile("/proc/mounts"); strings.Contains(string(mounts), "hooked") {
				t.Error("the hook's mount is on the host")
			}
			for _, f := range []string{b + "/rootfs/tmp/new/file", canary} {
				if _, err := os.Stat(f); err == nil {
					t.Errorf("the hook has made %s", f)
				}
			}
		})
	}
}

// inUserNS gives a spec a user namespace of its own.
func inUserNS(s map[string]any) {
	l := s["linux"].(map[string]any)
	l["namespaces"] = append(l["namespaces"].([]any), map[string]any{"type": "user"})
	l["uidMappings"] = []any{map[string]any{"containerID": 0, "hostID": 300000, "size": 65536}}
	l["gidMappings"] = l["uidMappings"]
}

// give makes everything below dir somebody's.
func give(t *testing.T, dir string, owner int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error { return errors.Join(err, os.Lchown(p, owner, owner)) })
	if err != nil {
		t.Fatal(err)
	}
}

// reachable lets anybody come as far as to these files, which a test has for itself
// otherwise.
func reachable(t *testing.T, files ...string) {
	t.Helper()
	for _, f := range files {
		for p := filepath.Dir(f); p != os.TempDir() && p != "/"; p = filepath.Dir(p) {
			if err := os.Chmod(p, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A hook that fails before the program runs ends the container, and poststop follows;
// one after that ends it as well; one of poststop is a warning.
func TestHookFailures(t *testing.T) {
	n := newNode(t)
	for _, p := range allPhases {
		for _, env := range [][]string{{"CODE=3", "SAY=why it is so"}, {"SLEEP=60"}} {
			phases := []string{p}
			if p != "poststop" {
				phases = append(phases, "poststop")
			}
			b, dir := hooked(n, phases, env...)
			began := time.Now()
			r := n.oci("run", "--bundle", b, n.tag)
			want := "hooks." + p + "[0] ("
			more := "exit code 3: why it is so"
			if env[0] == "SLEEP=60" {
				more = "time-out"
			}
			if !strings.Contains(r.errs, want) || !strings.Contains(r.errs, more) || (r.code == 0) != (p == "poststop") {
				t.Errorf("%s %v: code %d: %s", p, env, r.code, r.errs)
			}
			if d := time.Since(began); d > 20*time.Second {
				t.Errorf("%s %v: took %s", p, env, d)
			}
			if p != "poststop" && strings.Contains(r.out, "moved") {
				t.Errorf("%s %v: the program ran: %s", p, env, r.out)
			}
			if _, err := os.Stat(filepath.Join(dir, "poststop.log")); err != nil {
				t.Errorf("%s %v: no poststop: %v", p, env, err)
			}
			n.fails("does not exist", "state", n.tag)
		}
	}
}

// A hook that leaves somebody behind with its output open is over when it ends.
func TestHookThatLeavesOthers(t *testing.T) {
	n := newNode(t)
	b := n.bundle("true", func(s map[string]any) {
		s["hooks"] = map[string]any{"createRuntime": []any{map[string]any{"path": "/bin/sh", "args": []string{"sh", "-c", "sleep 5 & exit 0"}}}}
	})
	began := time.Now()
	n.must("run", "--bundle", b, n.tag)
	if d := time.Since(began); d > 4*time.Second {
		t.Errorf("took %s", d)
	}
}
