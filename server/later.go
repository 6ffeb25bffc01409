package server

import (
	"context"
	"path"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// later are the RPCs that this version does not serve, each with what a client
// should know. Unimplemented is a promise: clients fall back for good when they see
// it, so an RPC leaves this table only when it works.
var later = map[string]string{
	"CheckpointContainer": "checkpoints are not served yet",
	"CheckpointPod":       "checkpoints are not served yet",
	"RestorePod":          "checkpoints are not served yet",
}

func notServed(method string) error {
	rpc := path.Base(method)
	if why, ok := later[rpc]; ok {
		return status.Errorf(codes.Unimplemented, "%s is not served by this version of Vitrine: %s", rpc, why)
	}
	return nil
}

func laterUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := notServed(info.FullMethod); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

func laterStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if err := notServed(info.FullMethod); err != nil {
		return err
	}
	return next(srv, ss)
}
