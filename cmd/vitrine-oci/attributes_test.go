package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// asCommand is in the environment of a test binary that is to be vitrine-oci.
const asCommand = "VITRINE_OCI_COMMAND"

func init() {
	if os.Getenv(asCommand) == "" {
		return
	}
	again, _ := sealed() // it has executed itself anew, and finds what the first one made
	if again {
		os.Unsetenv(asCommand)
	}
	if !again && os.Getenv("VITRINE_VM") == "" { // a developer's machine may have both hierarchies
		if err := unix.Mount("none", "/sys/fs/cgroup", "cgroup2", 0, "nsdelegate"); err != nil && !errors.Is(err, unix.EBUSY) { // busy: it is there
			panic(err)
		}
	}
	main()
}

// oci runs vitrine-oci in a mount namespace of its own.
func oci(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), asCommand+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	f, err := os.CreateTemp(t.TempDir(), "output") // a created container keeps it open, and nobody waits for that
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	err = cmd.Run()
	out, rerr := os.ReadFile(f.Name())
	return string(out), errors.Join(err, rerr)
}

// TestAttributesOfBundle: what the spec says of the process and of the kernel's
// parameters is so in a container from the command line, and in an exec.
func TestAttributesOfBundle(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes a container")
	}
	busybox, err := os.ReadFile("/usr/bin/busybox")
	if err != nil {
		t.Skip("needs Debian's busybox-static: " + err.Error())
	}
	dir := t.TempDir()
	for _, d := range []string{"rootfs/bin", "state"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "rootfs/bin/busybox"), busybox, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("busybox", filepath.Join(dir, "rootfs/bin/sh")); err != nil {
		t.Fatal(err)
	}
	if out, err := oci(t, "spec", "--bundle", dir); err != nil {
		t.Fatal(err, out)
	}
	s := attributes(t, filepath.Join(dir, "config.json"), `cd /proc; busybox cat self/personality sys/net/ipv4/ip_forward sys/kernel/shmmax sys/kernel/domainname self/oom_score_adj; cd -; busybox ionice -p 1; set -- $(busybox cat /proc/self/stat); echo ${19} ${41}; busybox sleep 60`)
	write := func() {
		b, err := json.Marshal(s)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "config.json"), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	s.Process.Args[2] = strings.TrimSuffix(s.Process.Args[2], "; busybox sleep 60")
	write()
	state, id := filepath.Join(dir, "state"), fmt.Sprintf("vitrine-test-%d", os.Getpid())
	out, err := oci(t, "--root", state, "run", "--bundle", dir, id)
	const want = "00000008\n1\n4096\nglass.example\n500\n/made/here\nbest-effort: prio 5\n3 3\n"
	if err != nil || out != want {
		t.Errorf("%v\n%s, want\n%s", err, out, want)
	}
	s.Process.Args = []string{"busybox", "sleep", "60"}
	write()
	if out, err := oci(t, "--root", state, "create", "--bundle", dir, id); err != nil {
		t.Fatal(err, out)
	}
	defer oci(t, "--root", state, "delete", "--force", id)
	if out, err := oci(t, "--root", state, "start", id); err != nil {
		t.Fatal(err, out)
	}
	out, err = oci(t, "--root", state, "exec", id, "busybox", "cat", "/proc/self/personality", "/proc/self/oom_score_adj")
	if err != nil || out != "00000008\n500\n" {
		t.Errorf("exec: %v, %q", err, out)
	}
	process := filepath.Join(dir, "process.json") // what it says of itself comes first
	const own = `{"args": ["/bin/busybox", "cat", "/proc/self/oom_score_adj"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "oomScoreAdj": 700}`
	if err := os.WriteFile(process, []byte(own), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err = oci(t, "--root", state, "exec", "--process", process, id); err != nil || out != "700\n" {
		t.Errorf("exec of a process with a value of its own: %v, %q", err, out)
	}
	out, err = oci(t, "--root", state, "exec", id, "busybox", "grep", "Cpus_allowed_list", "/proc/self/status")
	if err != nil || out != "Cpus_allowed_list:\t0\n" {
		t.Errorf("exec: %v, %q", err, out)
	}
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
