package image

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"

	"golang.org/x/net/publicsuffix"

	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/pkg/sysregistriesv2"
	"go.podman.io/image/v5/types"
)

// guard looks at the URL of each request that a pull makes, before a connection is
// opened: the image library asks it for a proxy, and asks again for each redirect
// and for the place where a registry says that tokens are.
//
//	GET  /v2/            the registry names a realm: where tokens are
//	GET  realm           with the credentials: only to the registry's own site
//	GET  /v2/x/manifests with the token
//	GET  (redirect)      without it (net/http): anywhere, but not inwards
//
// None of them goes over plain HTTP unless registries.conf calls the registry
// insecure. Where there are no credentials, tokens may be anywhere: some registries
// send even the question for them elsewhere.
type guard struct {
	endpoints map[string]endpoint // by host:port
	secret    bool                // there are credentials to keep
	allowed   []string            // hosts that may have them, besides the registries' sites
	// signatures are where registries.d says that signatures lie. The node says so and
	// no registry, and what lies there proves itself: any address will do, without TLS as well.
	signatures []*url.URL

	mu sync.Mutex
	// naming holds the registry that was asked /v2/ and nothing else since: what comes
	// next may be a realm. The places are tried one after the other, so that the next
	// one's /v2/ ends the hope for an answer of the last one's.
	naming map[string]bool
	realms map[string]bool // hosts that were accepted as one
	blobs  int             // that were asked for; what says that it is too many is maxAskedBlobs
	known  bool            // all that is said about the image is here, and layers come
}

// maxAskedBlobs bounds the blobs of what is said about an image: its config, and signatures, of which a registry may
// list as many as fit into a manifest, of 4 MiB each. The rest are for repetitions.
const maxAskedBlobs = maxSignatures + 16

// endpoint is a place that registries.conf lets an image come from.
type endpoint struct{ insecure bool }

// pullSources returns the places that registries.conf lets an image come from, in order.
func pullSources(sys *types.SystemContext, named reference.Named) ([]sysregistriesv2.PullSource, error) {
	reg, err := sysregistriesv2.FindRegistry(sys, named.Name())
	if err != nil {
		return nil, fmt.Errorf("read registries.conf: %w", err)
	}
	if reg == nil {
		return []sysregistriesv2.PullSource{{Reference: named}}, nil
	}
	sources, err := reg.PullSourcesFromReference(named)
	if err != nil {
		return nil, fmt.Errorf("read registries.conf: %w", err)
	}
	return sources, nil
}

// newGuard allows requests to these places. secret says whether there are credentials
// for any of them.
func newGuard(sys *types.SystemContext, sources []sysregistriesv2.PullSource, secret bool, allowed []string) (*guard, error) {
	g := &guard{endpoints: map[string]endpoint{}, secret: secret, allowed: allowed, naming: map[string]bool{}, realms: map[string]bool{}}
	for _, s := range sources {
		g.add(reference.Domain(s.Reference), s.Endpoint.Insecure)
		ref, err := docker.NewReference(s.Reference)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrInvalidReference, err)
		}
		aside, err := docker.SignatureStorageBaseURL(sys, ref, false)
		if err != nil {
			return nil, fmt.Errorf("read registries.d: %w", err)
		}
		g.signatures = append(g.signatures, aside)
	}
	return g, nil
}

func (g *guard) add(host string, insecure bool) {
	if host == "docker.io" {
		host = "registry-1.docker.io" // where the library goes for it
	}
	g.endpoints[hostPort(host)] = endpoint{insecure}
}

// proxy implements types.SystemContext.DockerProxy: an error refuses the request.
func (g *guard) proxy(u *url.URL) (*url.URL, error) {
	err := g.check(u)
	if errors.Is(err, ErrLimit) {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s://%s: %w", ErrDenied, u.Scheme, u.Host, err)
	}
	return http.ProxyFromEnvironment(&http.Request{URL: u})
}

func (g *guard) check(u *url.URL) error {
	host := hostPort(u.Host)
	g.mu.Lock()
	defer g.mu.Unlock()
	e, own := g.endpoints[host]
	if !own && !g.anyNaming() && g.signature(u) {
		return nil
	}
	if u.Scheme != "https" && (u.Scheme != "http" || !g.plain(e, own)) {
		return fmt.Errorf("not over %.10q: the registry is not configured as insecure", u.Scheme)
	}
	if own {
		asks := strings.TrimSuffix(u.Path, "/") == "/v2"
		if asks {
			clear(g.naming)
		}
		g.naming[host] = asks
		return g.count(u)
	}
	if err := g.outward(u); err != nil {
		return err
	}
	return g.realm(u, host)
}

// count bounds the blobs that are asked for before there are layers to fetch.
func (g *guard) count(u *url.URL) error {
	if g.known || !strings.Contains(u.Path, "/blobs/") {
		return nil
	}
	if g.blobs++; g.blobs > maxAskedBlobs {
		return limitError("config and signatures", maxAskedBlobs, "requests")
	}
	return nil
}

// layersNext says that there are no more questions about an image. An archive has no guard.
func (g *guard) layersNext() {
	if g != nil {
		g.mu.Lock()
		g.known = true
		g.mu.Unlock()
	}
}

// signature reports whether something lies where signatures do.
func (g *guard) signature(u *url.URL) bool {
	return slices.ContainsFunc(g.signatures, func(s *url.URL) bool {
		return u.Scheme == s.Scheme && u.Host == s.Host && strings.HasPrefix(u.Path, s.Path+"@")
	})
}

func (g *guard) anyNaming() bool {
	for _, on := range g.naming {
		if on {
			return true
		}
	}
	return false
}

// plain says whether a request without TLS is acceptable: to an insecure registry,
// and from one to where it sends us, as nothing that comes is trusted anyway.
func (g *guard) plain(e endpoint, own bool) bool {
	if own {
		return e.insecure
	}
	for _, e := range g.endpoints {
		if !e.insecure {
			return false
		}
	}
	return true
}

// outward refuses addresses that mean this node or what is only for it, like the
// metadata service of a cloud, unless a registry itself is there.
func (g *guard) outward(u *url.URL) error {
	addr, err := netip.ParseAddr(u.Hostname())
	if err != nil {
		if name := strings.ToLower(u.Hostname()); name != "localhost" && !strings.HasSuffix(name, ".localhost") {
			return nil
		}
		addr = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	addr = addr.Unmap()
	if !addr.IsLoopback() && !addr.IsLinkLocalUnicast() && !addr.IsMulticast() && !addr.IsUnspecified() {
		return nil
	}
	for host := range g.endpoints {
		name, _, _ := net.SplitHostPort(host)
		if a, err := netip.ParseAddr(name); addr.IsLoopback() && (name == "localhost" || (err == nil && a.IsLoopback())) {
			return nil
		}
	}
	return errors.New("a registry does not send us to an address of this node")
}

// realm judges a foreign host while a registry may be naming one.
func (g *guard) realm(u *url.URL, host string) error {
	naming := ""
	for h, on := range g.naming {
		if on {
			naming = h
		}
	}
	if naming == "" || g.realms[host] || !g.secret {
		return nil
	}
	if !sameSite(u.Hostname(), naming) && !slices.Contains(g.allowed, u.Host) {
		name, _, _ := net.SplitHostPort(naming)
		return fmt.Errorf("credentials for %s do not go to another site", name)
	}
	g.realms[host] = true
	return nil
}

// sameSite reports whether a host and a host:port belong to one owner: the same
// name, or names below one that can be registered (auth.docker.io and
// registry-1.docker.io).
func sameSite(a, bPort string) bool {
	b, _, _ := net.SplitHostPort(bPort)
	a, b = strings.ToLower(a), strings.ToLower(b)
	if a == b {
		return true
	}
	x, err := publicsuffix.EffectiveTLDPlusOne(a)
	if err != nil {
		return false
	}
	y, err := publicsuffix.EffectiveTLDPlusOne(b)
	_, notName := netip.ParseAddr(a)
	return err == nil && notName != nil && x == y
}

// hostPort makes hosts with and without the default port comparable.
func hostPort(host string) string {
	host = strings.ToLower(host)
	if _, _, err := net.SplitHostPort(host); err == nil {
		return host
	}
	return net.JoinHostPort(strings.Trim(host, "[]"), "443")
}
