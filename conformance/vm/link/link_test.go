package link

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// local is a Process of this machine, without a cgroup or a terminal.
type local struct {
	cmd      *exec.Cmd
	in       io.WriteCloser
	out, bad io.ReadCloser
}

func startLocal(c Command) (Process, error) {
	p := &local{cmd: exec.Command(c.Args[0], c.Args[1:]...)}
	p.in, _ = p.cmd.StdinPipe()
	p.out, _ = p.cmd.StdoutPipe()
	p.bad, _ = p.cmd.StderrPipe()
	return p, p.cmd.Start()
}

func (p *local) Stdin() io.WriteCloser               { return p.in }
func (p *local) Outputs() (stdout, stderr io.Reader) { return p.out, p.bad }
func (p *local) Resize(uint16, uint16)               {}
func (p *local) Kill()                               { p.cmd.Process.Kill() }
func (p *local) Drop()                               {}
func (p *local) Wait() Result {
	state, err := p.cmd.Process.Wait()
	if err != nil {
		return Result{Code: -1, Error: err.Error()}
	}
	return Result{Code: state.ExitCode()}
}

// guest connects a client to an agent of this process; what leads says comes before the client's first byte.
func guest(t *testing.T, leads string) (*Client, net.Conn) {
	t.Helper()
	ours, theirs := net.Pipe()
	served := make(chan error, 1)
	if leads != "" {
		go ours.Write([]byte(leads))
	}
	go func() { served <- Serve(theirs, Greeting{Nonce: "nonce"}, startLocal) }()
	c := NewClient(ours)
	t.Cleanup(func() {
		c.Close()
		if err := <-served; err == nil {
			t.Error("Serve ended without saying why")
		}
	})
	if g, err := c.Greeting(t.Context()); err != nil || g.Nonce != "nonce" {
		t.Fatal(g, err)
	}
	return c, theirs
}

// More than any window goes in and comes out unchanged, also behind half a frame that was meant for an earlier agent.
func TestRun(t *testing.T) {
	c, _ := guest(t, "VM\x02half a frame of before")
	in := bytes.Repeat([]byte("0123456789abcdef"), 3*window/16)
	var out bytes.Buffer
	if r, err := c.Run(t.Context(), Command{Args: []string{"cat"}}, Streams{Stdin: bytes.NewReader(in), Stdout: &out}); err != nil || r.Code != 0 || !bytes.Equal(in, out.Bytes()) {
		t.Errorf("%+v, %v, %d of %d bytes", r, err, out.Len(), len(in))
	}
	var bad bytes.Buffer
	if r, err := c.Run(t.Context(), Command{Args: []string{"sh", "-c", "echo no >&2; exit 7"}}, Streams{Stderr: &bad}); err != nil || r.Code != 7 || bad.String() != "no\n" {
		t.Errorf("%+v, %v, %q", r, err, &bad)
	}
	if _, err := c.Run(t.Context(), Command{Args: []string{"/no/such"}}, Streams{}); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Error(err)
	}
}

// A command that reads nothing, and one whose output nobody takes, hold up nobody.
func TestNobodyIsHeldUp(t *testing.T) {
	c, _ := guest(t, "")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() {
		_, err := c.Run(ctx, Command{Args: []string{"sleep", "1000"}}, Streams{Stdin: bytes.NewReader(make([]byte, 4*window))})
		ended <- err
	}()
	r, w := io.Pipe()
	go func() {
		_, err := c.Run(ctx, Command{Args: []string{"sh", "-c", "while :; do echo yes; done"}}, Streams{Stdout: w})
		ended <- err
	}()
	io.ReadFull(r, make([]byte, 1))
	time.Sleep(100 * time.Millisecond)
	if res, err := c.Run(t.Context(), Command{Args: []string{"true"}}, Streams{}); err != nil || res.Code != 0 {
		t.Errorf("%+v, %v", res, err)
	}
	cancel()
	r.Close()
	for range 2 {
		if err := <-ended; err == nil {
			t.Error("a command that was killed ended well")
		}
	}
}

// When the stream ends, so does every wait.
func TestGone(t *testing.T) {
	c, theirs := guest(t, "")
	time.AfterFunc(50*time.Millisecond, func() { theirs.Close() })
	if _, err := c.Run(t.Context(), Command{Args: []string{"sleep", "1000"}}, Streams{}); !errors.Is(err, ErrGone) {
		t.Error(err)
	}
	if _, err := c.Run(t.Context(), Command{Args: []string{"true"}}, Streams{}); !errors.Is(err, ErrGone) {
		t.Error(err)
	}
}

// A client behind a holder runs commands and gives orders; its commands die with it.
func TestRelay(t *testing.T) {
	up, _ := guest(t, "")
	ours, theirs := net.Pipe()
	relayed := make(chan struct{})
	go func() {
		Relay(theirs, func() *Client { return up }, func(o Order) Order { o.Text += "!"; return o })
		close(relayed)
	}()
	c := NewClient(ours)
	var out bytes.Buffer
	if r, err := c.Run(t.Context(), Command{Args: []string{"echo", "hello"}}, Streams{Stdout: &out}); err != nil || r.Code != 0 || out.String() != "hello\n" {
		t.Errorf("%+v, %v, %q", r, err, &out)
	}
	if o, err := c.Ask(t.Context(), Order{Verb: "v", Text: "hey"}); err != nil || o.Text != "hey!" {
		t.Error(o, err)
	}
	time.AfterFunc(50*time.Millisecond, func() { c.Close() })
	if _, err := c.Run(t.Context(), Command{Args: []string{"sleep", "1000"}}, Streams{}); !errors.Is(err, ErrGone) {
		t.Error(err)
	}
	<-relayed
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		up.mu.Lock()
		n := len(up.sessions)
		up.mu.Unlock()
		if n == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d sessions are left upstream", n)
		}
	}
}

// Nobody hears of an agent that was not welcomed yet: it would take the first command for a leftover and drop it.
func TestWelcomeComesFirst(t *testing.T) {
	ours, theirs := net.Pipe()
	c, agent := NewClient(ours), NewConn(theirs)
	defer c.Close()
	if err := agent.send(Hello, 0, Greeting{Nonce: "nonce"}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if g, err := c.Greeting(ctx); err == nil {
		t.Fatalf("%+v, and the agent has read nothing yet", g)
	}
	if f, err := agent.Read(); err != nil || f.Kind != Welcome || string(f.Body) != "nonce" {
		t.Errorf("%+v, %v", f, err)
	}
	if g, err := c.Greeting(t.Context()); err != nil || g.Nonce != "nonce" {
		t.Errorf("%+v, %v", g, err)
	}
}
