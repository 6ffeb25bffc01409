package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/wire"
)

// attachPipe is how many bytes of output wait for who is attached. The memory is
// the kernel's, and taken as it is used.
const attachPipe = 1 << 20

// AttachConfig says what to be attached to.
type AttachConfig struct {
	Stdin, Stdout, Stderr bool
}

// Attachment is a copy of what a container writes, and a way to its stdin. It ends with Close,
// with the daemon, or with the container: its outputs then end. A container that is attached
// to never waits for it.
type Attachment struct {
	// Stdout and Stderr are nil where they were not asked for. What is not read in time
	// is lost.
	Stdout, Stderr *os.File

	pod      *Pod
	ctr      string
	id       uint64
	mu       sync.Mutex
	input    *os.File // the container's stdin, or the master of its terminal; guarded by mu
	terminal bool
}

// Attach attaches to a running container. With a terminal everything comes as stdout.
// The caller closes the Attachment. ErrState: the container does not run. ErrNotYet: its monitor
// is older than this.
func (pr *Process) Attach(ctx context.Context, c AttachConfig) (*Attachment, error) {
	a := &Attachment{pod: pr.pod, ctr: pr.id}
	err := a.open(ctx, c)
	if err != nil {
		a.closeFiles()
		return nil, pr.wrap("attach to", err)
	}
	return a, nil
}

func (a *Attachment) open(ctx context.Context, c AttachConfig) (err error) {
	if a.pod.version < 5 {
		return fmt.Errorf("the monitor was started by an older version: %w", ErrNotYet)
	}
	r := wire.Attach{ID: a.ctr, Stdin: c.Stdin, Stdout: c.Stdout, Stderr: c.Stderr}
	var files []int
	for _, o := range []struct {
		want bool
		to   **os.File
	}{{c.Stdout, &a.Stdout}, {c.Stderr, &a.Stderr}} {
		if !o.want {
			continue
		}
		var w *sys.FD
		if *o.to, w, err = outputPipe(); err != nil {
			return err
		}
		defer w.Close()
		files = append(files, w.Int())
	}
	id, call, err := a.pod.send(&r, files, false)
	if err != nil {
		return err
	}
	a.id = id
	packet, err := a.pod.await(ctx, id, call)
	if err != nil {
		if ctx.Err() != nil {
			_ = a.pod.tell(&wire.Detach{Attach: id}) // it may have been carried out
		}
		return err
	}
	defer packet.Close()
	answer, ok := packet.Body.(*wire.Attached)
	if !ok {
		return fmt.Errorf("answer to attach is %T: %w", packet.Body, wire.ErrMalformed)
	}
	a.terminal = answer.TTY
	if len(packet.Files) > 0 {
		a.input, err = pollable(packet.Take(0), "container input")
	}
	return err
}

// outputPipe makes a pipe of which neither end blocks.
func outputPipe() (*os.File, *sys.FD, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	// Where the node has too many large ones, a small one does.
	_, _ = unix.FcntlInt(uintptr(p[1]), unix.F_SETPIPE_SZ, attachPipe)
	return os.NewFile(uintptr(p[0]), "container output"), sys.NewFD(p[1]), nil
}

// pollable makes a file of a descriptor that waits in the poller.
func pollable(fd *sys.FD, name string) (*os.File, error) {
	if err := unix.SetNonblock(fd.Int(), true); err != nil {
		fd.Close()
		return nil, os.NewSyscallError("fcntl O_NONBLOCK", err)
	}
	return fd.File(name), nil
}

// Terminal says whether the container has a terminal.
func (a *Attachment) Terminal() bool { return a.terminal }

// Write writes to the container's stdin or terminal, and waits where it does not read. Without one,
// or after CloseInput, the error is os.ErrClosed.
func (a *Attachment) Write(b []byte) (int, error) {
	a.mu.Lock()
	in := a.input
	a.mu.Unlock()
	if in == nil {
		return 0, os.ErrClosed
	}
	return in.Write(b)
}

// Resize sets the size of the container's terminal; without one it does nothing.
func (a *Attachment) Resize(width, height uint16) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.terminal || a.input == nil {
		return nil
	}
	return setSize(a.input, width, height)
}

// CloseInput closes this end of the container's stdin, and ends a Write that waits. Others, the monitor's
// among them, keep it open.
func (a *Attachment) CloseInput() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.input != nil {
		a.input.Close()
		a.input = nil
	}
}

func (a *Attachment) closeFiles() {
	a.CloseInput()
	for _, f := range []*os.File{a.Stdout, a.Stderr} {
		if f != nil {
			f.Close()
		}
	}
}

// Close ends the attachment, and returns how many bytes of output came too fast for who read
// them. It is called once.
func (a *Attachment) Close(ctx context.Context) (lost uint64, err error) {
	defer a.closeFiles()
	gone, err := ask[*wire.Attached](ctx, a.pod, &wire.Detach{Attach: a.id})
	switch {
	case errors.Is(err, ErrNoMonitor):
		return 0, nil // then it has ended already
	case err != nil:
		return 0, fmt.Errorf("detach from container %s: %w", a.ctr, err)
	}
	return gone.Lost, nil
}

// EndStdin closes the container's stdin for good: its program reads the end when nobody who is attached has
// it open any more. A container that has ended is no error.
func (pr *Process) EndStdin(ctx context.Context) error {
	_, err := ask[*wire.Done](ctx, pr.pod, wire.NewStdin(pr.id))
	if errors.Is(err, ErrState) || errors.Is(err, ErrNotFound) {
		return nil
	}
	return pr.wrap("close stdin of", err)
}
