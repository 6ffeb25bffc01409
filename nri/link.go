package nri

import (
	"context"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
)

// link is the connection to one plugin, as seen from below the adaptation, which does not tell who was asked and who
// failed. It is made with the connection and ends with it.
type link struct {
	p      *Plugins
	client *ttrpc.Client

	name   string        // guarded by Plugins.mu: NN-name, known from the synchronisation on
	events api.EventMask // guarded by Plugins.mu: what it wants to hear of
}

// newLink looks into a connection that the adaptation makes. It is one of the options of ttrpc.
func (p *Plugins) newLink(c *ttrpc.Client) {
	l := &link{p: p, client: c}
	ttrpc.WithUnaryClientInterceptor(l.observe)(c)
}

// observe passes a request on and notes what became of it.
func (l *link) observe(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, info *ttrpc.UnaryClientInfo, invoke ttrpc.Invoker) error {
	if path.Base(info.FullMethod) == "Synchronize" {
		var cancel context.CancelFunc
		ctx, cancel = longer(ctx, req)
		defer cancel()
	}
	err := invoke(ctx, req, resp)
	answered := err == nil && resp.GetStatus().GetCode() == 0
	switch method := path.Base(info.FullMethod); {
	case method == "Configure" && answered:
		l.learn(resp.GetPayload())
	case method == "Synchronize":
		l.p.mu.Lock()
		l.p.syncing = l
		l.p.mu.Unlock()
	default:
		if c, ok := ctx.Value(callKey{}).(*call); ok {
			c.note(l, err, answered)
			if answered {
				c.noteAnswer(method, resp.GetPayload())
			}
		}
	}
	return err
}

// longer gives a plugin syncTime for a look at all that there is, where the adaptation would give it no more than for any
// request: one that is hung up on at its first look misses all that happens until it is back.
func longer(ctx context.Context, req *ttrpc.Request) (context.Context, context.CancelFunc) {
	if at, ok := ctx.Deadline(); ok && time.Until(at) > syncTime {
		return context.WithCancel(ctx)
	}
	req.TimeoutNano = syncTime.Nanoseconds()
	return context.WithTimeout(context.WithoutCancel(ctx), syncTime)
}

// learn reads what the plugin wants to hear of, and begins to watch for its end.
func (l *link) learn(payload []byte) {
	var r api.ConfigureResponse
	if proto.Unmarshal(payload, &r) != nil {
		return // the adaptation finds the same and hangs up
	}
	events := api.EventMask(r.GetEvents())
	if events == 0 {
		events = api.ValidEvents
	}
	l.p.mu.Lock()
	l.events = events
	l.p.mu.Unlock()
	go func() { // ends with the connection, which the adaptation or Close ends
		_ = l.client.UserOnCloseWait(context.Background())
		l.p.mu.Lock()
		delete(l.p.links, l)
		l.p.mu.Unlock()
	}()
}

// names learns the names of connections from what the adaptation tells those who count requests. It reports a
// synchronisation from the goroutine that has made it, and makes one after the other.
type names struct{ p *Plugins }

// RecordPluginInvocation notes that a plugin was synchronised, and from then on gets requests.
func (n names) RecordPluginInvocation(plugin, operation string, err error) {
	if operation != "Synchronize" || err != nil {
		return
	}
	n.p.mu.Lock()
	defer n.p.mu.Unlock()
	if l := n.p.syncing; l != nil {
		l.name = plugin
		n.p.links[l] = struct{}{}
	}
}

// RecordPluginLatency is of no interest here.
func (names) RecordPluginLatency(string, string, time.Duration) {}

// RecordPluginAdjustments is of no interest here.
func (names) RecordPluginAdjustments(string, string, *api.ContainerAdjustment, int, int) {}

// UpdatePluginCount is of no interest here.
func (names) UpdatePluginCount(int) {}

// call is one request to all plugins. It travels in the context.
type call struct {
	mu     sync.Mutex
	asked  []*link                  // guarded by mu: who answered, be it with an error
	failed []*link                  // guarded by mu: who did not
	denied *link                    // guarded by mu: the last one that answered with an error
	evict  []*api.ContainerEviction // guarded by mu
	gone   []string                 // guarded by mu: variables that are taken away, with the mark for it
}

// callKey is where a context holds its call.
type callKey struct{}

// note notes how a plugin took it.
func (c *call) note(l *link, err error, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.failed = append(c.failed, l)
		return
	}
	c.asked = append(c.asked, l)
	if !ok {
		c.denied = l
	}
}

// noteAnswer reads of an answer what the adaptation hands on to nobody: evictions, and which variables are taken away. It would tell
// these by what is left of the request, in which not all of the container's are.
func (c *call) noteAnswer(method string, payload []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch method {
	case "CreateContainer":
		var r api.CreateContainerResponse
		if proto.Unmarshal(payload, &r) != nil {
			return
		}
		c.evict = append(c.evict, r.GetEvict()...)
		for _, e := range r.GetAdjust().GetEnv() {
			if _, marked := e.IsMarkedForRemoval(); marked && !slices.Contains(c.gone, e.GetKey()) {
				c.gone = append(c.gone, e.GetKey())
			}
		}
	case "UpdateContainer":
		var r api.UpdateContainerResponse
		if proto.Unmarshal(payload, &r) == nil {
			c.evict = append(c.evict, r.GetEvict()...)
		}
	}
}

// missing returns a required plugin that is not there, or "".
func (p *Plugins) missing() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, name := range p.cfg.Required {
		if !slices.ContainsFunc(p.linksLocked(), func(l *link) bool { return l.is(name) }) {
			return name
		}
	}
	return ""
}

// silent returns a required plugin that wanted to hear of the event and has not answered, or "". One that is gone without having
// been asked is among them: the adaptation passes it over without a word.
func (p *Plugins) silent(c *call, event api.Event) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, name := range p.cfg.Required {
		ok := func(l *link) bool { return l.is(name) }
		if slices.ContainsFunc(c.failed, ok) {
			return name
		}
		ignores := func(l *link) bool { return l.is(name) && !l.events.IsSet(event) }
		if !slices.ContainsFunc(c.asked, ok) && !slices.ContainsFunc(p.linksLocked(), ignores) {
			return name
		}
	}
	return ""
}

// linksLocked lists the connections. Preconditions: p.mu is held.
func (p *Plugins) linksLocked() []*link {
	all := make([]*link, 0, len(p.links))
	for l := range p.links {
		all = append(all, l)
	}
	return all
}

// is tells whether a plugin is the one that a configuration names. Preconditions: Plugins.mu is held.
func (l *link) is(name string) bool {
	_, base, _ := strings.Cut(l.name, "-")
	return l.name != "" && (l.name == name || base == name)
}
