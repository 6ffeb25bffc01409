package cni

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// ifName is the pod's first interface, by a convention that the kubelet's
// tools rely on.
const ifName = "eth0"

// ErrNotReady is wrapped by an error that says why no pod can be connected
// now: no configuration, or a plugin that says so itself.
var ErrNotReady = errors.New("network is not ready")

// Config says where things are. All paths are absolute.
type Config struct {
	// ConfDir holds the configuration lists (*.conflist, *.conf, *.json); the first
	// valid one in the order of file names is used.
	ConfDir string
	// BinDirs are searched for plugins, in order.
	BinDirs []string
	// CacheDir is libcni's: the results of ADD, which CHECK and DEL get.
	CacheDir string
	// StateDir holds the intents. It must survive a reboot: an address that
	// host-local has given away does.
	StateDir string
}

// Network connects pods. Its methods may be called from several goroutines;
// calls for one pod take turns.
type Network struct {
	cfg   Config
	cni   *libcni.CNIConfig
	confs confs
	locks locks
}

// New opens the network. A missing or empty configuration directory is not an
// error: configuration arrives when a network add-on is installed, and Status
// says so until then.
func New(cfg Config) (*Network, error) {
	for _, d := range []string{cfg.StateDir, cfg.CacheDir} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("make network state: %w", err)
		}
	}
	exec := newPluginExec()
	return &Network{cfg: cfg, cni: libcni.NewCNIConfigWithCacheDir(cfg.BinDirs, cfg.CacheDir, exec), confs: confs{dir: cfg.ConfDir}}, nil
}

// PortMapping makes a port of the pod reachable on the host. It reaches
// plugins with the capability "portMappings".
type PortMapping struct {
	Protocol      string `json:"protocol"` // tcp, udp or sctp
	HostIP        string `json:"hostIP,omitempty"`
	HostPort      int32  `json:"hostPort"`
	ContainerPort int32  `json:"containerPort"`
}

// Bandwidth limits the pod's traffic. It reaches plugins with the capability
// "bandwidth". Rates are bits per second, bursts bits.
type Bandwidth struct {
	IngressRate  uint64 `json:"ingressRate"`
	IngressBurst uint64 `json:"ingressBurst"`
	EgressRate   uint64 `json:"egressRate"`
	EgressBurst  uint64 `json:"egressBurst"`
}

// Pod is what plugins are told of a pod.
type Pod struct {
	ID           string // the sandbox id
	Name         string
	Namespace    string
	UID          string
	NetNS        string // path of the pinned network namespace
	PortMappings []PortMapping
	Bandwidth    *Bandwidth // nil for none
}

// Result is what a pod has been given.
type Result struct {
	// IPs are the addresses of the pod's first interface, the primary one first.
	IPs []netip.Addr
	// Gateway is that of the primary address; the zero Addr if there is none.
	Gateway netip.Addr
}

// Status returns nil if pods can be connected, and otherwise an error that
// wraps ErrNotReady. Plugins are asked where their version of the
// specification (1.1) knows the question.
func (n *Network) Status(ctx context.Context) error {
	list, err := n.confs.current()
	if err != nil {
		return err
	}
	if err := n.cni.GetStatusNetworkList(ctx, list); err != nil {
		return fmt.Errorf("status of network %s: %w: %w", list.Name, ErrNotReady, err)
	}
	return nil
}

// Add connects a pod. If it fails, or ctx ends, what was made is unmade; if
// even that fails, the intent stays, and Del can be called again. A pod that
// is already connected is an error: DEL has to come first.
func (n *Network) Add(ctx context.Context, p Pod) (*Result, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	defer n.locks.lock(p.ID)()
	list, err := n.confs.current()
	if err != nil {
		return nil, err
	}
	it := newIntent(p, list)
	if err := n.write(it); err != nil {
		return nil, err
	}
	res, err := n.add(ctx, it, list)
	if err != nil {
		return nil, errors.Join(err, n.undo(ctx, it))
	}
	return res, nil
}

func (n *Network) add(ctx context.Context, it *intent, list *libcni.NetworkConfigList) (*Result, error) {
	if err := loopbackUp(it.Pod.NetNS); err != nil {
		return nil, fmt.Errorf("set loopback up in %s: %w", it.Pod.NetNS, err)
	}
	raw, err := n.cni.AddNetworkList(ctx, list, it.runtimeConf())
	if err != nil {
		return nil, fmt.Errorf("add pod to network %s: %w", list.Name, withCause(ctx, err))
	}
	res, err := types100.NewResultFromResult(raw)
	if err != nil {
		return nil, fmt.Errorf("read result of network %s: %w", list.Name, err)
	}
	return convert(list.Name, res)
}

// undo runs DEL after a failed ADD, also when the request is over: the
// specification wants a DEL for every ADD, and an address is at stake.
func (n *Network) undo(ctx context.Context, it *intent) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	return n.del(ctx, it)
}

// Del disconnects a pod by the configuration that connected it. It returns nil
// for a pod that was never connected, and may be called again after an error.
// A network namespace that is gone is no obstacle: the plugins are told so and
// free what they hold elsewhere.
func (n *Network) Del(ctx context.Context, podID string) error {
	defer n.locks.lock(podID)()
	it, err := n.read(podID)
	if err != nil || it == nil {
		return err
	}
	return n.del(ctx, it)
}

func (n *Network) del(ctx context.Context, it *intent) error {
	list, err := it.list()
	if err != nil {
		return err
	}
	conf := it.runtimeConf()
	if !isNetNS(conf.NetNS) {
		conf.NetNS = ""
	}
	if err := n.cni.DelNetworkList(ctx, list, conf); err != nil {
		return fmt.Errorf("delete pod from network %s: %w", list.Name, withCause(ctx, err))
	}
	return n.remove(it.Pod.ID)
}

// withCause puts the end of the context first: "signal: killed" is what a
// plugin that hung says of itself.
func withCause(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return err
}

// convert takes the addresses of the pod's own interface out of a result.
func convert(network string, r *types100.Result) (*Result, error) {
	out := &Result{}
	for _, ip := range r.IPs {
		if ip.Interface != nil {
			if i := *ip.Interface; i < 0 || i >= len(r.Interfaces) || r.Interfaces[i] == nil {
				return nil, fmt.Errorf("read result of network %s: address of interface %d of %d", network, i, len(r.Interfaces))
			} else if r.Interfaces[i].Sandbox == "" || r.Interfaces[i].Name != ifName {
				continue // the host's end, or a further interface
			}
		}
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			return nil, fmt.Errorf("read result of network %s: address %v", network, ip.Address)
		}
		if len(out.IPs) == 0 {
			if gw, ok := netip.AddrFromSlice(ip.Gateway); ok {
				out.Gateway = gw.Unmap()
			}
		}
		out.IPs = append(out.IPs, addr.Unmap())
	}
	if len(out.IPs) == 0 {
		return nil, fmt.Errorf("read result of network %s: no address for %s", network, ifName)
	}
	return out, nil
}

// locks has a mutex per pod, for as long as somebody holds or wants it.
type locks struct {
	mu sync.Mutex
	m  map[string]*podLock
}

type podLock struct {
	mu    sync.Mutex
	users int // guarded by locks.mu
}

// lock takes the pod's lock and returns what gives it back.
func (l *locks) lock(id string) (unlock func()) {
	l.mu.Lock()
	if l.m == nil {
		l.m = map[string]*podLock{}
	}
	p := l.m[id]
	if p == nil {
		p = &podLock{}
		l.m[id] = p
	}
	p.users++
	l.mu.Unlock()
	p.mu.Lock()
	return func() {
		p.mu.Unlock()
		l.mu.Lock()
		defer l.mu.Unlock()
		if p.users--; p.users == 0 {
			delete(l.m, id)
		}
	}
}
