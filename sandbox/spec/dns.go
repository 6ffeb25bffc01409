package spec

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The bounds on resolv.conf. glibc reads three servers and 256 characters of search list per domain;
// Kubernetes allows 32 search domains of 2,048 bytes. These only keep nonsense out.
const (
	maxServers  = 32
	maxSearches = 64
	maxOptions  = 64
)

// podDNS renders resolv.conf. It stays nil where the request says nothing: the caller then copies the
// host's, which is what dnsPolicy Default means below the kubelet.
func podDNS(p *Pod, cfg *runtimeapi.PodSandboxConfig, _ Host) error {
	d := cfg.GetDnsConfig()
	if d == nil || len(d.GetServers())+len(d.GetSearches())+len(d.GetOptions()) == 0 {
		return nil
	}
	switch {
	case len(d.GetServers()) > maxServers:
		return Invalid("dns_config.servers", "", "%d servers are more than %d", len(d.GetServers()), maxServers)
	case len(d.GetSearches()) > maxSearches:
		return Invalid("dns_config.searches", "", "%d domains are more than %d", len(d.GetSearches()), maxSearches)
	case len(d.GetOptions()) > maxOptions:
		return Invalid("dns_config.options", "", "%d options are more than %d", len(d.GetOptions()), maxOptions)
	}
	var out bytes.Buffer
	if len(d.GetSearches()) != 0 {
		for i, s := range d.GetSearches() {
			if !dnsDomain(s) {
				return Invalid(fmt.Sprintf("dns_config.searches[%d]", i), s, "not a domain")
			}
		}
		fmt.Fprintf(&out, "search %s\n", strings.Join(d.GetSearches(), " "))
	}
	for i, s := range d.GetServers() {
		// A zone (fe80::1%eth0) is legal in resolv.conf.
		if _, err := netip.ParseAddr(s); err != nil || strings.ContainsAny(s, " \t\n\r") {
			return Invalid(fmt.Sprintf("dns_config.servers[%d]", i), s, "not an IP address")
		}
		fmt.Fprintf(&out, "nameserver %s\n", s)
	}
	if len(d.GetOptions()) != 0 {
		for i, o := range d.GetOptions() {
			if !dnsOption(o) {
				return Invalid(fmt.Sprintf("dns_config.options[%d]", i), o, "not a resolver option")
			}
		}
		fmt.Fprintf(&out, "options %s\n", strings.Join(d.GetOptions(), " "))
	}
	p.ResolvConf = out.Bytes()
	return nil
}

// dnsDomain accepts names with an optional final dot, and the single dot (no search at all).
func dnsDomain(s string) bool {
	return s == "." || s != "" && len(s) <= 253 && !strings.HasPrefix(s, ".") && !strings.Contains(s, "..") &&
		!strings.ContainsFunc(s, func(r rune) bool { return !hostRune(r) && r != '.' })
}

func dnsOption(s string) bool {
	return s != "" && len(s) <= 128 &&
		!strings.ContainsFunc(s, func(r rune) bool { return !hostRune(r) && r != ':' && r != '.' })
}

// Hosts renders the /etc/hosts of containers whose request does not bring one. ips are the pod's, primary
// first.
func Hosts(hostname string, ips []string) []byte {
	var out bytes.Buffer
	out.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n")
	for _, ip := range ips {
		if hostname != "" {
			fmt.Fprintf(&out, "%s\t%s\n", ip, hostname)
		}
	}
	return out.Bytes()
}
