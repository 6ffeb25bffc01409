// Package notifytest is the other side of package notify, for tests: the process behind
// linux.seccomp.listenerPath, which gets listeners and answers their notifications.
//
//	test                                    agent, the same binary
//	Start(t, path)    ── forks ──►          Main: Listen, Receive
//	Told()            ◄── told {…} ───      what came with a listener
//	Asked()           ◄── asked 83 ───      a call that a filter asks about
//	                  ◄── end ────────      nobody is under that filter any more
//
// It is a process of its own, as it is in life: who sends the listener and who answers
// share nothing. Listen, Receive and Answer are for tests that do with a goroutine.
package notifytest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Denied is what a mkdir that is asked about fails with: nobody else would choose it.
// All other calls go on.
const Denied = unix.EL2HLT

// agentEnv makes the test binary an agent, on the socket that it names.
const agentEnv = "VITRINE_TEST_AGENT"

// Main does not return where the test binary is an agent. A TestMain calls it first.
func Main() {
	if path := os.Getenv(agentEnv); path != "" {
		fmt.Fprintln(os.Stderr, serve(path))
		os.Exit(1)
	}
}

// serve takes one listener after the other, and writes about each.
func serve(path string) error {
	l, err := Listen(path)
	if err != nil {
		return err
	}
	out := log.New(os.Stdout, "", 0) // whole lines, whoever writes
	out.Print("ready")
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return err
		}
		message, listener, err := Receive(c)
		if err != nil {
			return err
		}
		out.Printf("told %s", message)
		go func() { // ends with the last process under the filter
			if err := Answer(listener, func(call int) { out.Print("asked ", call) }); err != nil {
				out.Print(err)
			}
			out.Print("end")
		}()
	}
}

// Agent is an agent that runs until the end of the test.
type Agent struct {
	t     testing.TB
	out   *os.File
	lines *bufio.Scanner
}

// patience bounds how long an agent may say nothing.
const patience = 30 * time.Second

// Start starts an agent at path, which may be longer than an address, and returns when
// it listens.
func Start(t testing.TB, path string) *Agent {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), agentEnv+"="+path)
	cmd.Stderr = os.Stderr
	out, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	cmd.Stdout = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
		out.Close()
	})
	a := &Agent{t, out, bufio.NewScanner(out)}
	a.next("ready")
	return a
}

// next skips what was asked meanwhile, unless that is what is wanted, and returns the
// rest of a line that begins with one of the words.
func (a *Agent) next(words ...string) (word, rest string) {
	a.t.Helper()
	_ = a.out.SetReadDeadline(time.Now().Add(patience)) // pipes have one
	for a.lines.Scan() {
		got, rest, _ := strings.Cut(a.lines.Text(), " ")
		for _, want := range words {
			if got == want {
				return got, rest
			}
		}
		if got != "asked" {
			break
		}
	}
	a.t.Fatalf("agent says %q, want %q; %v", a.lines.Text(), words, a.lines.Err())
	return "", ""
}

// Told returns what came with the next listener.
func (a *Agent) Told() (s specs.ContainerProcessState) {
	a.t.Helper()
	_, text := a.next("told")
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		a.t.Fatalf("agent was told %q: %v", text, err)
	}
	return s
}

// Asked returns the numbers of the calls that filters ask about until nobody is under
// one of them any more.
func (a *Agent) Asked() (calls []int) {
	a.t.Helper()
	for {
		word, text := a.next("asked", "end")
		if word == "end" {
			return calls
		}
		n, err := strconv.Atoi(text)
		if err != nil {
			a.t.Fatal(err)
		}
		calls = append(calls, n)
	}
}

// Listen listens at a path, which may be longer than an address. The caller closes it.
func Listen(path string) (*net.UnixListener, error) {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)), Net: "unix"})
	if err == nil {
		l.SetUnlinkOnClose(false) // the number is another's by then
	}
	return l, err
}

// Receive reads a connection to its end and closes it. It returns what it was sent and
// the one descriptor that came along, which is the caller's.
func Receive(c *net.UnixConn) (message []byte, fd int, err error) {
	defer func() { _ = c.Close() }() // all is read
	var fds []int
	b, oob := make([]byte, 1<<16), make([]byte, 256)
	for {
		n, oobn, _, _, err := c.ReadMsgUnix(b, oob)
		message = append(message, b[:n]...)
		fds = append(fds, rights(oob[:oobn])...)
		if n == 0 || errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return message, -1, err
		}
	}
	if len(fds) != 1 {
		return message, -1, fmt.Errorf("receive %d descriptors instead of one: %w", len(fds), unix.EBADMSG)
	}
	return message, fds[0], nil
}

// rights are the descriptors in control messages.
func rights(oob []byte) (fds []int) {
	messages, _ := unix.ParseSocketControlMessage(oob) // none is nothing too
	for i := range messages {
		more, _ := unix.ParseUnixRights(&messages[i])
		fds = append(fds, more...)
	}
	return fds
}

// Answer answers what comes out of a listener and closes it when nobody is under its
// filter any more. It calls asked, unless that is nil, with the number of each call before
// it answers.
func Answer(listener int, asked func(call int)) error {
	defer unix.Close(listener)
	for {
		p := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(p, -1); errors.Is(err, unix.EINTR) {
			continue
		} else if err != nil {
			return os.NewSyscallError("poll", err)
		}
		if p[0].Revents&unix.POLLIN == 0 {
			return nil
		}
		var n struct { // struct seccomp_notif
			id         uint64
			pid, flags uint32
			call       int32
			_          [60]byte
		}
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(listener), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&n))); e != 0 {
			continue // who asked is gone
		}
		if asked != nil {
			asked(int(n.call))
		}
		r := struct { // struct seccomp_notif_resp
			id         uint64
			value      int64
			err, flags int32
		}{id: n.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
		if n.call == unix.SYS_MKDIR {
			r.err, r.flags = -int32(Denied), 0
		}
		// It fails where who asked is gone.
		_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(listener), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&r)))
	}
}
