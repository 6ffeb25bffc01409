package program_test

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/executor"
	"github.com/vitrine-runtime/vitrine/oci/netdev"
	"github.com/vitrine-runtime/vitrine/oci/program"
)

// TestNetDevicesNeedSomebodyAndAPlace: without a gate nobody would move them, and
// into the host's namespace nothing is moved.
func TestNetDevicesNeedSomebodyAndAPlace(t *testing.T) {
	s := newStage("", "true")
	s.in.Spec.Linux.NetDevices = map[string]specs.LinuxNetDevice{"eth7": {}}
	if _, err := program.Compile(s.in); !errors.Is(err, program.ErrUnsupported) || !strings.HasPrefix(err.Error(), "linux.netDevices") {
		t.Errorf("without a gate: %v", err)
	}
	s.in.NetGate = true
	if _, err := program.Compile(s.in); err != nil {
		t.Error(err)
	}
	s.in.Host = []specs.LinuxNamespaceType{specs.NetworkNamespace}
	if _, err := program.Compile(s.in); !errors.Is(err, program.ErrInvalid) {
		t.Errorf("the host's: %v", err)
	}
	s.in.Host = nil
	drop(s.in.Spec, specs.NetworkNamespace)
	if _, err := program.Compile(s.in); !errors.Is(err, program.ErrInvalid) {
		t.Errorf("none: %v", err)
	}
}

// TestNetDevicesOfTheContainer moves a device at the gate. The container sees it,
// and a parameter of it is there to be set.
func TestNetDevicesOfTheContainer(t *testing.T) {
	s := newStage(rootTree(t), "sh", "-c", "cat /proc/sys/net/ipv4/conf/glass0/forwarding; ls /sys/class/net; cat /sys/class/net/glass0/flags")
	s.in.NetGate = true
	s.in.Spec.Linux.NetDevices = map[string]specs.LinuxNetDevice{"eth7": {Name: "glass0"}}
	s.in.Spec.Linux.Sysctl = map[string]string{"net.ipv4.conf.glass0.forwarding": "1"}
	s.gate = func(c *executor.Child) error {
		return sys.OnLostThread(func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			own, err := newVeth("eth7")
			if err != nil {
				return err
			}
			t.Cleanup(func() { own.Close() }) // or the other end would be gone, and this one with it
			return netdev.Move(s.in.Spec.Linux.NetDevices, own.Int(), c.PidFD().Int())
		})
	}
	res := s.run(t)
	if errors.Is(res.err, unix.EOPNOTSUPP) {
		t.Skip("needs veth devices in the kernel (CONFIG_VETH)")
	}
	if res.err != nil || res.out != "1\nglass0\nlo\n0x1003\n" {
		t.Errorf("%v, %q", res.err, res.out)
	}
}

// newVeth makes a pair of devices in the thread's network namespace, whose
// descriptor it returns.
func newVeth(name string) (*sys.FD, error) {
	n, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer unix.Close(n)
	attr := func(kind uint16, v []byte) []byte {
		b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(v)))
		b = append(binary.NativeEndian.AppendUint16(b, kind), v...)
		return append(b, make([]byte, -len(b)&3)...)
	}
	b := make([]byte, unix.SizeofNlMsghdr+unix.SizeofIfInfomsg)
	b = append(b, attr(unix.IFLA_IFNAME, []byte(name+"\x00"))...)
	b = append(b, attr(unix.IFLA_LINKINFO, attr(unix.IFLA_INFO_KIND, []byte("veth")))...)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], unix.RTM_NEWLINK)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	if err := unix.Sendto(n, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	if _, _, err := unix.Recvfrom(n, b, 0); err != nil {
		return nil, err
	}
	if errno := int32(binary.NativeEndian.Uint32(b[unix.SizeofNlMsghdr:])); errno != 0 {
		return nil, unix.Errno(-errno)
	}
	ns, err := unix.IoctlRetInt(n, unix.SIOCGSKNS)
	if err != nil {
		return nil, err
	}
	return sys.NewFD(ns), nil
}
