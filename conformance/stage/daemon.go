package stage

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Daemon is one running `vitrine serve`. Its log is a file that survives it.
type Daemon struct {
	LogPath string

	stage *Stage
	pid   int
	unit  string        // on a whole machine: the service that it is
	done  chan struct{} // closed when it has ended
	err   error         // how it ended; valid after done
}

// daemonCommand returns the command line of a daemon on this stage.
func (s *Stage) daemonCommand(extra ...string) *exec.Cmd {
	program := s.Daemons
	if program == "" {
		program = filepath.Join(s.Bin, "vitrine")
	} else {
		extra = append(extra, "--monitor-path="+filepath.Join(s.Bin, "vitrine-oci")) // it lies beside the other one
	}
	cmd := exec.Command(program, append(append([]string{"serve"}, s.flags...), extra...)...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TMPDIR=" + s.tmpDir, "HOME=/root"}
	// A group of its own: an interrupt at the terminal is the player's to handle.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// StartDaemon starts the daemon and returns when it answers on its socket. One daemon runs at a time.
func (s *Stage) StartDaemon(ctx context.Context) (*Daemon, error) {
	if err := s.checkBin(); err != nil {
		return nil, err
	}
	d := &Daemon{LogPath: base + "/vitrine.log", stage: s, done: make(chan struct{})}
	var err error
	if s.machine {
		err = d.startService(ctx, s.daemonCommand())
	} else {
		err = d.startChild(s.daemonCommand())
	}
	if err != nil {
		return nil, err
	}
	s.daemon = d
	for {
		err := s.answers(ctx)
		if err == nil {
			return d, nil
		}
		select {
		case <-d.done:
			return nil, fmt.Errorf("the daemon ended at its start (%w)\n%s", d.err, d.Tail(20))
		case <-ctx.Done():
			_ = d.Kill()
			return nil, fmt.Errorf("the daemon does not answer: %w\n%s", err, d.Tail(20))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// startChild starts the daemon as our child.
func (d *Daemon) startChild(cmd *exec.Cmd) error {
	log, err := os.OpenFile(d.LogPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	d.pid = cmd.Process.Pid
	go func() { // ends with the process
		d.err = cmd.Wait()
		close(d.done)
	}()
	return nil
}

// answers reports whether a daemon answers Version. The socket is tried by hand first: the client library keeps a
// connection that it could not make, and goes on trying.
func (s *Stage) answers(ctx context.Context) error {
	conn, err := net.Dial("unix", s.Socket)
	if err != nil {
		return err
	}
	conn.Close()
	c, err := s.Connect(ctx)
	if err != nil {
		return err
	}
	return c.Close(ctx)
}

// RunDaemon runs a second daemon with the same flags to its end and returns what it printed. The error is of the
// process, or ctx's when it would not end.
func (s *Stage) RunDaemon(ctx context.Context, extra ...string) (string, error) {
	c := s.daemonCommand(extra...)
	cmd := exec.CommandContext(ctx, c.Path, c.Args[1:]...)
	cmd.Env = c.Env
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return string(out), err
}

// Pid returns the daemon's process id.
func (d *Daemon) Pid() int { return d.pid }

// Unit returns the name of the daemon's service on a whole machine, and "" elsewhere.
func (d *Daemon) Unit() string { return d.unit }

// Kill ends the daemon with SIGKILL and returns when it is gone. What it was doing stays undone.
func (d *Daemon) Kill() error {
	if err := d.signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-d.done
	return nil
}

// Stop ends the daemon with SIGTERM, or its service, and fails if it does not end within ten seconds (scaled, see Stage.Scale), or
// ends with an error.
func (d *Daemon) Stop() error {
	select {
	case <-d.done:
		return nil // somebody has killed it
	default:
	}
	var err error
	if d.unit != "" {
		err = exec.Command("systemctl", "stop", "--no-block", d.unit).Run()
	} else {
		err = d.signal(syscall.SIGTERM)
	}
	if err != nil {
		return err
	}
	select {
	case <-d.done:
		return d.err
	case <-time.After(d.stage.Scale(10 * time.Second)):
		return errors.Join(errors.New("the daemon ignores SIGTERM"), d.Kill())
	}
}

// Tail returns the last lines of the daemon's log.
func (d *Daemon) Tail(lines int) string {
	text, err := os.ReadFile(d.LogPath)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// EnsureDaemon starts a daemon unless one runs.
func (s *Stage) EnsureDaemon(ctx context.Context) error {
	if s.daemon != nil {
		select {
		case <-s.daemon.done:
		default:
			return nil
		}
	}
	_, err := s.StartDaemon(ctx)
	return err
}

// Daemon returns the daemon that was started last, or nil.
func (s *Stage) Daemon() *Daemon { return s.daemon }
