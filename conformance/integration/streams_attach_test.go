package integration

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestAttachShell: a shell that reads from its first client ends with that client's stdin; its output comes to the end.
func TestAttachShell(t *testing.T) {
	s := open(t)
	p := s.runPod("shell")
	cfg := func(c *runtimeapi.ContainerConfig) {
		c.Command = []string{"/bin/sh"}
		stdin(c)
		once(c)
	}
	for _, log := range []bool{true, false} {
		id := p.run(fmt.Sprint("c", log), "", cfg, func(c *runtimeapi.ContainerConfig) {
			if !log {
				c.LogPath = ""
			}
		})
		x := s.attach(id, true)
		x.say("echo hello; echo aside >&2\n")
		x.sees("hello\n")
		x.say("echo last; exit_code=4; exit $exit_code")
		x.streams["stdin"].Close()
		if r := x.end(); r.code != 0 || x.out["stdout"].String() != "hello\nlast\n" || x.out["stderr"].String() != "aside\n" {
			t.Errorf("%+v, stdout %q, stderr %q", r, x.out["stdout"], x.out["stderr"])
		}
		if st := s.exited(id); st.ExitCode != 4 {
			t.Errorf("status %v", st)
		}
		if log {
			if got := p.logText("ctrue", "stdout"); len(got) != 2 || got[1] != "last" {
				t.Errorf("log %q", got)
			}
		}
	}
	// The first client that goes, goes for all: the second one's stdin is over too.
	id := p.run("two", "", cfg)
	first, second := s.attach(id, true), s.attach(id, true)
	second.say("echo is there\n") // from here on, whatever the container says
	second.sees("is there")
	first.say("echo to both\n")
	first.sees("to both")
	second.sees("to both")
	first.kill()
	if r := second.end(); r.code != 0 {
		t.Errorf("the second client: %+v", r)
	}
	s.exited(id)
}

// TestAttachStdinStays: B-104. A stdin that is not for one client only outlives them all; a container without one does not mind.
func TestAttachStdinStays(t *testing.T) {
	s := open(t)
	p := s.runPod("stays")
	id := p.run("c", "while read x; do echo got $x; done; sleep 1000", stdin)
	for i := range 3 {
		x := s.attach(id, true)
		x.say(fmt.Sprintf("%d\n", i))
		x.sees(fmt.Sprintf("got %d\n", i))
		if i == 1 {
			x.kill()
			continue
		}
		x.streams["stdin"].Close()
		if r := x.end(); r.code != 0 || r.err != nil {
			t.Errorf("client %d: %+v", i, r)
		}
	}
	deaf := p.run("deaf", "while sleep 0.1; do echo tick; done")
	x := s.attach(deaf, true)
	x.say(strings.Repeat("nobody reads this\n", 100000))
	x.sees("tick\ntick")
	x.streams["stdin"].Close()
	before := len(x.out["stdout"].String())
	s.eventually("output after the end of a stdin that there is not", func() bool { return len(x.out["stdout"].String()) > before })
	if err := s.cri.StopContainer(s.ctx, deaf, 0); err != nil {
		t.Fatal(err)
	}
	if r := x.end(); r.code != 0 { // the end of the container is that of the attach
		t.Errorf("at the end of the container: %+v", r)
	}
}

// TestAttachScreenWithoutStdin: a container that did not ask for stdin gets none from who attaches to its terminal, which is there to be
// seen, and has its size.
func TestAttachScreenWithoutStdin(t *testing.T) {
	s := open(t)
	p := s.runPod("no-stdin")
	id := p.run("c", `trap 'echo size $(stty size)' WINCH; echo ready; while :; do read -t 1 v && echo "got $v"; done`, tty)
	s.eventually("the shell is ready", func() bool { return strings.Contains(strings.Join(p.logText("c", "stdout"), ""), "ready") })
	x := s.dial(s.attachURL(&runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true, Tty: true})).open("stdin", "stdout", "resize")
	x.say("typed\r")
	for i := range 3 {
		x.resize(101+i, 33)
		x.sees(fmt.Sprintf("size 33 %d", 101+i))
		time.Sleep(300 * time.Millisecond)
	}
	if out := x.out["stdout"].String(); strings.Contains(out, "typed") { // not even as the terminal's echo
		t.Errorf("what was typed came to the container: %q", out)
	}
	if err := s.cri.StopContainer(s.ctx, id, 0); err != nil {
		t.Fatal(err)
	}
	if r := x.end(); r.code != 0 {
		t.Errorf("at the end of the container: %+v", r)
	}
}

// TestAttachScreen: B-105. A container's terminal: stdin, sizes, one stream, here and in the log; a client that goes changes nothing.
func TestAttachScreen(t *testing.T) {
	s := open(t)
	p := s.runPod("terminal")
	id := p.run("c", `trap 'echo size $(stty size)' WINCH; tty; while :; do read v || continue; echo "got $v"; echo aside >&2; [ "$v" = end ] && exit 6; done`, stdin, tty)
	url := func() string {
		return s.attachURL(&runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true, Tty: true})
	}
	s.eventually("the shell is ready", func() bool { return strings.Contains(strings.Join(p.logText("c", "stdout"), ""), "/dev/pts/0") })
	x := s.dial(url()).open("stdin", "stdout", "resize")
	x.resize(101, 33)
	x.sees("size 33 101")
	x.say("one\r")
	x.sees("got one\r\naside")
	x.kill()
	x = s.dial(url()).open("stdin", "stdout", "resize")
	x.resize(102, 34)
	x.sees("size 34 102")
	// Who does not know that there is a terminal gets its output, too.
	other := s.attach(id, false)
	s.eventually("the other one is attached", func() bool { x.say("again\r"); return strings.Contains(other.out["stdout"].String(), "got again") })
	x.say("end\r")
	if r := x.end(); r.code != 0 || !strings.Contains(x.out["stdout"].String(), "got end") {
		t.Errorf("%+v, %q", r, x.out["stdout"])
	}
	if r := other.end(); r.code != 0 || !strings.Contains(other.out["stdout"].String(), "got end") || other.out["stderr"].String() != "" {
		t.Errorf("%+v, %q, %q", r, other.out["stdout"], other.out["stderr"])
	}
	if st := s.exited(id); st.ExitCode != 6 {
		t.Errorf("status %v", st)
	}
	log := strings.Join(p.logText("c", "stdout"), "\n")
	if !strings.Contains(log, "/dev/pts/0") || !strings.Contains(log, "aside") || len(p.logText("c", "stderr")) > 0 {
		t.Errorf("log %q", log)
	}
}

// TestAttachMany: CD-14, F-41. Two hundred clients of one container, of which some read, some do not, and all are killed: its log is whole, and nothing
// is left in the daemon or the monitor.
func TestAttachMany(t *testing.T) {
	s := open(t)
	p := s.runPod("many")
	id := p.run("c", chatter, stdin)
	monitor := s.monitorOf(p.id)
	s.attach(id, true).kill()
	time.Sleep(500 * time.Millisecond)
	inDaemon, inMonitor, tasks := s.descriptors(s.Daemon().Pid()), s.descriptors(monitor), s.tasks(monitor)
	// One that never reads, beside all others.
	lazy := s.dial(s.attachURL(&runtimeapi.AttachRequest{ContainerId: id, Stdout: true}))
	for _, name := range []string{"error", "stdout"} {
		if _, err := lazy.conn.CreateStream(map[string][]string{"Streamtype": {name}}); err != nil {
			t.Fatal(err)
		}
	}
	for round := range 4 {
		var all []*session
		for i := range 50 {
			all = append(all, s.attach(id, i%2 == 0))
		}
		for _, x := range all {
			x.sees("line ")
			x.kill()
		}
		s.eventually(fmt.Sprintf("round %d: nothing is left of the clients", round), func() bool {
			return s.descriptors(s.Daemon().Pid()) <= inDaemon+4 && s.descriptors(monitor) <= inMonitor+1 // those of the lazy one
		})
	}
	if got := s.exec(id, "echo beside"); got != "beside" {
		t.Errorf("beside them %q", got)
	}
	lazy.kill()
	s.eventually("nothing is left", func() bool {
		return s.descriptors(s.Daemon().Pid()) <= inDaemon && s.descriptors(monitor) <= inMonitor && s.tasks(monitor) <= tasks+1
	})
	if st := s.status(id); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("status %v", st)
	}
	if err := s.cri.StopContainer(s.ctx, id, 0); err != nil {
		t.Fatal(err)
	}
	lines := p.logText("c", "stdout")
	if len(lines) < 100 {
		t.Errorf("%d lines", len(lines))
	}
	whole(t, lines)
}

func (s *scene) tasks(pid int) int {
	s.Helper()
	d, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		s.Fatal(err)
	}
	return len(d)
}

// monitorOf finds a pod's monitor by the directory that it holds.
func (s *scene) monitorOf(pod string) int {
	s.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		s.Fatal(err)
	}
	for _, e := range entries {
		var pid int
		if _, err := fmt.Sscan(e.Name(), &pid); err != nil {
			continue
		}
		if comm, _ := os.ReadFile("/proc/" + e.Name() + "/comm"); !strings.HasPrefix(string(comm), "vitrine-monitor") {
			continue
		}
		fds, _ := os.ReadDir("/proc/" + e.Name() + "/fd")
		for _, f := range fds {
			if l, _ := os.Readlink("/proc/" + e.Name() + "/fd/" + f.Name()); strings.HasSuffix(l, "/"+pod) {
				return pid
			}
		}
	}
	s.Fatalf("no monitor of pod %s", pod)
	return 0
}

// TestAttachOverRestart: a daemon that is killed ends its clients and nothing else: the container goes on, its stdin is open, also one that is for the
// first client only, and a client of the next daemon finds it so.
func TestAttachOverRestart(t *testing.T) {
	for name, end := range map[string]func(*scene) error{
		"killed":  func(s *scene) error { return s.Daemon().Kill() },
		"stopped": func(s *scene) error { return s.Daemon().Stop() },
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			p := s.runPod("restart")
			many := p.run("many", "while read x; do echo got $x; done; echo end of stdin; sleep 1000", stdin)
			first := p.run("first", "while read x; do echo got $x; done; exit 8", stdin, once)
			screen := p.run("screen", "while read x; do echo got $x; done", stdin, tty)
			ids := []string{many, first, screen}
			attach := func(text string) (all []*session) {
				for _, id := range ids {
					x := s.attach(id, true)
					x.say(text + "\n")
					x.sees("got " + text)
					all = append(all, x)
				}
				return all
			}
			old := attach("one")
			command := s.shell(many, "echo ready; while sleep 0.1; do echo tick; done; echo hung up >/tmp/hung; sleep 1000")
			command.sees("ready")
			if err := end(s); err != nil {
				t.Fatal(err)
			}
			for _, x := range append(old, command) {
				x.conn.Close()
			}
			s.restart()
			attach("two")
			for _, id := range ids {
				if st := s.status(id); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
					t.Errorf("status %v", st)
				}
			}
			s.eventually("the command was hung up on", func() bool { return !strings.Contains(s.exec(many, "ps"), "sleep 0.1") })
			x := s.attach(first, true)
			x.streams["stdin"].Close()
			x.end()
			if st := s.exited(first); st.ExitCode != 8 {
				t.Errorf("at the end of its client's stdin: %v", st)
			}
			if got := strings.Join(p.logText("many", "stdout"), " "); got != "got one got two" {
				t.Errorf("log %q", got)
			}
		})
	}
}
