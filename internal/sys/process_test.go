package sys

import (
	"bufio"
	"errors"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A process that is gone is gone, also where others are in the session that it led.
func TestPidfdOpenOfASessionThatHasLostItsLeader(t *testing.T) {
	cmd := exec.Command("sh", "-c", "sleep 100 & echo $!; wait")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	other, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Kill(other, unix.SIGKILL) //nolint:errcheck // it is ours
	live, err := PidfdOpen(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	live.Close()
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // it was killed
	if sid, err := unix.Getsid(other); err != nil || sid != cmd.Process.Pid {
		t.Fatalf("the other one is in session %d (%v), not %d", sid, err, cmd.Process.Pid)
	}
	if fd, err := PidfdOpen(cmd.Process.Pid); !errors.Is(err, unix.ESRCH) {
		fd.Close()
		t.Errorf("%v", err)
	}
}
