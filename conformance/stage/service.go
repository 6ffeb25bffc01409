package stage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// startService starts the daemon as a transient service with the settings of contrib/systemd/vitrine.service: systemd-run returns when the daemon has
// said that it is ready. The unit writes how it ended into a file, since a service is not our child.
func (d *Daemon) startService(ctx context.Context, cmd *exec.Cmd) error {
	name := unitPrefix + strconv.FormatInt(time.Now().UnixNano(), 36)
	d.unit = name + ".service"
	ended := base + "/" + name + ".ended"
	// A file, because systemd 252 writes down an escaped $ and reads it otherwise at a daemon-reload.
	script := base + "/ended.sh"
	if err := os.WriteFile(script, []byte(`echo "$EXIT_CODE" "$EXIT_STATUS" >"$1.new" && mv "$1.new" "$1"`+"\n"), 0o600); err != nil {
		close(d.done)
		return err
	}
	args := []string{"--quiet", "--collect", "--unit=" + d.unit, "--service-type=notify", "-p", "KillMode=process", "-p", "OOMScoreAdjust=-999",
		"-p", "TimeoutStartSec=5min", "-p", "LimitNOFILE=1048576", "-p", "TasksMax=infinity", "-p", "StandardOutput=append:" + d.LogPath, "-p", "StandardError=append:" + d.LogPath,
		"-p", "ExecStopPost=/bin/sh " + script + " " + ended}
	for _, kv := range cmd.Env {
		args = append(args, "--setenv="+kv)
	}
	out, err := exec.CommandContext(ctx, "systemd-run", append(args, cmd.Args...)...).CombinedOutput()
	if err != nil {
		close(d.done)
		return fmt.Errorf("start %s: %w: %s\n%s", d.unit, err, out, d.Tail(20))
	}
	pid, err := mainPID(ctx, d.unit)
	if err != nil {
		close(d.done)
		return err
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		close(d.done)
		return fmt.Errorf("open pidfd of %s: %w\n%s", d.unit, err, d.Tail(20))
	}
	d.pid = pid
	go func() { // ends with the process
		defer close(d.done)
		defer unix.Close(pidfd)
		d.err = awaitService(pidfd, ended)
	}()
	return nil
}

func mainPID(ctx context.Context, unit string) (int, error) {
	out, err := exec.CommandContext(ctx, "systemctl", "show", "--property=MainPID", "--value", unit).Output()
	if err != nil {
		return 0, fmt.Errorf("ask for the pid of %s: %w", unit, err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err == nil && pid == 0 {
		err = errors.New("it has none")
	}
	if err != nil {
		return 0, fmt.Errorf("ask for the pid of %s: %w", unit, err)
	}
	return pid, nil
}

// awaitService waits for the process and then for systemd, which has taken the rest of the service down when it writes the file.
func awaitService(pidfd int, ended string) error {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, -1)
		if n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		b, err := os.ReadFile(ended)
		how := strings.TrimSpace(string(b))
		switch {
		case err == nil && how == "exited 0":
			return nil
		case err == nil:
			return fmt.Errorf("the daemon ended: %s", how)
		case time.Now().After(deadline):
			return fmt.Errorf("systemd does not say how the daemon ended: %w", err)
		}
	}
}

// signal sends a signal to the daemon's main process. One that has ended is no error.
func (d *Daemon) signal(s syscall.Signal) error {
	select {
	case <-d.done:
		return nil
	default:
	}
	if err := unix.Kill(d.pid, s); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal daemon: %w", err)
	}
	return nil
}
