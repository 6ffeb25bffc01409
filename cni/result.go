package cni

import (
	"fmt"
	"net/netip"

	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// Result is what a pod has been given.
type Result struct {
	// IPs are the addresses of the pod's first interface, the primary one first;
	// there is at least one.
	IPs []netip.Addr
	// Gateway is that of the primary address; the zero Addr if there is none.
	Gateway netip.Addr
}

// convert takes the addresses of the pod's own interface out of a result. An
// address that names no interface is taken for one of them.
func convert(network string, r *types100.Result) (*Result, error) {
	out, own := &Result{}, ownInterfaces(r)
	for _, ip := range r.IPs {
		if ip.Interface != nil {
			i := *ip.Interface
			if i < 0 || i >= len(r.Interfaces) {
				return nil, fmt.Errorf("read result of network %s: address of interface %d of %d", network, i, len(r.Interfaces))
			}
			if !own[i] {
				continue // the host's end, or a further interface
			}
		}
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		if addr = addr.Unmap(); !ok || addr.IsUnspecified() || addr.IsMulticast() || addr.IsLoopback() {
			return nil, fmt.Errorf("read result of network %s: address %q", network, ip.Address.String())
		}
		if len(out.IPs) == 0 {
			if gw, ok := netip.AddrFromSlice(ip.Gateway); ok {
				out.Gateway = gw.Unmap()
			}
		}
		out.IPs = append(out.IPs, addr)
	}
	if len(out.IPs) == 0 {
		return nil, fmt.Errorf("read result of network %s: no address for %s", network, ifName)
	}
	return out, nil
}

// ownInterfaces tells which of the interfaces in a result are the pod's first.
// The name alone does not: the host has an eth0, too, and a plugin may report
// it. But plugins that leave the sandbox out mean the pod's.
func ownInterfaces(r *types100.Result) []bool {
	own, some := make([]bool, len(r.Interfaces)), false
	for i, f := range r.Interfaces {
		own[i] = f.Name == ifName && f.Sandbox != ""
		some = some || own[i]
	}
	for i, f := range r.Interfaces {
		own[i] = own[i] || !some && f.Name == ifName
	}
	return own
}
