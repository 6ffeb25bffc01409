package sandbox

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The environment of a test binary that runs again in namespaces of its own, and of one that plays a
// container.
const (
	surroundingsEnv = "VITRINE_TEST_SURROUNDINGS"
	helperEnv       = "VITRINE_TEST_HELPER"
)

// TestMain runs the tests in private mount, network and pid-less surroundings if it is root: nothing that a
// test mounts, pins or leaves can be seen by the host.
func TestMain(m *testing.M) {
	if name := os.Getenv(helperEnv); name != "" {
		helper(name)
		return
	}
	if len(os.Args) > 0 && strings.HasPrefix(filepath.Base(os.Args[0]), "helper-") {
		helper(strings.TrimPrefix(filepath.Base(os.Args[0]), "helper-"))
		return
	}
	if os.Geteuid() != 0 || os.Getenv(surroundingsEnv) != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), surroundingsEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "tests in private namespaces:", err)
		os.Exit(1)
	}
}

// helper is the program of containers in tests. Its name says what it does, its arguments how.
func helper(name string) {
	switch name {
	case "exit":
		var code int
		fmt.Sscan(os.Args[1], &code)
		os.Exit(code)
	case "print":
		fmt.Println(strings.Join(os.Args[1:], " "))
	case "both":
		fmt.Print("out")
		fmt.Fprint(os.Stderr, "err")
	case "flood":
		chunk := make([]byte, 1<<20)
		for range 20 {
			if _, err := os.Stdout.Write(chunk); err != nil {
				os.Exit(1)
			}
		}
	case "env":
		fmt.Println(strings.Join(os.Environ(), "\n"))
	case "write":
		if err := os.WriteFile(os.Args[1], []byte(os.Args[2]), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case "cat":
		for _, f := range os.Args[1:] {
			b, err := os.ReadFile(f)
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Stdout.Write(b)
		}
	case "ids":
		groups, _ := os.Getgroups()
		fmt.Println(os.Getuid(), os.Getgid(), groups)
	case "sleep":
		term := make(chan os.Signal, 1) // pid 1 of a namespace ignores what it does not handle
		signal.Notify(term, syscall.SIGTERM)
		<-term
		os.Exit(7)
	case "nap":
		time.Sleep(time.Hour)
	case "spawn": // a child that keeps stdout open, and goes on when this one has ended
		child := exec.Command("/bin/helper-deaf")
		child.Stdout, child.Stderr = os.Stdout, os.Stderr
		if err := child.Start(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		if len(os.Args) > 1 {
			waitForever()
		}
	case "deaf":
		waitForever()
	default:
		os.Exit(99)
	}
}
