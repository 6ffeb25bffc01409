package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestAttributesOfBundle: what the spec says of the process and of the kernel's
// parameters is so in a container from the command line, and in an exec.
func TestAttributesOfBundle(t *testing.T) {
	n := newNode(t)
	dir := n.bundle("", nil)
	s := attributes(t, filepath.Join(dir, "config.json"), `cd /proc; busybox cat self/personality sys/net/ipv4/ip_forward sys/kernel/shmmax sys/kernel/domainname self/oom_score_adj; cd -; busybox ionice -p 1; set -- $(busybox cat /proc/self/stat); echo ${19} ${41}`)
	write := func() {
		t.Helper()
		b, err := json.Marshal(s)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "config.json"), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	wants := func(want string, args ...string) {
		t.Helper()
		if r := n.oci(args...); r.code != 0 || r.out != want {
			t.Errorf("%q: %+v, want %q", args, r, want)
		}
	}
	write()
	wants("00000008\n1\n4096\nglass.example\n500\n/made/here\nbest-effort: prio 5\n3 3\n", "run", "--bundle", dir, n.tag)
	s.Process.Args = []string{"busybox", "sleep", "60"}
	write()
	n.must("create", "--bundle", dir, n.tag)
	n.must("start", n.tag)
	wants("00000008\n500\n", "exec", n.tag, "busybox", "cat", "/proc/self/personality", "/proc/self/oom_score_adj")
	wants("Cpus_allowed_list:\t0\n", "exec", n.tag, "busybox", "grep", "Cpus_allowed_list", "/proc/self/status")
	process := filepath.Join(dir, "process.json") // what it says of itself comes first
	const own = `{"args": ["/bin/busybox", "cat", "/proc/self/oom_score_adj"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "oomScoreAdj": 700}`
	if err := os.WriteFile(process, []byte(own), 0o600); err != nil {
		t.Fatal(err)
	}
	wants("700\n", "exec", "--process", process, n.tag)
	n.must("delete", "--force", n.tag)
}

// attributes changes the spec in a file so that it asks for many of them.
func attributes(t *testing.T, file, script string) *specs.Spec {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s := new(specs.Spec)
	if err := json.Unmarshal(b, s); err != nil {
		t.Fatal(err)
	}
	p := s.Process
	p.Terminal, p.Args, p.Cwd = false, []string{"sh", "-c", script}, "/made/here"
	p.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch, Nice: 3}
	p.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 5}
	p.ExecCPUAffinity = &specs.CPUAffinity{Initial: "0", Final: "0"}
	adj := 500
	p.OOMScoreAdj = &adj
	s.Root.Readonly, s.Domainname = false, "glass.example"
	s.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1", "kernel.shmmax": "4096"}
	s.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32}
	s.Linux.Resources = nil
	return s
}
