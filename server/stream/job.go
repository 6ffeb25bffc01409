package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/klog/v2"

	"github.com/vitrine-runtime/vitrine/sandbox"
)

// job is one request on its connection, in the shape in which the library asks for it. The library's
// contexts are not used: they do not end with the client.
type job struct {
	ctx     context.Context //nolint:containedctx // of the one request that this is
	runtime Runtime
	want    remotecommand.Options
	ports   []int32 // that may be forwarded to; none means all
}

// exitError is the exit code of a command, as the library and its clients know it.
type exitError int32

func (e exitError) Error() string   { return "exit status " + e.String() }
func (e exitError) String() string  { return strconv.Itoa(int(e)) }
func (e exitError) Exited() bool    { return true }
func (e exitError) ExitStatus() int { return int(e) }

// ExecInContainer implements remotecommand.Executor. There is no time-out in CRI's request.
func (j *job) ExecInContainer(_ context.Context, _, _, id string, cmd []string, in io.Reader, out, errOut io.WriteCloser, _ bool,
	resize <-chan remotecommand.TerminalSize, _ time.Duration) (err error) {
	defer contain("exec", &err)
	s, done := j.streams(in, out, errOut, resize)
	defer done()
	code, err := j.runtime.Exec(j.ctx, id, cmd, s)
	if err == nil && code != 0 {
		return exitError(code)
	}
	return j.told(err)
}

// told is err where there still is a client to be told; the library logs it as well.
func (j *job) told(err error) error {
	if errors.Is(context.Cause(j.ctx), errGone) {
		return nil
	}
	return err
}

// AttachContainer implements remotecommand.Attacher.
func (j *job) AttachContainer(_ context.Context, _, _, id string, in io.Reader, out, errOut io.WriteCloser, _ bool,
	resize <-chan remotecommand.TerminalSize) (err error) {
	defer contain("attach", &err)
	s, done := j.streams(in, out, errOut, resize)
	defer done()
	return j.told(j.runtime.Attach(j.ctx, id, s))
}

// PortForward implements portforward.PortForwarder.
func (j *job) PortForward(_ context.Context, id, _ string, port int32, stream io.ReadWriteCloser) (err error) {
	defer contain("port-forward", &err)
	accept(stream)
	if port < 1 || port > 65535 || len(j.ports) > 0 && !slices.Contains(j.ports, port) {
		return fmt.Errorf("port %d was not asked for", port)
	}
	err = j.told(j.runtime.PortForward(j.ctx, id, uint16(port), stream))
	if err == nil {
		// The library forgets a stream once it is served. What its client still sends would be waited for for ever, by
		// the connection's own end as well.
		go func() { _, _ = io.Copy(io.Discard, stream) }() // ends with the client's side of the stream, or its connection
	}
	return err
}

// accept sends the client the answer that its stream exists. The library does so once it has handed the stream over, and
// a port that is refused may be faster: it resets the stream, and a client that had no answer yet takes that for its own and never
// reads why. A second answer, the library's, is not sent.
func accept(stream io.ReadWriteCloser) {
	if s, ok := stream.(interface {
		SendReply(header http.Header, fin bool) error
	}); ok {
		_ = s.SendReply(http.Header{}, false) // it fails with the connection, as all that follows
	}
}

// streams are those that the client asked for: over a WebSocket there are others as well. done ends what passes
// sizes on.
func (j *job) streams(in io.Reader, out, errOut io.Writer, resize <-chan remotecommand.TerminalSize) (s sandbox.Streams, done func()) {
	s.TTY = j.want.TTY
	if j.want.Stdin {
		s.Stdin = in
	}
	if j.want.Stdout {
		s.Stdout = out
	}
	if j.want.Stderr {
		s.Stderr = errOut
	}
	if resize == nil {
		return s, func() {}
	}
	sizes := make(chan sandbox.Size)
	ctx, cancel := context.WithCancel(j.ctx)
	go func() { // ends with done, or with the client
		defer close(sizes)
		for size := range resize {
			select {
			case sizes <- sandbox.Size{Width: size.Width, Height: size.Height}:
			case <-ctx.Done():
				return
			}
		}
	}()
	s.Resize = sizes
	return s, cancel
}

// contain turns a panic into an error of this one stream.
func contain(what string, err *error) {
	if p := recover(); p != nil {
		klog.ErrorS(fmt.Errorf("panic: %v", p), "stream panicked", "what", what, "stack", string(debug.Stack()))
		*err = fmt.Errorf("%s: internal error, the daemon's log has its stack", what)
	}
}
