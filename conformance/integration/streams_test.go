package integration

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// The protocols that clients speak on a connection for streams.
const (
	commandProtocol = "v4.channel.k8s.io"
	forwardProtocol = "portforward.k8s.io"
)

// session is a client's connection for streams: SPDY, as the kubelet and crictl have it.
type session struct {
	*scene
	tcp     *net.TCPConn
	conn    httpstream.Connection
	streams map[string]httpstream.Stream
	out     map[string]*output
	status  chan result
}

// result is what comes on the error stream.
type result struct {
	code    int // of the command; -1 for another failure
	message string
	err     error
}

// upgrade asks for a URL as a client does. What is no session has an HTTP status and a text.
func (s *scene) upgrade(address, protocol string) (*session, int, string) {
	s.Helper()
	u, err := url.Parse(address)
	if err != nil {
		s.Fatal(err)
	}
	c, err := net.Dial("tcp", u.Host)
	if err != nil {
		s.Fatal(err)
	}
	fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: %s\r\nContent-Length: 0\r\n\r\n", u.Path, u.Host, protocol)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		s.Fatalf("upgrade: %v", err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		c.Close()
		return nil, resp.StatusCode, string(text)
	}
	conn, err := spdy.NewClientConnection(c)
	if err != nil {
		s.Fatal(err)
	}
	x := &session{scene: s, tcp: c.(*net.TCPConn), conn: conn, streams: map[string]httpstream.Stream{}, out: map[string]*output{}, status: make(chan result, 1)}
	s.Cleanup(func() { conn.Close() })
	return x, 0, ""
}

// open opens the streams, of which error comes first, and reads those that are outputs.
func (x *session) open(names ...string) *session {
	x.Helper()
	for _, name := range append([]string{"error"}, names...) {
		st, err := x.conn.CreateStream(http.Header{"Streamtype": {name}})
		if err != nil {
			x.Fatalf("open stream %s: %v", name, err)
		}
		x.streams[name] = st
		switch name {
		case "error":
			st.Close()
			go x.awaitStatus(st)
		case "stdout", "stderr":
			o := &output{done: make(chan struct{})}
			x.out[name] = o
			go o.read(st)
		}
	}
	return x
}

// awaitStatus reads the error stream, in the form of version 4.
func (x *session) awaitStatus(from io.Reader) {
	text, err := io.ReadAll(from)
	r := result{err: err, message: string(text)}
	var st struct {
		Status, Message, Reason string
		Details                 struct {
			Causes []struct{ Reason, Message string }
		}
	}
	if err == nil && json.Unmarshal(text, &st) == nil {
		r.message = st.Message
		switch {
		case st.Status == "Success":
		case st.Reason == "NonZeroExitCode" && len(st.Details.Causes) == 1 && st.Details.Causes[0].Reason == "ExitCode":
			fmt.Sscan(st.Details.Causes[0].Message, &r.code)
		default:
			r.code = -1
		}
	}
	x.status <- r
}

// end waits for the status, and for the rest of the output.
func (x *session) end() result {
	x.Helper()
	select {
	case r := <-x.status:
		for _, o := range x.out {
			<-o.done
		}
		return r
	case <-time.After(x.Scale(30 * time.Second)):
		x.Fatalf("the stream does not end; stdout %q", x.out["stdout"].tail())
		return result{}
	}
}

// kill ends the client as SIGKILL does, or a node that loses its current.
func (x *session) kill() {
	_ = x.tcp.SetLinger(0)
	x.tcp.Close()
}

// say writes to stdin.
func (x *session) say(text string) {
	x.Helper()
	if _, err := io.WriteString(x.streams["stdin"], text); err != nil {
		x.Fatalf("write stdin: %v", err)
	}
}

// sees waits until stdout has a text.
func (x *session) sees(text string) {
	x.Helper()
	x.eventually(fmt.Sprintf("%q on stdout", text), func() bool { return strings.Contains(x.out["stdout"].String(), text) })
}

// output is what came on a stream.
type output struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	done chan struct{}
}

func (o *output) read(from io.Reader) {
	defer close(o.done)
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		o.mu.Lock()
		o.buf.Write(b[:n])
		o.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (o *output) String() string {
	if o == nil {
		return ""
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

func (o *output) tail() string { s := o.String(); return s[max(0, len(s)-300):] }

// execURL asks for an exec, attachURL for an attach.
func (s *scene) execURL(q *runtimeapi.ExecRequest) string {
	s.Helper()
	r, err := s.cri.Exec(s.ctx, q)
	if err != nil {
		s.Fatalf("exec: %v", err)
	}
	return r.Url
}

func (s *scene) attachURL(q *runtimeapi.AttachRequest) string {
	s.Helper()
	r, err := s.cri.Attach(s.ctx, q)
	if err != nil {
		s.Fatalf("attach: %v", err)
	}
	return r.Url
}

// shell runs a script by Exec, without a terminal.
func (s *scene) shell(id, script string) *session {
	s.Helper()
	url := s.execURL(&runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"/bin/sh", "-c", script}, Stdin: true, Stdout: true, Stderr: true})
	return s.dial(url).open("stdin", "stdout", "stderr")
}

// screen runs a script by Exec, in a terminal.
func (s *scene) screen(id, script string) *session {
	s.Helper()
	url := s.execURL(&runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"/bin/sh", "-c", script}, Stdin: true, Stdout: true, Tty: true})
	return s.dial(url).open("stdin", "stdout", "resize")
}

func (s *scene) dial(url string) *session {
	s.Helper()
	x, code, text := s.upgrade(url, commandProtocol)
	if x == nil {
		s.Fatalf("upgrade: %d %s", code, text)
	}
	return x
}

// attach attaches to a container.
func (s *scene) attach(id string, stdin bool) *session {
	s.Helper()
	names := []string{"stdout", "stderr"}
	if stdin {
		names = append([]string{"stdin"}, names...)
	}
	return s.dial(s.attachURL(&runtimeapi.AttachRequest{ContainerId: id, Stdin: stdin, Stdout: true, Stderr: true})).open(names...)
}

// resize tells the size of the client's window.
func (x *session) resize(width, height int) {
	x.Helper()
	if _, err := fmt.Fprintf(x.streams["resize"], `{"Width":%d,"Height":%d}`, width, height); err != nil {
		x.Fatalf("resize: %v", err)
	}
}

// stdin gives a container a stdin, once one for the first client only, tty a terminal.
func stdin(c *runtimeapi.ContainerConfig) { c.Stdin = true }

func once(c *runtimeapi.ContainerConfig) { c.StdinOnce = true }

func tty(c *runtimeapi.ContainerConfig) { c.Tty = true }

// TestStreamDoor: B-109, B-111, ST-05. A URL is good once and on its own path; what is no upgrade starts nothing.
func TestStreamDoor(t *testing.T) {
	s := open(t)
	p := s.runPod("door")
	id := p.run("c", "sleep 1000")
	q := &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"touch", "/tmp/ran"}, Stdout: true}
	fresh := func() string { return s.execURL(q) }
	u, err := url.Parse(fresh())
	if err != nil || u.Scheme != "http" || !net.ParseIP(u.Hostname()).IsLoopback() || len(u.Path) != len("/exec/")+22 {
		t.Errorf("URL %v, %v", u, err)
	}
	for name, ask := range map[string]func() (int, string){
		"unknown": func() (int, string) {
			return s.status404(strings.Replace(fresh(), "/exec/", "/exec/x", 1)[:len(u.String())])
		},
		"other path":    func() (int, string) { return s.status404(strings.Replace(fresh(), "/exec/", "/attach/", 1)) },
		"long":          func() (int, string) { return s.status404(fresh() + strings.Repeat("a", 8000)) },
		"escaped slash": func() (int, string) { return s.status404(strings.Replace(fresh(), "/exec/", "/exec%2f", 1)[:30]) },
		"protocol":      func() (int, string) { _, code, text := s.upgrade(fresh(), "v9.channel.k8s.io"); return code, text },
		"no upgrade": func() (int, string) {
			r, err := http.Get(fresh())
			if err != nil {
				return 0, err.Error()
			}
			defer r.Body.Close()
			return r.StatusCode, ""
		},
		"method": func() (int, string) {
			r, err := http.Head(fresh())
			if err != nil {
				return 0, err.Error()
			}
			defer r.Body.Close()
			return r.StatusCode, ""
		},
	} {
		if code, text := ask(); code < 400 || code > 499 {
			t.Errorf("%s: %d %s", name, code, text)
		}
	}
	// A wrong path uses the token up.
	first := fresh()
	s.status404(strings.Replace(first, "/exec/", "/portforward/", 1))
	if code, _ := s.status404(first); code != http.StatusNotFound {
		t.Errorf("after a wrong path: %d", code)
	}
	if got := s.exec(id, "ls /tmp"); got != "" {
		t.Errorf("something ran: %q", got)
	}
	second := fresh()
	if r := s.dial(second).open("stdout").end(); r.code != 0 || r.err != nil {
		t.Errorf("the legal case: %+v", r)
	}
	if code, _ := s.status404(second); code != http.StatusNotFound {
		t.Errorf("a token that was used: %d", code)
	}
	if got := s.exec(id, "ls /tmp"); got != "ran" {
		t.Errorf("the legal case ran %q", got)
	}
	if log := s.Daemon().Tail(1 << 20); strings.Contains(log, strings.TrimPrefix(u.Path, "/exec/")) {
		t.Error("the daemon's log has a token")
	}
	http.DefaultClient.CloseIdleConnections()
}

func (s *scene) status404(url string) (int, string) {
	s.Helper()
	x, code, text := s.upgrade(url, commandProtocol)
	if x != nil {
		s.Errorf("%s was answered", url)
	}
	return code, text
}
