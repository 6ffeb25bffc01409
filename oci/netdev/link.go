package netdev

import (
	"bytes"
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

// link is a network device in the namespace of an end.
type link struct {
	index int32
	name  string
	up    bool
}

// links returns all devices.
func (e *end) links() ([]link, error) {
	m := newMessage(unix.RTM_GETLINK, unix.NLM_F_DUMP)
	body(m, unix.IfInfomsg{Family: unix.AF_UNSPEC})
	var out []link
	err := e.do(m, func(kind uint16, b []byte) error {
		if kind != unix.RTM_NEWLINK || len(b) < unix.SizeofIfInfomsg {
			return nil
		}
		l := link{index: int32(binary.NativeEndian.Uint32(b[4:])), up: binary.NativeEndian.Uint32(b[8:])&unix.IFF_UP != 0}
		err := attrs(b, unix.SizeofIfInfomsg, func(kind uint16, v []byte) {
			if kind == unix.IFLA_IFNAME {
				l.name = string(bytes.TrimRight(v, "\x00"))
			}
		})
		out = append(out, l)
		return err
	})
	return out, err
}

// send moves a device to the namespace behind ns, where it is given an index and
// a name, which may be a pattern with %d. Other names and the address of the
// hardware stay; the kernel takes the addresses away and sets the device down.
func (e *end) send(index int32, ns int, newIndex int32, name string) error {
	m := newMessage(unix.RTM_SETLINK, unix.NLM_F_ACK)
	body(m, unix.IfInfomsg{Family: unix.AF_UNSPEC, Index: index})
	m.attr32(unix.IFLA_NET_NS_FD, uint32(ns))
	m.attr32(unix.IFLA_NEW_IFINDEX, uint32(newIndex))
	m.attrText(unix.IFLA_IFNAME, name)
	return e.do(m, nil)
}

// up sets a device up.
func (e *end) up(index int32) error {
	m := newMessage(unix.RTM_SETLINK, unix.NLM_F_ACK)
	body(m, unix.IfInfomsg{Family: unix.AF_UNSPEC, Index: index, Flags: unix.IFF_UP, Change: unix.IFF_UP})
	return e.do(m, nil)
}

// address is one of a device's, as the attributes that make it anew.
type address struct {
	head  unix.IfAddrmsg
	attrs [][]byte // by the numbers of IFA_*; nil for none
}

// ifaProto is IFA_PROTO of linux/if_addr.h: who has made the address.
const ifaProto = 11

// keptFlags are what somebody has asked of an address; the others are its state.
const keptFlags = unix.IFA_F_NODAD | unix.IFA_F_HOMEADDRESS | unix.IFA_F_MANAGETEMPADDR | unix.IFA_F_NOPREFIXROUTE | unix.IFA_F_MCAUTOJOIN

// addresses returns the permanent addresses of a device with global scope.
func (e *end) addresses(index int32) ([]address, error) {
	m := newMessage(unix.RTM_GETADDR, unix.NLM_F_DUMP)
	body(m, unix.IfAddrmsg{Family: unix.AF_UNSPEC})
	var out []address
	err := e.do(m, func(kind uint16, b []byte) error {
		if kind != unix.RTM_NEWADDR || len(b) < unix.SizeofIfAddrmsg {
			return nil
		}
		a := address{attrs: make([][]byte, ifaProto+1)}
		a.head = unix.IfAddrmsg{Family: b[0], Prefixlen: b[1], Flags: b[2], Scope: b[3], Index: binary.NativeEndian.Uint32(b[4:])}
		flags := uint32(a.head.Flags)
		err := attrs(b, unix.SizeofIfAddrmsg, func(kind uint16, v []byte) {
			if int(kind) < len(a.attrs) {
				a.attrs[kind] = bytes.Clone(v)
			}
			if kind == unix.IFA_FLAGS && len(v) == 4 {
				flags = binary.NativeEndian.Uint32(v) // all of them, where the header has eight
			}
		})
		if err == nil && a.head.Index == uint32(index) && a.head.Scope == unix.RT_SCOPE_UNIVERSE && flags&unix.IFA_F_PERMANENT != 0 {
			a.head.Flags = 0
			a.attrs[unix.IFA_FLAGS] = binary.NativeEndian.AppendUint32(nil, flags&keptFlags)
			out = append(out, a)
		}
		return err
	})
	return out, err
}

// add gives a device an address. A label of IPv4 has to begin with the name of the
// device, so it is left out where that has changed.
func (e *end) add(index int32, a address, renamed bool) error {
	m := newMessage(unix.RTM_NEWADDR, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	a.head.Index = uint32(index)
	body(m, a.head)
	for _, kind := range []uint16{unix.IFA_ADDRESS, unix.IFA_LOCAL, unix.IFA_LABEL, unix.IFA_BROADCAST, unix.IFA_ANYCAST, unix.IFA_FLAGS, unix.IFA_RT_PRIORITY, ifaProto} {
		if v := a.attrs[kind]; v != nil && !(kind == unix.IFA_LABEL && renamed) {
			m.attr(kind, v)
		}
	}
	err := e.do(m, nil)
	if errors.Is(err, unix.EEXIST) {
		return nil // an address that the device gives itself
	}
	return err
}
