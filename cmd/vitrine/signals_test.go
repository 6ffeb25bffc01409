package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain lets the test binary be the process that gets signals.
func TestMain(m *testing.M) {
	if os.Getenv("VITRINE_TEST_SIGNALS") != "" {
		signalTarget()
		return
	}
	os.Exit(m.Run())
}

// signalTarget prints which signals a child would ignore, waits for the end, and
// then hangs, as a daemon with a stuck request does.
func signalTarget() {
	ctx, stop := handleSignals(context.Background())
	defer stop()
	out, err := exec.Command("grep", "SigIgn", "/proc/self/status").Output()
	fmt.Printf("%s%v\nready\n", out, err)
	<-ctx.Done()
	fmt.Println(context.Cause(ctx))
	if os.Getenv("VITRINE_TEST_SIGNALS") == "hang" {
		select {}
	}
}

// startTarget returns when the process handles signals, with the lines that it
// prints from then on.
func startTarget(t *testing.T, how string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "VITRINE_TEST_SIGNALS="+how)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	lines := bufio.NewScanner(out)
	for lines.Scan() && lines.Text() != "ready" {
		if mask, ok := strings.CutPrefix(lines.Text(), "SigIgn:"); ok && parseMask(t, mask)&^ownIgnored(t) != 0 {
			t.Errorf("children ignore signals: %s", mask)
		}
	}
	return cmd, lines
}

// ownIgnored returns the signals that this process ignores, and with it every child that does not change that. Who
// started it may have left some (make leaves 32): they are not the daemon's doing.
func ownIgnored(t *testing.T) uint64 {
	t.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "SigIgn:")
	mask, _, _ := strings.Cut(rest, "\n")
	return parseMask(t, mask)
}

func parseMask(t *testing.T, text string) uint64 {
	t.Helper()
	mask, err := strconv.ParseUint(strings.TrimSpace(text), 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return mask
}

func TestSignals(t *testing.T) {
	cmd, lines := startTarget(t, "end")
	for _, s := range []syscall.Signal{syscall.SIGHUP, syscall.SIGPIPE, syscall.SIGHUP} {
		if err := cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatalf("SIGHUP or SIGPIPE ended it: %v", err)
	}
	if !lines.Scan() || lines.Text() != "terminated" {
		t.Errorf("cause %q", lines.Text())
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("end: %v", err)
	}
}

// Who is in a hurry sends the signal twice.
func TestSecondSignalEndsAtOnce(t *testing.T) {
	cmd, lines := startTarget(t, "hang")
	for range 2 {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		lines.Scan()
	}
	start := time.Now()
	err := cmd.Wait()
	if cmd.ProcessState.ExitCode() != 1 || time.Since(start) > 2*time.Second {
		t.Errorf("%v after %v", err, time.Since(start))
	}
}

// A request that hangs in the kernel does not keep the daemon for ever.
func TestEndIsBounded(t *testing.T) {
	cmd, _ := startTarget(t, "hang")
	start := time.Now()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if took := time.Since(start); cmd.ProcessState.ExitCode() != 1 || took > 10*time.Second {
		t.Errorf("%v after %v", cmd.ProcessState, took)
	}
}
