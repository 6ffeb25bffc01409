package integration

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Attacks of the table in docs/security.md that show only in a whole container.

// TestRT08DeviceFilter is GHSA-g54h-m393-cpwq: a device list that denies nothing.
// With CAP_MKNOD a container makes nodes of the host's disks and memory, and may
// open none of them; the usual devices work.
func TestRT08DeviceFilter(t *testing.T) {
	s := open(t)
	p := s.runPod("devices")
	id := p.run("c", "sleep 1000", func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"MKNOD", "SYS_RAWIO"}}
	})
	for _, dev := range []string{"b 254 0", "b 8 0", "b 7 0", "b 259 0", "c 1 1", "c 1 2", "c 1 4", "c 1 11", "c 10 200", "c 10 229", "c 10 232", "c 4 64", "c 5 1", "c 29 0"} {
		out := s.exec(id, "rm -f /tmp/d; mknod /tmp/d "+dev+" && echo made; head -c 1 /tmp/d >/dev/null 2>/tmp/e && echo READ; cat /tmp/e; (: >/tmp/d) 2>/dev/null && echo WRITTEN; true")
		if !strings.HasPrefix(out, "made\n") || strings.Contains(out, "READ") || strings.Contains(out, "WRITTEN") || !strings.Contains(out, "Operation not permitted") {
			t.Errorf("%s: %q", dev, out)
		}
	}
	if out := s.exec(id, "echo x >/dev/null && head -c 4 /dev/zero | wc -c && head -c 4 /dev/urandom | wc -c && (echo x >/dev/full || echo full) 2>/dev/null"); out != "4\n4\nfull" {
		t.Errorf("the usual devices: %q", out)
	}
}

// TestRT10CgroupIsReadOnly is CVE-2023-25809 and CVE-2022-0492: an ordinary
// container sees its own cgroup, as the root, and changes nothing there.
func TestRT10CgroupIsReadOnly(t *testing.T) {
	s := open(t)
	p := s.runPod("cgroups")
	id := p.run("c", "cat /proc/self/cgroup; sleep 1000")
	s.eventually("it has spoken", func() bool { return slices.Contains(p.logText("c", "stdout"), "0::/") })
	for _, try := range []string{"mkdir /sys/fs/cgroup/x", "echo 1 >/sys/fs/cgroup/cgroup.procs", "echo +pids >/sys/fs/cgroup/cgroup.subtree_control", "echo 1 >/sys/fs/cgroup/cgroup.kill",
		"echo /x >/sys/fs/cgroup/release_agent", "mkdir /sys/fs/cgroup/memory"} {
		if out := s.exec(id, "("+try+") 2>&1 && echo DONE; true"); strings.Contains(out, "DONE") || !strings.Contains(out, "Read-only file system") && !strings.Contains(out, "nonexistent") {
			t.Errorf("%s: %q", try, out)
		}
	}
	if out := s.exec(id, "grep ^0: /proc/self/cgroup; mount | grep -c ' cgroup2 '; grep ' /sys/fs/cgroup ' /proc/self/mountinfo | cut -d' ' -f6"); !strings.HasPrefix(out, "0::/exec-") ||
		!strings.Contains(out, "\n1\n") || !strings.Contains(out, "\nro,") {
		t.Errorf("exec: %q", out)
	}
}

// TestRT20CapabilitiesOfUsers is CVE-2018-1000400: a capability that is added for
// somebody who is not root is in the bounding set, and nowhere else unless the
// request names it as ambient.
func TestRT20CapabilitiesOfUsers(t *testing.T) {
	s := open(t)
	p := s.runPod("capabilities")
	const raw, none = uint64(1) << 13, uint64(0)
	for _, ambient := range []bool{false, true} {
		id := p.run(fmt.Sprint("ambient-", ambient), "sleep 1000", func(c *runtimeapi.ContainerConfig) {
			sc := c.Linux.SecurityContext
			sc.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
			sc.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_RAW"}}
			if ambient {
				sc.Capabilities.AddAmbientCapabilities = []string{"NET_RAW"}
			}
		})
		for where, out := range map[string]string{"container": s.exec(id, "grep ^Cap /proc/1/status"), "exec": s.exec(id, "grep ^Cap /proc/self/status")} {
			held := none
			if ambient {
				held = raw
			}
			want := fmt.Sprintf("CapInh:\t%016x\nCapPrm:\t%016[1]x\nCapEff:\t%016[1]x\nCapBnd:\t%016[2]x\nCapAmb:\t%016[1]x", held, raw)
			if out != want {
				t.Errorf("%s, ambient %v:\n%s\nwant\n%s", where, ambient, out, want)
			}
		}
	}
}

// TestRT25ExecHasNoMore is CVE-2025-27612: what an exec has and what its
// container has, in each profile.
func TestRT25ExecHasNoMore(t *testing.T) {
	for name := range profiles {
		t.Run(name, func(t *testing.T) { execIsSame(t, name) })
	}
}

func execIsSame(t *testing.T, name string) {
	s := open(t)
	profile := profiles[name]
	var pods []func(*runtimeapi.PodSandboxConfig)
	if profile.pod != nil {
		pods = append(pods, profile.pod)
	}
	p := s.runPod("same-"+name, pods...)
	id := p.run("c", lookAround+"sleep 1000", func(c *runtimeapi.ContainerConfig) {
		if profile.container != nil {
			profile.container(c)
		}
	})
	s.eventually("the probe is at its end", func() bool { return slices.Contains(p.logText("c", "stdout"), "# end") })
	container, exec := sections(strings.Join(p.logText("c", "stdout"), "\n")), sections(s.exec(id, lookAround))
	for _, what := range []string{"status", "limits", "namespaces", "maps", "root", "dev", "mounts", "environment", "writable"} {
		a, b := strings.Join(container[what], "\n"), strings.Join(exec[what], "\n")
		if what == "status" { // a host's pid namespace has its own numbers
			a, b = regexp.MustCompile(`NSpid:.*`).ReplaceAllString(a, ""), regexp.MustCompile(`NSpid:.*`).ReplaceAllString(b, "")
		}
		if a != b {
			t.Errorf("%s of the container\n%s\nand of an exec\n%s", what, a, b)
		}
	}
	pids := p.pids(id)
	if len(pids) == 0 {
		t.Fatal("no process")
	}
	score, _ := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pids[0]))
	if out := s.exec(id, "cat /proc/self/oom_score_adj"); out != strings.TrimSpace(string(score)) {
		t.Errorf("oom_score_adj %s and %s", score, out)
	}
}
