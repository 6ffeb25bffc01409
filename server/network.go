package server

import (
	"context"
	"fmt"
	"sync"
	"time"
)

const (
	// networkPatience is how long a Status waits for the network plugins: the kubelet waits for Status in its main loop.
	networkPatience = 2 * time.Second
	// networkTimeout is how long the plugins may take. Until then the last answer holds: on a busy node a plugin is
	// slow, and a node that is called NotReady for that starts no pod at all.
	networkTimeout = 20 * time.Second
)

// networkProbe asks the network whether it is ready, one question at a time, however many ask it. Its question is not
// ended with the request that caused it.
type networkProbe struct {
	network Network
	end     context.Context // of the Server
	cancel  context.CancelFunc

	mu      sync.Mutex
	running chan struct{} // closed when the question is answered; nil: none is asked
	known   bool          // there was an answer
	last    error         // the last answer
}

func newNetworkProbe(n Network) *networkProbe {
	p := &networkProbe{network: n}
	p.end, p.cancel = context.WithCancel(context.Background())
	return p
}

// status returns what the network answers, or, where that takes too long, what it answered last.
func (p *networkProbe) status(ctx context.Context) error {
	patience := time.NewTimer(networkPatience)
	defer patience.Stop()
	select {
	case <-p.ask():
	case <-patience.C:
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.known {
		return fmt.Errorf("the network plugins have not answered for %v", networkPatience)
	}
	return p.last
}

// ask begins a question, or joins the one that runs.
func (p *networkProbe) ask() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running == nil {
		p.running = make(chan struct{})
		go p.answer(p.running) // ends with networkTimeout, or with the Server
	}
	return p.running
}

func (p *networkProbe) answer(done chan struct{}) {
	ctx, cancel := context.WithTimeout(p.end, networkTimeout)
	defer cancel()
	err := p.question(ctx)
	p.mu.Lock()
	p.known, p.last, p.running = true, err, nil
	p.mu.Unlock()
	close(done)
}

// question is apart so that a panic in it is an answer: no request's interceptor is above it.
func (p *networkProbe) question(ctx context.Context) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = panicked("NetworkStatus", v)
		}
	}()
	return p.network.Status(ctx)
}
