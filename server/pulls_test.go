package server

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/vitrine-runtime/vitrine/image"
)

func pull(ref string, received int64) image.PullProgress {
	return image.PullProgress{Ref: ref, Since: time.Unix(1, 0).UTC(), Layers: []image.LayerProgress{
		{Digest: "sha256:1", State: image.LayerComes, Size: 100, Received: received}, {Digest: "sha256:2", State: image.LayerWaits, Size: 10},
	}}
}

func TestWatchPulls(t *testing.T) {
	c, f := serve(t, nil)
	set := func(pulls ...image.PullProgress) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.pulls = pulls
	}
	set(pull("a", 1))
	enough := errors.New("enough")
	var seen []int64
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err := WatchPulls(ctx, c.conn, func(pulls []image.PullProgress) error {
		switch len(pulls) {
		case 0:
			return enough
		case 1:
			received, size := pulls[0].Received()
			if pulls[0].Ref != "a" || size != 110 {
				t.Errorf("%+v", pulls[0])
			}
			seen = append(seen, received)
		}
		if len(seen) == 1 {
			set(pull("a", 50))
		} else {
			set()
		}
		return nil
	})
	if !errors.Is(err, enough) || len(seen) != 2 || seen[0] != 1 || seen[1] != 50 {
		t.Errorf("saw %v, %v", seen, err)
	}
}

// A watcher does not hold up the daemon's end.
func TestWatchEndsWithTheServer(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{}
	s := New(Config{Manager: f, Images: fakeImages{f}, Network: fakeNetwork{f}})
	served, begun, ended := make(chan error, 1), make(chan struct{}), make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() {
		ended <- WatchPulls(context.Background(), conn, func([]image.PullProgress) error {
			close(begun)
			return nil
		})
	}()
	<-begun
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s.Shutdown(ctx)
	if err := <-ended; !errors.Is(err, io.EOF) || ctx.Err() != nil {
		t.Errorf("the watch ended with %v, the server with %v", err, ctx.Err())
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// However many pulls there are, the log has a bounded number of lines about them at a time.
func TestPullLogIsBounded(t *testing.T) {
	f := &fake{}
	for i := range 20 {
		f.pulls = append(f.pulls, pull(strings.Repeat("x", i+1), 30))
	}
	logged := captureLog(t, levelChange)
	l := newPullLog(fakeImages{f})
	now := l.round(map[string]int64{"x": 10})
	lines := logged()
	if n := strings.Count(lines, "pull goes on"); n != pullLogMost || len(now) != 20 || now["x"] != 30 {
		t.Errorf("%d lines, %v:\n%s", n, now, lines)
	}
	for _, want := range []string{`"more pulls go on" pulls=12`, `layers="1 downloading, 1 waiting"`, `image="x" received=30 size=110`, "bytesPerSecond=2 "} {
		if !strings.Contains(lines, want) {
			t.Errorf("log without %s:\n%s", want, lines)
		}
	}
}

// The log is written while requests run, however many, and not longer.
func TestPullLogEnds(t *testing.T) {
	l := newPullLog(fakeImages{&fake{}})
	first, second := l.begin(), l.begin()
	stop := l.stop
	first()
	select {
	case <-stop:
		t.Fatal("ended with a request under way")
	default:
	}
	second()
	select {
	case <-stop:
	default:
		t.Fatal("goes on without a request")
	}
	l.begin()()
	if l.stop == stop {
		t.Error("not begun again")
	}
}
