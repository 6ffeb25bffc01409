package cni

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// plugins finds the programs of containernetworking/plugins.
func plugins(t *testing.T, names ...string) string {
	t.Helper()
	dir := os.Getenv("VITRINE_CNI_BIN")
	if dir == "" {
		dir = "../bin/cni"
	}
	dir, err := filepath.Abs(dir)
	must(t, err)
	for _, name := range names {
		if _, err := os.Stat(dir + "/" + name); err != nil {
			t.Skipf("needs the plugin %s: make cni-plugins, or VITRINE_CNI_BIN", name)
		}
	}
	return dir
}

// bridge is a network as a node has it: bridge with host-local, whose addresses
// are kept in the directory of the test, and further plugins behind it. subnet is
// of IPv4; one of IPv6 may follow behind a comma.
func bridge(t *testing.T, subnet string, more ...string) *network {
	t.Helper()
	needRoot(t)
	bin := plugins(t, "bridge", "host-local")
	n := &network{t: t, dir: t.TempDir()}
	must(t, os.MkdirAll(n.dir+"/conf", 0o755), os.Symlink(bin, n.dir+"/bin"))
	n.restart()
	subnet, second, both := strings.Cut(subnet, ",")
	ranges := fmt.Sprintf(`[{"subnet":%q}]`, subnet)
	if both {
		ranges += fmt.Sprintf(`,[{"subnet":%q}]`, second)
	}
	name := "br" + strings.ReplaceAll(strings.TrimSuffix(subnet, ".0/24"), ".", "-")
	n.list("1.0.0", append([]string{fmt.Sprintf(`{"type":"bridge","bridge":%q,"isGateway":true,"ipam":{"type":"host-local",
		"dataDir":%q,"ranges":[%s],"routes":[{"dst":"0.0.0.0/0"}]}}`, name, n.dir+"/ipam", ranges)}, more...)...)
	t.Cleanup(func() { _ = exec.Command("ip", "link", "delete", name).Run() })
	return n
}

// addresses are those that host-local has given away.
func (n *network) addresses() []string {
	n.t.Helper()
	files, err := filepath.Glob(n.dir + "/ipam/test/*.*.*.*")
	must(n.t, err)
	for i := range files {
		files[i] = filepath.Base(files[i])
	}
	return files
}

func TestBridge(t *testing.T) {
	n, ns := bridge(t, "10.88.1.0/24"), newNetNS(t)
	must(t, n.Status(t.Context()))
	res, err := n.Add(t.Context(), pod("one", ns))
	must(t, err)
	want, gw := netip.MustParseAddr("10.88.1.2"), netip.MustParseAddr("10.88.1.1")
	if len(res.IPs) != 1 || res.IPs[0] != want || res.Gateway != gw {
		t.Fatalf("result %+v", res)
	}
	n.pending("one")
	if got := n.addresses(); len(got) != 1 || got[0] != "10.88.1.2" {
		t.Fatalf("given away: %q", got)
	}
	must(t, visit(ns, func() error { return up("lo", "127.0.0.1/8") }), visit(ns, func() error { return up("eth0", "10.88.1.2/24") }))
	reach(t, ns, gw)

	if _, err := n.Add(t.Context(), pod("one", ns)); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("second Add: %v", err)
	}
	reach(t, ns, gw) // and has not undone the first

	for range 2 {
		must(t, n.Del(t.Context(), "one"))
		if got := n.addresses(); len(got) != 0 {
			t.Fatalf("given away after Del: %q", got)
		}
		n.nothingLeft()
	}
	if err := visit(ns, func() error { return up("eth0", "") }); err == nil {
		t.Error("eth0 is still there")
	}
	for _, id := range []string{"unknown", "", "..", "../state", strings.Repeat("a", 5000), "a\nb"} {
		if err := n.Del(t.Context(), id); err != nil {
			t.Errorf("Del of %.20q: %v", id, err)
		}
	}
}

// up looks for an interface of the current namespace that is up and has an address.
func up(name, addr string) error {
	f, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	addrs, err := f.Addrs()
	if err == nil && (f.Flags&net.FlagUp == 0 || !strings.Contains(fmt.Sprint(addrs), addr)) {
		err = fmt.Errorf("%s: %v %v", name, f.Flags, addrs)
	}
	return err
}

// reach connects to a listener at addr from within a namespace.
func reach(t *testing.T, ns string, addr netip.Addr) {
	t.Helper()
	l, err := net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
	must(t, err)
	defer l.Close()
	must(t, visit(ns, func() error {
		// For an address that is no name, net makes its socket on the thread that calls it. A connection from elsewhere would be from addr
		// itself. connect(2) alone would be of no use here: a signal may interrupt it, and a second one is no repetition of the first.
		c, err := net.DialTimeout("tcp", l.Addr().String(), patience)
		if err != nil {
			return err
		}
		defer c.Close()
		if from := c.LocalAddr().(*net.TCPAddr).AddrPort().Addr(); from == addr {
			return fmt.Errorf("the connection to %v came from outside of %s", addr, ns)
		}
		return nil
	}))
}

// patience is for a connection on a busy or emulated machine.
const patience = 20 * time.Second

func TestAddressIsFreedWithoutNamespace(t *testing.T) {
	n := bridge(t, "10.88.2.0/24")
	gone := map[string]func(ns string){
		"unmounted, a plain file stays": func(ns string) {},
		"unlinked":                      func(ns string) { must(t, os.Remove(ns)) },
		"a directory instead":           func(ns string) { must(t, os.Remove(ns), os.Mkdir(ns, 0o700)) },
		"a dangling link instead":       func(ns string) { must(t, os.Remove(ns), os.Symlink("/nowhere", ns)) },
	}
	for name, f := range gone {
		t.Run(name, func(t *testing.T) {
			ns := newNetNS(t)
			_, err := n.Add(t.Context(), pod("gone", ns))
			must(t, err, unix.Unmount(ns, unix.MNT_DETACH))
			f(ns)
			must(t, n.Del(t.Context(), "gone"))
			if got := n.addresses(); len(got) != 0 {
				t.Fatalf("given away: %q", got)
			}
			n.nothingLeft()
		})
	}
}

// A daemon is killed and comes back to an empty configuration directory and, in
// the worst case, without the library's cache.
func TestAddressIsFreedAfterACrash(t *testing.T) {
	n, ns := bridge(t, "10.88.3.0/24"), newNetNS(t)
	_, err := n.Add(t.Context(), pod("crash", ns))
	must(t, err, os.RemoveAll(n.dir+"/conf"), os.RemoveAll(n.dir+"/cache"))
	n.restart()
	if err := n.Status(t.Context()); !errors.Is(err, ErrNotReady) {
		t.Fatalf("status: %v", err)
	}
	n.pending("crash")
	must(t, n.Del(t.Context(), "crash"))
	if got := n.addresses(); len(got) != 0 {
		t.Fatalf("given away: %q", got)
	}
	n.nothingLeft()
}

func TestTwentyPods(t *testing.T) {
	n := bridge(t, "10.88.4.0/24")
	const pods = 20
	var spaces [pods]string
	for i := range spaces {
		spaces[i] = newNetNS(t)
	}
	var mu sync.Mutex
	seen := map[netip.Addr]int{}
	each(t, pods, func(i int) error {
		res, err := n.Add(t.Context(), pod(fmt.Sprint("p", i), spaces[i]))
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		seen[res.IPs[0]]++
		return nil
	})
	if len(seen) != pods || len(n.addresses()) != pods {
		t.Errorf("addresses %v, given away %q", seen, n.addresses())
	}
	for i := range spaces {
		reach(t, spaces[i], netip.MustParseAddr("10.88.4.1"))
	}
	each(t, pods, func(i int) error { return n.Del(t.Context(), fmt.Sprint("p", i)) })
	if got := n.addresses(); len(got) != 0 {
		t.Errorf("given away after all: %q", got)
	}
	n.nothingLeft()
	if len(n.turns.m) != 0 {
		t.Errorf("%d turns are left", len(n.turns.m))
	}
}

// each calls f for 0..n-1 at the same time.
func each(t *testing.T, n int, f func(int) error) {
	t.Helper()
	errs := make(chan error)
	for i := range n {
		go func() { errs <- f(i) }()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// natRules are the rules of address translation that iptables or ip6tables tells.
func natRules(program string) (string, error) {
	out, err := exec.Command(program, "-w", "-t", "nat", "-S").CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s with a nat table: %w: %s", program, err, out)
	}
	return string(out), err
}

// portmap connects a pod whose ports are the host's, and returns what disconnects it. It answers on port 8080 with its name, by TCP and UDP.
func portmap(t *testing.T, subnets, name string, ports ...PortMapping) (end func()) {
	t.Helper()
	plugins(t, "portmap")
	n := bridge(t, subnets, `{"type":"portmap","backend":"iptables","capabilities":{"portMappings":true},"snat":true}`)
	ns := newNetNS(t)
	p := pod(name, ns)
	p.PortMappings = ports
	_, err := n.Add(t.Context(), p)
	must(t, err)
	var l net.Listener
	var u net.PacketConn
	must(t, visit(ns, func() (err error) { l, err = net.Listen("tcp", ":8080"); return err }))
	must(t, visit(ns, func() (err error) { u, err = net.ListenPacket("udp", ":8080"); return err }))
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, name)
			c.Close()
		}
	}()
	go func() { // ends with the socket
		for b := make([]byte, 16); ; {
			_, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = u.WriteTo([]byte(name), from)
		}
	}()
	return func() {
		t.Helper()
		l.Close()
		u.Close()
		must(t, n.Del(t.Context(), name))
		n.nothingLeft()
	}
}

// answer is what somebody says at a port of the host. A datagram may get lost, and is sent again.
func answer(network, at string) (string, error) {
	c, err := net.DialTimeout(network, at, patience)
	if err != nil {
		return "", err
	}
	defer c.Close()
	b := make([]byte, 16)
	for end := time.Now().Add(patience); ; {
		if network == "udp" {
			if _, err := c.Write([]byte("hello")); err != nil {
				return "", err
			}
		}
		_ = c.SetReadDeadline(time.Now().Add(patience / 10))
		n, err := c.Read(b)
		if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) || time.Now().After(end) {
			return string(b[:n]), err
		}
	}
}

// mapped tries ports of the host: those that lead to the pod called name, and those that lead nowhere.
func mapped(t *testing.T, name string, there, nowhere []string) {
	t.Helper()
	for _, at := range there {
		network, at, _ := strings.Cut(at, " ")
		if got, err := answer(network, at); got != name {
			t.Errorf("%s %s: %q, %v", network, at, got, err)
		}
	}
	for _, at := range nowhere {
		network, at, _ := strings.Cut(at, " ")
		if got, err := answer(network, at); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s %s: %q, %v, want nobody there", network, at, got, err)
		}
	}
}

func TestPortmap(t *testing.T) {
	needRoot(t)
	if _, err := natRules("iptables"); err != nil {
		t.Skipf("needs %v", err)
	}
	end := portmap(t, "10.88.5.0/24", "mapped",
		PortMapping{Protocol: "tcp", HostPort: 18080, ContainerPort: 8080}, PortMapping{Protocol: "udp", HostPort: 18080, ContainerPort: 8080},
		PortMapping{Protocol: "tcp", HostIP: "10.88.5.1", HostPort: 18081, ContainerPort: 8080},
		PortMapping{Protocol: "udp", HostIP: "127.0.0.1", HostPort: 18082, ContainerPort: 8080})
	there := []string{"tcp 10.88.5.1:18080", "tcp 127.0.0.1:18080", "udp 10.88.5.1:18080", "udp 127.0.0.1:18080", "tcp 10.88.5.1:18081", "udp 127.0.0.1:18082"}
	mapped(t, "mapped", there, []string{"tcp 127.0.0.1:18081", "udp 10.88.5.1:18081", "udp 10.88.5.1:18082", "tcp 127.0.0.1:18082"})
	end()
	mapped(t, "", nil, there)
	if rules, err := natRules("iptables"); err != nil || strings.Contains(rules, "1808") {
		t.Errorf("rules are left: %v\n%s", err, rules)
	}
}

// TestPortmapIPv6: a pod of both families has its ports in both, but for those with an address of the host.
func TestPortmapIPv6(t *testing.T) {
	needRoot(t)
	if _, err := os.Stat("/proc/net/if_inet6"); err != nil {
		t.Skipf("needs IPv6 in the kernel: %v", err)
	}
	for _, program := range []string{"iptables", "ip6tables"} {
		if _, err := natRules(program); err != nil {
			t.Skipf("needs %v", err)
		}
	}
	end := portmap(t, "10.88.7.0/24,fd00:88:7::/64", "mapped",
		PortMapping{Protocol: "tcp", HostPort: 18083, ContainerPort: 8080}, PortMapping{Protocol: "udp", HostPort: 18083, ContainerPort: 8080},
		PortMapping{Protocol: "tcp", HostIP: "fd00:88:7::1", HostPort: 18084, ContainerPort: 8080},
		PortMapping{Protocol: "udp", HostIP: "10.88.7.1", HostPort: 18085, ContainerPort: 8080})
	// The kernel does not connect from a new address before it has looked for others who have it, a second long.
	eventually(t, "addresses are nobody else's", func() bool {
		text, err := os.ReadFile("/proc/net/if_inet6")
		must(t, err)
		for line := range strings.Lines(string(text)) {
			flags, err := strconv.ParseUint(strings.Fields(line)[4], 16, 32)
			must(t, err)
			if flags&unix.IFA_F_TENTATIVE != 0 {
				return false
			}
		}
		return true
	})
	there := []string{"tcp [fd00:88:7::1]:18083", "udp [fd00:88:7::1]:18083", "tcp 10.88.7.1:18083", "udp 127.0.0.1:18083",
		"tcp [fd00:88:7::1]:18084", "udp 10.88.7.1:18085"}
	mapped(t, "mapped", there, []string{"tcp 10.88.7.1:18084", "udp [fd00:88:7::1]:18085"})
	end()
	mapped(t, "", nil, there)
	for _, program := range []string{"iptables", "ip6tables"} {
		if rules, err := natRules(program); err != nil || strings.Contains(rules, "1808") {
			t.Errorf("%s: rules are left: %v\n%s", program, err, rules)
		}
	}
}

// Nothing may be left of a hundred calls, successful or not: descriptors,
// goroutines, namespaces held by threads, processes.
func TestNoLeaks(t *testing.T) {
	n := newNetwork(t)
	ns := newNetNS(t)
	n.fake(`test -e $DIR/fail && exit 1; answer "$(ip 10.0.0.1/8)"`, "")
	round := func(i int) {
		id := fmt.Sprint("leak", i)
		if _, err := n.Add(t.Context(), pod(id, ns)); err == nil {
			must(t, n.Del(t.Context(), id))
		}
		must(t, n.Status(t.Context()))
		_, _ = n.Add(within(t, time.Nanosecond), pod(id, ns))
		_, _ = n.Add(t.Context(), pod(id, "/nowhere"))
	}
	round(0)
	before, home := usage(t), netNS(t)
	for i := range 40 {
		if i == 20 {
			must(t, os.WriteFile(n.dir+"/fail", nil, 0o600))
		}
		round(i)
	}
	eventually(t, "goroutines end", func() bool { return usage(t) == before || t.Failed() || runtime.NumGoroutine() <= before.goroutines })
	if after := usage(t); after != before {
		t.Errorf("before %+v, after %+v", before, after)
	}
	if now := netNS(t); now != home {
		t.Errorf("the process moved from %s to %s", home, now)
	}
	n.nothingLeft()
}

type use struct{ fds, goroutines, children int }

func usage(t *testing.T) use {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	var children int
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	must(t, err)
	for _, f := range tasks {
		b, _ := os.ReadFile(f)
		children += len(strings.Fields(string(b)))
	}
	return use{len(fds), runtime.NumGoroutine(), children}
}

// netNS is the namespace that the whole process is taken to be in, and the one of
// each of its threads.
func netNS(t *testing.T) string {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
	must(t, err)
	seen := map[string]bool{}
	for _, f := range tasks {
		if ns, err := os.Readlink(f); err == nil {
			seen[ns] = true
		}
	}
	return fmt.Sprint(seen)
}

// The first thread of a process outlives every goroutine that is locked to it,
// and its namespace is the one that the process is taken to be in.
func TestVisitorsComeHome(t *testing.T) {
	ns, home := newNetNS(t), netNS(t)
	each(t, 200, func(int) error { return loopbackUp(t.Context(), ns) })
	first, release := make(chan bool), make(chan struct{})
	found := false
	for range 500 { // each holds a thread, until one has the first
		go func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			mine := unix.Gettid() == unix.Getpid()
			if mine {
				if err := away(ns, func() error { return setUp("lo") }); err != nil {
					t.Error(err)
				}
			}
			first <- mine
			<-release
		}()
		if found = <-first; found {
			break
		}
	}
	if !found { // it waits for the network poller
		t.Log("no visit on the first thread")
	}
	close(release)
	if got := netNS(t); got != home {
		t.Errorf("threads are in %s, were in %s", got, home)
	}
}
