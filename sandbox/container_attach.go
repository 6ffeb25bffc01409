package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/vitrine-runtime/vitrine/oci"
)

const (
	// lingerTime is how long the output goes on for a client that has ended its stdin and not the container's.
	lingerTime = 500 * time.Millisecond
	// askTime bounds what the end of an attach asks of a monitor.
	askTime = 5 * time.Second
)

// stdinEnd is closed when a stdin for one client only is over.
type stdinEnd struct {
	once sync.Once
	c    chan struct{}
}

func (o *stdinEnd) end() { o.once.Do(func() { close(o.c) }) }

// Attach connects a client with the streams of a running container until the container or the client ends. The
// container never waits for the client: what that does not read in time is lost, and the error says how much.
//
// A container with stdin_once and without a terminal sees the end of its stdin when the first client ends its own, or goes. In
// every other container stdin stays open, and a client that ends its own ends its attach. Stdin for a container
// without is read and dropped. A terminal is the container's, whatever was asked for; all of it is stdout.
//
// The end of the daemon (ErrEnding) is not that of the client: stdin stays open for when it comes again.
func (m *Manager) Attach(ctx context.Context, id string, s Streams) error {
	c, err := m.runningContainer(id)
	if err != nil {
		return err
	}
	pr, err := c.process()
	if err != nil {
		return err
	}
	a, err := pr.attach(ctx, oci.AttachConfig{
		Stdin: s.Stdin != nil && c.config.GetStdin(), Stdout: s.Stdout != nil, Stderr: s.Stderr != nil && !c.config.GetTty(),
	})
	if err != nil {
		return c.orEnded(err)
	}
	c.serve(ctx, pr, a, &s)
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTime)
	defer cancel()
	lost, err := a.Close(bounded)
	switch {
	case err != nil:
		return err
	case lost > 0 && ctx.Err() == nil:
		return fmt.Errorf("%d bytes of output were not read in time and are lost", lost)
	}
	return nil
}

// serve passes on what there is until one side ends.
func (c *Container) serve(ctx context.Context, pr process, a *oci.Attachment, s *Streams) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go s.follow(ctx, a.Resize) // ends with serve
	var outs []*outlet
	if a.Stdout != nil {
		outs = append(outs, pump(a.Stdout, s.Stdout))
	}
	if a.Stderr != nil {
		outs = append(outs, pump(a.Stderr, s.Stderr))
	}
	ended := make(chan struct{})
	go func() { // ends with the outputs, which a.Close ends at the latest, or with the container
		defer close(ended)
		for _, o := range outs {
			<-o.over
		}
		if len(outs) == 0 {
			select {
			case <-c.done:
			case <-ctx.Done():
			}
		}
	}()
	var fed, over chan struct{}
	switch {
	case s.Stdin == nil:
	case c.config.GetStdin():
		fed = feed(a, s.Stdin)
	default: // a terminal as well: what is typed would be its program's stdin
		fed = feed(io.Discard, s.Stdin)
	}
	once := c.config.GetStdin() && c.config.GetStdinOnce() && !c.config.GetTty() && s.Stdin != nil
	if once {
		over = c.stdin.c
		defer func() {
			if !errors.Is(context.Cause(ctx), ErrEnding) {
				c.endStdin(pr)
			}
		}()
	}
	for {
		select {
		case <-ended:
			return
		case <-ctx.Done():
			return
		case <-over: // of another client's making, or of ours
			a.CloseInput()
			over = nil
		case <-fed:
			fed = nil
			switch {
			case ctx.Err() != nil || !c.config.GetStdin(): // nothing to be ended
			case once:
				c.endStdin(pr)
			default:
				select {
				case <-ended:
				case <-ctx.Done():
				case <-time.After(lingerTime):
				}
				return
			}
		}
	}
}

// endStdin ends the stdin of a container that is for one client only.
func (c *Container) endStdin(pr process) {
	c.stdin.end()
	ctx, cancel := context.WithTimeout(context.Background(), askTime)
	defer cancel()
	if err := pr.endStdin(ctx); err != nil && c.facts.Load().Finished == 0 {
		klog.ErrorS(err, "End of a container's stdin", "container", c.id)
	}
}
