package oci

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/program"
	"github.com/vitrine-runtime/vitrine/oci/wire"
)

// fdsOf returns what each descriptor of a process is.
func fdsOf(t testing.TB, pid int) map[string]string {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	d, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]string{}
	for _, e := range d {
		m[e.Name()], _ = os.Readlink(filepath.Join(dir, e.Name()))
	}
	return m
}

// fresh returns what a process holds that it did not hold before. A count would do only if nothing that it held then was
// about to be closed. Pipes and sockets have names of their own, so one of them cannot hide another one.
func fresh(t testing.TB, pid int, before map[string]string) (list []string) {
	t.Helper()
	known := map[string]int{}
	for _, what := range before {
		known[what]++
	}
	for fd, what := range fdsOf(t, pid) {
		if known[what]--; known[what] < 0 && what != "" { // "": closed while we looked
			list = append(list, fd+": "+what)
		}
	}
	return list
}

// RT-12, in the state "created". A blocked init may sit for hours with copies of whatever it was forked with.
// It holds its stdio, the two pipes of its start, and the table that its program
// names; not a socket, a log, a cgroup or a pipe of the container beside it.
func TestRT12BlockedInitHoldsNothingElse(t *testing.T) {
	n := newNode(t)
	p := n.pod(nil)
	n.run(p, "neighbour", "sleep", "1000")
	blocked := []*Process{n.create(p, "one", "sleep", "1000"), n.create(p, "two", "sleep", "1000")}
	seen := map[string]string{}
	for _, pr := range blocked {
		b, err := os.ReadFile(filepath.Join(n.dir, p.ID(), pr.ID(), programName))
		if err != nil {
			t.Fatal(err)
		}
		prog, err := step.Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		fds := fdsOf(t, pr.Pid())
		if len(fds) > step.FirstFD+len(prog.Files) {
			t.Errorf("%s holds %d descriptors for a program that names %q: %v", pr.ID(), len(fds), prog.Files, fds)
		}
		if fds["0"] != "/null" {
			t.Errorf("%s has %q as stdin", pr.ID(), fds["0"])
		}
		for fd, target := range fds {
			if fd == "0" || !strings.HasPrefix(target, "pipe:") {
				continue
			}
			if other, shared := seen[target]; shared {
				t.Errorf("%s shares %s with %s", pr.ID(), target, other)
			}
			seen[target] = pr.ID()
		}
		for fd, target := range fds {
			if strings.HasPrefix(target, "socket:") || strings.HasPrefix(target, "anon_inode:") || strings.Contains(target, "cgroup") {
				t.Errorf("%s holds %s as %s", pr.ID(), target, fd)
			}
		}
	}
	// The consequence: the neighbour's log ends with the neighbour.
	if err := p.Process("neighbour").Signal(t.Context(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	exited(t, p, "neighbour")
	if d := time.Since(start); d > time.Second {
		t.Errorf("the neighbour's pipes were held open for %v", d)
	}
}

// dumpable says whether a process of the same user and without capabilities may
// look into pid: where the users are the same, only that decides.
func dumpable(t *testing.T, pid int) bool {
	t.Helper()
	uid, err := strconv.Atoi(strings.Fields(status(t, pid, "Uid"))[0])
	if err != nil {
		t.Fatal(err)
	}
	ok := make(chan bool)
	go func() { // ends at once; its thread, changed for good, ends with it
		runtime.LockOSThread()
		_, _, e1 := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(uid), uintptr(uid), uintptr(uid))
		_, _, e2 := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid))
		_, _, e3 := unix.RawSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&capHeader)), uintptr(unsafe.Pointer(&capNone)), 0)
		_, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
		ok <- err == nil || e1|e2|e3 != 0
	}()
	return <-ok
}

var (
	capHeader = struct{ version, pid uint32 }{0x20080522, 0} // _LINUX_CAPABILITY_VERSION_3, this thread
	capNone   [6]uint32
)

func TestNobodyCanBeTraced(t *testing.T) {
	n := newNode(t)
	p := n.pod(func(c *PodConfig) { c.SharedPID = true })
	pr := n.create(p, "c", "sleep", "1000")
	// The probe itself: execve makes both users' processes dumpable.
	for id, uid := range map[string]uint32{"root": 0, "user": 65535} {
		c := n.config(p, id, "sleep", "1000")
		c.Spec.Process.User = specs.User{UID: uid, GID: uid}
		running, err := p.Create(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		if dumpable(t, running.Pid()) {
			t.Errorf("the blocked init of %s is dumpable", id)
		}
		if err := running.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !dumpable(t, running.Pid()) {
			t.Fatalf("the probe finds nothing dumpable, not even a running container of %s", id)
		}
	}
	if dumpable(t, p.PausePid()) {
		t.Error("the pause is dumpable")
	}
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pr.Pid())); err != nil || !strings.HasPrefix(exe, "/memfd:") {
		t.Errorf("exe of the blocked init is %q, %v", exe, err)
	}
	f, err := os.OpenFile(fmt.Sprintf("/proc/%d/exe", pr.Pid()), os.O_WRONLY, 0)
	if err == nil {
		_, err = f.Write([]byte("x"))
		f.Close()
	}
	if !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.ETXTBSY) {
		t.Errorf("write to /proc/<init>/exe: %v", err)
	}
}

// A child that is killed while it waits was never started, and says so.
func TestKilledWhileBlocked(t *testing.T) {
	n := newNode(t)
	p := n.pod(nil)
	pr := n.create(p, "c", "sleep", "1000")
	if err := unix.Kill(pr.Pid(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s := exited(t, p, "c")
	if s.Signal != unix.SIGKILL {
		t.Errorf("status %+v", s)
	}
	neverStarted(t, n, p, "c")
	if err := pr.Start(t.Context()); !errors.Is(err, ErrState) {
		t.Errorf("start of the dead: %v", err)
	}
}

// The same, with start and death at the same time, many times over: whatever
// wins, nothing is reported as started that never executed.
func TestKilledAtStart(t *testing.T) {
	n := newNode(t)
	p := n.pod(nil)
	for i := range 50 {
		id := fmt.Sprint("c", i)
		pr := n.create(p, id, "sh", "-c", "echo ran; exec sleep 1000")
		killed := make(chan error)
		go func() { killed <- unix.Kill(pr.Pid(), unix.SIGKILL) }()
		err := pr.Start(t.Context())
		<-killed
		exited(t, p, id)
		if err != nil {
			if !errors.Is(err, ErrDied) && !errors.Is(err, ErrState) {
				t.Errorf("start: %v", err)
			}
			neverStarted(t, n, p, id)
		}
	}
}

func neverStarted(t *testing.T, n *node, p *Pod, id string) {
	t.Helper()
	r, err := ReadExit(filepath.Join(n.dir, p.ID(), id))
	if err != nil || r.StartedAt != 0 {
		t.Errorf("exit record of %s: %+v, %v", id, r, err)
	}
	l, err := p.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range l {
		if s.ID == id && (s.Phase != Dead || !s.StartedAt.IsZero()) {
			t.Errorf("list says %+v", s)
		}
	}
	if log := n.log(p, id); log != "" {
		t.Errorf("%s has written %q", id, log)
	}
}

// killOnExecve is a filter that kills whoever calls execve or execveat.
func killOnExecve() []byte {
	var b []byte
	for _, i := range []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 1, K: unix.SYS_EXECVE},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: unix.SYS_EXECVEAT},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0x80000000}, // SECCOMP_RET_KILL_PROCESS
		{Code: unix.BPF_RET | unix.BPF_K, K: 0x7fff0000}, // SECCOMP_RET_ALLOW
	} {
		b = append(b, byte(i.Code), byte(i.Code>>8), i.Jt, i.Jf, byte(i.K), byte(i.K>>8), byte(i.K>>16), byte(i.K>>24))
	}
	return b
}

// A child whose own filter kills it closes the report pipe as an execve would.
func TestKilledByItsFilter(t *testing.T) {
	n := newNode(t)
	p := n.pod(nil)
	c := n.config(p, "c", "sh", "-c", "echo ran")
	defer c.Close()
	prog, err := program.Compile(program.Input{Spec: c.Spec, Seccomp: killOnExecve(), Inherit: inherited(nil, false)})
	if err != nil {
		t.Fatal(err)
	}
	code, err := prog.Encode()
	if err != nil {
		t.Fatal(err)
	}
	o := &order{request: wire.Create{ID: "c", LogName: "0.log", Cgroup: true, Table: 1}}
	defer o.close()
	for _, err := range []error{
		o.keep(sys.SealedMemfd("program", code, false)), o.keep(openDir(c.Dir)), o.keep(openDir(c.Dir)),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	o.files = append(o.files, c.Cgroup.Int(), c.Rootfs.Int())
	if _, err := ask[*wire.Created](t.Context(), p, &o.request, o.files...); err != nil {
		t.Fatal(err)
	}
	if err := p.Process("c").Start(t.Context()); !errors.Is(err, ErrDied) {
		t.Errorf("start: %v", err)
	}
	if s := exited(t, p, "c"); s.Signal != unix.SIGSYS {
		t.Errorf("status %+v", s)
	}
	neverStarted(t, n, p, "c")
}

// A command that is not there is the step's error, with its errno, and the
// container is dead without ever having been started.
func TestNoSuchCommand(t *testing.T) {
	n := newNode(t)
	p := n.pod(nil)
	pr := n.create(p, "c", "/bin/nothing")
	err := pr.Start(t.Context())
	var se *StartError
	if !errors.As(err, &se) || !errors.Is(err, syscall.ENOENT) || !errors.Is(err, os.ErrNotExist) || !strings.Contains(se.Text, "/bin/nothing") {
		t.Errorf("start: %#v", err)
	}
	exited(t, p, "c")
	neverStarted(t, n, p, "c")
}

// A create that fails leaves nothing: no process, no id, nobody in the cgroup.
func TestFailedCreate(t *testing.T) {
	n := newNode(t)
	p := n.pod(nil)
	before := fdsOf(t, p.MonitorPid())
	c := n.config(p, "c", "true")
	c.Spec.Process.Cwd = "/bin/true/not/a/directory"
	cgroup := n.leaf("c")
	defer cgroup.Close()
	_, err := p.Create(t.Context(), c)
	var se *StartError
	if !errors.As(err, &se) || se.Errno == 0 || se.Text == "" {
		t.Fatalf("create: %#v", err)
	}
	if procs := readAt(cgroup, "cgroup.procs"); procs != "" {
		t.Errorf("left in the cgroup: %s", procs)
	}
	if l, err := p.List(t.Context()); err != nil || len(l) != 0 {
		t.Errorf("list %+v, %v", l, err)
	}
	eventually(t, "the monitor's descriptors are what they were", func() bool { return len(fresh(t, p.MonitorPid(), before)) == 0 })
	os.RemoveAll(c.Dir)
	n.run(p, "c", "true")
	exited(t, p, "c")
}
