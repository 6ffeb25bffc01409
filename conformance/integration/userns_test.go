package integration

import (
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// mapped puts a pod into a user namespace of its own.
func mapped(c *runtimeapi.PodSandboxConfig) {
	c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = ownIDs()
}

func ownIDs() *runtimeapi.UserNamespace {
	line := []*runtimeapi.IDMapping{{HostId: 200000, Length: 65536}}
	return &runtimeapi.UserNamespace{Uids: line, Gids: line}
}

// TestUserNamespace: containers of a pod, and what is executed in them, are in one user namespace with the ids that were
// asked for; their root filesystem and the files of the pod belong to its root, and so does the network.
func TestUserNamespace(t *testing.T) {
	for name, change := range map[string]func(*runtimeapi.NamespaceOption){
		"own pid":      func(o *runtimeapi.NamespaceOption) { o.Pid = runtimeapi.NamespaceMode_CONTAINER },
		"shared pid":   func(o *runtimeapi.NamespaceOption) { o.Pid = runtimeapi.NamespaceMode_POD },
		"host network": func(o *runtimeapi.NamespaceOption) { o.Network = runtimeapi.NamespaceMode_NODE },
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			var options *runtimeapi.NamespaceOption
			p := s.runPod("userns", mapped, func(c *runtimeapi.PodSandboxConfig) {
				options = c.Linux.SecurityContext.NamespaceOptions
				if change(options); options.Network == runtimeapi.NamespaceMode_NODE {
					c.Hostname = ""
				}
			})
			join := func(c *runtimeapi.ContainerConfig) {
				c.Linux.SecurityContext.NamespaceOptions = options
				c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"NET_ADMIN"}}
			}
			one, two := p.run("one", "sleep 1000", join), p.run("two", "sleep 1000", join)
			const who = "readlink /proc/self/ns/user; cat /proc/self/uid_map"
			at := s.exec(one, who)
			if f := strings.Fields(at); len(f) != 4 || strings.Join(f[1:], " ") != "0 200000 65536" {
				t.Fatalf("the first is in %q", at)
			}
			if got := s.exec(two, who); got != at {
				t.Errorf("the second is in %q, the first in %q", got, at)
			}
			if got := s.exec(one, "stat -c %u:%g / /bin /etc/hosts /etc/resolv.conf /etc/hostname /dev/shm | sort -u"); got != "0:0" {
				t.Errorf("files belong to %q", got)
			}
			if got := s.exec(one, "echo a >/x && echo b >/dev/shm/x && echo c >/etc/hosts && stat -c %u /x && ls /sys/class/net >/dev/null && echo sysfs"); got != "0\nsysfs" {
				t.Errorf("root's work: %q", got)
			}
			set := s.exec(one, "ip link set lo mtu 1400 2>&1 >/dev/null && echo set || echo refused")
			if want := map[bool]string{false: "set", true: "refused"}[name == "host network"]; !strings.HasSuffix(set, want) {
				t.Errorf("the network is %q, not %s", set, want)
			}
		})
	}
}
