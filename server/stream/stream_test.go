package stream

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"github.com/vitrine-runtime/vitrine/sandbox"
)

// fake is a runtime of which everything lasts until its client, or the server, ends.
type fake struct {
	running atomic.Int32
	causes  chan error
	panics  bool
}

func (f *fake) last(ctx context.Context) error {
	f.running.Add(1)
	defer f.running.Add(-1)
	if f.panics {
		panic("at the disco")
	}
	<-ctx.Done()
	f.causes <- context.Cause(ctx)
	return context.Cause(ctx)
}

func (f *fake) Exec(ctx context.Context, _ string, cmd []string, s sandbox.Streams) (int32, error) {
	if cmd[0] == "exit" {
		_, err := io.WriteString(s.Stdout, "bye")
		return 3, err
	}
	return 0, f.last(ctx)
}
func (f *fake) Attach(ctx context.Context, _ string, _ sandbox.Streams) error { return f.last(ctx) }
func (f *fake) PortForward(ctx context.Context, _ string, _ uint16, _ io.ReadWriteCloser) error {
	return f.last(ctx)
}

func serve(t *testing.T, edit func(*Config)) (*Server, *fake) {
	t.Helper()
	s, f := listen(t, edit)
	begin(t, s)
	return s, f
}

func listen(t *testing.T, edit func(*Config)) (*Server, *fake) {
	t.Helper()
	f := &fake{causes: make(chan error, 1000)}
	cfg := Config{Runtime: f, Address: "127.0.0.1:0", IdleTimeout: time.Minute}
	if edit != nil {
		edit(&cfg)
	}
	s, err := Listen(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s, f
}

func begin(t *testing.T, s *Server) {
	t.Helper()
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		s.Shutdown(ctx)
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}

// dial upgrades a connection and opens streams; nil and an HTTP status where it is refused.
func dial(t *testing.T, address string, names ...string) (net.Conn, httpstream.Connection, int) {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	var c net.Conn
	if u.Scheme == "https" {
		c, err = tls.Dial("tcp", u.Host, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // as the kubelet does
	} else {
		c, err = net.Dial("tcp", u.Host)
	}
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\nX-Stream-Protocol-Version: portforward.k8s.io\r\n\r\n", u.Path)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		c.Close()
		return nil, nil, resp.StatusCode
	}
	conn, err := spdy.NewClientConnection(c)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		st, err := conn.CreateStream(http.Header{"Streamtype": {n}})
		if err != nil {
			t.Fatal(err)
		}
		if n == "error" || n == "stdout" {
			go func() { _, _ = io.Copy(io.Discard, st) }()
		}
	}
	return c, conn, 0
}

func add(t *testing.T, s *Server, cmd ...string) string {
	t.Helper()
	url, err := s.Add(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: cmd, Stdin: true, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	return url
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// TestTickets: ST-06, B-109, B-110. A token is long, good once, for a minute, and there are at most a thousand.
func TestTickets(t *testing.T) {
	k := newTickets()
	seen := map[string]bool{}
	for range maxTickets {
		token, err := k.add(&runtimeapi.ExecRequest{})
		if err != nil || seen[token] || len(token) != 22 {
			t.Fatalf("token %q, %v", token, err)
		}
		seen[token] = true
	}
	if tokenLength != 22 {
		t.Errorf("a token is taken for %d long", tokenLength)
	}
	if _, err := k.add(&runtimeapi.ExecRequest{}); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("one too many: %v", err)
	}
	for token := range seen {
		if k.take(token) == nil || k.take(token) != nil {
			t.Fatal("a token is not good exactly once")
		}
	}
	if k.take("") != nil || len(k.m) != 0 {
		t.Errorf("left: %v", k.m)
	}
	if k.life != time.Minute {
		t.Errorf("a token lives for %v", k.life)
	}
	k.life = 20 * time.Millisecond
	token, err := k.add(&runtimeapi.ExecRequest{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "nothing is kept of what nobody came for", func() bool { k.mu.Lock(); defer k.mu.Unlock(); return len(k.m) == 0 })
	if k.take(token) != nil {
		t.Error("a token outlived its time")
	}
}

// TestGuesses: nobody gets in by trying.
func TestGuesses(t *testing.T) {
	s, f := serve(t, nil)
	add(t, s, "sleep")
	for i := range 200 {
		if _, _, code := dial(t, fmt.Sprintf("%s://%s/exec/%022d", s.base.Scheme, s.base.Host, i)); code != http.StatusNotFound {
			t.Fatalf("a guess: %d", code)
		}
	}
	if f.running.Load() != 0 {
		t.Error("something runs")
	}
}

// TestAddresses: what is not of the loopback interface is not served in the clear.
func TestAddresses(t *testing.T) {
	for address, ok := range map[string]bool{
		"127.0.0.1:0": true, "[::1]:0": true, "127.1.2.3:0": true,
		"0.0.0.0:0": false, "[::]:0": false, ":0": false, "10.1.2.3:0": false, "localhost:0": false, "127.0.0.1": false, "127.0.0.1:x": false,
	} {
		s, err := Listen(Config{Address: address, IdleTimeout: time.Minute})
		if (err == nil) != ok {
			t.Errorf("%s: %v", address, err)
		}
		if err == nil {
			s.l.Close()
		}
	}
}

// TestClientsThatGo: CD-14. Killed, or cut off in the middle of what nobody reads, they leave no goroutine.
func TestClientsThatGo(t *testing.T) {
	s, f := serve(t, nil)
	for i := range 60 {
		var url string
		names := []string{"error", "stdin", "stdout"}
		switch i % 3 {
		case 0:
			url = add(t, s, "sleep")
		case 1:
			url, _ = s.Add(&runtimeapi.AttachRequest{ContainerId: "c", Stdin: true, Stdout: true})
		case 2: // it never opens its streams
			url, names = add(t, s, "sleep"), nil
		}
		c, _, _ := dial(t, url, names...)
		if i%3 == 2 {
			defer c.Close()
			continue
		}
		eventually(t, "it runs", func() bool { return f.running.Load() == 1 })
		if i%2 == 0 {
			_ = c.(*net.TCPConn).SetLinger(0)
		}
		c.Close()
		eventually(t, "it ends", func() bool { return f.running.Load() == 0 })
		if cause := <-f.causes; !errors.Is(cause, errGone) {
			t.Fatalf("it ended by %v", cause)
		}
	}
	if f.running.Load() != 0 {
		t.Error("without its streams something runs")
	}
	s.mu.Lock()
	for c := range s.open {
		c.Close() // of those that never opened their streams: the library waits for half a minute
	}
	s.mu.Unlock()
}

// TestUnreadStdin: a client that has gone is missed although nobody reads its connection to the end.
func TestUnreadStdin(t *testing.T) {
	s, f := serve(t, nil)
	c, conn, _ := dial(t, add(t, s, "sleep"), "error", "stdout")
	in, err := conn.CreateStream(http.Header{"Streamtype": {"stdin"}})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it runs", func() bool { return f.running.Load() == 1 })
	go func() {
		for junk := make([]byte, 32<<10); ; {
			if _, err := in.Write(junk); err != nil {
				return
			}
		}
	}()
	time.Sleep(300 * time.Millisecond)
	_ = c.(*net.TCPConn).SetLinger(0) // else the kernel keeps what nobody takes for minutes, and the end behind it
	c.Close()
	eventually(t, "it ends", func() bool { return f.running.Load() == 0 })
}

// TestGoroutines: what a hundred clients leave, once the library has ended its own.
func TestGoroutines(t *testing.T) {
	s, f := serve(t, nil)
	dialOnce := func() {
		c, _, _ := dial(t, add(t, s, "sleep"), "error", "stdin", "stdout")
		eventually(t, "it runs", func() bool { return f.running.Load() == 1 })
		c.Close()
		eventually(t, "it ends", func() bool { return f.running.Load() == 0 })
	}
	dialOnce()
	time.Sleep(200 * time.Millisecond)
	before := runtime.NumGoroutine()
	for range 100 {
		dialOnce()
	}
	eventually(t, "the goroutines are as many as before", func() bool { return runtime.NumGoroutine() <= before })
}

// TestShutdown: it waits for what ends by itself, ends the rest, and says why.
func TestShutdown(t *testing.T) {
	s, f := serve(t, nil)
	_, _, _ = dial(t, add(t, s, "sleep"), "error", "stdin", "stdout")
	eventually(t, "it runs", func() bool { return f.running.Load() == 1 })
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	s.Shutdown(ctx)
	if d := time.Since(start); d < 250*time.Millisecond || d > 3*time.Second {
		t.Errorf("it took %v", d)
	}
	if cause := <-f.causes; !errors.Is(cause, sandbox.ErrEnding) {
		t.Errorf("ended by %v", cause)
	}
	if _, err := net.Dial("tcp", s.base.Host); err == nil {
		t.Error("it still listens")
	}
}

// TestStrangers: F-39. Connections without a token are few and do not last; one with a token gets through beside them.
func TestStrangers(t *testing.T) {
	s, _ := serve(t, nil)
	var all []net.Conn
	for range maxStrangers + 50 {
		c, err := net.Dial("tcp", s.base.Host)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		all = append(all, c)
	}
	refused := 0
	for _, c := range all {
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		if _, err := c.Read(make([]byte, 1)); !isTimeout(err) {
			refused++
		}
	}
	if refused < 40 || refused > 50 {
		t.Errorf("%d of 50 too many were refused", refused)
	}
	for _, c := range all {
		c.Close()
	}
	eventually(t, "there is room again", func() bool { return s.l.(*listener).strange.Load() == 0 })
	c, conn, _ := dial(t, add(t, s, "exit"), "error", "stdin", "stdout")
	defer c.Close()
	defer conn.Close()
}

// TestStrangersDoNotLast: whatever a stranger does, his time is limited as a whole; that of who has shown a token is not.
func TestStrangersDoNotLast(t *testing.T) {
	s, f := listen(t, nil)
	s.l.(*listener).limit = 3 * time.Second
	begin(t, s)
	client, _, _ := dial(t, add(t, s, "sleep"), "error", "stdin", "stdout")
	defer client.Close()
	for name, behave := range map[string]func(c net.Conn){
		"a body that never comes": func(c net.Conn) { fmt.Fprint(c, "POST /exec/x HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n") },
		"answers that are not read": func(c net.Conn) {
			for err := error(nil); err == nil; { // until he is hung up on
				_, err = io.WriteString(c, strings.Repeat("GET /exec/x HTTP/1.1\r\nHost: x\r\n\r\n", 1000))
			}
		},
		"one wrong token after the other": func(c net.Conn) {
			for err := error(nil); err == nil; time.Sleep(100 * time.Millisecond) {
				_, err = io.WriteString(c, "GET /exec/x HTTP/1.1\r\nHost: x\r\n\r\n")
			}
		},
	} {
		c, err := net.Dial("tcp", s.base.Host)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		go behave(c) // ends with the connection
		eventually(t, name, func() bool { return s.l.(*listener).strange.Load() == 1 })
		eventually(t, name+": he is gone", func() bool { return s.l.(*listener).strange.Load() == 0 })
	}
	if f.running.Load() != 1 {
		t.Error("a client with a token was hung up on, too")
	}
}

// TestPanic: a bug in one stream is not the end of the others.
func TestPanic(t *testing.T) {
	s, f := serve(t, nil)
	f.panics = true
	c, conn, _ := dial(t, add(t, s, "sleep"), "error", "stdin", "stdout")
	defer c.Close()
	select {
	case <-conn.CloseChan():
	case <-time.After(10 * time.Second):
		t.Error("it does not end")
	}
	f.panics = false
	c, _, _ = dial(t, add(t, s, "sleep"), "error", "stdin", "stdout")
	eventually(t, "another one runs", func() bool { return f.running.Load() == 1 })
	c.Close()
}

// TestRefusedPort: a client hears why its port is refused, however soon that is.
func TestRefusedPort(t *testing.T) {
	s, _ := serve(t, nil)
	address, err := s.Add(&runtimeapi.PortForwardRequest{PodSandboxId: "p", Port: []int32{7000}})
	if err != nil {
		t.Fatal(err)
	}
	c, conn, code := dial(t, address)
	if c == nil {
		t.Fatal(code)
	}
	defer c.Close()
	for n := range 300 {
		h := http.Header{"Streamtype": {"error"}, "Port": {"8080"}, "Requestid": {strconv.Itoa(n)}}
		errs, err := conn.CreateStream(h)
		if err != nil {
			t.Fatal(err)
		}
		h.Set("Streamtype", "data")
		if _, err := conn.CreateStream(h); err != nil {
			t.Fatalf("connection %d: %v", n, err)
		}
		if why, _ := io.ReadAll(errs); !strings.Contains(string(why), "port 8080 was not asked for") {
			t.Fatalf("connection %d: %q", n, why)
		}
	}
}

// TestTLS: F-57. With a certificate, which may be replaced, and may for a while be none.
func TestTLS(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert"), filepath.Join(dir, "key")
	if _, err := Listen(Config{Address: "127.0.0.1:0", CertFile: cert, KeyFile: key, IdleTimeout: time.Minute}); err == nil {
		t.Error("without its certificate it listens")
	}
	makeCert(t, cert, key, 1)
	s, f := serve(t, func(c *Config) { c.CertFile, c.KeyFile = cert, key })
	serial := func() int64 {
		c, err := tls.Dial("tcp", s.base.Host, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // as the kubelet does
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	}
	if url := add(t, s, "sleep"); !strings.HasPrefix(url, "https://127.0.0.1:") {
		t.Errorf("URL %s", url)
	}
	c, _, _ := dial(t, add(t, s, "sleep"), "error", "stdin", "stdout")
	eventually(t, "it runs", func() bool { return f.running.Load() == 1 })
	c.Close()
	eventually(t, "it ends", func() bool { return f.running.Load() == 0 })
	makeCert(t, cert, key, 2)
	if got := serial(); got != 2 {
		t.Errorf("after the change: certificate %d", got)
	}
	if err := os.WriteFile(cert, []byte("half a cert"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := serial(); got != 2 {
		t.Errorf("with a broken file: certificate %d", got)
	}
	if _, err := tls.Dial("tcp", s.base.Host, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}); err == nil { //nolint:gosec // to be refused
		t.Error("an old version of TLS is spoken")
	}
}

func makeCert(t *testing.T, cert, key string, serial int64) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "node"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	kder, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: kder}} {
		if err := os.WriteFile(name, pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
		// The files of one second are of different times.
		if err := os.Chtimes(name, time.Time{}, time.Unix(serial, 0)); err != nil {
			t.Fatal(err)
		}
	}
}
