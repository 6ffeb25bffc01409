package oci

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// withTerminal gives a container a terminal.
func withTerminal(c ContainerConfig) ContainerConfig {
	c.TTY, c.Spec.Process.Terminal = true, true
	c.Spec.Mounts = append(c.Spec.Mounts, specs.Mount{Destination: "/dev/pts", Type: "devpts", Source: "devpts",
		Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}})
	return c
}

func (n *node) runConfig(p *Pod, c ContainerConfig) *Process {
	n.t.Helper()
	pr, err := p.Create(n.t.Context(), c)
	if err == nil {
		err = pr.Start(n.t.Context())
	}
	if err != nil {
		n.t.Fatal(err)
	}
	return pr
}

func attach(t *testing.T, pr *Process, c AttachConfig) *Attachment {
	t.Helper()
	a, err := pr.Attach(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// until reads from f until it has seen text.
func until(t *testing.T, f *os.File, text string) string {
	t.Helper()
	_ = f.SetReadDeadline(time.Now().Add(patience))
	var all []byte
	for b := make([]byte, 64<<10); !bytes.Contains(all[max(0, len(all)-len(b)-len(text)):], []byte(text)); {
		n, err := f.Read(b)
		if all = append(all, b[:n]...); err != nil {
			t.Fatalf("waiting for %q: %v after %d bytes, ... %q", text, err, len(all), all[max(0, len(all)-500):])
		}
	}
	return string(all)
}

// TestAttach: each who is attached gets each stream, with a log and without; one who does not read loses, is told how much, and
// holds up neither the container, nor its log, nor the others; nothing is left of any.
func TestAttach(t *testing.T) {
	n := newNode(t)
	p := n.pod(nil)
	const script = "read x; i=0; while [ $i -lt 60000 ]; do i=$((i+1)); echo line $i of sixty thousand, which is more than a pipe holds; done; echo $x >&2; read x"
	var total int64
	for i := 1; i <= 60000; i++ {
		total += int64(len(fmt.Sprintf("line %d of sixty thousand, which is more than a pipe holds\n", i)))
	}
	for _, log := range []bool{true, false} {
		c := n.config(p, map[bool]string{true: "log", false: "nolog"}[log], "sh", "-c", script)
		if c.Stdin, c.Output = true, true; !log {
			c.LogPath = ""
		}
		id := c.ID
		pr := n.runConfig(p, c)
		before := fdsOf(t, p.MonitorPid())
		reader, lazy := attach(t, pr, AttachConfig{Stdin: true, Stdout: true, Stderr: true}), attach(t, pr, AttachConfig{Stdout: true})
		if lazy.Terminal() || lazy.Stderr != nil {
			t.Errorf("%s: attached to more than was asked for", id)
		}
		if _, err := lazy.Write([]byte("x")); !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: stdin that was not asked for: %v", id, err)
		}
		if _, err := io.WriteString(reader, "done\n"); err != nil {
			t.Fatal(err)
		}
		read := make(chan int64)
		go func() {
			n, _ := io.Copy(io.Discard, reader.Stdout)
			read <- n
		}()
		until(t, reader.Stderr, "done\n")
		reader.CloseInput()
		if err := pr.EndStdin(t.Context()); err != nil {
			t.Error(err)
		}
		if s := exited(t, p, id); s.Code != 1 {
			t.Errorf("%s: at the end of its stdin %+v", id, s)
		}
		if lost, err := lazy.Close(t.Context()); err != nil || lost < 2<<20 {
			t.Errorf("%s: who does not read lost %d bytes, %v", id, lost, err)
		}
		got := <-read
		// It reads as fast as it can, and may still be late on a busy machine; but then it is told.
		if lost, err := reader.Close(t.Context()); err != nil || got+int64(lost) != total || got < 1<<20 {
			t.Errorf("%s: who reads got %d bytes and lost %d of %d, %v", id, got, lost, total, err)
		}
		if log {
			if got := strings.Count(n.log(p, id), "\n"); got != 60001 {
				t.Errorf("the log has %d lines", got)
			}
		}
		eventually(t, "the monitor's descriptors are what they were", func() bool { return len(fresh(t, p.MonitorPid(), before)) == 0 })
		if _, err := pr.Attach(t.Context(), AttachConfig{Stdout: true}); !errors.Is(err, ErrState) {
			t.Errorf("%s: attached to the dead: %v", id, err)
		}
		if err := pr.EndStdin(t.Context()); err != nil {
			t.Errorf("%s: stdin of the dead: %v", id, err)
		}
	}
}

// TestAttachEnds: the container's end is the end of what it wrote, also for who attached without output.
func TestAttachEnds(t *testing.T) {
	n := newNode(t)
	p := n.pod(nil)
	pr := n.run(p, "c", "sh", "-c", "sleep 0.3; echo last words; exec 1>&-; sleep 0.2; exit 3")
	a := attach(t, pr, AttachConfig{Stdout: true, Stderr: true})
	out, err := io.ReadAll(a.Stdout)
	if err != nil || string(out) != "last words\n" {
		t.Errorf("%q, %v", out, err)
	}
	if _, err := io.ReadAll(a.Stderr); err != nil {
		t.Error(err)
	}
	if lost, err := a.Close(t.Context()); lost != 0 || err != nil {
		t.Errorf("lost %d, %v", lost, err)
	}
	exited(t, p, "c")
}

// TestStdinOutlivesTheDaemon: who is attached when the daemon goes leaves nothing, and the next daemon finds the stdin open.
func TestStdinOutlivesTheDaemon(t *testing.T) {
	n := newNode(t)
	p := n.pod(nil)
	c := n.config(p, "c", "cat")
	c.Stdin = true
	pr := n.runConfig(p, c)
	before := fdsOf(t, p.MonitorPid())
	a := attach(t, pr, AttachConfig{Stdin: true, Stdout: true})
	io.WriteString(a, "one\n")
	until(t, a.Stdout, "one\n")
	pid := p.MonitorPid()
	p.Close()
	a.closeFiles()
	p, err := DialPod(t.Context(), filepath.Join(n.dir, p.ID()))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	eventually(t, "the monitor's descriptors are what they were", func() bool { // but for the new daemon's connection
		list := slices.DeleteFunc(fresh(t, pid, before), func(f string) bool { // files are opened for the end, some time after the start
			return !strings.Contains(f, "socket:") && !strings.Contains(f, "pipe:")
		})
		return len(list) == 1 && strings.Contains(list[0], "socket:")
	})
	pr = p.Process("c")
	a = attach(t, pr, AttachConfig{Stdin: true, Stdout: true})
	io.WriteString(a, "two\n")
	until(t, a.Stdout, "two\n")
	if err := pr.EndStdin(t.Context()); err != nil {
		t.Fatal(err)
	}
	io.WriteString(a, "three\n") // ours is still open
	until(t, a.Stdout, "three\n")
	a.CloseInput()
	if s := exited(t, p, "c"); s.Code != 0 {
		t.Errorf("status %+v", s)
	}
	a.Close(t.Context())
	if got := n.log(p, "c"); got != "one\ntwo\nthree\n" {
		t.Errorf("log %q", got)
	}
}

// TestTerminal: a container's terminal has one stream in the log, a size that the program is told of, and outlives that
// the program closes it for a while.
func TestTerminal(t *testing.T) {
	n := newNode(t)
	p := n.pod(nil)
	before := fdsOf(t, p.MonitorPid())
	script := `trap 'echo size $(busybox stty size)' WINCH; test -t 0 && test -t 1 && test -t 2 && echo all three;
		echo to stderr >&2; exec 0<&- 1<&- 2<&-; busybox usleep 200000; exec 0</dev/console 1>/dev/console 2>&1; echo back;
		while :; do read x || continue; echo "got $x"; [ "$x" = end ] && exit 7; done`
	c := withTerminal(n.config(p, "c", "sh", "-c", script))
	pr := n.runConfig(p, c)
	eventually(t, "the log has what was written after the terminal was closed", func() bool { return strings.Contains(n.log(p, "c"), "back") })
	a := attach(t, pr, AttachConfig{Stdin: true, Stdout: true})
	if !a.Terminal() {
		t.Error("no terminal")
	}
	if err := a.Resize(0, 17); err != nil {
		t.Error(err)
	}
	if err := a.Resize(132, 43); err != nil {
		t.Error(err)
	}
	io.WriteString(a, "one\n")
	got := until(t, a.Stdout, "got one")
	if !strings.Contains(got, "size 43 132") || !strings.Contains(got, "one\r\n") {
		t.Errorf("the terminal shows %q", got)
	}
	io.WriteString(a, "end\n")
	if s := exited(t, p, "c"); s.Code != 7 {
		t.Errorf("status %+v", s)
	}
	if rest, err := io.ReadAll(a.Stdout); err != nil || !strings.Contains(string(rest), "got end") {
		t.Errorf("the rest %q, %v", rest, err)
	}
	a.Close(t.Context())
	b, err := os.ReadFile(c.LogPath)
	if err != nil || bytes.Contains(b, []byte(" stderr ")) || !bytes.Contains(b, []byte("all three")) || !bytes.Contains(b, []byte("to stderr")) {
		t.Errorf("log %s, %v", b, err)
	}
	eventually(t, "the monitor's descriptors are what they were", func() bool { return len(fresh(t, p.MonitorPid(), before)) <= 1 }) // the container is not removed
	if err := pr.Remove(t.Context()); err != nil {
		t.Error(err)
	}
	eventually(t, "the monitor's descriptors are what they were", func() bool { return len(fresh(t, p.MonitorPid(), before)) == 0 })
	if t.Failed() {
		t.Logf("%v", fresh(t, p.MonitorPid(), before))
	}
}

// TestTerminalWithoutReader: a container that nobody is attached to, and that has no log, goes on all the same.
func TestTerminalWithoutReader(t *testing.T) {
	n := newNode(t)
	p := n.pod(nil)
	c := withTerminal(n.config(p, "c", "sh", "-c", "seq 1 50000"))
	c.LogPath = ""
	n.runConfig(p, c)
	if s := exited(t, p, "c"); s.Code != 0 {
		t.Errorf("status %+v", s)
	}
}

// TestExecTerminal: the terminal of an exec comes to the daemon, and to close it is to hang up.
func TestExecTerminal(t *testing.T) {
	n := newNode(t)
	p := n.pod(nil)
	pr := n.runConfig(p, withTerminal(n.config(p, "c", "sleep", "1000")))
	terminals := func() (n int) {
		for _, f := range fdsOf(t, p.MonitorPid()) {
			if strings.Contains(f, "pts") {
				n++
			}
		}
		return n
	}
	before := terminals()
	process := *n.spec("sh", "-c", "read x; echo $x; busybox stty size; test -t 2; echo $?; sleep 1000").Process
	process.Terminal = true
	e, err := pr.Exec(t.Context(), ExecConfig{Process: &process})
	if err != nil {
		t.Fatal(err)
	}
	tty := e.Terminal()
	if err := e.Resize(90, 30); err != nil {
		t.Error(err)
	}
	io.WriteString(tty, "hello\n")
	if got := until(t, tty, "0\r\n"); !strings.Contains(got, "hello\r\n30 90\r\n") {
		t.Errorf("the terminal shows %q", got)
	}
	if got := terminals(); got != before {
		t.Errorf("the monitor has %d terminals, and had %d", got, before)
	}
	tty.Close()
	if s, err := e.Wait(t.Context()); err != nil || s.Signal != unix.SIGHUP {
		t.Errorf("after the hang-up %+v, %v", s, err)
	}
	process.Args = []string{"/bin/nothing"}
	if _, err := pr.Exec(t.Context(), ExecConfig{Process: &process}); !errors.Is(err, unix.ENOENT) {
		t.Errorf("exec of nothing: %v", err)
	}
}

// TestOldMonitor: what a monitor of version 4 cannot do, or one of version 6, is refused before it is asked.
func TestOldMonitor(t *testing.T) {
	n := newNode(t)
	p := n.pod(nil)
	pr := n.run(p, "c", "sleep", "1000")
	p.version = 4
	if _, err := pr.Attach(t.Context(), AttachConfig{Stdout: true}); !errors.Is(err, ErrNotYet) {
		t.Errorf("attach: %v", err)
	}
	if _, err := p.Create(t.Context(), withTerminal(n.config(p, "tty", "true"))); !errors.Is(err, ErrNotYet) {
		t.Errorf("terminal: %v", err)
	}
	p.version = 6
	joins := n.config(p, "target", "true")
	joins.Target = "c"
	joins.Spec.Linux.Namespaces[slices.IndexFunc(joins.Spec.Linux.Namespaces, isPID)].Path = "/proc/1/ns/pid"
	if _, err := p.Create(t.Context(), joins); !errors.Is(err, ErrNotYet) {
		t.Errorf("target: %v", err)
	}
	if out, s := run(t, pr, "echo", "still"); out != "still\n" || s.Code != 0 {
		t.Errorf("exec: %q %+v", out, s)
	}
}
