package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

func nsOf(t *testing.T, pid int, kind string) string {
	t.Helper()
	s, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestNamespaces(t *testing.T) {
	n := newNode(t)
	own := n.pod(nil)
	host := n.pod(func(c *PodConfig) { c.HostNetwork, c.HostIPC, c.Hostname = true, true, "not-the-host" })
	for _, kind := range []string{"net", "ipc", "uts", "mnt"} {
		if nsOf(t, own.MonitorPid(), kind) == nsOf(t, os.Getpid(), kind) {
			t.Errorf("the pod has the host's %s namespace", kind)
		}
		if shared := nsOf(t, host.MonitorPid(), kind) == nsOf(t, os.Getpid(), kind); shared != (kind != "mnt") {
			t.Errorf("host pod: %s shared: %v", kind, shared)
		}
	}
	if name, err := os.Hostname(); err != nil || name == "not-the-host" || name == "glass" {
		t.Errorf("the host is called %q, %v", name, err)
	}
	for _, p := range []*Pod{own, host} {
		ns, err := p.NetNS()
		if err != nil {
			t.Fatal(err)
		}
		var a, b unix.Stat_t
		if err := unix.Fstat(ns.Int(), &a); err != nil {
			t.Fatal(err)
		}
		if err := unix.Stat(fmt.Sprintf("/proc/%d/ns/net", p.MonitorPid()), &b); err != nil || a.Ino != b.Ino {
			t.Errorf("NetNS is %d and not %d, %v", a.Ino, b.Ino, err)
		}
		ns.Close()
	}
}

// The monitor's world: nothing of the host is mounted in it.
func TestTinyRoot(t *testing.T) {
	n := newNode(t)
	p := n.pod(nil)
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", p.MonitorPid()))
	if err != nil || strings.Count(string(b), "\n") != 1 || !strings.Contains(string(b), " / / ro,nosuid,noexec") {
		t.Errorf("mounts of the monitor:\n%s%v", b, err)
	}
	root := fmt.Sprintf("/proc/%d/root", p.MonitorPid())
	var got []string
	d, err := os.ReadDir(root)
	for _, e := range d {
		i, _ := e.Info()
		got = append(got, e.Name()+" "+i.Mode().String())
	}
	if want := "empty dr-xr-xr-x null Dcrw-rw-rw- root drwxr-xr-x"; err != nil || strings.Join(got, " ") != want {
		t.Errorf("its root has %q, %v", got, err)
	}
	if err := os.WriteFile(root+"/null", []byte("x"), 0); err != nil {
		t.Errorf("write to /null: %v", err)
	}
	if err := os.WriteFile(root+"/x", nil, 0o600); !errors.Is(err, syscall.EROFS) {
		t.Errorf("write into it: %v", err)
	}
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p.MonitorPid())); err != nil || string(b) != "vitrine-monitor\n" {
		t.Errorf("called %q, %v", b, err)
	}
	if cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", p.MonitorPid())); err != nil || cwd != "/" {
		t.Errorf("cwd %q, %v", cwd, err)
	}
}

func TestSysctls(t *testing.T) {
	n := newNode(t)
	p := n.pod(func(c *PodConfig) {
		c.Sysctls = map[string]string{"net.ipv4.ip_forward": "1", "kernel.msgmax": "8191", "net/ipv4/conf/lo/forwarding": "0"}
	})
	pr := n.run(p, "c", "sleep", "1000")
	for file, want := range map[string]string{"net/ipv4/ip_forward": "1", "kernel/msgmax": "8191", "net/ipv4/conf/lo/forwarding": "0"} {
		if out, _ := run(t, pr, "cat", "/proc/sys/"+file); strings.TrimSpace(out) != want {
			t.Errorf("%s is %q", file, out)
		}
	}
}

// whoever StartPod has started, is gone when it fails.
func (n *node) failsToStart(change func(*PodConfig), want string) error {
	n.t.Helper()
	c := n.podConfig(change)
	fds := fdsOf(n.t, os.Getpid())
	p, err := n.rt.StartPod(n.t.Context(), c)
	if err == nil {
		n.end(p)
		n.t.Errorf("started; want %q", want)
		return nil
	}
	if !strings.Contains(err.Error(), want) {
		n.t.Errorf("got error %q, want %q", err, want)
	}
	n.nothingLeft(c)
	if now := fdsOf(n.t, os.Getpid()); len(now) != len(fds) {
		n.t.Errorf("%d descriptors before, %d after: %v", len(fds), len(now), now)
	}
	return err
}

func (n *node) nothingLeft(c PodConfig) {
	n.t.Helper()
	monitors := n.leaf("monitors")
	defer monitors.Close()
	eventually(n.t, "no monitor is left", func() bool { return readAt(monitors, "cgroup.procs") == "" })
	if d, err := os.ReadDir(c.Dir); err != nil || len(d) != 0 {
		n.t.Errorf("left in the directory: %v, %v", d, err)
	}
}

func TestStartPodFails(t *testing.T) {
	n := newNode(t)
	for key, want := range map[string]string{
		"net.nothing.here":        "set sysctl net.nothing.here",
		"vm.swappiness":           "not in a namespace of the pod's own",
		"kernel.hostname":         "not in a namespace of the pod's own",
		"net.../../vm.swappiness": "not in a namespace of the pod's own",
		"net/../vm/swappiness":    "not in a namespace of the pod's own",
		"":                        "not in a namespace of the pod's own",
	} {
		if err := n.failsToStart(func(c *PodConfig) { c.Sysctls = map[string]string{key: "1"} }, want); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", key, err)
		}
	}
	n.failsToStart(func(c *PodConfig) { c.Sysctls = map[string]string{"net.ipv4.ip_forward": "many"} }, "invalid request: config.linux.sysctls: set sysctl")
	// The kernel takes the first number, and says so with the count only.
	n.failsToStart(func(c *PodConfig) { c.Sysctls = map[string]string{"net.ipv4.ip_forward": "1 2"} }, "invalid argument")
	n.failsToStart(func(c *PodConfig) { c.HostNetwork, c.Sysctls = true, map[string]string{"net.ipv4.ip_forward": "1"} }, "not in a namespace of the pod's own")
	n.failsToStart(func(c *PodConfig) { c.Hostname = strings.Repeat("x", 65) }, "set hostname")
	n.failsToStart(func(c *PodConfig) { c.HostPID, c.SharedPID = true, true }, "invalid request")
	// The pause is there before the monitor listens.
	n.failsToStart(func(c *PodConfig) { c.SharedPID, c.PauseCgroup = true, 0 }, "start pause: clone3")
}

// A monitor that ends before it says anything: its last words are the error.
func TestMonitorEndsEarly(t *testing.T) {
	n := newNode(t)
	for script, want := range map[string]string{"echo my last words >&2": "my last words", "": "ended before it was ready"} {
		n.rt.Monitor = n.fakeMonitor(script)
		if err := n.failsToStart(nil, want); !errors.Is(err, ErrNoMonitor) {
			t.Errorf("got error %v", err)
		}
	}
}

// fakeMonitor replaces the monitor by a program that runs a shell script.
func (n *node) fakeMonitor(script string) *sys.FD {
	n.t.Helper()
	file := filepath.Join(n.t.TempDir(), "monitor")
	if err := os.WriteFile(file, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		n.t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		n.t.Fatal(err)
	}
	defer f.Close()
	// A script is opened by its interpreter again: not close-on-exec.
	high, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD, 64)
	if err != nil {
		n.t.Fatal(err)
	}
	fd := sys.NewFD(high)
	n.t.Cleanup(func() { fd.Close() })
	return fd
}

// The context ends while the monitor is at it, or hangs.
func TestStartPodIsGivenUp(t *testing.T) {
	n := newNode(t)
	n.rt.Monitor = n.fakeMonitor("sleep 1000 & wait")
	c := n.podConfig(nil)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := n.rt.StartPod(ctx, c); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got error %v", err)
	}
	if d := time.Since(start); d > 3*time.Second {
		t.Errorf("given up after %v", d)
	}
	n.nothingLeft(c)
}

// What lies open in the daemon does not come along, close-on-exec or not.
func TestNothingInherited(t *testing.T) {
	n := newNode(t)
	leak, err := unix.FcntlInt(0, unix.F_DUPFD, 300) // not close-on-exec
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(leak)
	signalIgnored(t)
	p := n.pod(nil)
	fds := fdsOf(t, p.MonitorPid())
	for fd, target := range fds {
		if n, _ := strconv.Atoi(fd); n >= 250 || strings.Contains(target, "cfs") {
			t.Errorf("the monitor holds %s: %s", fd, target)
		}
	}
	pr := n.run(p, "c", "sleep", "1000")
	if got := status(t, pr.Pid(), "SigIgn"); got != strings.Repeat("0", 16) {
		t.Errorf("the container ignores signals %s", got)
	}
	if got := status(t, pr.Pid(), "SigBlk"); got != strings.Repeat("0", 16) {
		t.Errorf("the container blocks signals %s", got)
	}
}
