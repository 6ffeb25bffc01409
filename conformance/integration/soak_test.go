package integration

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestSoak: thousands of attaches whose clients are killed, commands that are not there, and commands that leave a process behind. After
// them the daemon and the monitor have the goroutines, descriptors, threads, children and memory that they had before, and the
// container its processes.
//
// VITRINE_SOAK=1 does all of it (5,000, 2,000 and 500; some minutes); without it a fiftieth, after which memory is not waited for: the Go
// runtime collects what an idle daemon does not need after two minutes.
func TestSoak(t *testing.T) {
	s := openFor(t, 30*time.Minute)
	times, patience, more := func(n int) int { return n / 50 }, 15*time.Second, int64(64<<20)
	if os.Getenv("VITRINE_SOAK") != "" {
		times, patience, more = func(n int) int { return n }, 6*time.Minute, 8<<20
	}
	p := s.runPod("soak")
	id := p.run("c", chatter, stdin)
	load := func(attaches, missing, left int) {
		s.attachAndDie(id, attaches)
		s.execNothing(id, missing)
		p.leaveBehind(left)
	}
	load(50, 10, 10)
	before := s.goroutines()
	load(50, 10, 10) // for the daemon that was started after those were counted
	time.Sleep(s.Scale(time.Second))
	was := p.usage(id)
	began := time.Now()
	load(times(5000), times(2000), times(500))
	took := time.Since(began)
	is := p.usage(id)
	peak := is.daemonMemory
	for deadline := time.Now().Add(s.Scale(patience)); !is.within(was, more); is = p.usage(id) {
		if time.Now().After(deadline) {
			t.Errorf("%v after that there is %+v, and before there was %+v", patience, is, was)
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	after := s.goroutines()
	t.Logf("%v; before: %+v, %d goroutines; after: %+v, %d goroutines; the daemon had %d MiB right after it", took.Round(time.Second), was, before, is, after, peak>>20)
	if after > before+2 { // of which some come and go with timers
		t.Errorf("%d goroutines, where there were %d", after, before)
	}
}

// usage is what a daemon, a pod's monitor and one of its containers hold.
type usage struct {
	daemonFDs, monitorFDs, monitorTasks, children, processes int
	daemonMemory, monitorMemory                              int64
}

func (p *pod) usage(id string) usage {
	p.Helper()
	daemon, monitor := p.Daemon().Pid(), p.monitorOf(p.id)
	return usage{
		daemonFDs: p.descriptors(daemon), monitorFDs: p.descriptors(monitor), monitorTasks: p.tasks(monitor),
		children: len(childrenOf(monitor)) + len(childrenOf(daemon)), processes: len(p.pids(id)),
		daemonMemory: p.memory(daemon), monitorMemory: p.memory(monitor),
	}
}

// within says whether it is no more than before, but for so much memory of the daemon's.
func (u usage) within(was usage, more int64) bool {
	return u.daemonFDs <= was.daemonFDs && u.monitorFDs <= was.monitorFDs && u.monitorTasks <= was.monitorTasks+1 && u.children <= was.children &&
		u.processes <= was.processes && u.daemonMemory <= was.daemonMemory+more && u.monitorMemory <= was.monitorMemory+4<<20
}

func childrenOf(pid int) (all []string) {
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, task := range tasks {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, task.Name()))
		all = append(all, strings.Fields(string(text))...)
	}
	return all
}

// attachAndDie attaches clients, fifty at a time, each of which sees something and is killed.
func (s *scene) attachAndDie(id string, n int) {
	s.Helper()
	for ; n > 0; n -= 50 {
		var all []*session
		for i := range min(n, 50) {
			all = append(all, s.attach(id, i%2 == 0))
		}
		for _, x := range all {
			x.sees("line ")
			x.kill()
		}
	}
}

// execNothing executes what is not there, by a stream and by ExecSync in turn.
func (s *scene) execNothing(id string, n int) {
	s.Helper()
	for i := range n {
		if i%2 == 0 {
			_, errs, err := s.cri.ExecSync(s.ctx, id, []string{"/bin/nothing"}, 10*time.Second)
			if err == nil || !strings.Contains(string(errs), "no such file") && !strings.Contains(err.Error(), "no such file") {
				s.Fatalf("%q, %v", errs, err)
			}
			continue
		}
		x := s.dial(s.execURL(&runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"/bin/nothing"}, Stdout: true, Stderr: true})).open("stdout", "stderr")
		if r := x.end(); r.code != 127 {
			s.Fatalf("%+v", r)
		}
		x.conn.Close()
	}
}

// leaveBehind runs commands, each of which leaves a process that holds its output open, in a container of their own, and removes that.
// They are run by ExecSync and by Exec in turn, and fifty at a time, since each of them is waited for a while after its end. With all of
// what they left still there, nobody holds anything for them.
func (p *pod) leaveBehind(n int) {
	p.Helper()
	id := p.run("left", "sleep 1000")
	time.Sleep(p.Scale(100 * time.Millisecond)) // what was before is on its way out
	was := p.usage(id)
	const script = "sleep 1000 &"
	for done := 0; done < n; {
		var streams []*session
		now := min(n-done, 50)
		errs := make(chan error, now)
		for i := range now {
			if i%2 == 0 {
				streams = append(streams, p.shell(id, script))
				continue
			}
			go func() { // ends with the call
				_, _, err := p.cri.ExecSync(p.ctx, id, []string{"/bin/sh", "-c", script}, p.Scale(30*time.Second))
				errs <- err
			}()
		}
		for _, x := range streams {
			if r := x.end(); r.code != 0 {
				p.Errorf("%+v", r)
			}
			x.conn.Close()
		}
		for range now / 2 {
			if err := <-errs; err != nil {
				p.Error(err)
			}
		}
		done += now
	}
	if got := p.sleepers(p.everybody(id)); got != n+1 {
		p.Errorf("%d sleepers, not %d", got, n+1)
	}
	p.eventually("nobody holds anything for what was left behind", func() bool {
		is := p.usage(id)
		return is.daemonFDs <= was.daemonFDs && is.monitorFDs <= was.monitorFDs && is.monitorTasks <= was.monitorTasks+1
	})
	if err := p.cri.StopContainer(p.ctx, id, 0); err != nil {
		p.Fatal(err)
	}
	if err := p.cri.RemoveContainer(p.ctx, id); err != nil {
		p.Fatal(err)
	}
}

// goroutines ends the daemon in such a way that its log has all of them, counts them, and starts another.
func (s *scene) goroutines() int {
	s.Helper()
	time.Sleep(s.Scale(2 * time.Second)) // what is on its way out
	from := s.logSize()
	d := s.Daemon()
	if err := syscall.Kill(d.Pid(), syscall.SIGQUIT); err != nil {
		s.Fatal(err)
	}
	s.eventually("it has ended", func() bool { return !isAlive(d.Pid()) })
	if err := d.Kill(); err != nil { // returns when that is known
		s.Fatal(err)
	}
	text, err := os.ReadFile(d.LogPath)
	if err != nil {
		s.Fatal(err)
	}
	n := strings.Count(string(text[from:]), "\ngoroutine ")
	if n < 5 {
		s.Fatalf("only %d goroutines are in the log", n)
	}
	s.restart()
	return n
}
