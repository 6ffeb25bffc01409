package server

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Message limits in bytes. 16 MiB is what a kubelet accepts and more than any
// request needs. Answers may be larger: ExecSync carries up to 16 MiB of each
// output, and a crowded node's lists are read by clients that allow for it.
const (
	maxRecv = 16 << 20
	maxSend = 80 << 20
)

// Config is what a Server works with. All of it is fixed for the Server's life.
type Config struct {
	Manager Manager
	Images  Images
	Network Network
	Streams Streams

	// Version of the runtime, as semver.
	Version string
	// CgroupDriver is told to the kubelet, which then uses the same.
	CgroupDriver runtimeapi.CgroupDriver
	// Handlers are the runtime handlers beside the default one.
	Handlers []Handler
	// Features that are true are advertised; those that are false are refused.
	Features Features
	// Info makes what a verbose Status shows: one JSON document for each key. Nil
	// is allowed. It is called for each such request.
	Info func() map[string]any
}

// Features are the parts of CRI that a runtime may lack. Status tells them to the
// kubelet, and a request that needs one that is not there is refused by name, so
// the two cannot disagree.
type Features struct {
	// RecursiveReadOnly: mount_setattr(AT_RECURSIVE) works, Linux 5.12.
	RecursiveReadOnly bool
	// UserNamespaces: pods with uid and gid mappings, and volumes mapped so.
	UserNamespaces bool
	// SupplementalGroupsPolicy: Strict, and the user in ContainerStatus.
	SupplementalGroupsPolicy bool
	// MountOptions: noexec, nodev and nosuid for each mount.
	MountOptions bool
	// ImageVolumes: mounts of images. CRI has no flag for them.
	ImageVolumes bool
}

// Handler is a runtime handler as Status tells of it. What the node does not have none of them has.
type Handler struct {
	Name string
	// NoUserNamespaces: its pods have none.
	NoUserNamespaces bool
}

// Server serves both CRI services, and to the operator what CRI has no words for (WatchPulls). It keeps nothing but its gRPC server and the
// network's last word: every answer comes from the Manager, the images or the network.
//
// New, then Serve, then Shutdown, each once. A Server does not own the Manager
// and the stores that it was given.
type Server struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer

	cfg     Config
	grpc    *grpc.Server
	network *networkProbe
	podCIDR atomic.Pointer[string] // what a kubelet has told, for Status
	ending  chan struct{}          // closed by Shutdown: streams without an end of their own end then
	pulls   *pullLog
}

// New makes a Server. Nothing is listened on before Serve.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg, network: newNetworkProbe(cfg.Network), pulls: newPullLog(cfg.Images), ending: make(chan struct{})}
	s.grpc = grpc.NewServer(
		grpc.MaxRecvMsgSize(maxRecv),
		grpc.MaxSendMsgSize(maxSend),
		grpc.ChainUnaryInterceptor(logUnary, translateUnary, laterUnary, recoverUnary),
		grpc.ChainStreamInterceptor(logStream, translateStream, laterStream, recoverStream),
		// A client may ping an idle connection as often as every ten seconds; the
		// kubelet does not, tools do.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.ConnectionTimeout(10*time.Second),
	)
	runtimeapi.RegisterRuntimeServiceServer(s.grpc, s)
	runtimeapi.RegisterImageServiceServer(s.grpc, s)
	s.grpc.RegisterService(&operatorService, s)
	return s
}

// Serve answers on l until Shutdown, and then returns nil. It closes l.
func (s *Server) Serve(l net.Listener) error {
	if err := s.grpc.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	return nil
}

// Shutdown takes no further requests and waits for the running ones until ctx
// ends; those that are left have their contexts cancelled, and Shutdown returns
// without waiting for them. Containers do not notice any of it.
func (s *Server) Shutdown(ctx context.Context) {
	defer s.network.cancel()
	close(s.ending)
	drained := make(chan struct{})
	// Ends when the last handler does. One that hangs in the kernel outlives
	// Shutdown, and ends with the process.
	go func() {
		defer close(drained)
		s.grpc.GracefulStop()
	}()
	select {
	case <-drained:
	case <-ctx.Done():
		s.grpc.Stop()
	}
}
