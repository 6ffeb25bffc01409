package integration

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/conformance/stage"
)

// editNetwork replaces a part of the network's configuration until the test ends. It is to be called before pods are run: they
// go by what they came with.
func (s *scene) editNetwork(part, by string) {
	s.Helper()
	old := fileText(s.Network)
	text := strings.Replace(old, part, by, 1)
	if text == old {
		s.Fatalf("no %q in %s", part, old)
	}
	if err := os.WriteFile(s.Network, []byte(text), 0o644); err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() {
		if err := os.WriteFile(s.Network, []byte(old), 0o644); err != nil {
			s.Error(err)
		}
	})
}

// addPlugin puts a plugin at the end of the network's list.
func (s *scene) addPlugin(plugin string) {
	s.Helper()
	s.editNetwork("\n    }\n  ]\n", "\n    },\n    "+plugin+"\n  ]\n")
}

const (
	portmap = `{ "type": "portmap", "backend": "iptables", "capabilities": { "portMappings": true }, "snat": true }`
	shaper  = `{ "type": "bandwidth", "capabilities": { "bandwidth": true } }`
)

// limited gives a pod rates.
func limited(ingress, egress string) func(*runtimeapi.PodSandboxConfig) {
	return func(c *runtimeapi.PodSandboxConfig) {
		c.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": ingress, "kubernetes.io/egress-bandwidth": egress}
	}
}

// shaping is what the bandwidth plugin says where the kernel lacks a part of what it needs.
var shaping = map[string]string{
	"adding link: operation not supported":            "ifb in the kernel (module ifb)",
	"create qdisc: no such file or directory":         "tbf in the kernel (module sch_tbf)",
	"create ingress qdisc: no such file or directory": "ingress in the kernel (module sch_ingress)",
	"add filter: no such file or directory":           "u32 and mirred in the kernel (modules cls_u32, act_mirred)",
}

// needsShaping skips a test where the kernel cannot limit a pod, which one tells that is refused for it.
func (s *scene) needsShaping() {
	s.Helper()
	cfg, err := s.PodConfig("probe")
	if err != nil {
		s.Fatal(err)
	}
	limited("1M", "1M")(cfg)
	p := &pod{scene: s, cfg: cfg}
	p.id, err = s.cri.RunPodSandbox(s.ctx, cfg, "")
	p.end()
	for says, needs := range shaping {
		if err != nil && strings.Contains(err.Error(), says) {
			s.Skipf("needs %s: %v", needs, err)
		}
	}
	if err != nil {
		s.Fatal(err)
	}
}

// TestBandwidthLimits: the annotations become limits of the kernel on both directions, a pod without has none, and they go with the pod,
// also by another daemon. Traffic passes, also under a low rate.
func TestBandwidthLimits(t *testing.T) {
	s := open(t)
	s.addPlugin(shaper)
	s.needsShaping()
	fast, free := s.runPod("fast", limited("8M", "16M")), s.runPod("free")
	devices := s.shapers()
	if len(devices) != 1 {
		t.Fatalf("devices for what pods send: %v", devices)
	}
	want := map[string][]discipline{"to the pod": {{"tbf", 1_000_000}}, "from the pod": {{"tbf", 2_000_000}}, "the free pod": nil}
	for where, index := range map[string]int{"to the pod": fast.hostEnd(), "from the pod": devices[0], "the free pod": free.hostEnd()} {
		var limits []discipline
		for _, d := range s.disciplines()[index] {
			if d.kind == "tbf" {
				limits = append(limits, d)
			}
		}
		if !slices.Equal(limits, want[where]) {
			t.Errorf("%s: %v, want %v", where, limits, want[where])
		}
	}
	// At this rate a burst of 2^32-1 bits wraps around to 136 bytes in the plugin, and with 1k a wrong one may be enough.
	slow := s.runPod("slow", limited("484500", "484500"))
	web := slow.run("web", serve("80", "slowly"))
	s.eventually("slow serves", func() bool { return len(slow.logText("web", "stdout")) == 1 })
	s.reaches("the slow pod", "http://"+slow.ip()+"/", "slowly")
	url, stop, err := stage.ServeHost("hello")
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	if got := s.exec(web, "wget -q -O - "+url); got != "hello" {
		t.Errorf("the slow pod to the host: %q", got)
	}
	s.killDaemon()
	s.restart()
	fast.gone()
	if left := s.shapers(); len(left) != 1 || left[0] == devices[0] {
		t.Errorf("devices after the fast pod: %v, were %v and the slow pod's", left, devices)
	}
}

// gone stops and removes the pod before the test ends.
func (p *pod) gone() {
	p.Helper()
	if err := p.cri.StopPodSandbox(p.ctx, p.id); err != nil {
		p.Fatal(err)
	}
	if err := p.cri.RemovePodSandbox(p.ctx, p.id); err != nil {
		p.Fatal(err)
	}
}

// hostEnd is the index of the interface that the pod's leads to.
func (p *pod) hostEnd() int {
	p.Helper()
	index, err := strconv.Atoi(p.exec(p.run("look", "sleep 1000"), "cat /sys/class/net/eth0/iflink"))
	if err != nil {
		p.Fatal(err)
	}
	return index
}

// shapers are the indices of the devices through which the bandwidth plugin sends what pods send.
func (s *scene) shapers() []int {
	s.Helper()
	all, err := net.Interfaces()
	if err != nil {
		s.Fatal(err)
	}
	var found []int
	for _, i := range all {
		if strings.HasPrefix(i.Name, "bwp") {
			found = append(found, i.Index)
		}
	}
	return found
}

// discipline is a queueing discipline of an interface, and the rate of a tbf in bytes per second.
type discipline struct {
	kind string
	rate uint32
}

// Attributes of a queueing discipline (linux/rtnetlink.h, linux/pkt_sched.h), and where the rate stands in the parameters of a tbf.
const (
	tcaKind, tcaOptions, tcaTBFParms = 1, 2, 1
	sizeofTCMsg, rateAt              = 20, 8
)

// disciplines are those of all interfaces by index, as the kernel tells.
func (s *scene) disciplines() map[int][]discipline {
	s.Helper()
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		s.Fatal(err)
	}
	defer unix.Close(fd)
	ask := make([]byte, unix.SizeofNlMsghdr+sizeofTCMsg)
	binary.NativeEndian.PutUint32(ask, uint32(len(ask)))
	binary.NativeEndian.PutUint16(ask[4:], unix.RTM_GETQDISC)
	binary.NativeEndian.PutUint16(ask[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	if err := unix.Sendto(fd, ask, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		s.Fatal(err)
	}
	found, buf := map[int][]discipline{}, make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			s.Fatal(err)
		}
		messages, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			s.Fatal(err)
		}
		for _, m := range messages {
			switch m.Header.Type {
			case unix.RTM_NEWQDISC:
				index := int(int32(binary.NativeEndian.Uint32(m.Data[4:])))
				found[index] = append(found[index], oneDiscipline(m.Data[sizeofTCMsg:]))
			case unix.NLMSG_DONE:
				return found
			default:
				s.Fatalf("netlink message %d: %x", m.Header.Type, m.Data)
			}
		}
	}
}

func oneDiscipline(b []byte) discipline {
	a := attributes(b)
	d := discipline{kind: strings.TrimRight(string(a[tcaKind]), "\x00")}
	if parms := attributes(a[tcaOptions])[tcaTBFParms]; d.kind == "tbf" && len(parms) >= rateAt+4 {
		d.rate = binary.NativeEndian.Uint32(parms[rateAt:])
	}
	return d
}

// attributes takes netlink attributes apart.
func attributes(b []byte) map[uint16][]byte {
	found := map[uint16][]byte{}
	for len(b) >= unix.SizeofRtAttr {
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofRtAttr || n > len(b) {
			break
		}
		found[binary.NativeEndian.Uint16(b[2:])] = b[unix.SizeofRtAttr:n]
		b = b[min((n+3)&^3, len(b)):]
	}
	return found
}

// reaches waits until a URL answers with a text: a server says that it is there shortly before it listens.
func (s *scene) reaches(what, url, want string) {
	s.Helper()
	client := http.Client{Timeout: s.Scale(2 * time.Second), Transport: &http.Transport{DisableKeepAlives: true}}
	s.eventually(what+" by "+url, func() bool {
		resp, err := client.Get(url)
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		return err == nil && string(text) == want+"\n"
	})
}

// natRules are the rules of address translation of IPv4.
func natRules() (string, error) {
	out, err := exec.Command("iptables", "-w", "-t", "nat", "-S").CombinedOutput()
	if err != nil {
		err = fmt.Errorf("iptables with a nat table: %w: %s", err, out)
	}
	return string(out), err
}

// TestHostPorts: a server in a pod is reached through ports of the host, those with an address of the host only there, and no rule is left
// when the pod is removed, by another daemon than the one that it came with.
func TestHostPorts(t *testing.T) {
	if _, err := natRules(); err != nil {
		t.Skipf("needs %v", err)
	}
	s := open(t)
	s.addPlugin(portmap)
	p := s.runPod("web", func(c *runtimeapi.PodSandboxConfig) {
		c.PortMappings = []*runtimeapi.PortMapping{{HostPort: 28080, ContainerPort: 8080}, {HostPort: 28081, ContainerPort: 8080, HostIp: stage.Gateway}}
	})
	p.run("web", serve("8080", "hello from the pod"))
	s.eventually("the pod serves", func() bool { return len(p.logText("web", "stdout")) == 1 })
	for _, at := range []string{stage.Gateway + ":28080", "127.0.0.1:28080", stage.Gateway + ":28081"} {
		s.reaches("the pod", "http://"+at+"/", "hello from the pod")
	}
	asker := s.runPod("asker")
	if got := asker.exec(asker.run("asker", "sleep 1000"), "wget -q -O - http://"+stage.Gateway+":28080/"); got != "hello from the pod" {
		t.Errorf("from another pod: %q", got)
	}
	s.refused("127.0.0.1:28081")
	if rules, err := natRules(); err != nil || strings.Count(rules, "--dport 2808") < 2 {
		t.Errorf("rules of both ports are not where this test looks for them: %v\n%s", err, rules)
	}
	s.killDaemon()
	s.restart()
	s.reaches("the pod of another daemon", "http://"+stage.Gateway+":28080/", "hello from the pod")
	p.gone()
	if rules, err := natRules(); err != nil || strings.Contains(rules, "2808") || strings.Contains(rules, p.id) {
		t.Errorf("rules are left: %v\n%s", err, rules)
	}
	for _, at := range []string{stage.Gateway + ":28080", "127.0.0.1:28080", stage.Gateway + ":28081"} {
		s.refused(at)
	}
}

// refused fails the test unless nobody listens there.
func (s *scene) refused(at string) {
	s.Helper()
	c, err := net.DialTimeout("tcp", at, s.Scale(5*time.Second))
	if err == nil {
		c.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		s.Errorf("%s: %v, want that nobody listens", at, err)
	}
}

// TestDualStack: a network that gives an address of each family. Status tells both, containers have both in /etc/hosts, and the host
// reaches both.
func TestDualStack(t *testing.T) {
	if _, err := os.Stat("/proc/net/if_inet6"); err != nil {
		t.Skipf("needs IPv6 in the kernel: %v", err)
	}
	s := open(t)
	s.editNetwork(`"ranges": [`, `"ranges": [[{ "subnet": "fd00:86::/64" }], `)
	s.editNetwork(`"routes": [`, `"routes": [{ "dst": "::/0" }, `)
	p := s.runPod("both")
	web := p.run("web", serve("8080", "hello"))
	st, err := s.cri.PodSandboxStatus(s.ctx, p.id, false)
	if err != nil {
		t.Fatal(err)
	}
	n := st.Status.GetNetwork()
	if len(n.GetAdditionalIps()) != 1 || n.AdditionalIps[0].GetIp() == "" {
		t.Fatalf("network %v, want an additional address", n)
	}
	addresses := []string{n.Ip, n.AdditionalIps[0].Ip}
	if !strings.HasPrefix(addresses[0], "fd00:86::") || !strings.HasPrefix(addresses[1], "10.86.0.") {
		t.Errorf("addresses %q, want them in the order of the network's ranges", addresses)
	}
	s.eventually("the pod serves", func() bool { return len(p.logText("web", "stdout")) == 1 })
	hosts := s.exec(web, "cat /etc/hosts")
	for _, a := range addresses {
		if !slices.ContainsFunc(strings.Split(hosts, "\n"), func(line string) bool {
			f := strings.Fields(line)
			return len(f) > 1 && f[0] == a && slices.Contains(f[1:], "both")
		}) {
			t.Errorf("%s is not in\n%s", a, hosts)
		}
		// The bridge's own address may be as new as the pod's: the kernel connects from ::1 until it has looked for others who have it.
		s.reaches("the pod", "http://"+net.JoinHostPort(a, "8080")+"/", "hello")
	}
	s.killDaemon()
	s.restart()
	if st, err := s.cri.PodSandboxStatus(s.ctx, p.id, false); err != nil || st.Status.GetNetwork().String() != n.String() {
		t.Errorf("after a restart of the daemon: %v (%v), was %v", st.GetStatus().GetNetwork(), err, n)
	}
}
