// Command inside is the program of containers in the tests of package sandbox. The name that it is called by
// says what it does, its arguments how. It is static, whatever the test binary is.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func main() { helper(strings.TrimPrefix(filepath.Base(os.Args[0]), "helper-")) }

// waitForever blocks and hears nothing but SIGKILL.
func waitForever() {
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	for {
		time.Sleep(time.Hour)
	}
}

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
	case "burn": // uses so many milliseconds of CPU time
		var ms int
		fmt.Sscan(os.Args[1], &ms)
		for use := (syscall.Rusage{}); (use.Utime.Nano()+use.Stime.Nano())/1e6 < int64(ms); {
			syscall.Getrusage(syscall.RUSAGE_SELF, &use)
		}
	case "ids":
		groups, _ := os.Getgroups()
		fmt.Println(os.Getuid(), os.Getgid(), groups)
	case "sleep":
		term := make(chan os.Signal, 1) // pid 1 of a namespace ignores what it does not handle
		signal.Notify(term, syscall.SIGTERM)
		<-term
		os.Exit(7)
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
