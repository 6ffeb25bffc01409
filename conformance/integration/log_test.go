package integration

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestFullLogDisk: a log disk without space costs lines, never the container; what is written later is whole lines.
func TestFullLogDisk(t *testing.T) {
	s := open(t)
	disk := filepath.Join(s.Scratch, "disk")
	if err := errors.Join(os.Mkdir(disk, 0o755), unix.Mount("tmpfs", disk, "tmpfs", 0, "size=256k")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(unix.Unmount(disk, 0), os.Remove(disk)); err != nil {
			t.Errorf("unmount the log disk: %v", err)
		}
	})
	p := s.runPod("full", func(c *runtimeapi.PodSandboxConfig) {
		err := os.Remove(c.LogDirectory)
		c.LogDirectory = filepath.Join(disk, "logs")
		if err := errors.Join(err, os.Mkdir(c.LogDirectory, 0o755)); err != nil {
			t.Fatal(err)
		}
	})
	id := p.run("c", `mkdir -p /tmp/t; i=0; while :; do i=$((i+1)); echo "line $i xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"; echo $i >/tmp/t/at; done`)
	var st unix.Statfs_t
	s.eventually("the log disk is full", func() bool { return unix.Statfs(p.cfg.LogDirectory, &st) == nil && st.Bavail == 0 })
	at := s.exec(id, "cat /tmp/t/at")
	s.eventually("the container goes on", func() bool { now := s.exec(id, "cat /tmp/t/at"); return now != "" && now != at })
	if st := s.status(id); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Fatalf("container: %v", st)
	}
	// Rotation, as the kubelet does it: the old file goes and the log is opened anew.
	if err := os.Remove(p.logFile("c")); err != nil {
		t.Fatal(err)
	}
	if err := s.cri.ReopenContainerLog(s.ctx, id); err != nil {
		t.Fatal(err)
	}
	s.eventually("new lines come", func() bool { fi, err := os.Stat(p.logFile("c")); return err == nil && fi.Size() > 1000 })
	if err := s.cri.StopContainer(s.ctx, id, 0); err != nil {
		t.Fatal(err)
	}
	if st := s.exited(id); st.ExitCode != 137 {
		t.Errorf("the container ended by itself: %v", st)
	}
	for _, l := range p.logText("c", "stdout") {
		if !strings.HasPrefix(l, "line ") || !strings.HasSuffix(l, "xxx") {
			t.Errorf("torn line %q", l)
		}
	}
}

// TestReopenLog: after a rename the old file stops growing and the new one goes on without a gap.
func TestReopenLog(t *testing.T) {
	s := open(t)
	p := s.runPod("rotate")
	id := p.run("c", chatter)
	s.eventually("the log grows", func() bool { return len(p.logText("c", "stdout")) > 50 })
	old := p.logFile("c") + ".1"
	if err := os.Rename(p.logFile("c"), old); err != nil {
		t.Fatal(err)
	}
	if err := s.cri.ReopenContainerLog(s.ctx, id); err != nil {
		t.Fatal(err)
	}
	s.eventually("the new log grows", func() bool { fi, err := os.Stat(p.logFile("c")); return err == nil && fi.Size() > 1000 })
	size := func() int64 {
		fi, err := os.Stat(old)
		if err != nil {
			t.Fatal(err)
		}
		return fi.Size()
	}
	was := size()
	time.Sleep(300 * time.Millisecond)
	if now := size(); now != was {
		t.Errorf("the old log grew from %d to %d", was, now)
	}
	if err := s.cri.StopContainer(s.ctx, id, 0); err != nil {
		t.Fatal(err)
	}
	second := p.logText("c", "stdout")
	if err := os.Rename(old, p.logFile("c")); err != nil {
		t.Fatal(err)
	}
	whole(t, append(p.logText("c", "stdout"), second...))
}

// TestReopenFails: a reopen that fails creates nothing (api.proto), and the container goes on.
func TestReopenFails(t *testing.T) {
	s := open(t)
	p := s.runPod("reopen-fails")
	done := p.run("done", "exit 0")
	s.exited(done)
	if err := os.Remove(p.logFile("done")); err != nil {
		t.Fatal(err)
	}
	if err := s.cri.ReopenContainerLog(s.ctx, done); err == nil {
		t.Error("the log of an exited container was reopened")
	}
	if _, err := os.Stat(p.logFile("done")); err == nil {
		t.Error("a failed reopen made a file")
	}
}

// TestLogIsNotFollowed: a symlink in the place of the log is not written through.
func TestLogIsNotFollowed(t *testing.T) {
	s := open(t)
	p := s.runPod("symlink")
	victim := filepath.Join(s.Scratch, "victim")
	if err := os.WriteFile(victim, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(victim)
	if err := os.Symlink(victim, p.logFile("c")); err != nil {
		t.Fatal(err)
	}
	cfg := containerThatTalks()
	id, err := s.cri.CreateContainer(s.ctx, p.id, cfg, p.cfg)
	if err == nil {
		_ = s.cri.StartContainer(s.ctx, id)
		time.Sleep(300 * time.Millisecond)
	}
	if fi, err := os.Stat(victim); err != nil || fi.Size() != 0 {
		t.Errorf("the log was written through a symlink: %v %v", fi, err)
	}
}

// TestLongLines: a line longer than 16 KiB is cut into partial records that give the line again.
func TestLongLines(t *testing.T) {
	s := open(t)
	p := s.runPod("long")
	id := p.run("c", `printf 'no end of line'; echo; dd if=/dev/zero bs=1000 count=50 2>/dev/null | tr '\0' x; echo; printf tail`)
	s.exited(id)
	// A last line without its end stays a partial record: logText does not count it.
	lines := p.logText("c", "stdout")
	if len(lines) < 2 || lines[0] != "no end of line" || lines[1] != strings.Repeat("x", 50000) {
		t.Errorf("%d lines", len(lines))
	}
	raw, err := os.ReadFile(p.logFile("c"))
	if err != nil || !strings.Contains(string(raw), "tail\n") {
		t.Errorf("the unfinished last line is not in the log (%v)", err)
	}
}
