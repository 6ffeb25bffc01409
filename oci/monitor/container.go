package monitor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/crilog"
	"github.com/vitrine-runtime/vitrine/oci/executor"
	"github.com/vitrine-runtime/vitrine/oci/wire"
)

// drainTime bounds how long an exit waits for the rest of the output. Only a
// process that has left the container, or was passed a pipe by it, can still
// hold one open: everyone in the cgroup was killed.
const drainTime = 2 * time.Second

// container is one container from its fork until Remove. Its facts are in
// state, guarded by pod.mu; the rest is set while its phase is Creating, and not
// looked at by others until then.
type container struct {
	id     string
	dir    *sys.FD // its directory: exit.json goes there
	cgroup *sys.FD // nil without
	stdin  *sys.FD // write end, nil without; guarded by viewers.mu once it is created
	log    *crilog.Writer
	// console is where the terminal comes from, terminal its master, and otherSide what it
	// says; all nil without.
	console, terminal, otherSide *sys.FD
	viewers                      viewers
	outputs                      [3]*os.File // that go to viewers only
	oom                          int         // oom_score_adj, for its execs too
	asked                        *listener   // answers the notifications of its filter; nil without
	kills                        *oomAccount
	p                            *process
	end                          atHand
	shot                         atomic.Bool // it was us who sent SIGKILL

	state wire.State
}

// pod is the set of containers.
type pod struct {
	mu         sync.Mutex
	stopping   bool
	containers map[string]*container
	order      []string // ids, as they were created
}

func (p *pod) init() { p.containers = map[string]*container{} }

// reserve takes the id for a container that is about to be made.
func (p *pod) reserve(c *container) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopping {
		return refuse(wire.CodeState, "the pod is being stopped")
	}
	if p.containers[c.id] != nil {
		return refuse(wire.CodeExists, "container "+c.id+" exists")
	}
	p.containers[c.id] = c
	p.order = append(p.order, c.id)
	return nil
}

func (p *pod) drop(c *container) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.containers[c.id] != c {
		return
	}
	delete(p.containers, c.id)
	for i, o := range p.order {
		if o == c.id {
			p.order = append(p.order[:i], p.order[i+1:]...)
			break
		}
	}
}

func (p *pod) has(c *container) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.containers[c.id] == c
}

// find returns a container that has come to one of the wanted phases.
func (p *pod) find(id string, want ...wire.Phase) (*container, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.containers[id]
	if c == nil {
		return nil, refuse(wire.CodeNotFound, "no container "+id)
	}
	for _, w := range want {
		if c.state.Phase == w {
			return c, nil
		}
	}
	return nil, refuse(wire.CodeState, "container "+id+" is "+phaseNames[c.state.Phase])
}

var phaseNames = [...]string{wire.Creating: "being created", wire.Blocked: "created", wire.Running: "running", wire.Dead: "dead"}

// list returns the state of every container, in the order of their creation.
func (m *monitor) list() []wire.State {
	p := &m.pod
	p.mu.Lock()
	defer p.mu.Unlock()
	l := make([]wire.State, 0, len(p.order))
	for _, id := range p.order {
		c := p.containers[id]
		s := c.state
		if s.Phase > wire.Creating { // before that the rest of c is being filled in
			s.OOMKills = m.ledger.count(c.kills)
			if c.log != nil {
				s.LogLost = c.log.Stats().DroppedBytes
			}
		}
		l = append(l, s)
	}
	return l
}

const maxID = 128 // bytes of a container's id; the daemon's have 64

// validID says whether an id is letters, digits, and -_. only: it goes into
// the exit record and into last words as it is.
func validID(id string) bool {
	for _, c := range []byte(id) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_', c == '.':
		default:
			return false
		}
	}
	return id != "" && len(id) <= maxID
}

// create forks a container and lets it run to its start wait. When it fails,
// nothing of the container is left. The answer is sent before anything can be
// said of the container's death.
func (m *monitor) create(r *wire.Create, p *wire.Packet, answer func(wire.Body)) error {
	if !validID(r.ID) {
		return refuse(wire.CodeInvalid, "container id")
	}
	c := &container{id: r.ID, state: wire.State{ID: r.ID, Created: time.Now().UnixNano()}}
	if err := m.pod.reserve(c); err != nil {
		return err
	}
	note, err := m.fork(c, r, p)
	if err != nil {
		m.pod.drop(c)
		m.ledger.drop(c.kills)
		c.close()
		return err
	}
	c.p.verbs.Lock()
	go m.watch(c) // ends when the container is dead
	err = c.p.Ready()
	if err == nil {
		err = c.takeTerminal()
	}
	if err != nil {
		// watch reaps it and then finds that it was never there.
		m.pod.drop(c)
		c.p.kill()
		c.p.verbs.Unlock()
		<-c.p.gone // its cgroup is empty when the daemon hears of it
		return fmt.Errorf("create container: %w", m.whyDied(c, err))
	}
	m.pod.mu.Lock()
	c.state.Phase = wire.Blocked
	m.pod.mu.Unlock()
	answer(&wire.Created{Pid: c.state.Pid, OOMScore: int32(c.oom), Note: note})
	c.p.verbs.Unlock()
	return nil
}

// fork takes the descriptors of the request apart, in the order that
// wire.Create says, and starts the child.
func (m *monitor) fork(c *container, r *wire.Create, p *wire.Packet) (note string, err error) {
	next := 1 // behind the program
	take := func() *sys.FD { next++; return p.Take(next - 1) }
	c.dir = take()
	if r.LogName != "" {
		dir := take()
		defer dir.BriefClose()
		if c.log, err = crilog.Open(crilog.Config{Dir: dir.Int(), Name: r.LogName}); err != nil {
			return "", err
		}
	}
	a := executor.Attr{CgroupFD: -1, PIDNS: -1, ProcFD: m.proc.root.Int()}
	var above *sys.FD
	if r.Cgroup {
		c.cgroup = take()
		a.CgroupFD = c.cgroup.Int()
	}
	if r.PodCgroup {
		above = take()
	}
	c.kills = m.ledger.add(c.cgroup, above)
	c.asked = takeListener(r.Listener, take)
	for _, f := range p.Files[next:] {
		a.Files = append(a.Files, f.Int())
	}
	if r.Target != "" {
		target, err := m.pod.find(r.Target, wire.Running)
		if err != nil {
			return "", err
		}
		other, err := target.hold()
		if err != nil {
			return "", err
		}
		defer other.BriefClose()
		a.Files = append(a.Files, other.Int())
	} else if m.pause != nil && !m.setup.UserNS && !r.OwnPID { // else the program goes there itself
		a.PIDNS = m.pause.PidFD().Int()
	}
	pipes, err := c.openStdio(m.null, r)
	if err != nil {
		return "", err
	}
	for i, f := range pipes.child {
		a.Stdio[i] = f.Int()
	}
	if pipes.console != nil {
		a.Files = append(a.Files, pipes.console.Int())
	}
	c.p, err = m.family.start(p.Take(0), a)
	pipes.closeChildEnds(m.null)
	if err != nil {
		pipes.closeOurEnds()
		return "", err
	}
	want := m.proc.oomWas
	if r.SetOOM {
		want = int(r.OOMScore)
	}
	if c.oom, note = m.proc.setOOM(c.p.Pid(), want); !r.SetOOM {
		note = ""
	}
	m.pod.mu.Lock()
	c.state.Pid = int32(c.p.Pid())
	m.pod.mu.Unlock()
	pipes.copyTo(c)
	return note, nil
}

// start ends the wait that the container is at: that for its hooks, or the start wait. A container whose
// execve fails is dead afterwards, with an exit record that says that it was never started.
func (m *monitor) start(id string, answer func(wire.Body)) error {
	c, err := m.pod.find(id, wire.Blocked)
	if err != nil {
		return err
	}
	c.p.verbs.Lock()
	defer c.p.verbs.Unlock()
	if c.p.reaped {
		return refuse(wire.CodeState, "container "+id+" is dead")
	}
	if _, err := m.pod.find(id, wire.Blocked); err != nil {
		return err // somebody else was faster
	}
	if c.p.At() != "" {
		if err := c.p.Pass(); err != nil {
			c.p.kill()
			return fmt.Errorf("create container: %w", m.whyDied(c, err))
		}
		answer(&wire.Done{})
		return nil
	}
	done, err := m.passOn(c.p, c.asked)
	if err != nil {
		return fmt.Errorf("start container: %w", err) // it waits on, and may be started when somebody is there
	}
	defer done()
	if err := c.p.Release(); err != nil {
		c.p.kill()
		return fmt.Errorf("start container: %w", m.whyDied(c, err))
	}
	c.p.settle()
	c.asked.close()
	m.pod.mu.Lock()
	c.state.Phase = wire.Running
	c.state.Started = time.Now().UnixNano()
	m.pod.mu.Unlock()
	answer(&wire.Done{})
	c.prepare() // its death waits for verbs
	m.ledger.follow(c.kills)
	return nil
}

// whyDied adds to the news of a death before execve what the kernel has against it.
func (m *monitor) whyDied(c *container, err error) error {
	if errors.Is(err, executor.ErrDied) && m.ledger.count(c.kills) > 0 {
		return fmt.Errorf("%w, by the OOM killer: the memory limit is too small to start it", err)
	}
	return err
}

func (m *monitor) signal(id string, sig int32) error {
	c, err := m.pod.find(id, wire.Blocked, wire.Running)
	if err != nil {
		return err
	}
	if sig < 0 || sig > 64 {
		return refuse(wire.CodeInvalid, "signal number")
	}
	err = c.p.withPidFD(func(pidfd int) error {
		if unix.Signal(sig) == unix.SIGKILL && !dead(pidfd) {
			c.shot.Store(true)
		}
		return unix.PidfdSendSignal(pidfd, unix.Signal(sig), nil, 0)
	})
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EBADF) {
		return refuse(wire.CodeState, "container "+id+" is dead")
	}
	if err != nil {
		return fmt.Errorf("signal container: %w", err)
	}
	return nil
}

// watch is the goroutine of one container: it waits for the death, writes
// the record and tells everybody.
func (m *monitor) watch(c *container) {
	status := c.p.wait()
	if !m.pod.has(c) {
		m.ledger.drop(c.kills)
		c.close() // create failed and has said so
		return
	}
	c.otherSide.Close()
	others := populated(c.cgroup, c.end.events) // as a rule there are none: init's end was that of its pid namespace
	// First of all: the count goes with the cgroup.
	status = m.ledger.settle(c.kills, ending{status: status, byUs: c.killedByUs()})
	if others {
		killCgroup(c.cgroup)
	}
	if c.log != nil {
		ctx, cancel := context.WithTimeout(context.Background(), drainTime)
		_ = c.log.Drain(ctx) // what is lost is counted by the log itself
		cancel()
	} else if c.outputs[1] != nil {
		c.viewers.drain()
	}
	if others {
		status.OOMKills = m.ledger.again(c.kills)
	}
	m.pod.mu.Lock()
	c.state.Status = status
	record := c.state
	m.pod.mu.Unlock()
	if err := writeExit(c.dir, c.end.record, &record); err != nil {
		// The event and List still know; only a crash of ours would lose it.
		lastWords("container " + c.id + ": " + err.Error())
	}
	m.pod.mu.Lock()
	c.state.Phase = wire.Dead
	m.pod.mu.Unlock()
	if c.log != nil {
		_ = c.log.Close()
	}
	m.broadcast(&wire.Exited{ID: c.id, Status: status})
	c.viewers.end()
	c.close()
	m.tidyLater()
}

// killedByUs says whether the main process died because the daemon wanted it to:
// it leaves a note in the directory before it kills a cgroup.
func (c *container) killedByUs() bool {
	return c.shot.Load() || sys.BriefExists(c.dir.Int(), wire.KilledName) == nil
}

// close gives back what the container holds. The log's counters stay readable.
func (c *container) close() {
	if c.log != nil {
		_ = c.log.Close()
	}
	if c.p != nil {
		c.p.close()
	}
	c.asked.close()
	c.viewers.mu.Lock()
	c.stdin.BriefClose()
	c.stdin = nil
	c.viewers.mu.Unlock()
	for _, f := range c.outputs {
		f.Close() // nil is no error to be seen
	}
	c.console.BriefClose()
	c.terminal.Close()
	c.otherSide.Close()
	c.cgroup.BriefClose()
	c.dir.BriefClose()
	c.end.close()
}

// hold returns a pidfd of the main process, which is the caller's to close: a copy, since the container may die and be closed meanwhile.
func (c *container) hold() (pidfd *sys.FD, err error) {
	err = c.p.withPidFD(func(int) (derr error) {
		pidfd, derr = c.p.PidFD().Dup()
		return derr
	})
	if err != nil {
		return nil, refuse(wire.CodeState, "container "+c.id+" is dead")
	}
	return pidfd, nil
}

// remove forgets a container that is dead.
func (m *monitor) remove(id string) error {
	c, err := m.pod.find(id, wire.Dead)
	if err == nil {
		m.pod.drop(c)
	}
	return err
}

func (m *monitor) reopenLog(id string) error {
	c, err := m.pod.find(id, wire.Blocked, wire.Running)
	if err != nil {
		return err
	}
	if c.log == nil {
		return refuse(wire.CodeState, "container "+id+" has no log")
	}
	return c.log.Reopen()
}

// stop ends the pod: the pause dies, the socket goes, the monitor ends after
// the answer.
func (m *monitor) stop(answer func(wire.Body)) error {
	m.pod.mu.Lock()
	for _, id := range m.pod.order {
		if ph := m.pod.containers[id].state.Phase; ph != wire.Dead {
			m.pod.mu.Unlock()
			return refuse(wire.CodeState, "container "+id+" is "+phaseNames[ph])
		}
	}
	again := m.pod.stopping
	m.pod.stopping = true
	m.pod.mu.Unlock()
	if again {
		return refuse(wire.CodeState, "the pod is being stopped")
	}
	if m.pause != nil {
		m.pause.kill()
		<-m.pause.gone
	}
	_ = unix.Unlinkat(m.dir.Int(), wire.SocketName, 0)
	answer(&wire.Done{})
	close(m.ended)
	return nil
}
