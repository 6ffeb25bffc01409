package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "v.sock")
	l, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("socket %v, %v", info.Mode(), err)
	}
	if info, err = os.Lstat(filepath.Dir(path)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("its directory %v, %v", info.Mode(), err)
	}
	if _, err := listen(path); err == nil || !strings.Contains(err.Error(), "another process listens") {
		t.Errorf("second daemon: %v", err)
	}
	if c, err := net.Dial("unix", path); err != nil {
		t.Errorf("the first one is disturbed: %v", err)
	} else {
		c.Close()
	}
	l.Close()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket stays: %v", err)
	}
}

// A daemon that was killed leaves its socket, and the next one replaces it.
func TestStaleSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "v.sock")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	l, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}

func TestListenTouchesNothingElse(t *testing.T) {
	dir := t.TempDir()
	file, link, fifo := filepath.Join(dir, "file"), filepath.Join(dir, "link"), filepath.Join(dir, "fifo")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{file, link, fifo, dir} {
		if _, err := listen(p); err == nil || !strings.Contains(err.Error(), "no socket") {
			t.Errorf("%s: %v", p, err)
		}
		if _, err := os.Lstat(p); err != nil {
			t.Errorf("%s is gone: %v", p, err)
		}
	}
	if _, err := listen(filepath.Join(dir, strings.Repeat("a", 107))); err == nil || !strings.Contains(err.Error(), "107 bytes") {
		t.Errorf("long path: %v", err)
	}
}

func TestLock(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	var first, second closers
	if err := first.claim(dir); err != nil {
		t.Fatal(err)
	}
	err := second.claim(dir)
	if err == nil || !strings.Contains(err.Error(), "another daemon") {
		t.Errorf("second daemon: %v", err)
	}
	if err := first.close(); err != nil {
		t.Fatal(err)
	}
	if err := second.claim(dir); err != nil {
		t.Errorf("after the first: %v", err)
	}
	if err := second.close(); err != nil {
		t.Error(err)
	}
}

// A daemon killed between the fork and the execve of a child leaves its lock to the child for a moment.
func TestLockOfADeadDaemon(t *testing.T) {
	dir := t.TempDir()
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(dir, lockName))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(f, dead.Process.Pid)
	time.AfterFunc(100*time.Millisecond, func() { f.Close() })
	got, err := lockDir(dir)
	if err != nil {
		t.Fatalf("the holder is dead: %v", err)
	}
	got.Close()
}

// A lock is not written through a link that somebody put there.
func TestLockFollowsNoLink(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "target")
	if err := os.Symlink(target, filepath.Join(dir, lockName)); err != nil {
		t.Fatal(err)
	}
	if f, err := lockDir(dir); err == nil {
		f.Close()
		t.Error("followed")
	}
	if _, err := os.Lstat(target); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("made the target: %v", err)
	}
}

func TestMakeDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	if err := makeDir(dir); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := makeDir(dir); err == nil || !strings.Contains(err.Error(), "others may write") {
		t.Errorf("world writable: %v", err)
	}
}

func TestNotify(t *testing.T) {
	for _, addr := range []string{filepath.Join(t.TempDir(), "n"), "@vitrine-test-notify-" + filepath.Base(t.TempDir())} {
		c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: addr, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		t.Setenv("NOTIFY_SOCKET", addr)
		n := newNotifier()
		if v, ok := os.LookupEnv("NOTIFY_SOCKET"); ok {
			t.Errorf("plugins would get NOTIFY_SOCKET=%s", v)
		}
		if err := n.send("READY=1"); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 64)
		if got, err := c.Read(b); err != nil || string(b[:got]) != "READY=1" {
			t.Errorf("%s: %q, %v", addr, b[:got], err)
		}
	}
	if err := (notifier{}).send("READY=1"); err != nil {
		t.Errorf("nobody to tell: %v", err)
	}
	if err := (notifier{"/nonexistent/x"}).send("READY=1"); err == nil {
		t.Error("a service manager that is gone: no error")
	}
}
