package oci

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/wire"
)

// limited is a node whose containers have cgroups in one for the pod, with the
// memory controller, as on a real node.
type limited struct {
	*node
	pods *sys.FD
}

func newLimited(t testing.TB) *limited {
	t.Helper()
	n := newNode(t)
	if !strings.Contains(readAt(n.cgroup, "cgroup.controllers"), "memory") {
		if os.Getenv("VITRINE_VM") != "" {
			t.Fatal("a guest without the memory controller")
		}
		t.Skip("needs the memory controller in cgroup v2: runs out of memory")
	}
	l := &limited{node: n}
	if err := writeAt(n.cgroup, "cgroup.subtree_control", "+memory +pids"); err != nil {
		t.Fatal(err)
	}
	l.pods = n.leaf("pod")
	t.Cleanup(func() { l.pods.Close() })
	if err := writeAt(l.pods, "cgroup.subtree_control", "+memory +pids"); err != nil {
		t.Fatal(err)
	}
	return l
}

// scope makes a container's cgroup with limits, as pairs of file and value.
func (l *limited) scope(id string, limits ...string) *sys.FD {
	l.t.Helper()
	f := l.leaf("pod/" + id)
	for i := 0; i < len(limits); i += 2 {
		if err := writeAt(f, limits[i], limits[i+1]); err != nil {
			l.t.Fatal(err)
		}
	}
	return f
}

const small = "8388608" // bytes for a container that is to have too little

// hog is a shell command that wants eight times that, all at once.
const hog = "busybox dd if=/dev/zero of=/dev/null bs=64M count=1 2>/dev/null"

// begin starts a container below the pod's cgroup.
func (l *limited) begin(p *Pod, id string, argv ...string) *Process {
	l.t.Helper()
	c := l.config(p, id, argv...)
	c.Cgroup.Close()
	if err := unix.Unlinkat(l.cgroup.Int(), id, unix.AT_REMOVEDIR); err != nil {
		l.t.Fatal(err)
	}
	c.Cgroup = l.scope(id, "memory.max", small)
	fair := 0 // whoever runs the tests may be spared himself
	c.OOMScoreAdj = &fair
	var err error
	if c.PodCgroup, err = l.pods.Dup(); err != nil {
		l.t.Fatal(err)
	}
	pr, err := p.Create(l.t.Context(), c)
	if err != nil {
		l.t.Fatal(err)
	}
	if err := pr.Start(l.t.Context()); err != nil {
		l.t.Fatal(err)
	}
	return pr
}

func (l *limited) empty(id string) bool {
	f, err := sys.OpenAt2(l.pods.Int(), id, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	return strings.HasPrefix(readAt(f, "cgroup.events"), "populated 0")
}

// sweep does what systemd does with a scope as soon as nobody is in it.
func (l *limited) sweep(ids ...string) {
	l.t.Helper()
	for _, id := range ids {
		eventually(l.t, id+" is empty", func() bool { return l.empty(id) })
		eventually(l.t, id+" is removed", func() bool { return unix.Unlinkat(l.pods.Int(), id, unix.AT_REMOVEDIR) == nil })
	}
}

// stopped runs f while the monitor is, and sweeps meanwhile.
func (l *limited) stopped(p *Pod, f func(), ids ...string) {
	l.t.Helper()
	if err := unix.Kill(p.MonitorPid(), unix.SIGSTOP); err != nil {
		l.t.Fatal(err)
	}
	eventually(l.t, "the monitor is stopped", func() bool { return strings.HasPrefix(status(l.t, p.MonitorPid(), "State"), "T") })
	f()
	l.sweep(ids...)
	if err := unix.Kill(p.MonitorPid(), unix.SIGCONT); err != nil {
		l.t.Fatal(err)
	}
}

// kill ends a container as the daemon does.
func (l *limited) kill(p *Pod, pr *Process) {
	l.t.Helper()
	if err := NoteKill(filepath.Join(l.dir, p.ID(), pr.ID()), pr.Pid()); err != nil {
		l.t.Fatal(err)
	}
	f := l.leaf("pod/" + pr.ID())
	defer f.Close()
	if err := writeAt(f, "cgroup.kill", "1"); err != nil {
		l.t.Fatal(err)
	}
}

// want holds an end, its record and what List says of it against each other.
func (l *limited) want(p *Pod, id string, code int, oom bool, kills int) {
	l.t.Helper()
	s := exited(l.t, p, id)
	if s.ExitCode() != code || s.OOMKilled != oom || s.OOMKills != kills {
		l.t.Errorf("%s: want code %d, OOM killed %v, %d kills; got %+v", id, code, oom, kills, s)
	}
	r, err := ReadExit(filepath.Join(l.dir, p.ID(), id))
	if err != nil || !r.Status().At.Equal(s.At) || r.Status().OOMKilled != s.OOMKilled || r.Status().OOMKills != s.OOMKills {
		l.t.Errorf("%s: record %+v, %v; event %+v", id, r, err, s)
	}
	list, err := p.List(l.t.Context())
	if err != nil {
		l.t.Fatal(err)
	}
	for _, e := range list {
		if e.ID == id && (e.Exit.OOMKilled != oom || e.OOMKills != kills) {
			l.t.Errorf("%s: list says %+v", id, e)
		}
	}
	if err := p.Process(id).Remove(l.t.Context()); err != nil {
		l.t.Error(err)
	}
}

// rounds is how often the races are run: VITRINE_OOM_RUNS, or n, or four times with -short.
func rounds(n int) int {
	if v, err := strconv.Atoi(os.Getenv("VITRINE_OOM_RUNS")); err == nil {
		return v
	}
	if testing.Short() {
		return min(n, 4)
	}
	return n
}

func TestOOMKilled(t *testing.T) {
	l := newLimited(t)
	p := l.pod(nil)
	for i := range rounds(20) {
		id := "c" + strconv.Itoa(i)
		l.begin(p, id, "sh", "-c", "exec "+hog)
		l.want(p, id, 137, true, 1)
		l.sweep(id)
	}
}

// The monitor is stopped until systemd has removed the scope, and with it the count.
func TestOOMKilledAndSwept(t *testing.T) {
	l := newLimited(t)
	p := l.pod(nil)
	for i := range rounds(20) {
		id := "c" + strconv.Itoa(i)
		pr := l.begin(p, id, "sh", "-c", waitFor(id)+"exec "+hog)
		l.stopped(p, func() { l.feed(pr) }, id)
		l.want(p, id, 137, true, 1)
	}
}

// feed lets a container go on that waits for a line.
func (l *limited) feed(pr *Process) {
	l.t.Helper()
	if err := os.WriteFile("/proc/"+strconv.Itoa(pr.Pid())+"/root/tmp/"+pr.ID(), []byte("go\n"), 0o600); err != nil {
		l.t.Fatal(err)
	}
}

// One process of several that is killed is not the end of the container, but it is counted; with memory.oom.group it is
// the end; and a shell that passes it on makes it the end, too.
func TestOOMOfOneProcess(t *testing.T) {
	l := newLimited(t)
	p := l.pod(nil)
	pr := l.begin(p, "survivor", "sh", "-c", hog+"; sleep 1000; true")
	eventually(t, "the kill is counted", func() bool {
		list, err := p.List(t.Context())
		return err == nil && len(list) == 1 && list[0].OOMKills == 1
	})
	if !alive(t, pr.Pid()) {
		t.Error("the main process has died")
	}
	l.stopped(p, func() { l.kill(p, pr) }, "survivor")
	l.want(p, "survivor", 137, false, 1)
	l.begin(p, "well", "sh", "-c", hog+"; exit 0")
	l.want(p, "well", 0, false, 1)
	l.begin(p, "badly", "sh", "-c", hog+"; exit 3")
	l.want(p, "badly", 3, false, 1)
	l.begin(p, "passes", "sh", "-c", hog+"; exit $?")
	l.want(p, "passes", 137, true, 1)
	waits := l.begin(p, "group", "sh", "-c", waitFor("group")+hog+"; exit 0")
	f := l.leaf("pod/group")
	defer f.Close()
	if err := writeAt(f, "memory.oom.group", "1"); err != nil {
		t.Fatal(err)
	}
	l.feed(waits)
	s := exited(t, p, "group")
	if s.ExitCode() != 137 || !s.OOMKilled || s.OOMKills < 2 {
		t.Errorf("group: %+v", s)
	}
}

// waitFor is a shell command that waits for feed.
func waitFor(id string) string {
	return "until test -e /tmp/" + id + "; do busybox usleep 20000; done; "
}

// A container that is killed by a stop while its sibling is OOM-killed is not OOM-killed, whoever dies first, and though
// the monitor sees neither's counter.
func TestOOMBesideAStop(t *testing.T) {
	l := newLimited(t)
	p := l.pod(nil)
	for i := range rounds(4) {
		n := strconv.Itoa(i)
		stopped := l.begin(p, "stopped"+n, "sleep", "1000")
		oom := l.begin(p, "oom"+n, "sh", "-c", waitFor("oom"+n)+"exec "+hog)
		steps := []func(){
			func() { l.kill(p, stopped); l.sweep("stopped" + n) },
			func() { l.feed(oom); l.sweep("oom" + n) },
		}
		l.stopped(p, func() { steps[i%2](); steps[1-i%2]() })
		// The events come in any order.
		a, b := p.Process("stopped"+n), p.Process("oom"+n)
		got := map[string]ExitStatus{}
		for len(got) < 2 {
			e := <-p.Events()
			got[e.ID] = e.Status
		}
		if s := got[a.ID()]; s.OOMKilled || s.OOMKills != 0 || s.ExitCode() != 137 {
			t.Errorf("stopped: %+v", s)
		}
		if s := got[b.ID()]; !s.OOMKilled || s.OOMKills != 1 || s.ExitCode() != 137 {
			t.Errorf("OOM-killed: %+v", s)
		}
	}
}

// A SIGKILL by the handle is a stop as well, and what happened to the container earlier in its life is not its end.
func TestSignalAfterOOM(t *testing.T) {
	l := newLimited(t)
	p := l.pod(nil)
	pr := l.begin(p, "c", "sh", "-c", hog+"; sleep 1000; true")
	eventually(t, "the kill is counted", func() bool {
		list, err := p.List(t.Context())
		return err == nil && len(list) == 1 && list[0].OOMKills == 1
	})
	if err := pr.Signal(t.Context(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	l.want(p, "c", 137, false, 1)
}

// A limit of the whole pod takes a process of one container, and that one's counter says so, read or unread.
func TestOOMOfThePod(t *testing.T) {
	l := newLimited(t)
	p := l.pod(nil)
	if err := writeAt(l.pods, "memory.max", small); err != nil {
		t.Fatal(err)
	}
	bystander := l.begin(p, "bystander", "sleep", "1000")
	for _, unread := range []bool{false, true} {
		id := "hungry" + strconv.FormatBool(unread)
		pr := l.begin(p, id, "sh", "-c", waitFor(id)+"exec "+hog)
		f := l.leaf("pod/" + id)
		if err := writeAt(f, "memory.max", "max"); err != nil {
			t.Fatal(err)
		}
		f.Close()
		if unread {
			l.stopped(p, func() { l.feed(pr) }, id)
		} else {
			l.feed(pr)
		}
		l.want(p, id, 137, true, 1)
	}
	if !alive(t, bystander.Pid()) {
		t.Error("the bystander was taken")
	}
}

// A note of a kill is written for who lives: whoever is dead already was killed by somebody else.
func TestNoteKill(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	note := func() bool {
		dir := t.TempDir()
		if err := NoteKill(dir, cmd.Process.Pid); err != nil {
			t.Error(err)
		}
		_, err := os.Stat(filepath.Join(dir, wire.KilledName))
		return err == nil
	}
	if !note() {
		t.Error("no note of the living")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is a zombie", func() bool { return strings.HasPrefix(status(t, cmd.Process.Pid, "State"), "Z") })
	if note() {
		t.Error("a note of the dead")
	}
	if err := NoteKill(t.TempDir()+"/none", os.Getpid()); err == nil {
		t.Error("a note in no directory")
	}
}
