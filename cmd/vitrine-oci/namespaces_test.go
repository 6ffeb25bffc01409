package main

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// withoutCgroupNS takes the cgroup namespace out of a spec.
func withoutCgroupNS(s map[string]any) {
	l := s["linux"].(map[string]any)
	l["namespaces"] = slices.DeleteFunc(l["namespaces"].([]any), func(ns any) bool { return ns.(map[string]any)["type"] == "cgroup" })
}

// A container that asks for a cgroup filesystem and has no cgroup namespace sees its own
// cgroup, and not what else the machine has (R13); without a cgroup of its own, the one
// that it is in.
func TestOwnCgroupInSight(t *testing.T) {
	n := newNode(t)
	// The root of the hierarchy has no cgroup.events, and the processes of others are 0 here.
	const look = "cd /sys/fs/cgroup; ls -d */; grep populated cgroup.events; grep -x 1 cgroup.procs; grep -c -x 0 cgroup.procs; touch cgroup.procs"
	r := n.oci("run", "--bundle", n.bundle(look, withoutCgroupNS), n.tag)
	if r.out != "populated 1\n1\n0\n" || !strings.Contains(r.errs, "Read-only file system") {
		t.Errorf("%+v", r)
	}
	r = n.oci("--cgroup-manager", "disabled", "run", "--bundle", n.bundle("grep -x 1 /sys/fs/cgroup/cgroup.procs", withoutCgroupNS), n.tag)
	if r.code != 0 || r.out != "1\n" {
		t.Errorf("without a cgroup: %+v", r)
	}
}

// A namespace that is the host's own is that by whatever path it is named: its
// parameters are not the container's to set.
func TestHostNamespaceByPath(t *testing.T) {
	n := newNode(t)
	b := n.bundle("true", func(s map[string]any) {
		l := s["linux"].(map[string]any)
		for _, ns := range l["namespaces"].([]any) {
			if ns := ns.(map[string]any); ns["type"] == "network" {
				ns["path"] = "/proc/self/ns/net"
			}
		}
		l["sysctl"] = map[string]string{"net.ipv4.ip_forward": "1"}
	})
	n.fails("net.ipv4.ip_forward", "create", "--bundle", b, n.tag)
}

// A process in a user namespace has hard limits above those of the caller, as podman wants
// them, and so has an exec.
func TestLimitsInUserNamespace(t *testing.T) {
	n := newNode(t)
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, caps, _ := strings.Cut(string(status), "CapEff:\t")
	if caps, err := strconv.ParseUint(caps[:16], 16, 64); err != nil || caps>>unix.CAP_SYS_RESOURCE&1 == 0 {
		t.Skip("needs CAP_SYS_RESOURCE: raises limits")
	}
	b := n.bundle("grep processes /proc/self/limits; exec sleep 1000", func(s map[string]any) {
		inUserNS(s)
		p := s["process"].(map[string]any)
		p["rlimits"] = append(p["rlimits"].([]any), map[string]any{"type": "RLIMIT_NPROC", "soft": 700, "hard": 800})
	})
	give(t, b+"/rootfs", 300000)
	n.opens = "ulimit -p 500 && "
	defer func() { n.opens = "" }()
	n.must("run", "--detach", "--bundle", b, n.tag)
	out := n.must("exec", n.tag, "grep", "processes", "/proc/1/limits", "/proc/self/limits")
	if f := strings.Fields(out); strings.Count(strings.Join(f, " "), "processes 700 800 processes") != 2 {
		t.Errorf("%s", out)
	}
	n.must("delete", "--force", n.tag)
}
