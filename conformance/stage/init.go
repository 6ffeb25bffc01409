package stage

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// beInit is the whole life of pid 1: it furnishes the namespaces, starts the player, and reaps until the player
// ends. Its own end ends every process in the PID namespace.
func beInit() int {
	signal.Ignore(syscall.SIGINT)
	// The cgroup namespace belongs to the thread that makes it; the player is forked from the same one.
	runtime.LockOSThread()
	if err := furnish(); err != nil {
		fmt.Fprintln(os.Stderr, "private surroundings:", err)
		return 1
	}
	cmd := self("player")
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "start player:", err)
		return 1
	}
	return reap(cmd.Process.Pid)
}

// reap waits for every child, its own and the orphans that fall to pid 1, until the player has ended.
func reap(player int) int {
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			fmt.Fprintln(os.Stderr, "wait:", err)
			return 1
		case pid == player && ws.Signaled():
			return 128 + int(ws.Signal())
		case pid == player:
			return ws.ExitStatus()
		}
	}
}

// furnish makes the namespaces a place to live in. It runs on the thread of which the player is forked.
func furnish() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	if err := furnishCgroup(); err != nil {
		return err
	}
	return loopbackUp()
}

// furnishCgroup makes our cgroup the root of all that can be seen at /sys/fs/cgroup, and leaves the root itself
// empty, so that it can hand out its controllers.
func furnishCgroup() error {
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("unshare cgroup namespace: %w", err)
	}
	const root = "/sys/fs/cgroup"
	if err := unix.Mount("cgroup2", root, "cgroup2", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount %s: %w", root, err)
	}
	if err := os.Mkdir(root+"/stage", 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(root+"/stage/cgroup.procs", []byte(strconv.Itoa(os.Getpid())), 0); err != nil {
		return fmt.Errorf("move into the stage's cgroup: %w", err)
	}
	dir, err := os.Open(root)
	if err != nil {
		return err
	}
	defer dir.Close()
	return handOut(dir)
}

// loopbackUp brings up lo, over which the registry is served.
func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return nil
}
