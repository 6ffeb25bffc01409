package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vitrine-runtime/vitrine/oci/cgroup"
)

func TestScopeIDs(t *testing.T) {
	if got := scopeID("/run/vitrine"); got != "monitors" {
		t.Error(got)
	}
	a, b := scopeID("/run/a"), scopeID("/run/b")
	if a == b || len(a) != len("monitors-")+8 {
		t.Error(a, b)
	}
}

// The scope of the monitors through the life of two daemons: it is there before the
// first monitor, comes back when somebody ends it, outlives the daemon with the
// monitors in it, is found again, and ends with the last.
func TestMonitorScope(t *testing.T) {
	if info, err := os.Lstat("/run/systemd/system"); err != nil || !info.IsDir() || os.Geteuid() != 0 {
		t.Skip("needs root and systemd as PID 1: make vm-test PKG=./cmd/vitrine/ runs this in a machine that has it")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cfg := &Config{RunDir: t.TempDir()}
	unit := "vitrine-" + scopeID(cfg.RunDir) + ".scope"
	dir := "/sys/fs/cgroup/system.slice/" + unit
	state := func() string {
		out, err := exec.Command("systemctl", "show", "-p", "ActiveState,TasksMax,Delegate", unit).Output()
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Fields(string(out))
		slices.Sort(lines)
		return strings.Join(lines, " ")
	}
	const alive = "ActiveState=active Delegate=yes TasksMax=infinity"
	monitor := func(fd int) *exec.Cmd {
		cmd := exec.Command("sleep", "1000")
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: fd}
		if err := cmd.Start(); err != nil {
			t.Fatalf("start a monitor: %v; the scope: %s", err, state())
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		return cmd
	}
	open := func() (int, func()) {
		tree, err := cgroup.Open(cgroup.Config{Root: "/sys/fs/cgroup", Driver: "systemd", Prefix: "vitrine-"})
		if err != nil {
			t.Fatal(err)
		}
		fd, closeAll, err := openMonitors(ctx, cfg, tree)
		if err != nil {
			t.Fatal(err)
		}
		return fd, func() {
			if err := closeAll(); err != nil {
				t.Error(err)
			}
			if err := tree.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	fd, end := open()
	if got := state(); got != alive {
		t.Errorf("%s, want %s", got, alive)
	}
	lost := monitor(fd)
	if out, err := exec.Command("systemctl", "stop", unit).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	lost.Wait()
	waitFor(t, func() bool { return state() == alive })
	first := monitor(fd)
	end()
	if got := state(); got != alive {
		t.Errorf("with a monitor and without a daemon: %s", got)
	}
	fd, end = open()
	second := monitor(fd)
	procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil || !strings.Contains(string(procs), fmt.Sprint(first.Process.Pid)) || !strings.Contains(string(procs), fmt.Sprint(second.Process.Pid)) {
		t.Errorf("%q, %v; want %d and %d", procs, err, first.Process.Pid, second.Process.Pid)
	}
	for _, cmd := range []*exec.Cmd{first, second} {
		cmd.Process.Kill()
		cmd.Wait()
	}
	third := monitor(fd) // nobody was there but the keeper
	third.Process.Kill()
	third.Wait()
	end()
	waitFor(t, func() bool {
		out, _ := exec.Command("systemctl", "list-units", "--all", "--no-legend", unit).Output()
		_, err := os.Stat(dir)
		return len(out) == 0 && errors.Is(err, fs.ErrNotExist)
	})
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for range 200 {
		if ok() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("waited for nothing")
}
