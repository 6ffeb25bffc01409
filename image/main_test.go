package image

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// TestMain runs the tests of root in a mount namespace of their own, and serves
// as the unpacking child and as the helper that some tests kill.
func TestMain(m *testing.M) {
	if Init() {
		return
	}
	if verb := os.Getenv(helperVerb); verb != "" {
		os.Exit(runHelper(verb))
	}
	const inside = "VITRINE_IMAGE_TEST_INSIDE"
	if os.Geteuid() == 0 && os.Getenv(inside) == "" {
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Env = append(os.Environ(), inside+"=1")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS} // Go makes it private
		err := cmd.Run()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// helperVerb names what a copy of the test binary is to do instead of testing.
const helperVerb = "VITRINE_IMAGE_HELPER"

// helperConfig is how the helper learns the store's directories.
const helperConfig = "VITRINE_IMAGE_HELPER_CONFIG"

func helperCommand(verb, config string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), helperVerb+"="+verb, helperConfig+"="+config)
	cmd.Stderr = os.Stderr
	return cmd
}
