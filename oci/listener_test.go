package oci

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/oci/seccomp"
)

// answererEnv makes the test binary a process that answers notifications, on
// the socket that it names.
const answererEnv = "VITRINE_TEST_ANSWERER"

// answerer is that process. It takes one listener after the other, writes what
// came along, denies mkdir, and lets everything else go on.
func answerer(path string) error {
	l, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := os.Chdir(filepath.Dir(path)); err != nil {
		return err
	}
	if err := errors.Join(unix.Bind(l, &unix.SockaddrUnix{Name: filepath.Base(path)}), unix.Listen(l, 4)); err != nil {
		return err
	}
	fmt.Println("ready")
	for {
		c, _, err := unix.Accept(l)
		if err != nil {
			return err
		}
		b, oob := make([]byte, 1<<16), make([]byte, 256)
		n, oobn, _, _, err := unix.Recvmsg(c, b, oob, 0)
		if err != nil {
			return err
		}
		msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil || len(msgs) != 1 {
			return fmt.Errorf("%d control messages: %w", len(msgs), err)
		}
		fds, err := unix.ParseUnixRights(&msgs[0])
		if err != nil {
			return err
		}
		fmt.Printf("%s\n", b[:n])
		go answer(fds[0]) // ends with the container
		unix.Close(c)
	}
}

func answer(listener int) {
	for {
		p := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
		if unix.Poll(p, -1); p[0].Revents&unix.POLLIN == 0 {
			fmt.Println("end")
			return
		}
		var n struct { // struct seccomp_notif
			id uint64
			_  [2]uint32
			nr int32
			_  [60]byte
		}
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(listener), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&n))); e != 0 {
			continue
		}
		r := struct { // struct seccomp_notif_resp
			id         uint64
			value      int64
			err, flags int32
		}{id: n.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
		if n.nr == unix.SYS_MKDIR {
			r.err, r.flags = -int32(unix.EL2HLT), 0
		}
		unix.Syscall(unix.SYS_IOCTL, uintptr(listener), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&r)))
	}
}

// TestListener: a filter of a container and of an exec asks a process of the
// host, which gets the listener through the monitor. While nobody is there,
// nothing is started.
func TestListener(t *testing.T) {
	if path := os.Getenv(answererEnv); path != "" {
		fmt.Fprintln(os.Stderr, answerer(path))
		os.Exit(1)
	}
	n := newNode(t)
	os.Symlink("busybox", filepath.Join(n.rootfs, "bin/mkdir"))
	p := n.pod(nil)
	path := filepath.Join(t.TempDir(), strings.Repeat("long/", 30), "agent.sock") // longer than an address
	os.MkdirAll(filepath.Dir(path), 0o700)
	profile := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, ListenerPath: path, ListenerMetadata: "secret word",
		Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir", "write", "execve", "close", "read", "sendmsg"}, Action: specs.ActNotify}}}
	c := n.config(p, "c", "sh", "-c", "mkdir /tmp/x 2>/tmp/err; exec sleep 1000")
	c.Spec.Linux.Seccomp = profile
	c.Spec.Annotations = map[string]string{"a": "b"}
	bundle := c.Dir
	pr, err := p.Create(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := pr.Start(t.Context()); !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "seccomp listener") {
		t.Fatalf("start with nobody there: %v", err)
	}

	cmd := exec.Command("/proc/self/exe", "-test.run=^TestListener$")
	cmd.Env = append(os.Environ(), answererEnv+"="+path)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	lines := bufio.NewScanner(out)
	next := func() string { t.Helper(); lines.Scan(); return lines.Text() }
	if s := next(); s != "ready" {
		t.Fatalf("answerer says %q", s)
	}
	told := func(pid int, status specs.ContainerState) {
		t.Helper()
		var s specs.ContainerProcessState
		if err := json.Unmarshal([]byte(next()), &s); err != nil {
			t.Fatal(err)
		}
		if s.Pid != pid || s.State.Pid != pr.Pid() || s.State.ID != "c" || s.State.Status != status || s.State.Bundle != bundle || s.State.Annotations["a"] != "b" || s.Metadata != "secret word" {
			t.Errorf("told %+v of process %d", s, pid)
		}
	}
	if err := pr.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	told(pr.Pid(), specs.StateCreated)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	e, err := pr.Exec(t.Context(), ExecConfig{Process: n.spec("sh", "-c", "until test -s /tmp/err; do sleep 0.01; done; cat /tmp/err; mkdir /tmp/y").Process, Seccomp: profile,
		Bundle: bundle, Annotations: c.Spec.Annotations, Stdout: w, Stderr: w})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	told(e.Pid(), specs.StateRunning)
	text, _ := io.ReadAll(r)
	if strings.Count(string(text), "Level 2 halted") != 2 {
		t.Errorf("output %q", text)
	}
	if s, err := e.Wait(t.Context()); err != nil || s.Code != 1 {
		t.Errorf("status %+v, %v", s, err)
	}
	if s := next(); s != "end" {
		t.Errorf("after the exec: %q", s)
	}
	pr.Signal(t.Context(), unix.SIGKILL)
	exited(t, p, "c")
	if s := next(); s != "end" {
		t.Errorf("after the container: %q", s)
	}
	if _, _, _, err := compileSeccomp(profile, 3); !errors.Is(err, seccomp.ErrNotify) {
		t.Errorf("for an older monitor: %v", err)
	}
}
