package monitor

import (
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/crilog"
	"github.com/vitrine-runtime/vitrine/oci/wire"
)

// viewers are who is attached to a container. What it writes is copied into a
// pipe of each:
//
//	            ┌─► log
//	container ──┤        ┌─► pipe ─► daemon ─► client
//	            └─ tell ─┼─► pipe ─► daemon ─► client
//	                     └─► pipe, full: lost, and counted
//
// The pipe is all the buffer there is, and its memory is the daemon's. So nobody here ever waits for a
// client, and one that does not read costs neither the container nor the others anything.
type viewers struct {
	mu   sync.Mutex
	list []*viewer
	over bool           // the container has ended
	echo sync.WaitGroup // copiers of an output that has no log
}

// viewer is one Attach.
type viewer struct {
	by     *conn
	id     uint64 // of the request
	stdout *sys.FD
	stderr *sys.FD
	lost   uint64
}

func (v *viewer) close() {
	v.stdout.BriefClose()
	v.stderr.BriefClose()
	v.stdout, v.stderr = nil, nil
}

// tell gives everybody what the container has written.
func (vs *viewers) tell(stream string, b []byte) {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	for _, v := range vs.list {
		to := v.stdout
		if stream == "stderr" {
			to = v.stderr
		}
		if to == nil {
			continue
		}
		n, err := sys.BriefWrite(to.Int(), b) // a pipe that does not block
		if err != nil {
			n = 0 // full; or the daemon has gone, and the connection will tell
		}
		v.lost += uint64(len(b) - n)
	}
}

// copy reads an output that goes to viewers only.
func (vs *viewers) copy(stream string, from *os.File) {
	vs.echo.Add(1)
	go func() { // ends with the output, or when from is closed
		defer vs.echo.Done()
		crilog.Copy(from, func(b []byte) { vs.tell(stream, b) })
	}()
}

// drain waits for the rest of what only viewers hear.
func (vs *viewers) drain() {
	done := make(chan struct{})
	go func() { // ends with the copiers, which the container's close ends
		vs.echo.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(drainTime):
	}
}

// end tells everybody that there is nothing more to come.
func (vs *viewers) end() {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	vs.over = true
	for _, v := range vs.list {
		v.close()
	}
}

// leave takes the viewer out that a connection has under a request's id, or all
// of the connection for id 0.
func (vs *viewers) leave(by *conn, id uint64) (lost uint64) {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	kept := vs.list[:0]
	for _, v := range vs.list {
		if v.by != by || id != 0 && v.id != id {
			kept = append(kept, v)
			continue
		}
		v.close()
		lost += v.lost
	}
	clear(vs.list[len(kept):])
	if vs.list = kept; len(kept) == 0 {
		vs.list = nil
	}
	return lost
}

// attach adds a viewer and answers with what leads to the container.
func (m *monitor) attach(by *conn, r *wire.Attach, p *wire.Packet) error {
	c, err := m.pod.find(r.ID, wire.Running)
	if err != nil {
		return err
	}
	v := &viewer{by: by, id: p.ID}
	for _, f := range p.Files { // or a write could wait
		if err := unix.SetNonblock(f.Int(), true); err != nil {
			return fmt.Errorf("attach: %w", err)
		}
	}
	next := 0
	if r.Stdout {
		v.stdout, next = p.Take(next), next+1
	}
	if r.Stderr {
		v.stderr = p.Take(next)
	}
	vs := &c.viewers
	vs.mu.Lock()
	if vs.over {
		vs.mu.Unlock()
		v.close()
		return refuse(wire.CodeState, "container "+r.ID+" is dead")
	}
	vs.list = append(vs.list, v)
	if c.log != nil {
		c.log.Tap(vs.tell)
	}
	// Under the lock: the container may end, or its stdin may be closed.
	switch {
	case c.terminal != nil:
		by.send(p.ID, &wire.Attached{TTY: true}, c.terminal.Int())
	case r.Stdin && c.stdin != nil:
		by.send(p.ID, &wire.Attached{Stdin: true}, c.stdin.Int())
	default:
		by.send(p.ID, &wire.Attached{})
	}
	vs.mu.Unlock()
	return nil
}

// detach ends what attach has begun. It says nothing new where the container was removed
// meanwhile.
func (m *monitor) detach(by *conn, id uint64) (lost uint64) {
	m.pod.mu.Lock()
	defer m.pod.mu.Unlock()
	for _, c := range m.pod.containers {
		lost += c.viewers.leave(by, id)
	}
	return lost
}

// closeStdin closes our own end of a container's stdin.
func (m *monitor) closeStdin(id string) error {
	c, err := m.pod.find(id, wire.Blocked, wire.Running)
	if err != nil {
		return err
	}
	c.viewers.mu.Lock()
	c.stdin.BriefClose()
	c.stdin = nil
	c.viewers.mu.Unlock()
	return nil
}
