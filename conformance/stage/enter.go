package stage

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// roleEnv says to a re-executed program which of the three it is; see the package comment.
const roleEnv = "VITRINE_STAGE"

// ErrNotRoot is returned by Enter where the user may not make the namespaces.
var ErrNotRoot = errors.New("not root")

// Enter takes the program into its private surroundings. It must be the first thing in main or TestMain, because
// the program is executed twice more with the same arguments: in the outer process and in init Enter does not
// return, but exits with the status of the player; in the player it returns the Stage.
//
// On a machine that is there for this alone (a guest of conformance/vm) there are no such surroundings: the stage is the machine, with
// its systemd, its cgroups and its network, and the daemon is a service.
//
// Under another systemd, where nobody may put controllers on a cgroup of their own choice, the outer process first executes
// itself once more in a delegated scope.
func Enter() (*Stage, error) {
	switch os.Getenv(roleEnv) {
	case "player":
		return newStage("cgroupfs", false)
	case "init":
		os.Exit(beInit())
	}
	if os.Geteuid() != 0 {
		return nil, ErrNotRoot
	}
	if isMachine() {
		return enterMachine()
	}
	code, err := beOuter()
	if err != nil {
		return nil, err
	}
	os.Exit(code)
	return nil, nil
}

// beOuter runs init and returns its exit status.
func beOuter() (int, error) {
	if underSystemd() && os.Getenv(roleEnv) == "" {
		return runInScope()
	}
	cg, err := makeCgroup()
	if err != nil {
		return 0, fmt.Errorf("make cgroup: %w", err)
	}
	defer cg.remove()

	// An interrupt goes to the whole foreground group: the player ends on it, and we wait for that. The death
	// signal below follows the thread, so the thread stays.
	signal.Ignore(syscall.SIGINT)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// What the shell left open is none of the daemon's.
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return 0, fmt.Errorf("close_range: %w", err)
	}
	cmd := self("init")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
		UseCgroupFD: true,
		CgroupFD:    int(cg.dir.Fd()),
		Pdeathsig:   syscall.SIGKILL,
	}
	return exitCode(cmd.Run())
}

// underSystemd reports whether systemd is PID 1, in the way that systemd documents in sd_booted(3).
func underSystemd() bool {
	_, err := os.Lstat("/run/systemd/system")
	return err == nil
}

// runInScope executes this program again inside a transient scope whose cgroup is ours to divide.
func runInScope() (int, error) {
	path, err := exec.LookPath("systemd-run")
	if err != nil {
		return 0, fmt.Errorf("systemd is running, but systemd-run is missing: %w", err)
	}
	exe, err := os.Executable()
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(path, append([]string{"--quiet", "--scope", "--collect", "-p", "Delegate=yes", exe}, os.Args[1:]...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), roleEnv+"=outer")
	signal.Ignore(syscall.SIGINT)
	return exitCode(cmd.Run())
}

// self returns a command that executes this program again in another role.
func self(role string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, roleEnv+"=") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Env = append(cmd.Env, roleEnv+"="+role)
	return cmd
}

// exitCode turns the end of a command into the status to exit with.
func exitCode(err error) (int, error) {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return 0, err
	}
	if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal()), nil
	}
	return exit.ExitCode(), nil
}
