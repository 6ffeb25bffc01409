package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/klog/v2"

	"github.com/vitrine-runtime/vitrine/sandbox"
)

// Runtime is what the Server needs of sandbox.Manager, whose documentation holds here.
type Runtime interface {
	Exec(ctx context.Context, id string, cmd []string, s sandbox.Streams) (code int32, err error)
	Attach(ctx context.Context, id string, s sandbox.Streams) error
	PortForward(ctx context.Context, id string, port uint16, client io.ReadWriteCloser) error
}

// Config is fixed for a Server's life.
type Config struct {
	Runtime Runtime
	// Address is where to listen: host:port, the host an IP address, port 0 for any. One
	// that is not of the loopback interface is refused without TLS.
	Address string
	// CertFile and KeyFile are PEM files; both or none. They are read again when they change.
	CertFile, KeyFile string
	// IdleTimeout ends a connection on which nothing has moved for that long.
	IdleTimeout time.Duration
}

// creationTime is how long a client may take to open its streams.
const creationTime = 30 * time.Second

// goodbyeTime is how long the end of a connection may take.
const goodbyeTime = 5 * time.Second

// Server serves streams. Listen makes it, Serve runs it, Shutdown ends it, each once; Add may be called
// in between.
type Server struct {
	cfg     Config
	base    url.URL
	http    *http.Server
	l       net.Listener
	tickets *tickets
	ctx     context.Context // ends when the daemon does
	end     context.CancelCauseFunc

	mu     sync.Mutex
	ending bool // guarded by mu: no stream begins any more
	open   map[*conn]struct{}
	active sync.WaitGroup // streams
}

// Listen makes a Server that accepts connections, and answers them after Serve.
func Listen(cfg Config) (*Server, error) {
	host, _, err := net.SplitHostPort(cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("listen for streams: %w", err)
	}
	ip := net.ParseIP(host)
	switch {
	case ip == nil || ip.IsUnspecified():
		return nil, fmt.Errorf("listen for streams on %s: the host must be an address that clients can be sent to", cfg.Address)
	case !ip.IsLoopback() && cfg.CertFile == "":
		return nil, fmt.Errorf("listen for streams on %s: an address that is not of the loopback interface needs a certificate", cfg.Address)
	}
	s := &Server{cfg: cfg, tickets: newTickets(), open: map[*conn]struct{}{}}
	s.ctx, s.end = context.WithCancelCause(context.Background())
	s.base.Scheme = "http"
	var secure *tls.Config
	if cfg.CertFile != "" {
		s.base.Scheme = "https"
		if secure, err = tlsConfig(cfg.CertFile, cfg.KeyFile); err != nil {
			return nil, fmt.Errorf("listen for streams: %w", err)
		}
	}
	l, err := net.Listen("tcp", cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("listen for streams: %w", err)
	}
	s.base.Host = l.Addr().String()
	s.l = &listener{TCPListener: l.(*net.TCPListener), idle: cfg.IdleTimeout, limit: headerTime}
	if secure != nil {
		s.l = tls.NewListener(s.l, secure)
	}
	s.http = &http.Server{
		Handler: s, ConnContext: withConn, ReadHeaderTimeout: headerTime, IdleTimeout: headerTime, MaxHeaderBytes: 16 << 10,
		// Of connections that are no HTTP, say.
		ErrorLog: log.New(klogWriter{}, "", 0),
	}
	return s, nil
}

// klogWriter logs what package http has to say at a level for who looks for it.
type klogWriter struct{}

func (klogWriter) Write(b []byte) (int, error) {
	klog.V(4).InfoS("Streaming server", "says", strings.TrimSpace(string(b)))
	return len(b), nil
}

// Serve answers until Shutdown, and then returns nil.
func (s *Server) Serve() error {
	err := s.http.Serve(s.l)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending {
		return nil
	}
	return fmt.Errorf("serve streams: %w", err)
}

// Add returns the URL at which the request, which has been checked, is carried out once. A gRPC status ResourceExhausted
// says that too many wait for their clients.
func (s *Server) Add(request proto.Message) (string, error) {
	token, err := s.tickets.add(request)
	if err != nil {
		return "", err
	}
	u := s.base
	u.Path = "/" + verb(request) + "/" + token
	return u.String(), nil
}

// verb is the path of a request's kind.
func verb(request proto.Message) string {
	switch request.(type) {
	case *runtimeapi.ExecRequest:
		return "exec"
	case *runtimeapi.AttachRequest:
		return "attach"
	case *runtimeapi.PortForwardRequest:
		return "portforward"
	}
	return ""
}

// Shutdown takes no more clients and waits for streams to end by themselves until ctx does. Those that
// are left are then ended: commands are hung up on, containers do not notice.
func (s *Server) Shutdown(ctx context.Context) {
	s.mu.Lock()
	s.ending = true
	s.mu.Unlock()
	done := make(chan struct{})
	go func() { // ends with the streams, which the second part ends
		s.active.Wait()
		close(done)
	}()
	_ = s.l.Close()
	select {
	case <-done:
	case <-ctx.Done():
		s.end(sandbox.ErrEnding) // before the connections: what they were cut by is then known
		s.mu.Lock()
		for c := range s.open {
			_ = c.Close()
		}
		s.mu.Unlock()
		select {
		case <-done:
		case <-time.After(time.Second):
		}
	}
	s.end(sandbox.ErrEnding)
	_ = s.http.Close()
}

// begin registers a stream; false once the server is ending.
func (s *Server) begin(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending {
		return false
	}
	s.open[c] = struct{}{}
	s.active.Add(1)
	return true
}

func (s *Server) finish(c *conn) {
	s.mu.Lock()
	delete(s.open, c)
	s.mu.Unlock()
	s.active.Done()
}

// errGone is why a stream's context ends when its client has gone.
var errGone = errors.New("the client has gone")

// ServeHTTP takes a token's request and carries it out.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	kind, token, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	var request proto.Message
	if len(token) == tokenLength {
		request = s.tickets.take(token) // also on a wrong path: it is used up
	}
	c, ok := r.Context().Value(connKey{}).(*conn)
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodPost:
		http.Error(w, "GET or POST", http.StatusMethodNotAllowed)
		return
	case request == nil || verb(request) != kind || !ok:
		http.NotFound(w, r)
		return
	case !s.begin(c):
		http.Error(w, "the daemon is ending", http.StatusServiceUnavailable)
		return
	}
	defer s.finish(c)
	c.known()
	ctx, cancel := context.WithCancelCause(s.ctx)
	defer cancel(nil)
	defer c.watch(func() { cancel(errGone) })()
	s.carryOut(ctx, w, r, request)
	// The library closes the connection, when it has said goodbye; and if that cannot be said, we do.
	time.AfterFunc(goodbyeTime, func() { _ = c.Close() })
}

func (s *Server) carryOut(ctx context.Context, w http.ResponseWriter, r *http.Request, request proto.Message) {
	j := &job{ctx: ctx, runtime: s.cfg.Runtime}
	idle, protocols := s.cfg.IdleTimeout, remotecommand.SupportedStreamingProtocols
	switch q := request.(type) {
	case *runtimeapi.ExecRequest:
		j.want = remotecommand.Options{Stdin: q.GetStdin(), Stdout: q.GetStdout(), Stderr: q.GetStderr(), TTY: q.GetTty()}
		remotecommand.ServeExec(w, r, j, "", "", q.GetContainerId(), q.GetCmd(), &j.want, idle, creationTime, protocols)
	case *runtimeapi.AttachRequest:
		j.want = remotecommand.Options{Stdin: q.GetStdin(), Stdout: q.GetStdout(), Stderr: q.GetStderr(), TTY: q.GetTty()}
		remotecommand.ServeAttach(w, r, j, "", "", q.GetContainerId(), &j.want, idle, creationTime, protocols)
	case *runtimeapi.PortForwardRequest:
		j.ports = q.GetPort()
		portforward.ServePortForward(w, r, j, q.GetPodSandboxId(), "", &portforward.V4Options{Ports: q.GetPort()}, idle, creationTime, portforward.SupportedProtocols)
	}
}
