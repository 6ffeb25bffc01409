package sandbox

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The environment of a test binary that runs again in namespaces of its own, and of one that plays a
// blocked init.
const (
	surroundingsEnv = "VITRINE_TEST_SURROUNDINGS"
	napEnv          = "VITRINE_TEST_NAP"
)

// TestMain runs the tests in private mount, network and pid-less surroundings if it is root: nothing that a
// test mounts, pins or leaves can be seen by the host.
func TestMain(m *testing.M) {
	if os.Getenv(napEnv) != "" {
		time.Sleep(time.Hour)
		return
	}
	if os.Geteuid() != 0 || os.Getenv(surroundingsEnv) != "" {
		os.Exit(m.Run())
	}
	os.Exit(runPrivately())
}

func runPrivately() int {
	// The mount points in here are gone with the namespace; the directories are ours to remove.
	dir, err := os.MkdirTemp("", "vitrine-sandbox-test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), surroundingsEnv+"=1", "TMPDIR="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "tests in private namespaces:", err)
		return 1
	}
	return 0
}
