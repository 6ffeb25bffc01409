package main

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/oci/notify/notifytest"
)

// bundleOf makes a bundle with Debian's busybox in it.
func bundleOf(t *testing.T, config string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes namespaces and mounts")
	}
	bb, err := os.ReadFile("/usr/bin/busybox")
	if err != nil {
		t.Skip("needs Debian's busybox-static: " + err.Error())
	}
	dir := t.TempDir()
	os.MkdirAll(dir+"/rootfs/bin", 0o755)
	os.WriteFile(dir+"/rootfs/bin/busybox", bb, 0o755)
	for _, a := range []string{"sh", "tty", "stty", "mkdir", "sleep", "cat"} {
		os.Symlink("busybox", dir+"/rootfs/bin/"+a)
	}
	os.WriteFile(dir+"/config.json", []byte(config), 0o600)
	return dir
}

// serve listens at a path, and calls f with what each connection is sent.
func serve(t *testing.T, path string, f func(text []byte, fd int)) {
	t.Helper()
	l, err := notifytest.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() { // ends with the test
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			if text, fd, err := notifytest.Receive(c); err == nil {
				f(text, fd)
			}
		}
	}()
}

const terminalConfig = `{
  "ociVersion": "1.3.0", "root": {"path": "rootfs"}, "annotations": {"color": "blue"},
  "process": {"terminal": true, "consoleSize": {"height": 11, "width": 22}, "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0},
    "args": ["sh", "-c", "stty size; mkdir /new; cat /dev/tty >/dev/null; echo the end"]},
  "mounts": [{"destination": "/proc", "type": "proc"}, {"destination": "/dev", "type": "tmpfs", "options": ["mode=755"]},
    {"destination": "/dev/pts", "type": "devpts", "options": ["newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}],
  "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}],
    "seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "LISTENER", "listenerMetadata": "meta",
      "syscalls": [{"names": ["mkdir", "write", "read", "execve"], "action": "SCMP_ACT_NOTIFY"}]}}
}`

// TestTerminalAndListener: create leaves a container whose terminal somebody has
// and whose filter nobody knows; start, as another process would, sends the filter's
// listener; exec has a terminal and a listener of its own.
func TestTerminalAndListener(t *testing.T) {
	socks := t.TempDir()
	masters, told := make(chan int, 2), make(chan []byte, 2)
	bundle := bundleOf(t, strings.Replace(terminalConfig, "LISTENER", socks+"/agent", 1))
	serve(t, socks+"/console", func(_ []byte, fd int) { masters <- fd })
	serve(t, socks+"/agent", func(text []byte, fd int) {
		told <- text
		go notifytest.Answer(fd, nil) // ends with the container
	})
	must := func(args ...string) string {
		t.Helper()
		code, out, errs := cli(append([]string{"--root", filepath.Join(socks, "state"), "--cgroup-manager", "disabled"}, args...)...)
		if code != 0 {
			t.Fatalf("%q: code %d: %s", args, code, errs)
		}
		return out
	}
	t.Cleanup(func() {
		cli("--root", filepath.Join(socks, "state"), "--cgroup-manager", "disabled", "delete", "--force", "c")
	})
	must("create", "--bundle", bundle, "--console-socket", socks+"/console", "c")
	master := terminal(t, <-masters)
	if len(told) > 0 {
		t.Error("the listener was sent before the start")
	}
	must("start", "c")
	state := stateOf(t, <-told)
	if state.Pid != state.State.Pid || state.State.ID != "c" || state.State.Annotations["color"] != "blue" || state.Metadata != "meta" || state.State.Bundle != bundle {
		t.Errorf("told %+v", state)
	}
	init := state.Pid
	must("exec", "--tty", "--detach", "--console-socket", socks+"/console", "c", "sh", "-c", "tty; mkdir /newer; echo the end")
	if state = stateOf(t, <-told); state.Pid == init || state.State.Pid != init || state.State.Status != specs.StateRunning {
		t.Errorf("told %+v", state)
	}
	if s := upTo(t, terminal(t, <-masters), "the end"); !strings.Contains(s, "/dev/pts/1\r\n") || !strings.Contains(s, "Level 2 halted") {
		t.Errorf("terminal of the exec: %q", s)
	}
	// It is our child here: a zombie would keep its pid namespace.
	if _, err := unix.Wait4(state.Pid, nil, 0, nil); err != nil {
		t.Error(err)
	}
	master.WriteString("\x04") // the end of the input
	if s := upTo(t, master, "the end"); !strings.HasPrefix(s, "11 22\r\n") || !strings.Contains(s, "Level 2 halted") {
		t.Errorf("terminal: %q", s)
	}
}

// terminal is a master with a time limit.
func terminal(t *testing.T, fd int) *os.File {
	unix.SetNonblock(fd, true)
	f := os.NewFile(uintptr(fd), "master")
	f.SetDeadline(time.Now().Add(20 * time.Second))
	t.Cleanup(func() { f.Close() })
	return f
}

func upTo(t *testing.T, f *os.File, want string) string {
	t.Helper()
	var s strings.Builder
	b := make([]byte, 4096)
	for !strings.Contains(s.String(), want) {
		n, err := f.Read(b)
		s.Write(b[:n])
		if err != nil {
			if err != io.EOF && !errors.Is(err, unix.EIO) {
				t.Errorf("read terminal: %v", err)
			}
			break
		}
	}
	return s.String()
}

func stateOf(t *testing.T, text []byte) (s specs.ContainerProcessState) {
	t.Helper()
	if err := json.Unmarshal(text, &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// A terminal that somebody is left on is shown up to the end of the process that it
// was made for, and not longer.
func TestTerminalThatOthersKeep(t *testing.T) {
	n := newNode(t)
	n.must("run", "--detach", "--bundle", n.bundle("exec sleep 1000", nil), n.tag)
	began := time.Now()
	r := n.oci("exec", "--tty", n.tag, "sh", "-c", "busybox setsid sh -c 'mkdir /tmp/kept; sleep 20' & until [ -e /tmp/kept ]; do sleep 0.02; done; echo shown; exit 3")
	if r.code != 3 || !strings.Contains(r.out, "shown") {
		t.Errorf("%+v", r)
	}
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("took %s", d)
	}
	n.must("delete", "--force", n.tag)
}

// The terminal of an exec in a user namespace belongs to who runs there, also where that has no root: root of the host
// is nobody there, and what he makes could not be given away.
func TestExecTerminalInUserNamespace(t *testing.T) {
	for name, first := range map[string]int{"with a root": 0, "without": 5} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			b := n.bundle("exec sleep 1000", func(s map[string]any) {
				l := s["linux"].(map[string]any)
				l["namespaces"] = append(l["namespaces"].([]any), map[string]any{"type": "user"})
				l["uidMappings"] = []any{map[string]any{"containerID": first, "hostID": 300000, "size": 65536}}
				l["gidMappings"] = l["uidMappings"]
				s["process"].(map[string]any)["user"] = map[string]any{"uid": first, "gid": first}
			})
			give(t, b+"/rootfs", 300000)
			reachable(t, b+"/rootfs")
			n.must("run", "--detach", "--bundle", b, n.tag)
			for _, user := range []string{strconv.Itoa(first), "1000"} {
				r := n.oci("exec", "--tty", "--user", user+":"+user, n.tag, "sh", "-c", "id -u; ls -ln $(tty); echo written >$(tty); exit 3")
				if r.code != 3 || !strings.HasPrefix(r.out, user+"\r\n") || !strings.Contains(r.out, "--w----    1 "+user+" ") || !strings.Contains(r.out, "written\r\n") {
					t.Errorf("user %s: %+v", user, r)
				}
			}
			n.must("delete", "--force", n.tag)
		})
	}
}
