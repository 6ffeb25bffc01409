package server

import (
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// GetContainerEvents sends an event for each change of a pod or container from the moment at which the answer's header
// comes: whoever lists after that misses nothing. It ends with its client, with the daemon (Unavailable), and where the client
// reads more slowly than things happen (ResourceExhausted): events are lost then, and the client has to list and to
// ask again. Nobody else waits for a slow client.
func (s *Server) GetContainerEvents(_ *runtimeapi.GetEventsRequest, out grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	queue, cancel, err := s.cfg.Manager.Subscribe()
	if err != nil {
		return err
	}
	defer cancel()
	if err := out.SendHeader(nil); err != nil {
		return err
	}
	for {
		select {
		case e, more := <-queue:
			if !more {
				return status.Error(codes.ResourceExhausted, "events: they were read too slowly and some are lost; list, and ask again")
			}
			if err := out.Send(e); err != nil {
				return err
			}
		case <-out.Context().Done():
			return out.Context().Err()
		case <-s.ending:
			return status.Error(codes.Unavailable, "events: the daemon is ending")
		}
	}
}
