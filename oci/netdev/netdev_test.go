package netdev

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// place is a network namespace of the test's own.
type place struct {
	t  *testing.T
	ns *sys.FD
	*end
}

func newPlace(t *testing.T) *place {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	p := &place{t: t}
	err := sys.OnLostThread(func() (err error) {
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if p.end, err = open(); err != nil {
			return err
		}
		p.ns, err = p.namespace()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.end.close(); p.ns.Close() })
	return p
}

func (p *place) must(what string, err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatalf("%s: %v", what, err)
	}
}

// veth makes a pair of devices, of which name is one.
func (p *place) veth(name string) {
	p.t.Helper()
	m := newMessage(unix.RTM_NEWLINK, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	body(m, unix.IfInfomsg{})
	m.attrText(unix.IFLA_IFNAME, name)
	m.attr32(unix.IFLA_MTU, 1434)
	kind := append(binary.NativeEndian.AppendUint16(nil, 4+4), byte(unix.IFLA_INFO_KIND), 0)
	m.attr(unix.IFLA_LINKINFO, append(kind, "veth"...))
	if err := p.do(m, nil); errors.Is(err, unix.EOPNOTSUPP) {
		p.t.Skip("needs veth devices in the kernel (CONFIG_VETH)")
	} else {
		p.must("make "+name, err)
	}
}

func (p *place) find(name string) (link, bool) {
	p.t.Helper()
	all, err := p.links()
	p.must("list", err)
	i := slices.IndexFunc(all, func(l link) bool { return l.name == name })
	if i < 0 {
		return link{}, false
	}
	return all[i], true
}

// give adds an address, valid for so many seconds (0: for ever), in a scope.
func (p *place) give(name, prefix, label string, seconds uint32, scope uint8) {
	p.t.Helper()
	l, _ := p.find(name)
	ip := netip.MustParsePrefix(prefix)
	m := newMessage(unix.RTM_NEWADDR, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	family := uint8(unix.AF_INET)
	if ip.Addr().Is6() {
		family = unix.AF_INET6
	}
	body(m, unix.IfAddrmsg{Family: family, Prefixlen: uint8(ip.Bits()), Scope: scope, Index: uint32(l.index)})
	m.attr(unix.IFA_ADDRESS, ip.Addr().AsSlice())
	m.attr(unix.IFA_LOCAL, ip.Addr().AsSlice())
	if label != "" {
		m.attrText(unix.IFA_LABEL, label)
	}
	m.attr32(unix.IFA_FLAGS, unix.IFA_F_NODAD|unix.IFA_F_NOPREFIXROUTE)
	if seconds > 0 {
		var info []byte
		for _, v := range []uint32{seconds, seconds, 0, 0} {
			info = binary.NativeEndian.AppendUint32(info, v)
		}
		m.attr(unix.IFA_CACHEINFO, info)
	}
	p.must("add "+prefix, p.do(m, nil))
}

// show returns the permanent global addresses of a device with their labels.
func (p *place) show(name string) string {
	p.t.Helper()
	l, ok := p.find(name)
	if !ok {
		return "no " + name
	}
	list, err := p.addresses(l.index)
	p.must("list addresses", err)
	out := []string{fmt.Sprintf("up=%v", l.up)}
	for _, a := range list {
		ip, _ := netip.AddrFromSlice(a.attrs[unix.IFA_ADDRESS])
		flags := binary.NativeEndian.Uint32(a.attrs[unix.IFA_FLAGS])
		out = append(out, fmt.Sprintf("%s/%d %s %#x", ip, a.head.Prefixlen, strings.TrimRight(string(a.attrs[unix.IFA_LABEL]), "\x00"), flags))
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// stage makes a device "eth7" with addresses of all kinds.
func stage(t *testing.T) (from, to *place) {
	from, to = newPlace(t), newPlace(t)
	from.veth("eth7")
	from.give("eth7", "10.1.2.3/24", "eth7:one", 0, unix.RT_SCOPE_UNIVERSE)
	from.give("eth7", "10.1.2.4/24", "", 0, unix.RT_SCOPE_UNIVERSE) // a secondary one
	from.give("eth7", "10.9.9.9/32", "", 600, unix.RT_SCOPE_UNIVERSE)
	from.give("eth7", "169.254.1.1/16", "", 0, unix.RT_SCOPE_LINK)
	from.give("eth7", "fd00::7/64", "", 0, unix.RT_SCOPE_UNIVERSE)
	l, _ := from.find("eth7")
	from.must("up", from.up(l.index))
	return from, to
}

const (
	noprefix = "0x200"
	both     = "0x202" // with nodad, which only addresses of IPv6 keep
)

func devices(pairs ...string) map[string]specs.LinuxNetDevice {
	out := map[string]specs.LinuxNetDevice{}
	for i := 0; i < len(pairs); i += 2 {
		out[pairs[i]] = specs.LinuxNetDevice{Name: pairs[i+1]}
	}
	return out
}

func TestMove(t *testing.T) {
	for _, name := range []string{"", "inside", "net%d"} {
		from, to := stage(t)
		to.veth("net0")
		if _, taken := to.find("net0"); !taken {
			t.Fatal("no net0")
		}
		if err := Move(devices("eth7", name), from.ns.Int(), to.ns.Int()); err != nil {
			t.Fatal(err)
		}
		inside, label := map[string]string{"": "eth7", "inside": "inside", "net%d": "net1"}[name], "eth7:one"
		if inside != "eth7" {
			label = inside
		}
		second := inside
		want := fmt.Sprintf("10.1.2.3/24 %s %s, 10.1.2.4/24 %s %s, fd00::7/64  %s, up=true", label, noprefix, second, noprefix, both)
		if got := to.show(inside); got != want {
			t.Errorf("%q:\n%s, want\n%s", name, got, want)
		}
		if _, left := from.find("eth7"); left {
			t.Errorf("%q: still there", name)
		}
	}
}

// TestMoveKeepsWhatTheKernelKeeps: the address of the hardware and the MTU.
func TestMoveKeepsWhatTheKernelKeeps(t *testing.T) {
	from, to := stage(t)
	before := from.hardware("eth7")
	if err := Move(devices("eth7", "inside"), from.ns.Int(), to.ns.Int()); err != nil {
		t.Fatal(err)
	}
	if after := to.hardware("inside"); after != before || !strings.HasSuffix(after, " 1434") {
		t.Errorf("%s, was %s", after, before)
	}
}

func (p *place) hardware(name string) (out string) {
	l, _ := p.find(name)
	m := newMessage(unix.RTM_GETLINK, unix.NLM_F_ACK)
	body(m, unix.IfInfomsg{Index: l.index})
	p.must("look", p.do(m, func(_ uint16, b []byte) error {
		var mac, mtu string
		err := attrs(b, unix.SizeofIfInfomsg, func(kind uint16, v []byte) {
			switch kind {
			case unix.IFLA_ADDRESS:
				mac = fmt.Sprintf("% x", v)
			case unix.IFLA_MTU:
				mtu = fmt.Sprint(binary.NativeEndian.Uint32(v))
			}
		})
		out = mac + " " + mtu
		return err
	}))
	return out
}

// TestMoveFails: what cannot be moved stays, and what was moved before comes back
// with its addresses.
func TestMoveFails(t *testing.T) {
	from, to := stage(t)
	to.veth("taken")
	before := from.show("eth7")
	for _, tt := range []struct {
		in   map[string]specs.LinuxNetDevice
		want string
		is   error
	}{
		{devices("eth7", "taken"), `linux.netDevices["eth7"]: name taken in the container: file exists`, unix.EEXIST},
		{devices("eth7", "lo"), "name lo in the container", unix.EEXIST},
		{devices("none", ""), `linux.netDevices["none"]: no such device`, unix.ENODEV},
		{devices("lo", "lo2"), `linux.netDevices["lo"]: move it: invalid argument`, unix.EINVAL},
		{devices("eth7", "inside", "nowhere", ""), `linux.netDevices["nowhere"]: no such device`, unix.ENODEV},
		{devices("eth7", "inside", "lo", "lo2"), `linux.netDevices["lo"]: move it`, unix.EINVAL},
		{devices("eth7", "a/b"), "invalid", ErrInvalid},
		{devices("eth7", "sixteen-letters-"), "invalid", ErrInvalid},
		{devices("eth7", "%d%d"), "invalid", ErrInvalid},
		{devices("eth7", "a%s"), "invalid", ErrInvalid},
		{devices("eth7", ".."), "invalid", ErrInvalid},
		{devices("", "x"), "invalid", ErrInvalid},
		{devices("eth7", "x", "veth0", "x"), `"x" as for "eth7"`, ErrInvalid},
	} {
		err := Move(tt.in, from.ns.Int(), to.ns.Int())
		if !errors.Is(err, tt.is) || !strings.Contains(fmt.Sprint(err), tt.want) {
			t.Errorf("%v: %v, want %s", tt.in, err, tt.want)
		}
		if got := from.show("eth7"); got != before {
			t.Errorf("%v: eth7 is %s, was %s", tt.in, got, before)
		}
		if _, there := to.find("inside"); there {
			t.Errorf("%v: left in the container", tt.in)
		}
	}
	if err := Move(devices("eth7", ""), from.ns.Int(), -1); !errors.Is(err, unix.EBADF) {
		t.Errorf("nowhere: %v", err)
	}
}

// TestGarbledReplies: what is no message ends a request, and reads nothing behind.
func TestGarbledReplies(t *testing.T) {
	e := &end{seq: 1}
	head := func(size uint32, kind uint16) []byte {
		b := binary.NativeEndian.AppendUint32(nil, size)
		b = binary.NativeEndian.AppendUint16(b, kind)
		return append(b, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0)
	}
	for _, b := range [][]byte{head(0, 3), head(15, 3), head(17, 3), head(1<<31, 2), head(16, unix.NLMSG_ERROR), append(head(19, unix.NLMSG_DONE), 1, 2, 3)} {
		if done, err := e.replies(b, nil); !done || !errors.Is(err, errGarbled) {
			t.Errorf("% x: %v, %v", b, done, err)
		}
	}
	for _, b := range [][]byte{{}, {1, 2, 3}, {3, 0, 1, 0}, {9, 0, 1, 0, 0}, {0, 0, 0, 0}} {
		err := attrs(b, 0, func(uint16, []byte) {})
		if short := len(b) < unix.SizeofRtAttr; (err == nil) != short {
			t.Errorf("% x: %v", b, err)
		}
	}
	if attrs([]byte{1}, 16, nil) == nil {
		t.Error("short body")
	}
}
