package nri

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	nrilog "github.com/containerd/nri/pkg/log"
	"github.com/containerd/ttrpc"
)

// The kinds of errors of a request to plugins. The text of a plugin's own error is kept, its code is not: what a plugin
// calls "not found" is not what a caller of ours takes for it.
var (
	// ErrRefused: a plugin said no, or two of them want different things.
	ErrRefused = errors.New("refused by a plugin")
	// ErrNoAnswer: a required plugin is not there, hangs or hung up.
	ErrNoAnswer = errors.New("a required plugin does not answer")
)

const (
	maxPlugins     = 64 // connected at a time
	maxUnsolicited = 8  // requests of plugins at a time
)

// Runtime is what plugins see and change. Its methods may be called concurrently, and must not ask plugins.
type Runtime interface {
	// State returns the pods and containers that plugins have been told of and not been told the end of.
	State() ([]*api.PodSandbox, []*api.Container)
	// Update changes the limits of a container.
	Update(ctx context.Context, u *api.ContainerUpdate) error
	// Evict begins to stop a container.
	Evict(ctx context.Context, e *api.ContainerEviction) error
}

// Plugins are the plugins of a node. Open, then Start, then requests, then Close. A nil Plugins is one without plugins: every
// request succeeds and changes nothing; so does one that is not started yet.
//
// Plugins connect and go at any time. One that connects is told the state first, and every request after it. Nothing
// survives Close but the plugins that we did not start.
type Plugins struct {
	cfg Config
	rt  Runtime
	a   atomic.Pointer[adaptation.Adaptation] // nil before Start
	own chan struct{}                         // a token for each request of a plugin's own

	mu      sync.Mutex
	links   map[*link]struct{} // guarded by mu: connections that were synchronised and are open
	syncing *link              // guarded by mu: the last one that was asked to synchronise
}

// Open judges the configuration. Nothing is listened on before Start.
func Open(cfg Config) (*Plugins, error) {
	if err := checkSocket(cfg.Socket); err != nil {
		return nil, fmt.Errorf("socket for plugins %s: %w", cfg.Socket, err)
	}
	for _, dir := range []string{cfg.PluginDir, cfg.ConfigDir} {
		if err := checkDir(dir); err != nil {
			return nil, fmt.Errorf("directory of plugins: %w", err)
		}
	}
	return &Plugins{cfg: cfg, links: map[*link]struct{}{}, own: make(chan struct{}, maxUnsolicited)}, nil
}

// Start starts the plugins of the directory, tells them the state of rt, and listens for others.
func (p *Plugins) Start(rt Runtime) error {
	p.rt = rt
	nrilog.Set(silence{}) // New calls it an error that WebAssembly is left out
	adaptation.SetPluginRegistrationTimeout(p.cfg.RegistrationTimeout)
	adaptation.SetPluginRequestTimeout(p.cfg.RequestTimeout)
	a, err := adaptation.New("vitrine", p.cfg.Version, p.synchronize, p.update,
		adaptation.WithSocketPath(p.cfg.Socket),
		adaptation.WithPluginPath(p.cfg.PluginDir),
		adaptation.WithPluginConfigPath(p.cfg.ConfigDir),
		adaptation.WithMetrics(names{p}),
		adaptation.WithTTRPCOptions([]ttrpc.ClientOpts{p.newLink}, []ttrpc.ServerOpt{ttrpc.WithUnaryServerInterceptor(p.serve)}),
	)
	if err != nil {
		return fmt.Errorf("start plugins: %w", err)
	}
	if p.cfg.Log != nil {
		nrilog.Set(p.cfg.Log)
	}
	if err := a.Start(); err != nil {
		a.Stop()
		return fmt.Errorf("start plugins: %w", err)
	}
	p.a.Store(a)
	// To connect one must be able to write, which the umask has already denied to others.
	if err := os.Chmod(p.cfg.Socket, 0o600); err != nil {
		return fmt.Errorf("start plugins: %w", err)
	}
	return nil
}

// silence is a log that nobody reads.
type silence struct{}

func (silence) Debugf(context.Context, string, ...any) {}
func (silence) Infof(context.Context, string, ...any)  {}
func (silence) Warnf(context.Context, string, ...any)  {}
func (silence) Errorf(context.Context, string, ...any) {}

// Close stops listening, ends the plugins that we have started, and hangs up on the others.
func (p *Plugins) Close() error {
	a := p.a.Swap(nil)
	if a == nil {
		return nil
	}
	a.Stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for l := range p.links {
		errs = append(errs, l.client.Close())
	}
	return errors.Join(errs...)
}

// synchronize tells one plugin, or those of the directory, what there is, and does what they want changed of it. The adaptation lets
// no request pass meanwhile.
func (p *Plugins) synchronize(ctx context.Context, tell adaptation.SyncCB) error {
	p.mu.Lock()
	n := len(p.links)
	p.mu.Unlock()
	if n >= maxPlugins {
		return fmt.Errorf("%d plugins are the most", maxPlugins)
	}
	pods, containers := p.rt.State()
	updates, err := tell(ctx, pods, containers)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, syncTime)
	defer cancel()
	_, err = p.update(ctx, updates)
	return err
}

// syncTime bounds what a plugin's first look may take, and what its first wishes may, during which no pod or container is made.
const syncTime = 10 * time.Second

// update does what plugins want changed of containers, and returns what could not be.
func (p *Plugins) update(ctx context.Context, updates []*api.ContainerUpdate) (failed []*api.ContainerUpdate, _ error) {
	for _, u := range updates {
		if err := p.rt.Update(ctx, u); err != nil {
			nrilog.Warnf(ctx, "update of container %.80q asked for by a plugin: %v", u.GetContainerId(), err)
			failed = append(failed, u)
		}
	}
	return failed, nil
}

// serve answers a plugin's own request for updates and evictions, of which the adaptation passes on the updates only.
func (p *Plugins) serve(ctx context.Context, unmarshal ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
	if info.FullMethod != updateContainers {
		return method(ctx, unmarshal)
	}
	req := &api.UpdateContainersRequest{}
	if err := unmarshal(req); err != nil {
		return nil, err
	}
	select {
	case p.own <- struct{}{}:
		defer func() { <-p.own }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	failed, err := p.update(ctx, req.GetUpdate())
	for _, e := range req.GetEvict() {
		err = errors.Join(err, p.rt.Evict(ctx, e))
	}
	return &api.UpdateContainersResponse{Failed: failed}, err
}

// updateContainers is the one request that plugins make when they like.
const updateContainers = "/nri.pkg.api.v1alpha1.Runtime/UpdateContainers"
