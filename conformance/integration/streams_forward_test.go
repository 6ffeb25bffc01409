package integration

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// forward opens a session of port-forward.
func (s *scene) forward(pod string, ports ...int32) *session {
	s.Helper()
	r, err := s.cri.PortForward(s.ctx, &runtimeapi.PortForwardRequest{PodSandboxId: pod, Port: ports})
	if err != nil {
		s.Fatalf("port-forward: %v", err)
	}
	x, code, text := s.upgrade(r.Url, forwardProtocol)
	if x == nil {
		s.Fatalf("upgrade: %d %s", code, text)
	}
	return x
}

// connect opens a connection to a port.
func (x *session) connect(n, port int) (data httpstream.Stream, failed chan string) {
	x.Helper()
	h := func(kind string) http.Header {
		return http.Header{"Streamtype": {kind}, "Port": {strconv.Itoa(port)}, "Requestid": {strconv.Itoa(n)}}
	}
	errs, err := x.conn.CreateStream(h("error"))
	if err != nil {
		x.Fatal(err)
	}
	errs.Close()
	failed = make(chan string, 1)
	go func() {
		text, _ := io.ReadAll(errs)
		failed <- string(text)
	}()
	if data, err = x.conn.CreateStream(h("data")); err != nil {
		x.Fatal(err)
	}
	return data, failed
}

// talk sends text to a port and its end, and returns what comes back, to the end.
func (x *session) talk(n, port int, text []byte) (got []byte, failed string) {
	x.Helper()
	data, errs := x.connect(n, port)
	go func() {
		for rest := text; len(rest) > 0; rest = rest[min(len(rest), 32<<10):] {
			if _, err := data.Write(rest[:min(len(rest), 32<<10)]); err != nil {
				return
			}
		}
		data.Close()
	}()
	read := make(chan []byte, 1)
	go func() {
		b, _ := io.ReadAll(data)
		read <- b
	}()
	select {
	case got = <-read:
	case <-time.After(x.Scale(30 * time.Second)):
		x.Fatalf("connection %d to port %d does not end", n, port)
	}
	return got, <-errs
}

// echoServer answers each connection with what it was sent, once it has been sent its end, and a word.
const echoServer = `printf '#!/bin/sh\ncat; echo over\n' >/tmp/echo; chmod +x /tmp/echo; nc -ll -p 7000 -e /tmp/echo & httpd -f -p '[::1]:8080' -h /tmp & `

// echo serves in a pod's network what echoServer does, for any number of clients, until the returned function is called, which
// waits until they have gone.
func (s *scene) echo(pod string) (port int, stop func()) {
	s.Helper()
	var l net.Listener
	err := sys.OnLostThread(func() error {
		ns, err := os.Open("/run/netns/vitrine-" + pod[:12])
		if err != nil {
			return err
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		l, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	})
	if err != nil {
		s.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				if _, err := io.Copy(c, c); err == nil {
					io.WriteString(c, "over\n")
				}
			})
		}
	})
	return l.Addr().(*net.TCPAddr).Port, func() { l.Close(); all.Wait() }
}

// TestPortForward: into a pod's own network: large data both ways, the end of one way before that of the other, IPv6, a port
// where nobody listens, many connections on one session and many sessions.
func TestPortForward(t *testing.T) {
	s := open(t)
	p := s.runPod("forward")
	id := p.run("c", echoServer+"sleep 1000")
	s.eventually("the servers listen", func() bool { return strings.Count(s.exec(id, "netstat -ltn"), "LISTEN") >= 2 })
	before := s.descriptors(s.Daemon().Pid())
	x := s.forward(p.id)
	data := make([]byte, 4<<20)
	rnd := rand.NewChaCha8([32]byte{2})
	_, _ = rnd.Read(data)
	got, failed := x.talk(1, 7000, data)
	if want := append(bytes.Clone(data), "over\n"...); failed != "" || sha256.Sum256(got) != sha256.Sum256(want) {
		t.Errorf("4 MiB: %d bytes, %q", len(got), failed)
	}
	if got, failed := x.talk(2, 8080, []byte("GET /echo HTTP/1.0\r\n\r\n")); failed != "" || !bytes.Contains(got, []byte("200 OK")) {
		t.Errorf("IPv6: %q, %q", got, failed)
	}
	for n, port := range map[int]int{3: 1, 4: 65535} {
		if got, failed := x.talk(n, port, nil); len(got) != 0 || !strings.Contains(failed, "connection refused") || !strings.Contains(failed, fmt.Sprint(port)) {
			t.Errorf("closed port: %q, %q", got, failed)
		}
	}
	port, stop := s.echo(p.id)
	var all sync.WaitGroup
	for n := 10; n < 60; n++ {
		all.Go(func() {
			text := strings.Repeat(fmt.Sprintf("hello %d\n", n), 1000*(n%7))
			if got, failed := x.talk(n, port, []byte(text)); string(got) != text+"over\n" {
				t.Errorf("connection %d: %d bytes, %q", n, len(got), failed)
			}
		})
	}
	all.Wait()
	x.conn.Close()
	// Ports that were not asked for.
	x = s.forward(p.id, 7000)
	if got, _ := x.talk(1, 7000, []byte("x\n")); string(got) != "x\nover\n" {
		t.Errorf("the port that was asked for: %q", got)
	}
	if _, failed := x.talk(2, 8080, nil); !strings.Contains(failed, "not asked for") {
		t.Errorf("another port: %q", failed)
	}
	x.conn.Close()
	// Clients that are killed.
	for range 20 {
		x := s.forward(p.id)
		data, _ := x.connect(1, port)
		if _, err := io.WriteString(data, "half a line"); err != nil {
			t.Fatal(err)
		}
		x.kill()
	}
	stop() // hangs where the daemon holds a connection
	s.eventually("the daemon's descriptors are what they were", func() bool { return s.descriptors(s.Daemon().Pid()) <= before })
}

// TestPortForwardEnds: F-46. A pod that is stopped does not wait for who is connected to it, and they do not wait for it.
func TestPortForwardEnds(t *testing.T) {
	s := open(t)
	p := s.runPod("ends")
	id := p.run("c", echoServer+"sleep 1000")
	s.eventually("the server listens", func() bool { return strings.Contains(s.exec(id, "netstat -ltn"), ":7000") })
	x := s.forward(p.id)
	data, _ := x.connect(1, 7000)
	if _, err := io.WriteString(data, "not the end"); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := s.cri.StopPodSandbox(s.ctx, p.id); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d > s.Scale(3*time.Second) {
		t.Errorf("the stop took %v", d)
	}
	ended := make(chan struct{})
	go func() {
		_, _ = io.ReadAll(data)
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(s.Scale(10 * time.Second)):
		t.Error("the connection goes on")
	}
	if _, err := s.cri.PortForward(s.ctx, &runtimeapi.PortForwardRequest{PodSandboxId: p.id}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("into a stopped pod: %v", err)
	}
}

// TestPortForwardHost: into a pod that uses the host's network.
func TestPortForwardHost(t *testing.T) {
	s := open(t)
	p := s.runPod("host", func(c *runtimeapi.PodSandboxConfig) {
		c.Hostname = ""
		c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	})
	id := p.run("c", echoServer+"sleep 1000", func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	})
	s.eventually("the server listens", func() bool { return strings.Contains(s.exec(id, "netstat -ltn"), ":7000") })
	if got, failed := s.forward(p.id).talk(1, 7000, []byte("x\n")); string(got) != "x\nover\n" {
		t.Errorf("%q, %q", got, failed)
	}
}
