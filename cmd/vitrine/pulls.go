package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/vitrine-runtime/vitrine/image"
	"github.com/vitrine-runtime/vitrine/server"
)

// errShown ends the watch of somebody who wanted to look once.
var errShown = errors.New("shown")

// showPulls prints what the pulls of the daemon at socket are at: once, or each time that something
// has changed until ctx ends.
func showPulls(ctx context.Context, socket string, out io.Writer, watch bool) error {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("images: %w", err)
	}
	defer conn.Close() //nolint:errcheck // nothing is left to be said over it
	table := &pullTable{out: out, now: time.Now}
	err = server.WatchPulls(ctx, conn, func(pulls []image.PullProgress) error {
		if err := table.print(pulls); err != nil || watch {
			return err
		}
		return errShown
	})
	switch {
	case errors.Is(err, errShown), errors.Is(err, io.EOF), watch && ctx.Err() != nil: // the daemon, or the watcher, has had enough
		return nil
	case err != nil:
		return fmt.Errorf("images: watch pulls at %s: %w", socket, err)
	}
	return nil
}

// pullTable prints pulls with the rate since it printed them before.
type pullTable struct {
	out    io.Writer
	now    func() time.Time
	before map[string]int64 // bytes that had come, by pull and layer
	at     time.Time
}

func (t *pullTable) print(pulls []image.PullProgress) error {
	var b strings.Builder
	now, seen := t.now(), map[string]int64{}
	rate := func(key string, received int64) string {
		seen[key] = received
		old, known := t.before[key]
		if !known || received <= old || !now.After(t.at) {
			return ""
		}
		return size(int64(float64(received-old)/now.Sub(t.at).Seconds())) + "/s"
	}
	if len(pulls) == 0 {
		b.WriteString("no pulls\n")
	}
	for i := range pulls {
		p := &pulls[i]
		received, all := p.Received()
		fmt.Fprintf(&b, "%s  %s of %s  %s  %s\n", p.Ref, size(received), size(all), now.Sub(p.Since).Round(time.Second), rate(p.Ref, received))
		for _, l := range p.Layers {
			fmt.Fprintf(&b, "  %.19s  %-11s %10s of %10s  %s\n", l.Digest, l.State, size(l.Received), size(l.Size), rate(p.Ref+" "+l.Digest, l.Received))
		}
	}
	t.before, t.at = seen, now
	_, err := io.WriteString(t.out, b.String())
	return err
}

// size writes bytes for people.
func size(n int64) string {
	const k = 1024
	switch {
	case n < k:
		return fmt.Sprintf("%d B", n)
	case n < k*k:
		return fmt.Sprintf("%.1f KiB", float64(n)/k)
	case n < k*k*k:
		return fmt.Sprintf("%.1f MiB", float64(n)/k/k)
	}
	return fmt.Sprintf("%.1f GiB", float64(n)/k/k/k)
}
