package oci

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/internal/userns"
	"github.com/vitrine-runtime/vitrine/oci/wire"
)

// monitorEnd bounds the wait for what a healthy monitor does at once: an answer
// without a context, and its last breath once its socket was closed
// (descriptors are closed before a process is a zombie).
const monitorEnd = 5 * time.Second

// NetNS returns a descriptor of the pod's network namespace; the host's, if the
// pod uses that. The caller closes it. A bind mount of it outlives the monitor.
func (p *Pod) NetNS() (*sys.FD, error) {
	ctx, cancel := context.WithTimeout(context.Background(), monitorEnd)
	defer cancel()
	packet, err := askPacket(ctx, p, &wire.GetPod{}, nil)
	if err != nil {
		return nil, fmt.Errorf("get network namespace: %w", err)
	}
	defer packet.Close()
	if len(packet.Files) == 0 {
		return nil, fmt.Errorf("get network namespace: %w", wire.ErrMalformed)
	}
	return packet.Take(0), nil
}

// UserNS returns a descriptor of the user namespace that the pod's ipc namespace belongs to: the
// pod's own, if PodConfig.UserNS made one. Nobody has to remember it. The caller closes it.
func (p *Pod) UserNS(ctx context.Context) (*sys.FD, error) {
	packet, err := askPacket(ctx, p, &wire.GetPod{}, nil)
	if err != nil {
		return nil, fmt.Errorf("get user namespace: %w", err)
	}
	defer packet.Close()
	if len(packet.Files) < 2 {
		return nil, fmt.Errorf("get user namespace: %w", wire.ErrMalformed)
	}
	ipc := packet.Take(1)
	defer ipc.Close()
	return userns.Owner(ipc)
}

// Notes returns what the monitor could not do as asked when it started and what
// was no reason not to start; "" is the rule.
func (p *Pod) Notes(ctx context.Context) (string, error) {
	packet, err := askPacket(ctx, p, &wire.GetPod{}, nil)
	if err != nil {
		return "", fmt.Errorf("get notes of the monitor: %w", err)
	}
	defer packet.Close()
	if i, ok := packet.Body.(*wire.PodInfo); ok {
		return i.Note, nil
	}
	return "", nil
}

// Stop ends the monitor, and with it the pause and the pod's namespaces, as far
// as nobody else holds them. Every container must be dead (ErrState). It
// returns when the monitor has ended. If it cannot, Kill is what is left.
func (p *Pod) Stop(ctx context.Context) error {
	p.mu.Lock()
	held, err := p.monitor.Dup() // the reader closes its own when the connection ends
	p.mu.Unlock()
	if err != nil {
		return fmt.Errorf("stop pod: %w", ErrNoMonitor)
	}
	defer held.Close()
	p.stopping.Store(true) // its end is then no loss
	_, err = ask[*wire.Done](ctx, p, &wire.Stop{})
	// Without an answer and without a monitor it is stopped as well.
	if err != nil && !(errors.Is(err, ErrNoMonitor) && gone(held, monitorEnd)) {
		p.stopping.Store(false)
		return fmt.Errorf("stop pod: %w", err)
	}
	for !gone(held, 10*time.Millisecond) {
		if ctx.Err() != nil {
			return fmt.Errorf("stop pod: %w", ctx.Err())
		}
	}
	return p.Close()
}

// Kill ends the monitor and the pause at once. Containers that run are left
// without a waiter: the caller kills their cgroups. It is for monitors that do
// not answer. The socket stays in the directory.
func (p *Pod) Kill() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pause != nil {
		_ = sys.PidfdSignal(p.pause, unix.SIGKILL)
	}
	if p.monitor == nil || p.monitor.Int() < 0 {
		return ErrNoMonitor
	}
	return sys.PidfdSignal(p.monitor, unix.SIGKILL)
}

// Close drops the connection; the pod lives on. Requests that wait return
// ErrNoMonitor, and the channel of Events is closed. Closing again does nothing.
func (p *Pod) Close() error {
	p.drop()
	return nil
}

func (p *Pod) drop() {
	p.queue.abandon()
	p.conn.Close() // the reader sees it and hangs up
}

// gone waits up to d until the process behind a pidfd has ended.
func gone(pidfd *sys.FD, d time.Duration) bool {
	end := time.Now().Add(d)
	for {
		left := max(0, time.Until(end))
		fds := []unix.PollFd{{Fd: int32(pidfd.Int()), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(left.Milliseconds()))
		if n > 0 {
			return true
		}
		if err != unix.EINTR || left == 0 {
			return false
		}
	}
}

// Phase is how far a container has come.
type Phase = wire.Phase

// Phases of a container, in their order.
const (
	Creating = wire.Creating // on its way to the start wait
	Created  = wire.Blocked  // blocked at its start wait
	Running  = wire.Running  // execve succeeded
	Dead     = wire.Dead     // reaped; its exit record is on disk
)

// ProcessState is what the monitor knows of one container.
type ProcessState struct {
	ID        string
	Phase     Phase
	Pid       int
	CreatedAt time.Time
	StartedAt time.Time  // zero: its execve never succeeded
	Exit      ExitStatus // if Phase is Dead
	OOMKills  int        // so far: processes that the OOM killer took
	LogLost   uint64     // bytes of output that were dropped since the log could not be written
}

// List returns the state of every container, in the order of their creation:
// what a daemon asks for after its restart. Events from the moment of DialPod
// on may tell of the same deaths again.
func (p *Pod) List(ctx context.Context) ([]ProcessState, error) {
	s, err := ask[*wire.States](ctx, p, &wire.List{})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	l := make([]ProcessState, len(s.List))
	for i := range s.List {
		w := &s.List[i]
		l[i] = ProcessState{
			ID: w.ID, Phase: w.Phase, Pid: int(w.Pid), LogLost: w.LogLost, OOMKills: int(w.OOMKills),
			CreatedAt: timeOf(w.Created), StartedAt: timeOf(w.Started),
		}
		if w.Phase == Dead {
			l[i].Exit = statusOf(w.Status)
		}
		p.Process(w.ID).pid.Store(int64(w.Pid))
	}
	return l, nil
}
