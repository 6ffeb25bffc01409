package server

import (
	"context"
	"fmt"
	"path"
	"runtime/debug"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"
)

// Log levels of requests. Whatever changes something is one line at level 2, so
// that a node's log tells its story; reads, which a kubelet sends several times a
// second, are at 4, and so is ExecSync, which is mostly probes; 5 adds a line when a
// request comes in. Requests that fail are at 0 where they should have changed
// something.
const (
	levelChange = 2
	levelRead   = 4
	levelBegin  = 5
)

// recoverUnary turns a panic into Internal for this one request. The stack goes to
// the log only: it says nothing to a client.
func recoverUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	defer func() {
		if p := recover(); p != nil {
			resp, err = nil, panicked(info.FullMethod, p)
		}
	}()
	return next(ctx, req)
}

func recoverStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = panicked(info.FullMethod, p)
		}
	}()
	return next(srv, ss)
}

func panicked(method string, p any) error {
	rpc := path.Base(method)
	klog.ErrorS(fmt.Errorf("panic: %v", p), "request panicked", "rpc", rpc, "stack", string(debug.Stack()))
	return status.Errorf(codes.Internal, "%s: internal error, the daemon's log has its stack", rpc)
}

// translateUnary answers requests that are over before they begin without touching
// anything, and gives every error its code.
func translateUnary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := ctx.Err(); err != nil {
		return nil, toStatus(ctx, err)
	}
	resp, err := next(ctx, req)
	if err != nil {
		return nil, toStatus(ctx, err)
	}
	return resp, nil
}

func translateStream(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	return toStatus(ss.Context(), next(srv, ss))
}

func logUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	start := time.Now()
	rpc := path.Base(info.FullMethod)
	if log := klog.V(levelBegin); log.Enabled() {
		log.InfoS("request", append([]any{"rpc", rpc}, subject(req)...)...)
	}
	resp, err := next(ctx, req)
	logDone(rpc, start, err, req, resp)
	return resp, err
}

func logStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	start := time.Now()
	err := next(srv, ss)
	logDone(path.Base(info.FullMethod), start, err, nil, nil)
	return err
}

func logDone(rpc string, start time.Time, err error, req, resp any) {
	code := status.Code(err)
	level := klog.Level(levelRead)
	switch {
	case code == codes.Internal:
		level = 0
	case changes(rpc) && err != nil && code != codes.Unimplemented:
		level = 0
	case changes(rpc):
		level = levelChange
	}
	if !klog.V(level).Enabled() {
		return
	}
	kv := append([]any{"rpc", rpc, "took", time.Since(start).Round(time.Microsecond)}, subject(req)...)
	switch {
	case code == codes.Internal:
		klog.ErrorS(err, "request failed", kv...)
	case err != nil:
		klog.V(level).InfoS("request refused", append(kv, "code", code.String(), "reason", status.Convert(err).Message())...)
	default:
		klog.V(level).InfoS("request done", append(kv, answer(resp)...)...)
	}
}

// changes tells the verbs that change something from the reads.
func changes(rpc string) bool {
	for _, read := range []string{"List", "Stream", "Get", "Version", "Status", "RuntimeConfig", "ImageFsInfo", "ExecSync", "Watch"} {
		if strings.HasPrefix(rpc, read) {
			return false
		}
	}
	return !strings.HasSuffix(rpc, "Status") && !strings.HasSuffix(rpc, "Stats")
}
