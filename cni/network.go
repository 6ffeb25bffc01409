package cni

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// ifName is the pod's first interface, by a convention that the kubelet's
// tools rely on.
const ifName = "eth0"

// ErrNotReady is wrapped by an error that says why no pod can be connected
// now: no configuration, a plugin that is not installed, or one that says so
// itself.
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
	turns turns
	grace time.Duration // endGrace, and shorter in tests
	limit time.Duration // undoTimeout, and shorter in tests
}

// New opens the network. A missing or empty configuration directory is not an
// error: configuration arrives when a network add-on is installed, and Status
// says so until then. Plugins that a daemon before this one left running are
// killed, so at most one Network may use a StateDir.
func New(cfg Config) (*Network, error) {
	for _, d := range []string{cfg.StateDir, cfg.CacheDir} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("make network state: %w", err)
		}
	}
	n := &Network{
		cfg:   cfg,
		cni:   libcni.NewCNIConfigWithCacheDir(cfg.BinDirs, cfg.CacheDir, &pluginExec{}),
		confs: confs{dir: cfg.ConfDir},
		grace: endGrace,
		limit: undoTimeout,
	}
	if err := n.sweep(); err != nil {
		return nil, err
	}
	pods, err := n.Pending()
	if err != nil {
		return nil, err
	}
	n.keepTurns(killStrays(pods))
	return n, nil
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

// Status returns nil if pods can be connected, and otherwise an error that
// wraps ErrNotReady: there is no valid configuration, or a plugin is not
// installed. Plugins are asked themselves where their version of the
// specification (1.1) knows the question. One that cannot be killed is the answer
// (ErrStuck) for as long as the configuration stays the same.
func (n *Network) Status(ctx context.Context) error {
	list, err := n.ready()
	if err != nil {
		return err
	}
	_, err = take(ctx, &n.turns, node+string(list.Bytes), n.grace, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, n.cni.GetStatusNetworkList(ctx, list)
	})
	if err != nil {
		return brief(fmt.Errorf("status of network %s: %w: %w", list.Name, ErrNotReady, withCause(ctx, err)))
	}
	return nil
}

// ready returns the configuration if all its plugins are installed. A pod is
// not begun without: it could not be undone either.
func (n *Network) ready() (*libcni.NetworkConfigList, error) {
	list, err := n.confs.current()
	if err != nil {
		return nil, err
	}
	for _, p := range list.Plugins {
		if !n.installed(p) {
			return nil, fmt.Errorf("network %s: plugin %s is not in %s: %w", list.Name, p.Network.Type, strings.Join(n.cfg.BinDirs, ":"), ErrNotReady)
		}
	}
	return list, nil
}

func (n *Network) installed(p *libcni.PluginConfig) bool {
	_, err := new(pluginExec).FindInPath(p.Network.Type, n.cfg.BinDirs)
	return err == nil
}

// Add connects a pod. If it fails, or ctx ends, what was made is unmade, which
// may take undoTimeout beyond ctx; if even that fails, the intent stays, and Del
// can be called again. A plugin that cannot be killed is waited for no longer
// than that and endGrace; what it made is unmade when it has ended, unless it has succeeded
// by then: that is left to Del, as after any error. A pod that is already connected is an error (fs.ErrExist): DEL has to come first.
func (n *Network) Add(ctx context.Context, p Pod) (*Result, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	return take(ctx, &n.turns, p.ID, n.limit+n.grace, func(ctx context.Context) (*Result, error) { return n.connect(ctx, p) })
}

// connect is Add in the pod's turn.
func (n *Network) connect(ctx context.Context, p Pod) (*Result, error) {
	list, err := n.ready()
	if err != nil {
		return nil, err
	}
	if err := loopbackUp(ctx, p.NetNS); err != nil {
		return nil, fmt.Errorf("set loopback up in %s: %w", p.NetNS, err)
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
	raw, err := n.cni.AddNetworkList(ctx, list, it.runtimeConf())
	if err != nil {
		return nil, brief(fmt.Errorf("add pod to network %s: %w", list.Name, withCause(ctx, err)))
	}
	res, err := types100.NewResultFromResult(raw)
	if err != nil {
		return nil, brief(fmt.Errorf("read result of network %s: %w", list.Name, err))
	}
	return convert(list.Name, res)
}

// undo runs DEL after a failed ADD, also when the request is over: the
// specification wants a DEL for every ADD, and an address is at stake.
func (n *Network) undo(ctx context.Context, it *intent) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), n.limit)
	defer cancel()
	return n.del(ctx, it)
}

// Del disconnects a pod by the configuration that connected it. It returns nil
// for a pod that was never connected, and may be called again after an error.
//
// A network namespace that is gone is no obstacle: the plugins are told so and
// free what they hold elsewhere. A plugin that is not installed any more is one,
// but not for ever: when the namespace is gone, too, Del runs the plugins that
// there are, and returns nil. The intent stays then, for a Del after the next
// start of the daemon, when the plugin may be back.
//
// A plugin that is at work for the pod is waited for until ctx ends, and one of
// this Del that cannot be killed endGrace longer.
func (n *Network) Del(ctx context.Context, podID string) error {
	_, err := take(ctx, &n.turns, podID, n.grace, func(ctx context.Context) (struct{}, error) { return struct{}{}, n.disconnect(ctx, podID) })
	return err
}

// disconnect is Del in the pod's turn.
func (n *Network) disconnect(ctx context.Context, podID string) error {
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
	conf, whole := it.runtimeConf(), len(list.Plugins)
	if !isNetNS(conf.NetNS) {
		conf.NetNS = ""
		list.Plugins = slices.DeleteFunc(list.Plugins, func(p *libcni.PluginConfig) bool { return !n.installed(p) })
	}
	if len(list.Plugins) == 0 {
		return nil // the library would forget the result of ADD
	}
	if err := n.cni.DelNetworkList(ctx, list, conf); err != nil {
		return brief(fmt.Errorf("delete pod from network %s: %w", list.Name, withCause(ctx, err)))
	}
	if len(list.Plugins) < whole {
		return nil
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
