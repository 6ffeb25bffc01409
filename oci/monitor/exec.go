package monitor

import (
	"fmt"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/executor"
	"github.com/vitrine-runtime/vitrine/oci/wire"
)

// exec starts a further process in a running container. It is our own child,
// born in the container's pid namespace; its program joins the others through
// the container's pidfd. Nothing is kept of it but the goroutine that waits,
// and nothing is written: who asked is told, and if he is gone, nobody is.
func (m *monitor) exec(r *wire.Exec, p *wire.Packet, answer func(wire.Body)) error {
	c, err := m.pod.find(r.ID, wire.Running)
	if err != nil {
		return err
	}
	next := 1 // behind the program
	take := func() *sys.FD { next++; return p.Take(next - 1) }
	pidfd, err := c.hold()
	if err != nil {
		return err
	}
	defer pidfd.BriefClose()
	a := executor.Attr{CgroupFD: -1, PIDNS: pidfd.Int(), ProcFD: m.proc.root.Int(), Files: []int{pidfd.Int()}}
	if r.Cgroup {
		cgroup := take()
		defer cgroup.BriefClose()
		a.CgroupFD = cgroup.Int()
	}
	for i := range a.Stdio {
		a.Stdio[i] = m.null.Int()
		if r.Stdio&(1<<i) != 0 {
			f := take()
			defer f.Close()
			a.Stdio[i] = f.Int()
		}
	}
	asked := takeListener(r.Listener, take)
	defer asked.close()
	for _, f := range p.Files[next:] {
		a.Files = append(a.Files, f.Int())
	}
	e, err := m.family.start(p.Take(0), a)
	if err != nil && dead(pidfd.Int()) {
		// A pid namespace without its init cannot be entered; ENOMEM would say that.
		return refuse(wire.CodeState, "container "+r.ID+" is dead")
	}
	if err != nil {
		return fmt.Errorf("exec: %w", err)
	}
	m.proc.setOOM(e.Pid(), c.oom)
	e.verbs.Lock()
	defer e.verbs.Unlock()
	started := false // guarded by e.verbs
	go func() {      // ends when the process does
		status := e.wait()
		e.verbs.Lock()
		defer e.verbs.Unlock()
		e.Close()
		if started { // else the failure is all there is to say
			answer(&wire.ExecExited{Status: status})
		}
	}()
	done, err := m.passOn(e, asked)
	if err == nil {
		defer done()
		err = e.Run()
	}
	if err != nil {
		e.kill()
		return fmt.Errorf("exec: %w", err)
	}
	e.settle()
	started = true
	answer(&wire.ExecStarted{Pid: int32(e.Pid())})
	return nil
}
