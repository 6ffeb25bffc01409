package oci

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func withoutPID(s *specs.Spec) {
	var l []specs.LinuxNamespace
	for _, ns := range s.Linux.Namespaces {
		if ns.Type != specs.PIDNamespace {
			l = append(l, ns)
		}
	}
	s.Linux.Namespaces = l
}

// status returns a line of /proc/<pid>/status.
func status(t testing.TB, pid int, key string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, key+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

func TestSharedPIDNamespace(t *testing.T) {
	n := newNode(t)
	cgroup := n.leaf("pause")
	defer cgroup.Close()
	p := n.pod(func(c *PodConfig) { c.SharedPID, c.PauseCgroup = true, cgroup.Int() })
	pause := p.PausePid()
	if got := strings.TrimSpace(readAt(cgroup, "cgroup.procs")); got != strconv.Itoa(pause) {
		t.Errorf("the pause's cgroup has %q, not %d", got, pause)
	}
	eventually(t, "the pause has its name", func() bool { return status(t, pause, "Name") == "pause" })
	for key, want := range map[string]string{
		"Uid": "65535\t65535\t65535\t65535", "Gid": "65535\t65535\t65535\t65535", "Groups": "",
		"CapPrm": strings.Repeat("0", 16), "CapEff": strings.Repeat("0", 16), "CapBnd": strings.Repeat("0", 16),
		"CapAmb": strings.Repeat("0", 16), "CapInh": strings.Repeat("0", 16), "NoNewPrivs": "1", "SigBlk": strings.Repeat("0", 16),
		"NSpid": strconv.Itoa(pause) + "\t1", "Threads": "1",
	} {
		if got := status(t, pause, key); got != want {
			t.Errorf("pause: %s is %q, not %q", key, got, want)
		}
	}
	if fds := fdsOf(t, pause); len(fds) != 3 {
		t.Errorf("the pause holds %v", fds)
	}
	var pr [2]*Process
	for i, id := range []string{"a", "b"} {
		c := n.config(p, id, "sleep", "1000")
		withoutPID(c.Spec)
		var err error
		if pr[i], err = p.Create(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		if err := pr[i].Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	out, _ := run(t, pr[0], "ps")
	if !strings.Contains(out, "pause") || strings.Count(out, "sleep 1000") != 2 || strings.Contains(out, "monitor") {
		t.Errorf("in the pod ps says:\n%s", out)
	}
	// An orphan goes to the pause, and the kernel reaps it there.
	if _, s := run(t, pr[0], "sh", "-c", "(sleep 0.05 &)"); s.Code != 0 {
		t.Errorf("status %+v", s)
	}
	eventually(t, "no zombie is left in the pod", func() bool {
		out, _ := run(t, pr[1], "ps")
		return !strings.Contains(out, "sleep 0.05") && !strings.Contains(out, "[sleep]")
	})
	for _, pr := range pr {
		if err := pr.Signal(t.Context(), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		exited(t, p, pr.ID())
	}
	if err := p.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", pause)); err == nil {
		t.Error("the pause outlived its pod")
	}
}

// In the host's pid namespace orphans come to the monitor, which reaps them and
// nobody whom it knows; whoever is left when the main process ends, is killed.
func TestHostPID(t *testing.T) {
	n := newNode(t)
	p := n.pod(func(c *PodConfig) { c.HostPID = true })
	c := n.config(p, "c", "sh", "-c", "for i in $(seq 100); do (true &) ; done; (sleep 1000 &); until test -e /tmp/go; do sleep 0.02; done; exit 5")
	withoutPID(c.Spec)
	pr, err := p.Create(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := pr.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if out, s := run(t, pr, "sh", "-c", "(true &) ; echo hi; exit 9"); out != "hi\n" || s.Code != 9 {
			t.Fatalf("exec among orphans: %q, %+v", out, s)
		}
	}
	if err := os.WriteFile(filepath.Join(n.rootfs, "tmp/go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if s := exited(t, p, "c"); s.Code != 5 {
		t.Errorf("status %+v", s)
	}
	cgroup := n.leaf("c")
	defer cgroup.Close()
	eventually(t, "nobody is left in the cgroup", func() bool { return readAt(cgroup, "cgroup.procs") == "" })
	eventually(t, "the monitor has no zombies", func() bool { return len(children(p.MonitorPid())) == 0 })
}

func children(pid int) []string {
	var l []string
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, f := range files {
		b, _ := os.ReadFile(f)
		l = append(l, strings.Fields(string(b))...)
	}
	return l
}

// A container's own pid namespace takes its processes with it, those of an exec
// included, though they are the monitor's children.
func TestPIDNamespaceEnds(t *testing.T) {
	n := newNode(t)
	p := n.pod(nil)
	pr := n.run(p, "c", "sleep", "1000")
	e, err := pr.Exec(t.Context(), ExecConfig{Process: n.spec("sleep", "1000").Process})
	if err != nil {
		t.Fatal(err)
	}
	if err := pr.Signal(t.Context(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if s, err := e.Wait(t.Context()); err != nil || s.Signal != unix.SIGKILL {
		t.Errorf("exec: %+v, %v", s, err)
	}
	exited(t, p, "c")
}
