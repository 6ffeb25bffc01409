package integration

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/conformance/stage"
)

// TestExecStreams: three streams apart, the end of stdin as the command sees it, and its exit code.
func TestExecStreams(t *testing.T) {
	s := open(t)
	p := s.runPod("exec")
	id := p.run("c", "sleep 1000")
	x := s.shell(id, "cat; echo over; echo aside >&2; exit 3")
	x.say("one\n")
	x.sees("one\n") // before the end
	x.streams["stdin"].Close()
	if r := x.end(); r.code != 3 || x.out["stdout"].String() != "one\nover\n" || x.out["stderr"].String() != "aside\n" {
		t.Errorf("%+v, stdout %q, stderr %q", r, x.out["stdout"], x.out["stderr"])
	}
	for script, want := range map[string]int{"exit 0": 0, "exit 255": 255, "kill -9 $$": 137} {
		if r := s.shell(id, script).end(); r.code != want {
			t.Errorf("%s: %+v", script, r)
		}
	}
	// Through and back, whole, and with its end.
	data := make([]byte, 8<<20)
	rnd := rand.NewChaCha8([32]byte{1})
	_, _ = rnd.Read(data)
	x = s.shell(id, "cat")
	for rest := data; len(rest) > 0; rest = rest[min(len(rest), 32<<10):] {
		if _, err := x.streams["stdin"].Write(rest[:min(len(rest), 32<<10)]); err != nil {
			t.Fatal(err)
		}
	}
	x.streams["stdin"].Close()
	if r := x.end(); r.code != 0 || sha256.Sum256([]byte(x.out["stdout"].String())) != sha256.Sum256(data) {
		t.Errorf("8 MiB: %+v, %d bytes", r, len(x.out["stdout"].String()))
	}
}

// TestExecScreen: a terminal, its first size and the next, and who it belongs to.
func TestExecScreen(t *testing.T) {
	s := open(t)
	p := s.runPod("screen")
	id := p.run("c", "sleep 1000", func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 33}
	})
	x := s.screen(id, `trap 'stty size' WINCH; echo first $(stty size) $TERM $(stat -c %u /proc/self/fd/0 -L); while :; do read v || continue; echo "got $v"; [ "$v" = end ] && exit 5; done`)
	x.resize(80, 24)
	x.sees("first 24 80 xterm 33")
	x.resize(132, 43)
	x.sees("43 132")
	x.resize(-1, 43) // ST-10: no size, and the end of sizes
	x.say("end\r")
	if r := x.end(); r.code != 5 || !strings.Contains(x.out["stdout"].String(), "got end") {
		t.Errorf("%+v, %q", r, x.out["stdout"])
	}
	// ^C comes through.
	x = s.screen(id, "echo ready; sleep 1000")
	x.sees("ready")
	x.say("\x03")
	if r := x.end(); r.code != 130 {
		t.Errorf("after ^C %+v", r)
	}
}

// TestExecGone: a client that is killed hangs up on its command, with and without a terminal.
func TestExecGone(t *testing.T) {
	s := open(t)
	p := s.runPod("gone")
	id := p.run("c", "sleep 1000")
	for _, start := range []func(string, string) *session{s.screen, s.shell} {
		x := start(id, "echo ready; while echo tick; do sleep 0.1; done; echo ended by it >/tmp/ended")
		x.sees("ready")
		x.kill()
		s.eventually("nobody ticks", func() bool { return !strings.Contains(s.exec(id, "ps"), "echo tick") })
	}
	// One that reads its stdin only sees the end of it.
	x := s.shell(id, "echo ready; cat; echo end of stdin >/tmp/saw")
	x.sees("ready")
	x.kill()
	s.eventually("the end of stdin", func() bool { return s.exec(id, "cat /tmp/saw 2>/dev/null || :") == "end of stdin" })
	// A client whose stdin nobody wants is missed all the same.
	before := s.descriptors(s.Daemon().Pid())
	x = s.shell(id, "echo ready; exec sleep 1000")
	x.sees("ready")
	go func() {
		for junk := make([]byte, 64<<10); ; {
			if _, err := x.streams["stdin"].Write(junk); err != nil {
				return
			}
		}
	}()
	time.Sleep(500 * time.Millisecond)
	x.kill()
	s.eventually("the daemon has let go", func() bool { return s.descriptors(s.Daemon().Pid()) <= before })
}

// descriptors counts those of a process.
func (s *scene) descriptors(pid int) int {
	s.Helper()
	d, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		s.Fatal(err)
	}
	return len(d)
}

// TestExecLeftBehind: what a command leaves behind holds its output open, and holds up nobody.
func TestExecLeftBehind(t *testing.T) {
	s := open(t)
	p := s.runPod("left")
	id := p.run("c", "sleep 1000")
	before := s.descriptors(s.Daemon().Pid())
	start := time.Now()
	var all []*session
	for range 20 {
		all = append(all, s.shell(id, "sleep 1000 & echo started"))
	}
	// One that goes on writing does not make it endless.
	all = append(all, s.shell(id, "(while echo started; do sleep 0.01; done) & :"))
	for _, x := range all {
		if r := x.end(); r.code != 0 || !strings.HasPrefix(x.out["stdout"].String(), "started\n") {
			t.Errorf("%+v %q", r, x.out["stdout"].tail())
		}
		x.conn.Close()
	}
	if d := time.Since(start); d > s.Scale(20*time.Second) {
		t.Errorf("it took %v", d)
	}
	if n := strings.Count(s.exec(id, "ps"), "sleep 1000"); n < 21 {
		t.Errorf("%d of 21 sleepers live", n)
	}
	s.eventually("the daemon's descriptors are what they were", func() bool { return s.descriptors(s.Daemon().Pid()) <= before })
}

// TestExecMissing: a program that is not there is an exit code and a line, as often as one likes.
func TestExecMissing(t *testing.T) {
	s := open(t)
	p := s.runPod("missing")
	id := p.run("c", "sleep 1000")
	s.exec(id, "echo text >/tmp/text")
	before := s.descriptors(s.Daemon().Pid())
	for _, c := range []struct {
		cmd   string
		code  int
		text  string
		times int
	}{
		{"nothing", 127, `exec: "nothing": executable file not found in $PATH`, 100},
		{"/bin/nothing", 127, `exec: "/bin/nothing": no such file or directory`, 6},
		{"/tmp/text", 126, `exec: "/tmp/text": permission denied`, 6},
	} {
		for i := range c.times {
			q := &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{c.cmd}, Stdout: true, Stderr: i%2 == 0, Tty: i%2 == 1}
			x := s.dial(s.execURL(q))
			stream := "stderr"
			if q.Tty {
				stream = "stdout"
				x.open("stdout", "resize")
			} else {
				x.open("stdout", "stderr")
			}
			if r := x.end(); r.code != c.code || !strings.Contains(x.out[stream].String(), c.text) {
				t.Fatalf("%s: %+v, %q", c.cmd, r, x.out[stream])
			}
			x.conn.Close()
		}
	}
	s.eventually("the daemon's descriptors are what they were", func() bool { return s.descriptors(s.Daemon().Pid()) <= before })
}

// TestExecSlowReader: ST-07. A client that does not read holds up its command, costs the daemon no memory, and holds up nobody else.
func TestExecSlowReader(t *testing.T) {
	s := open(t)
	p := s.runPod("slow")
	id := p.run("c", "sleep 1000")
	url := s.execURL(&runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"/bin/sh", "-c", "yes | head -c 200000000; echo all >/tmp/all"}, Stdout: true})
	x := s.dial(url)
	for _, name := range []string{"error", "stdout"} { // and nobody reads
		if _, err := x.conn.CreateStream(map[string][]string{"Streamtype": {name}}); err != nil {
			t.Fatal(err)
		}
	}
	before := s.memory(s.Daemon().Pid())
	time.Sleep(time.Second)
	if now := s.memory(s.Daemon().Pid()); now > before+32<<20 {
		t.Errorf("the daemon grew from %d to %d bytes", before, now)
	}
	if got := s.exec(id, "cat /tmp/all 2>/dev/null; echo beside"); got != "beside" {
		t.Errorf("beside it %q", got)
	}
	x.kill()
	s.eventually("the command has ended", func() bool { return !strings.Contains(s.exec(id, "ps"), "yes") })
}

func (s *scene) memory(pid int) (bytes int64) {
	s.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		s.Fatal(err)
	}
	var size int64
	fmt.Sscan(string(text), &size, &bytes)
	return bytes * int64(os.Getpagesize())
}

// TestStreamStates: B-98, B-99, B-106. There is no URL for what does not run.
func TestStreamStates(t *testing.T) {
	s := open(t)
	p := s.runPod("states")
	created := p.create(stage.ContainerConfig("created", busybox, "/bin/sh", "-c", "sleep 1000"))
	exited := p.run("exited", "exit 0")
	s.exited(exited)
	frozen := p.run("frozen", "sleep 1000")
	dir := "/sys/fs/cgroup" + p.cfg.Linux.CgroupParent
	var file string
	d, err := os.ReadDir(dir)
	for _, e := range d {
		if strings.Contains(e.Name(), frozen) {
			file = dir + "/" + e.Name() + "/cgroup.freeze"
		}
	}
	if err := errors.Join(err, os.WriteFile(file, []byte("1"), 0)); err != nil {
		t.Fatal(err)
	}
	defer os.WriteFile(file, []byte("0"), 0)
	for id, want := range map[string]codes.Code{
		created: codes.FailedPrecondition, exited: codes.FailedPrecondition, frozen: codes.FailedPrecondition, strings.Repeat("f", 64): codes.NotFound,
	} {
		_, err := s.cri.Exec(s.ctx, &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"true"}, Stdout: true})
		if status.Code(err) != want {
			t.Errorf("exec: %v", err)
		}
		if _, err = s.cri.Attach(s.ctx, &runtimeapi.AttachRequest{ContainerId: id, Stdout: true}); status.Code(err) != want {
			t.Errorf("attach: %v", err)
		}
	}
	// What ends between the URL and the client is told on the error stream.
	gone := p.run("gone", "sleep 1000")
	url := s.execURL(&runtimeapi.ExecRequest{ContainerId: gone, Cmd: []string{"true"}, Stdout: true})
	if err := s.cri.StopContainer(s.ctx, gone, 0); err != nil {
		t.Fatal(err)
	}
	if r := s.dial(url).open("stdout").end(); r.code != -1 || !strings.Contains(r.message, "exited") {
		t.Errorf("exec into what has ended meanwhile: %+v", r)
	}
}

// TestExecSyncIsCut: CVE-2022-1708. Of a command that writes far more than anyone keeps, each stream is cut at exactly 16 MiB, the
// command ends as it would, and the daemon never holds much more than what it answers with.
func TestExecSyncIsCut(t *testing.T) {
	s := open(t)
	p := s.runPod("cut")
	id := p.run("c", "sleep 1000")
	conn, err := grpc.NewClient("unix://"+s.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(80<<20)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const kept = 16 << 20
	each := 512 // MiB on each stream
	if testing.Short() || s.Scale(time.Second) > time.Second {
		each = 128 // still more than the bound below
	}
	script := fmt.Sprintf("dd if=/dev/zero bs=1048576 count=%d 2>/dev/null & dd if=/dev/zero bs=1048576 count=%d >&2 2>/dev/null; wait; echo end >/tmp/end", each, each)
	before := s.memory(s.Daemon().Pid())
	peak := s.peakMemory(func() {
		r, err := runtimeapi.NewRuntimeServiceClient(conn).ExecSync(s.ctx, &runtimeapi.ExecSyncRequest{
			ContainerId: id, Cmd: []string{"/bin/sh", "-c", script}, Timeout: int64(s.Scale(60*time.Second) / time.Second)})
		if err != nil || r.ExitCode != 0 || len(r.Stdout) != kept || len(r.Stderr) != kept {
			t.Errorf("%d and %d bytes, exit code %d, %v", len(r.GetStdout()), len(r.GetStderr()), r.GetExitCode(), err)
		}
	})
	t.Logf("2 x %d MiB: the daemon had %d MiB before, and %d at most", each, before>>20, peak>>20)
	if peak > before+100<<20 {
		t.Errorf("the daemon grew from %d to %d bytes", before, peak)
	}
	if got := s.exec(id, "cat /tmp/end"); got != "end" {
		t.Errorf("the command was not let to its end: %q", got)
	}
}

// peakMemory returns the most that the daemon has in memory while something is done, as seen every few milliseconds.
func (s *scene) peakMemory(while func()) (peak int64) {
	s.Helper()
	pid, over := s.Daemon().Pid(), make(chan struct{})
	go func() { // ends with what is done
		defer close(over)
		while()
	}()
	for {
		peak = max(peak, s.memory(pid))
		select {
		case <-over:
			return max(peak, s.memory(pid))
		case <-time.After(3 * time.Millisecond):
		}
	}
}

// TestBadSizes: B-112. What is no size of a window changes nothing, and the command goes on.
func TestBadSizes(t *testing.T) {
	s := open(t)
	p := s.runPod("sizes")
	id := p.run("c", "sleep 1000")
	for _, bad := range []string{"{", "null", `{"Width":99999999999999999999,"Height":1}`, `{"Width":65536,"Height":1}`, `{"Width":"80"}`, strings.Repeat("[", 1<<20)} {
		x := s.screen(id, `echo ready; read v; stty size; exit 5`)
		x.resize(80, 24)
		x.sees("ready")
		go func() { _, _ = x.streams["resize"].Write([]byte(bad)) }() // ends with the connection
		x.say("go\r")
		if r := x.end(); r.code != 5 || !strings.Contains(x.out["stdout"].String(), "24 80") {
			t.Errorf("%.20q: %+v, %q", bad, r, x.out["stdout"])
		}
	}
}
