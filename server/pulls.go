package server

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"k8s.io/klog/v2"

	"github.com/vitrine-runtime/vitrine/image"
)

// Pulls are shown in two ways: to the log from time to time, and to whoever watches
// (vitrine images --watch). CRI itself has no words for what a pull is at.

// How often pulls are looked at, and how many of them a line of the log each.
const (
	pullLogEvery = 10 * time.Second
	pullLogMost  = 8
	watchEvery   = 500 * time.Millisecond
)

// pullLog writes what the pulls under way are at to the log, as long as there are any: those that
// take less than pullLogEvery have no line but that of their request.
type pullLog struct {
	images Images
	every  time.Duration // a test's; else pullLogEvery

	mu    sync.Mutex
	users int           // guarded by mu: requests under way
	stop  chan struct{} // guarded by mu; ends the writer, which is there while users is not 0
}

func newPullLog(images Images) *pullLog { return &pullLog{images: images, every: pullLogEvery} }

// begin counts a request; the caller calls end.
func (l *pullLog) begin() (end func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.users++; l.users == 1 {
		l.stop = make(chan struct{})
		go l.write(l.stop) // ends with the last request
	}
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.users--; l.users == 0 {
			close(l.stop)
		}
	}
}

func (l *pullLog) write(stop <-chan struct{}) {
	tick := time.NewTicker(l.every)
	defer tick.Stop()
	before := map[string]int64{}
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		before = l.round(before)
	}
}

// round writes what the pulls are at. It takes and returns the bytes that had come of each, for the rate.
func (l *pullLog) round(before map[string]int64) (now map[string]int64) {
	now = map[string]int64{}
	pulls := l.images.Pulls()
	for i := range pulls {
		p := &pulls[i]
		received, size := p.Received()
		now[p.Ref] = received
		if i >= pullLogMost {
			continue
		}
		klog.V(levelChange).InfoS("pull goes on", "image", p.Ref, "received", received, "size", size, "layers", layerStates(p.Layers),
			"bytesPerSecond", int64(float64(max(received-before[p.Ref], 0))/l.every.Seconds()), "took", time.Since(p.Since).Round(time.Second))
	}
	if more := len(pulls) - pullLogMost; more > 0 {
		klog.V(levelChange).InfoS("more pulls go on", "pulls", more)
	}
	return now
}

// layerStates counts layers by their states.
func layerStates(layers []image.LayerProgress) string {
	counts := map[string]int{}
	for _, l := range layers {
		counts[l.State]++
	}
	text := ""
	for _, state := range []string{image.LayerIsAvailable, image.LayerIsUnpacked, image.LayerComes, image.LayerWaits} {
		if n := counts[state]; n > 0 {
			text += fmt.Sprintf("%d %s, ", n, state)
		}
	}
	return text[:max(len(text)-2, 0)]
}

// operator is the service for who runs the node, beside CRI's on the same socket. Its
// messages are of protobuf's own types, with JSON inside.
type operator interface {
	watchPulls(ctx context.Context, send func(string) error) error
}

// operatorService is its description, which protoc would write.
var operatorService = grpc.ServiceDesc{
	ServiceName: "vitrine.v1.Operator",
	HandlerType: (*operator)(nil),
	Streams: []grpc.StreamDesc{{StreamName: "WatchPulls", ServerStreams: true, Handler: func(srv any, ss grpc.ServerStream) error {
		if err := ss.RecvMsg(&emptypb.Empty{}); err != nil {
			return err
		}
		o, _ := srv.(operator)
		return o.watchPulls(ss.Context(), func(text string) error { return ss.SendMsg(wrapperspb.String(text)) })
	}}},
}

// watchPulls sends the pulls under way, at once and whenever something has changed, twice in a
// second at most.
func (s *Server) watchPulls(ctx context.Context, send func(string) error) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	last := ""
	for {
		text, err := json.Marshal(s.cfg.Images.Pulls())
		if err != nil {
			return fmt.Errorf("encode pulls: %w", err)
		}
		if string(text) != last {
			if err := send(string(text)); err != nil {
				return err
			}
			last = string(text)
		}
		select {
		case <-tick.C:
		case <-s.ending:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// WatchPulls calls show with the pulls under way at the other end of conn, at once and whenever
// something has changed, until ctx ends or show returns an error, which it then returns.
func WatchPulls(ctx context.Context, conn grpc.ClientConnInterface, show func([]image.PullProgress) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := conn.NewStream(ctx, &operatorService.Streams[0], "/"+operatorService.ServiceName+"/WatchPulls", grpc.MaxCallRecvMsgSize(maxSend))
	if err != nil {
		return err
	}
	if err := stream.SendMsg(&emptypb.Empty{}); err != nil {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	for {
		var text wrapperspb.StringValue
		if err := stream.RecvMsg(&text); err != nil {
			return err
		}
		var pulls []image.PullProgress
		if err := json.Unmarshal([]byte(text.GetValue()), &pulls); err != nil {
			return fmt.Errorf("decode pulls: %w", err)
		}
		if err := show(pulls); err != nil {
			return err
		}
	}
}
