package program_test

import (
	"bytes"
	"encoding/binary"
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

	"github.com/vitrine-runtime/vitrine/internal/step"
	"github.com/vitrine-runtime/vitrine/oci/executor"
	"github.com/vitrine-runtime/vitrine/oci/program"
)

// receiver is who asked for a terminal.
type receiver struct {
	t            *testing.T
	ours, theirs int
	master       *os.File
	out          bytes.Buffer
}

func newReceiver(t *testing.T) *receiver {
	t.Helper()
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	r := &receiver{t: t, ours: p[0], theirs: p[1]}
	t.Cleanup(func() {
		unix.Close(p[0])
		unix.Close(p[1])
		r.master.Close()
	})
	return r
}

// receive takes the master from the socket, where it lies once the program has
// come to its start wait.
func (r *receiver) receive() {
	r.t.Helper()
	b, oob := make([]byte, 4096), make([]byte, 256)
	n, oobn, _, _, err := unix.Recvmsg(r.ours, b, oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		r.t.Errorf("receive the master: %v", err)
		return
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(msgs) != 1 || string(b[:n]) != "/dev/pts/ptmx" {
		r.t.Errorf("message %q with %d control messages: %v", b[:n], len(msgs), err)
		return
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		r.t.Errorf("%d descriptors: %v", len(fds), err)
		return
	}
	unix.SetNonblock(fds[0], true)
	r.master = os.NewFile(uintptr(fds[0]), "master")
	r.master.SetDeadline(time.Now().Add(20 * time.Second))
}

// until reads from the master until it shows want, or its end.
func (r *receiver) until(want string) bool {
	b := make([]byte, 4096)
	for want == "" || !strings.Contains(r.out.String(), want) {
		n, err := r.master.Read(b)
		r.out.Write(b[:n])
		if err != nil {
			if !errors.Is(err, unix.EIO) && err != io.EOF { // EIO: nobody has the other side open
				r.t.Errorf("read terminal: %v", err)
			}
			return want == ""
		}
	}
	return true
}

// interrupt interrupts a shell that says "ready" and then runs cat. The shell must wait for cat by then: one that is
// interrupted while it prints leaves its output locked, and busybox's then waits for itself for ever.
func (r *receiver) interrupt() {
	if !r.until("ready\r\n") {
		return
	}
	r.master.WriteString("go\n")
	if r.until("go\r\ngo\r\n") { // the terminal's echo, and cat's
		r.master.WriteString("\x03")
		r.until("")
	}
}

// console makes a stage with a terminal and what receives it.
func console(t *testing.T, root string, args ...string) (*stage, *receiver) {
	t.Helper()
	s, r := newStage(root, args...), newReceiver(t)
	s.in.Spec.Process.Terminal = true
	s.in.ConsoleSocket = 1
	s.sockets = []int{r.theirs}
	s.before = func(*executor.Child) { r.receive() }
	return s, r
}

// terminalTools adds what tests of terminals run.
func terminalTools(t *testing.T) string {
	root := rootTree(t)
	for _, a := range []string{"tty", "stty", "ps", "od", "head", "dd"} {
		os.Symlink("busybox", filepath.Join(root, "bin", a))
	}
	return root
}

func TestTerminal(t *testing.T) {
	root := terminalTools(t)
	s, r := console(t, root, "sh", "-c", `
tty; stty size
stat -c '%n %t:%T %a %u %g %F' /dev/console /dev/pts/0
stat -L -c 'fd %n %t:%T' /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2
grep -E ' /dev/console ' /proc/self/mountinfo
echo "controlling $(cut -d' ' -f7 /proc/self/stat 2>/dev/null || awk '{print $7}' /proc/self/stat)"
ls /proc/self/fd | head -c 100
echo to the console > /dev/console
echo to the terminal > /dev/tty
echo ready
cat
`)
	s.in.Spec.Process.ConsoleSize = &specs.Box{Height: 33, Width: 132}
	s.in.Spec.Process.User = specs.User{UID: 1000, GID: 1000}
	os.Symlink("busybox", root+"/bin/cut")
	s.after = func(*executor.Child) {
		if !r.until("ready\r\n") {
			return
		}
		// The size of its window, and its signals, come from the master.
		unix.IoctlSetWinsize(int(r.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 1, Col: 2})
		r.interrupt()
	}
	res := s.run(t)
	if res.err != nil {
		t.Fatal(res.err)
	}
	// The shell is the init of its namespace, which ignores SIGINT; its child is not.
	if !res.status.Exited() || res.status.ExitStatus() != 130 {
		t.Errorf("status %v after an interrupt", res.status)
	}
	for _, want := range []string{
		"/dev/pts/0\r\n33 132\r\n", "/dev/console 88:0 620 1000 5 character special file", "/dev/pts/0 88:0 620 1000 5 character special file",
		"fd /proc/self/fd/0 88:0\r\nfd /proc/self/fd/1 88:0\r\nfd /proc/self/fd/2 88:0\r\n", "rw,nosuid,noexec", "- devpts devpts",
		"controlling 34816\r\n", "0\r\n1\r\n2\r\n3\r\n", "to the console\r\nto the terminal\r\nready\r\ngo\r\ngo\r\n^C",
	} {
		if !strings.Contains(r.out.String(), want) {
			t.Errorf("terminal shows no %q", want)
		}
	}
	if t.Failed() {
		t.Logf("%s", r.out.Bytes())
	}
	if res.out != "" {
		t.Errorf("%q went past the terminal", res.out)
	}
}

// TestTerminalIsItsOwn: terminals of two containers are strangers.
func TestTerminalIsItsOwn(t *testing.T) {
	root := terminalTools(t)
	host, _ := os.ReadDir("/dev/pts")
	s, r := console(t, root, "sh", "-c", "ls /dev/pts; tty")
	s.after = func(*executor.Child) { r.until("") }
	if res := s.run(t); res.err != nil {
		t.Fatal(res.err)
	}
	if got := strings.Fields(r.out.String()); !slices.Equal(got, []string{"0", "ptmx", "/dev/pts/0"}) {
		t.Errorf("terminals %q", got)
	}
	if now, _ := os.ReadDir("/dev/pts"); len(now) != len(host) {
		t.Errorf("%d terminals of the host, were %d", len(now), len(host))
	}
}

// TestTerminalOfExec: a process of its own session in a running container.
func TestTerminalOfExec(t *testing.T) {
	root := terminalTools(t)
	s := newStage(root, "sleep", "60")
	r := newReceiver(t)
	var err error
	s.after = func(c *executor.Child) {
		p := testSpec("sh", "-c", "tty; stty size; stat -c '%n %t:%T %a %u %g' /dev/pts/0; ls /dev/console; echo for all > /dev/tty; ls /proc/self/fd; echo ready; cat").Process
		p.Terminal, p.ConsoleSize, p.User = true, &specs.Box{Height: 10, Width: 20}, specs.User{UID: 77, GID: 7}
		err = execOn(t, c, p, r)
		unix.Kill(c.Pid(), unix.SIGKILL)
	}
	if res := s.run(t); res.err != nil || err != nil {
		t.Fatal(res.err, err)
	}
	// The interrupt is in the status. Its echo comes behind the signal, when the terminal may be gone.
	for _, want := range []string{"/dev/pts/0\r\n10 20\r\n/dev/pts/0 88:0 620 77 5\r\n", "ls: /dev/console: No such file", "for all\r\n0  1  2  3\r\nready\r\n"} {
		if !strings.Contains(r.out.String(), want) {
			t.Errorf("terminal shows no %q:\n%s", want, r.out.Bytes())
		}
	}
}

// TestTerminalInUserNamespace: the slave belongs to the user as the container
// knows him, and the console is attached where somebody else's /dev has one.
func TestTerminalInUserNamespace(t *testing.T) {
	root := mappedRoot(t)
	for _, a := range []string{"tty", "stty"} {
		os.Symlink("busybox", filepath.Join(root, "bin", a))
	}
	spec := userSpec("sh", "-c", "tty; stat -c '%n %t:%T %a %u %g' /dev/pts/0 /dev/console; echo ready; cat; exit $?")
	spec.Process.User = specs.User{UID: 1000, GID: 1000}
	spec.Process.Terminal = true
	s, r := userStage(t, root, spec), newReceiver(t)
	s.in.ConsoleSocket, s.in.Visible, s.sockets = 2, []int{3, 4}, []int{r.theirs}
	os.WriteFile(filepath.Join(s.sources[0], "console"), nil, 0o600)
	s.before = func(*executor.Child) { r.receive() }
	s.after = func(*executor.Child) {
		r.interrupt()
	}
	if res := s.run(t); res.err != nil || res.status.ExitStatus() != 130 {
		t.Fatalf("%v, status %#x, %q", res.err, uint32(res.status), r.out.Bytes())
	}
	if want := "/dev/pts/0\r\n/dev/pts/0 88:0 620 1000 5\r\n/dev/console 88:0 620 1000 5\r\nready"; !strings.Contains(r.out.String(), want) {
		t.Errorf("terminal shows no %q:\n%s", want, r.out.Bytes())
	}
	os.Remove(filepath.Join(s.sources[0], "console"))
	s.wants(t, "!find /dev/console: no such file")
}

// TestTerminalOfTheHost: with the host's /dev in a privileged container, the
// terminal is one of the host's, and nothing is left of it.
func TestTerminalOfTheHost(t *testing.T) {
	root := terminalTools(t)
	if _, err := os.Stat("/dev/console"); err != nil {
		t.Skip("needs /dev/console: " + err.Error())
	}
	before, _ := os.ReadDir("/dev/pts")
	s, r := console(t, root, "sh", "-c", "tty; stat -c '%t' /dev/console; ls /proc/1/fd | wc -l")
	s.without("/dev")
	s.addBind("/dev", "/dev", true)
	s.in.ConsoleSocket = 2
	s.after = func(*executor.Child) { r.until("") }
	if res := s.run(t); res.err != nil {
		t.Fatal(res.err)
	}
	if out := r.out.String(); !strings.HasPrefix(out, "/dev/pts/") || !strings.Contains(out, "\r\n88\r\n") {
		t.Errorf("output %q", out)
	}
	r.master.Close()
	if after, _ := os.ReadDir("/dev/pts"); len(after) != len(before) {
		t.Errorf("%d terminals on the host, were %d", len(after), len(before))
	}
	var st unix.Stat_t
	if unix.Stat("/dev/console", &st); unix.Major(st.Rdev) == 136 {
		t.Error("the host's console has changed")
	}
}

// execOn runs a process in the container of c on a terminal, interrupts it
// when it says that it is ready, and reads to the end.
func execOn(t *testing.T, c *executor.Child, p *specs.Process, r *receiver) error {
	prog, err := program.CompileExec(program.ExecInput{Process: p, ConsoleSocket: 1})
	if err != nil {
		return err
	}
	enc, err := prog.Encode()
	if err != nil {
		return err
	}
	done := make(chan error)
	go func() { // a thread that still sees /proc and /dev
		done <- func() error {
			null, err := os.Open("/dev/null")
			if err != nil {
				return err
			}
			defer null.Close()
			n, pidfd := int(null.Fd()), c.PidFD().Int()
			e, err := executor.Start(executor.Attr{Program: enc, CgroupFD: -1, PIDNS: pidfd, ProcFD: -1, Stdio: [3]int{n, n, n}, Files: []int{pidfd, r.theirs}})
			if err != nil {
				return err
			}
			defer e.Close()
			if err := e.Run(); err != nil {
				unix.Wait4(e.Pid(), nil, 0, nil)
				return err
			}
			r.receive()
			r.interrupt()
			var ws unix.WaitStatus
			unix.Wait4(e.Pid(), &ws, 0, nil)
			if ws.ExitStatus() != 130 && ws.Signal() != unix.SIGINT {
				return fmt.Errorf("status %#x after an interrupt", ws)
			}
			return nil
		}()
	}()
	return <-done
}

func TestTerminalInput(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*program.Input)
		want   error
	}{
		"without a socket":   {func(in *program.Input) { in.ConsoleSocket = 0 }, program.ErrUnsupported},
		"socket for nothing": {func(in *program.Input) { in.Spec.Process.Terminal = false }, program.ErrInvalid},
		"socket is the root": {func(in *program.Input) { in.ConsoleSocket = -1 }, program.ErrInvalid},
		"socket beyond":      {func(in *program.Input) { in.ConsoleSocket = 2 }, program.ErrInvalid},
		"lines":              {func(in *program.Input) { in.Spec.Process.ConsoleSize.Height = 1 << 16 }, program.ErrInvalid},
		"columns":            {func(in *program.Input) { in.Spec.Process.ConsoleSize.Width = 1 << 32 }, program.ErrInvalid},
	} {
		s := testSpec("true")
		s.Process.Terminal, s.Process.ConsoleSize = true, &specs.Box{Height: 1, Width: 1}
		in := program.Input{Spec: s, ConsoleSocket: 1}
		tt.change(&in)
		if _, err := program.Compile(in); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := program.CompileExec(program.ExecInput{Process: s.Process, ConsoleSocket: in.ConsoleSocket}); !errors.Is(err, tt.want) {
			t.Errorf("%s: exec: %v", name, err)
		}
	}
}

// TestNobodyForTheTerminal: the other end is closed.
func TestNobodyForTheTerminal(t *testing.T) {
	s, r := console(t, rootTree(t), "true")
	unix.Close(r.ours)
	r.ours = -1
	s.wants(t, "!send it to whoever asked for a terminal: broken pipe")
}

// TestRT15: what stands on /dev/pts and /dev/console is not what it should be
// (CVE-2025-52565). The canary is a directory of the host; the last rows change
// things under the program, between the making of the terminal and its mount.
func TestRT15(t *testing.T) {
	canary := t.TempDir()
	os.WriteFile(filepath.Join(canary, "console"), []byte("mine"), 0o600)
	volume := t.TempDir()
	os.WriteFile(filepath.Join(volume, "ptmx"), nil, 0o666)
	os.WriteFile(filepath.Join(volume, "0"), nil, 0o666)
	fifo := t.TempDir()
	unix.Mkfifo(filepath.Join(fifo, "ptmx"), 0o666)
	const shown = `sh -c stat -c '%t:%T' /dev/console`
	for name, tt := range map[string]struct {
		set  func(s *stage, root string)
		want string
	}{
		"nothing to see": {func(*stage, string) {}, "88:0\r\n"},
		"no devpts":      {func(s *stage, _ string) { s.without("/dev/pts") }, "!find the pseudo terminals: no such file"},
		"files":          {func(s *stage, _ string) { s.without("/dev/pts"); s.addBind(volume, "/dev/pts", true) }, "!find a devpts on /dev/pts: no such device"},
		"pipe":           {func(s *stage, _ string) { s.without("/dev/pts"); s.addBind(fifo, "/dev/pts", true) }, "!find a devpts on /dev/pts: no such device"},
		"covered":        {func(s *stage, _ string) { s.addBind(volume, "/dev/pts", true) }, "!find a devpts on /dev/pts: no such device"},
		"covered ptmx":   {func(s *stage, _ string) { s.addBind(filepath.Join(fifo, "ptmx"), "/dev/pts/ptmx", false) }, "!make a terminal there: invalid cross-device link"},
		"proc there": {func(s *stage, _ string) {
			s.without("/dev/pts")
			s.in.Spec.Mounts = append(s.in.Spec.Mounts, specs.Mount{Destination: "/dev/pts", Type: "proc"})
		}, "!find a devpts on /dev/pts: no such device"},
		"link for pts": {func(s *stage, root string) {
			s.without("/dev")
			os.Mkdir(root+"/dev", 0o755)
			os.Symlink("/proc", root+"/dev/pts")
		}, "!find the pseudo terminals: too many levels"},
		"link for console": {func(s *stage, root string) {
			s.without("/dev")
			os.MkdirAll(root+"/dev", 0o755)
			os.Symlink(filepath.Join(canary, "console"), root+"/dev/console")
			s.in.Spec.Mounts = append(s.in.Spec.Mounts, specs.Mount{Destination: "/dev/pts", Type: "devpts", Options: []string{"newinstance", "ptmxmode=0666"}})
		}, "!too many levels"},
		"link to the trigger": {func(s *stage, root string) {
			s.without("/dev")
			os.MkdirAll(root+"/dev", 0o755)
			os.Symlink("/proc/sysrq-trigger", root+"/dev/console")
			s.in.Spec.Mounts = append(s.in.Spec.Mounts, specs.Mount{Destination: "/dev/pts", Type: "devpts", Options: []string{"newinstance", "ptmxmode=0666"}})
		}, "!too many levels"},
		"swapped after it was opened": {func(s *stage, _ string) { s.change = func(p *step.Program) { swap(p, false) } }, "88:0\r\n"},
		// Without the protection, for comparison: the look at what came catches it.
		"swapped and opened by path": {func(s *stage, _ string) { s.change = func(p *step.Program) { swap(p, true) } }, "!get a terminal from it: no such device"},
	} {
		t.Run(name, func(t *testing.T) {
			root := terminalTools(t)
			a := strings.SplitN(shown, " ", 3)
			s, r := console(t, root, a...)
			s.after = func(*executor.Child) { r.until("") }
			tt.set(s, root)
			if s.in.ConsoleSocket = len(s.sources) + 1; strings.HasPrefix(tt.want, "!") {
				s.wants(t, tt.want)
			} else if res := s.run(t); res.err != nil || !strings.Contains(r.out.String(), tt.want) {
				t.Errorf("%v, %q, want %q", res.err, r.out.Bytes(), tt.want)
			}
			if b, err := os.ReadFile(filepath.Join(canary, "console")); err != nil || string(b) != "mine" {
				t.Fatalf("the canary has changed: %q, %v", b, err)
			}
		})
	}
}

// swap puts the work of an attacker in the container's mount namespace between
// two steps: /dev/pts/0 becomes a file of /proc. With byPath the program opens
// the slave by its name then, as runtimes did.
func swap(p *step.Program, byPath bool) {
	at := slices.IndexFunc(p.Steps, func(s step.Step) bool {
		return s.Nr == unix.SYS_IOCTL && s.Args[1].Val == unix.TIOCGPTPEER
	}) + 1
	data := func(b []byte) step.Arg {
		p.Data = append(p.Data, make([]byte, -len(p.Data)&7)...)
		p.Data = append(p.Data, append(b, 0)...)
		return step.Arg{Kind: step.Addr, Val: uint64(len(p.Data) - len(b) - 1)}
	}
	c := func(v int) step.Arg { return step.Arg{Val: uint64(v)} }
	r := func(n int) step.Arg { return step.Arg{Kind: step.Reg, Val: uint64(n)} }
	how := func(flags uint64) step.Arg {
		var b []byte
		for _, w := range []uint64{flags, 0, unix.RESOLVE_IN_ROOT} {
			b = binary.NativeEndian.AppendUint64(b, w)
		}
		return data(b)
	}
	add := []step.Step{
		{Nr: unix.SYS_OPENAT2, Result: 60, Args: [6]step.Arg{c(step.FirstFD), data([]byte("dev/pts/0")), how(unix.O_PATH), c(24)}, Name: "attack: find the slave"},
		{Nr: unix.SYS_OPENAT2, Result: 61, Args: [6]step.Arg{c(step.FirstFD), data([]byte("proc/uptime")), how(unix.O_PATH), c(24)}, Name: "attack: find the file"},
		{Nr: unix.SYS_OPEN_TREE, Result: 62, Args: [6]step.Arg{r(61), data(nil), c(unix.OPEN_TREE_CLONE | unix.AT_EMPTY_PATH)}, Name: "attack: copy the file"},
		{Nr: unix.SYS_MOVE_MOUNT, Result: step.NoResult, Args: [6]step.Arg{r(62), data(nil), r(60), data(nil), c(unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_EMPTY_PATH)}, Name: "attack: cover the slave"},
	}
	if byPath {
		add = append(add, step.Step{Nr: unix.SYS_OPENAT2, Result: p.Steps[at-1].Result, Name: "open by path",
			Args: [6]step.Arg{c(step.FirstFD), data([]byte("dev/pts/0")), how(unix.O_RDONLY | unix.O_NOCTTY), c(24)}})
	}
	p.Steps = slices.Insert(p.Steps, at, add...)
	p.Wait += len(add)
	// The record of the milestone has the number of the wait.
	w := &p.Steps[p.Wait-1]
	binary.NativeEndian.PutUint32(p.Data[w.Args[1].Val:], uint32(p.Wait))
}

// TestCheckOfTerminals takes the looks out of programs with a terminal.
func TestCheckOfTerminals(t *testing.T) {
	s := testSpec("true")
	s.Process.Terminal = true
	container, err := program.Compile(program.Input{Spec: s, ConsoleSocket: 1})
	if err != nil {
		t.Fatal(err)
	}
	exec, err := program.CompileExec(program.ExecInput{Process: s.Process, ConsoleSocket: 1})
	if err != nil {
		t.Fatal(err)
	}
	for which, good := range map[string]*step.Program{"container": container, "exec": exec} {
		mutant := func(what string, i int, change func(p *step.Program)) {
			t.Helper()
			breaks(t, fmt.Sprintf("%s, %s %d", which, what, i), good, map[string]func(p *step.Program){good.Steps[i].Name: change})
		}
		peer := slices.IndexFunc(good.Steps, func(s step.Step) bool { return s.Args[1].Val == unix.TIOCGPTPEER })
		for i := peer + 1; i <= peer+5; i++ {
			mutant("without", i, func(p *step.Program) { p.Steps[i] = step.Step{Nr: step.OpSet, Result: step.NoResult} })
			mutant("jump over", i, func(p *step.Program) { p.Steps[i-1].Then = 1 })
		}
		mutant("inherited", peer, func(p *step.Program) { p.Steps[peer].Args[2].Val = unix.O_RDWR })
		for i, s := range good.Steps {
			switch s.Nr {
			case unix.SYS_DUP3:
				mutant("master", i, func(p *step.Program) { p.Steps[i].Args[0].Val = 48 })
				mutant("to 3", i, func(p *step.Program) { p.Steps[i].Args[1].Val = 3 })
			case unix.SYS_SENDMSG:
				mutant("to the root", i, func(p *step.Program) { p.Steps[i].Args[0].Val = step.FirstFD })
				mutant("to the report", i, func(p *step.Program) { p.Steps[i].Args[0].Val = step.ReportFD })
				mutant("to a register", i, func(p *step.Program) { p.Steps[i].Args[0].Kind = step.Reg })
			case step.OpStore:
				mutant("elsewhere", i, func(p *step.Program) { p.Steps[i].Args[1].Val -= 8 })
				mutant("eight bytes", i, func(p *step.Program) { p.Steps[i].Args[2].Val = 8 })
				mutant("into a path", i, func(p *step.Program) { p.Steps[0].Args[5] = p.Steps[i].Args[1] })
			case unix.SYS_IOCTL:
				mutant("unknown", i, func(p *step.Program) { p.Steps[i].Args[1].Val = unix.TIOCSTI })
				mutant("stolen", i, func(p *step.Program) {
					p.Steps[i].Args[1].Val, p.Steps[i].Args[2] = unix.TIOCSCTTY, step.Arg{Val: 1}
				})
			}
		}
	}
}
