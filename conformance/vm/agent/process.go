package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/conformance/vm/link"
)

// agent starts commands, each in a cgroup of its own below the service's.
type agent struct {
	cgroup string
	last   atomic.Uint64
	births sync.Mutex // held while a command is forked
}

// process is a running command. It owns its ends of the pipes or the terminal's master.
type process struct {
	cmd      *exec.Cmd
	cgroup   string
	stdin    *os.File
	stdout   *os.File
	stderr   *os.File // nil with a terminal
	terminal *os.File // the master, which is stdin and stdout; nil without
	began    time.Time
}

// environment is what a command finds besides what its sender adds.
var environment = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "USER=root", "LANG=C.UTF-8", "TERM=xterm"}

func (a *agent) start(c link.Command) (link.Process, error) {
	path, err := look(c.Args[0], c.Dir)
	if err != nil {
		return nil, err
	}
	p := &process{cgroup: filepath.Join(a.cgroup, "run-"+strconv.FormatUint(a.last.Add(1), 10))}
	if err := os.Mkdir(p.cgroup, 0o755); err != nil {
		return nil, err
	}
	dir, err := os.Open(p.cgroup)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	p.cmd = &exec.Cmd{Path: path, Args: c.Args, Dir: c.Dir, Env: append(append([]string{}, environment...), c.Env...),
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(dir.Fd())}}
	if c.Dir == "" {
		p.cmd.Dir = "/root"
	}
	theirs, err := p.open(c)
	if err == nil {
		p.began = time.Now()
		err = a.fork(p.cmd)
	}
	for _, f := range theirs {
		f.Close()
	}
	if err != nil {
		p.close()
		return nil, errors.Join(fmt.Errorf("start %s: %w", c.Args[0], err), os.Remove(p.cgroup))
	}
	return p, nil
}

// fork starts a command. What it inherits is not the agent's own place in the OOM killer's list but the ordinary one: a
// command that nobody may kill would meet no memory limit.
func (a *agent) fork(cmd *exec.Cmd) error {
	const file = "/proc/self/oom_score_adj"
	a.births.Lock()
	defer a.births.Unlock()
	if err := os.WriteFile(file, []byte("0"), 0); err != nil {
		return err
	}
	return errors.Join(cmd.Start(), os.WriteFile(file, []byte("-1000"), 0))
}

// look finds a program by the commands' PATH, which is not the agent's.
func look(name, dir string) (string, error) {
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		return name, nil
	}
	list, _ := strings.CutPrefix(environment[0], "PATH=")
	for _, d := range filepath.SplitList(list) {
		if fi, err := os.Stat(filepath.Join(d, name)); err == nil && fi.Mode()&0o111 != 0 && !fi.IsDir() {
			return filepath.Join(d, name), nil
		}
	}
	return "", fmt.Errorf("%s: %w", name, exec.ErrNotFound)
}

// open makes the stdio and returns the child's ends, which the caller closes after the start.
func (p *process) open(c link.Command) (theirs []*os.File, err error) {
	if c.TTY {
		slave, err := p.openTerminal()
		if err != nil {
			return nil, err
		}
		p.Resize(c.Rows, c.Cols)
		p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = slave, slave, slave
		p.cmd.SysProcAttr.Setctty = true
		return []*os.File{slave}, nil
	}
	var r, w *os.File
	if r, p.stdin, err = os.Pipe(); err != nil {
		return theirs, err
	}
	theirs, p.cmd.Stdin = append(theirs, r), r
	if p.stdout, w, err = os.Pipe(); err != nil {
		return theirs, err
	}
	theirs, p.cmd.Stdout = append(theirs, w), w
	if p.stderr, w, err = os.Pipe(); err != nil {
		return theirs, err
	}
	p.cmd.Stderr = w
	return append(theirs, w), nil
}

func (p *process) openTerminal() (slave *os.File, err error) {
	if p.terminal, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		return nil, err
	}
	fd := int(p.terminal.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, fmt.Errorf("unlock terminal: %w", err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		return nil, fmt.Errorf("name terminal: %w", err)
	}
	return os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
}

// Stdin returns where the command's input goes. With a terminal an end of input is its end-of-file character.
func (p *process) Stdin() io.WriteCloser {
	if p.terminal != nil {
		return terminalInput{p.terminal}
	}
	return p.stdin
}

type terminalInput struct{ f *os.File }

func (t terminalInput) Write(b []byte) (int, error) { return t.f.Write(b) }
func (t terminalInput) Close() error {
	_, err := t.f.Write([]byte{4})
	return err
}

// Outputs returns what the command says.
func (p *process) Outputs() (stdout, stderr io.Reader) {
	if p.terminal != nil {
		return p.terminal, nil
	}
	return p.stdout, p.stderr
}

// Resize tells a terminal its size; without one it does nothing.
func (p *process) Resize(rows, cols uint16) {
	if p.terminal != nil && rows > 0 && cols > 0 {
		_ = unix.IoctlSetWinsize(int(p.terminal.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols}) // looks only
	}
}

// Kill ends the command and what it started, as far as that is still in its cgroup.
func (p *process) Kill() {
	if os.WriteFile(p.cgroup+"/cgroup.kill", []byte("1"), 0) != nil {
		_ = p.cmd.Process.Kill() // a test may have removed or replaced the cgroup; the process itself can still be hit
	}
}

// Wait returns when the command itself has ended.
func (p *process) Wait() link.Result {
	state, err := p.cmd.Process.Wait()
	r := link.Result{Took: time.Since(p.began)}
	if err != nil {
		r.Code, r.Error = -1, err.Error()
		return r
	}
	ws := state.Sys().(syscall.WaitStatus)
	if r.Code = ws.ExitStatus(); ws.Signaled() {
		r.Code = 128 + int(ws.Signal())
	}
	if b, err := os.ReadFile(p.cgroup + "/cgroup.procs"); err == nil {
		r.Left = strings.Count(string(b), "\n")
	}
	return r
}

// Drop kills what is left in the cgroup, gives the outputs a moment to be read to their end and closes them.
func (p *process) Drop() {
	p.Kill()
	time.AfterFunc(2*time.Second, p.close) // a service that was started from here may hold the pipes and is none of ours
	for range 100 {
		if err := removeCgroups(p.cgroup); err == nil || errors.Is(err, unix.ENOENT) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// removeCgroups removes a cgroup and those below it; EBUSY while processes are still dying.
func removeCgroups(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroups(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return unix.Rmdir(dir)
}

func (p *process) close() {
	for _, f := range []*os.File{p.stdin, p.stdout, p.stderr, p.terminal} {
		if f != nil {
			f.Close()
		}
	}
}
