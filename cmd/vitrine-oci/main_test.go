package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/vitrine-runtime/vitrine/oci/program"
)

// cli runs a command line.
func cli(args ...string) (code int, out, errs string) {
	var o, e bytes.Buffer
	code = run(args, &o, &e)
	return code, o.String(), e.String()
}

func TestVerbs(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
		out  string
		errs string
	}{
		{nil, 2, "", "usage:"},
		{[]string{"version"}, 0, "vitrine-oci version devel", ""},
		{[]string{"--help"}, 0, "usage:", ""},
		{[]string{"create", "--bundle", "/nonexistent", "id"}, 1, "", "no such file"},
		{[]string{"create", "--bundle", "/nonexistent", "a/b"}, 1, "", "container id"},
		{[]string{"create", "--no-pivot", "id"}, 1, "", "pivot_root"},
		{[]string{"--rootless=true", "list"}, 1, "", "the caller is root: true"},
		{[]string{"--rootless=yes", "list"}, 1, "", "invalid syntax"},
		{[]string{"--systemd-cgroup=maybe", "list"}, 1, "", "invalid syntax"},
		{[]string{"--rootless=auto", "--systemd-cgroup=false", "version"}, 0, "vitrine-oci version devel", ""},
		{[]string{"--root", "/nonexistent", "state", "x"}, 1, "", "does not exist"},
		{[]string{"--root", "/nonexistent", "delete", "--force", "x"}, 0, "", ""},
		{[]string{"kill", "x", "NONE"}, 1, "", "unknown signal"},
		{[]string{"checkpoint", "x"}, 1, "", "not supported"},
		{[]string{"crate"}, 2, "", "no verb"},
		{[]string{"monitor", "extra"}, 2, "", "no verb"},
		{[]string{"explain"}, 1, "", "explain a bundle"},
		{[]string{"explain", "--frobnicate", "x"}, 1, "", "not defined"},
		{[]string{"explain", "--program", "/nonexistent"}, 1, "", "no such file"},
		{[]string{"explain", "--program", "/dev/null"}, 1, "", "malformed program"},
		{[]string{"explain", "--bundle", "/nonexistent"}, 1, "", "no such file"},
	} {
		code, out, errs := cli(c.args...)
		if code != c.code || !strings.HasPrefix(out, c.out) || !strings.Contains(errs, c.errs) || (c.errs == "") != (errs == "") {
			t.Errorf("%q: code %d\nout %s\nerr %s", c.args, code, out, errs)
		}
	}
}

const config = `{
  "ociVersion": "1.3.0",
  "process": {"args": ["sh"], "cwd": "/", "noNewPrivileges": true,
    "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 1024}]},
  "root": {"path": "rootfs"},
  "hostname": "glass",
  "mounts": [
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {"destination": "/data", "source": "/nonexistent", "options": ["rbind", "ro"]}
  ],
  "linux": {
    "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "uts"}, {"type": "network", "path": "/run/netns/x"}],
    "seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["ptrace"], "action": "SCMP_ACT_ERRNO"}]}
  }
}`

// explained is a step of explain --json.
type explained struct {
	Step              int
	Call, Result, For string
	Args              []string
	OnError           []struct {
		Errno string
		Then  int
	}
	Then *int
}

func TestExplain(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "config.json")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, errs := cli("explain", "--bundle", dir)
	if code != 0 || errs != "" {
		t.Fatalf("code %d: %s", code, errs)
	}
	for _, want := range []string{"clone3", "NEWPID", "mount proc on /proc", "bind /data", "glass", "seccomp", "execve"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	lines := strings.Count(out, "\n")
	code, out, errs = cli("explain", "--json", "--bundle", dir)
	var d struct {
		Clone []string
		Files []struct {
			FD   int
			What string
		}
		Wait  *int
		Steps []explained
	}
	if err := json.Unmarshal([]byte(out), &d); err != nil || code != 0 {
		t.Fatalf("code %d, %v: %s", code, err, errs)
	}
	told := 2 // lines of the text that are no steps
	for i, s := range d.Steps {
		if told += 1 + len(s.OnError); s.Then != nil {
			told++
		}
		if s.Step != i || s.Call == "" || s.For == "" || s.Args == nil {
			t.Errorf("step %d: %+v", i, s)
		}
	}
	if told != lines || d.Wait == nil || d.Steps[*d.Wait].Call != "read" || len(d.Files) < 6 || d.Files[5].FD != 5 || len(d.Clone) == 0 {
		t.Errorf("%d lines of %d, wait %v, files %v, clone %v", told, lines, d.Wait, d.Files, d.Clone)
	}
	joined := slices.ContainsFunc(d.Steps, func(s explained) bool {
		return s.Call == "setns" && strings.Contains(strings.Join(s.Args, " "), "NEWNET")
	})
	if slices.Contains(d.Clone, "NEWNET") || !joined {
		t.Errorf("a namespace that somebody else has made is made again, or not joined:\n%s", out)
	}
	// The same program from its encoding.
	p, err := program.Compile(program.Input{
		Spec: &specs.Spec{
			Version: specs.Version,
			Process: &specs.Process{Args: []string{"sh"}, Cwd: "/", Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1, Hard: 1}}},
			Root:    &specs.Root{Path: "rootfs"},
			Linux:   &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	b, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	prog := filepath.Join(dir, "program")
	if err := os.WriteFile(prog, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if code, out, errs := cli("explain", "--program", prog); code != 0 || !strings.Contains(out, "execve") {
		t.Errorf("code %d: %s%s", code, out, errs)
	}
	for old, bad := range map[string]string{`"sh"`: `5`, `SCMP_ACT_ERRNO`: `SCMP_ACT_NOTHING`, `"uts"`: `"user"`} {
		if err := os.WriteFile(file, []byte(strings.Replace(config, old, bad, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		if code, _, errs := cli("explain", "--bundle", dir); code != 1 || errs == "" {
			t.Errorf("%s: code %d, %q", bad, code, errs)
		}
	}
}

// TestRT18UserOfExec is CVE-2026-30892: --user of an exec is numbers, or an error.
func TestRT18UserOfExec(t *testing.T) {
	for user, want := range map[string]*specs.User{
		"1": {UID: 1, GID: 9}, "1:1": {UID: 1, GID: 1}, "0:7": {UID: 0, GID: 7}, "4294967294": {UID: 4294967294, GID: 9},
		"1:": nil, ":1": nil, ":": nil, "+1": nil, " 1": nil, "1 ": nil, "0x1": nil, "١": nil, "-1": nil, "1:1:1": nil, "root": nil,
		"4294967296": nil, "4294967295": nil, "1:4294967295": nil, "1_0": nil, "1\x00": nil,
	} {
		u := specs.User{UID: 5, GID: 9}
		err := (&execFlags{user: user}).ids(&u)
		if want == nil && err == nil || want != nil && (err != nil || u.UID != want.UID || u.GID != want.GID) {
			t.Errorf("%q: %+v, %v", user, u, err)
		}
	}
	u := specs.User{}
	if err := (&execFlags{gids: []string{"4294967295"}}).ids(&u); err == nil {
		t.Errorf("additional group -1: %+v", u)
	}
}
