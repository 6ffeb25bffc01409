package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// streamTime bounds one exec, attach or port-forward, on an emulated machine.
const streamTime = time.Minute

// streams runs a command, attaches to a container and connects to a port, through the kubelet's own port as kubectl does.
func (v *visit) streams(ctx context.Context) (string, error) {
	of := func(what, container string) string { return "/" + what + "/walk/guaranteed-" + nodeName + container }
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"exec", func() error {
			x, err := v.open(ctx, of("exec", "/main"), url.Values{"command": {"sh", "-c", "cat; echo aside >&2; exit 3"}, "input": {"1"}, "output": {"1"}, "error": {"1"}}, "v4.channel.k8s.io")
			if err != nil {
				return err
			}
			defer func() { _ = x.Close() }()
			return x.command("through and back\n", "through and back\n", "aside\n", `"ExitCode","message":"3"`, "stdin", "stdout", "stderr")
		}},
		{"exec in a terminal", func() error {
			x, err := v.open(ctx, of("exec", "/main"), url.Values{"command": {"sh", "-c", "read x; echo heard $x; stty size; exit 0"}, "input": {"1"}, "output": {"1"}, "tty": {"1"}}, "v4.channel.k8s.io")
			if err != nil {
				return err
			}
			defer func() { _ = x.Close() }()
			return x.command("me\r", "heard me\r\n30 90\r\n", "", `"status":"Success"`, "stdin", "stdout", "resize")
		}},
		{"attach", func() error {
			x, err := v.open(ctx, of("attach", "/log"), url.Values{"input": {"1"}, "output": {"1"}, "error": {"1"}}, "v4.channel.k8s.io")
			if err != nil {
				return err
			}
			defer func() { _ = x.Close() }()
			return x.command("me\n", "heard me\n", "", `"status":"Success"`, "stdin", "stdout", "stderr")
		}},
		{"port-forward", func() error {
			x, err := v.open(ctx, of("portForward", ""), nil, "portforward.k8s.io")
			if err != nil {
				return err
			}
			defer func() { _ = x.Close() }()
			return x.forward(8080, "GET /second HTTP/1.0\r\n\r\n", "guaranteed-"+nodeName)
		}},
		{"port-forward to a closed port", func() error {
			x, err := v.open(ctx, of("portForward", ""), nil, "portforward.k8s.io")
			if err != nil {
				return err
			}
			defer func() { _ = x.Close() }()
			if err := x.forward(1, "", "x"); err == nil || !strings.Contains(err.Error(), "connection refused") {
				return fmt.Errorf("it is not refused: %v", err) //nolint:errorlint // may be nil
			}
			return nil
		}},
	} {
		if err := step.do(); err != nil {
			return "", fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return "exec with its exit code, in a terminal of the right size, attach with stdin, port-forward, a closed port refused", nil
}

// session is a connection for streams.
type session struct {
	httpstream.Connection
	deadline time.Time
}

// open upgrades a connection to the kubelet.
func (v *visit) open(ctx context.Context, path string, query url.Values, protocol string) (*session, error) {
	text, err := os.ReadFile(filepath.Join(klDir, "pki/kubelet.crt"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	dialer := tls.Dialer{Config: &tls.Config{RootCAs: pool, ServerName: nodeName, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}}
	c, err := dialer.DialContext(ctx, "tcp", "127.0.0.1:10250")
	if err != nil {
		return nil, err
	}
	x := &session{deadline: time.Now().Add(streamTime)}
	u := url.URL{Path: path, RawQuery: query.Encode()}
	_, err = fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: %s\r\nContent-Length: 0\r\n\r\n", u.RequestURI(), nodeName, protocol)
	var resp *http.Response
	if err == nil {
		_ = c.SetDeadline(x.deadline)
		resp, err = http.ReadResponse(bufio.NewReader(c), nil)
	}
	if err == nil {
		defer resp.Body.Close()
	}
	if err == nil && resp.StatusCode != http.StatusSwitchingProtocols {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		err = fmt.Errorf("status %d: %s", resp.StatusCode, text)
	}
	if err == nil {
		x.Connection, err = spdy.NewClientConnection(c)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return x, nil
}

// stream opens one stream; what it says is in the returned channel when it has ended.
func (x *session) stream(header http.Header) (httpstream.Stream, chan string, error) {
	s, err := x.CreateStream(header)
	if err != nil {
		return nil, nil, err
	}
	said := make(chan string, 1)
	go func() { // ends with the stream, and that with the connection
		b, _ := io.ReadAll(s)
		said <- string(b)
	}()
	return s, said, nil
}

// await returns what a stream said.
func (x *session) await(said chan string) (string, error) {
	select {
	case s := <-said:
		return s, nil
	case <-time.After(time.Until(x.deadline)):
		return "", fmt.Errorf("no end within %v", streamTime)
	}
}

// command says something to a command or container, ends its stdin, and compares what comes back.
func (x *session) command(in, out, errOut, status string, names ...string) error {
	said := map[string]chan string{}
	open := map[string]httpstream.Stream{}
	for _, name := range append([]string{"error"}, names...) {
		s, c, err := x.stream(http.Header{"Streamtype": {name}})
		if err != nil {
			return fmt.Errorf("open stream %s: %w", name, err)
		}
		open[name], said[name] = s, c
	}
	if s := open["resize"]; s != nil {
		if _, err := io.WriteString(s, `{"Width":90,"Height":30}`); err != nil {
			return err
		}
	}
	if _, err := io.WriteString(open["stdin"], in); err != nil {
		return err
	}
	if open["resize"] == nil {
		open["stdin"].Close()
	}
	for name, want := range map[string]string{"error": status, "stdout": out, "stderr": errOut} {
		if said[name] == nil {
			continue
		}
		got, err := x.await(said[name])
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if !strings.Contains(got, want) {
			return fmt.Errorf("%s is %q, without %q", name, got, want)
		}
	}
	return nil
}

// forward sends something to a port and wants something back.
func (x *session) forward(port int, in, want string) error {
	header := func(kind string) http.Header {
		return http.Header{"Streamtype": {kind}, "Port": {fmt.Sprint(port)}, "Requestid": {"0"}}
	}
	_, failed, err := x.stream(header("error"))
	if err != nil {
		return err
	}
	data, said, err := x.stream(header("data"))
	if err != nil {
		return err
	}
	if _, err := io.WriteString(data, in); err != nil {
		return err
	}
	data.Close()
	got, err := x.await(said)
	if err != nil {
		return err
	}
	if !strings.Contains(got, want) {
		why, _ := x.await(failed)
		return fmt.Errorf("answer %q, without %q: %s", got, want, why)
	}
	return nil
}
