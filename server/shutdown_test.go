package server

import (
	"context"
	"net"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// gate lets a test hold a request inside its handler.
type gate struct{ entered, leave chan struct{} }

// serveOne starts a Server whose StartContainer stays inside until the gate opens,
// deaf to its context, and returns a client.
func serveOne(t *testing.T) (*Server, runtimeapi.RuntimeServiceClient, gate) {
	t.Helper()
	g := gate{make(chan struct{}), make(chan struct{})}
	f := &fake{do: func(context.Context, string) error {
		close(g.entered)
		<-g.leave
		return nil
	}}
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := New(Config{Manager: f, Images: fakeImages{f}, Network: fakeNetwork{f}})
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return s, runtimeapi.NewRuntimeServiceClient(conn), g
}
