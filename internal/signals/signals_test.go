package signals

import (
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// next waits for signals that have come.
func next(t *testing.T) []byte {
	t.Helper()
	r, err := Catch()
	if err != nil {
		t.Fatal(err)
	}
	p := []unix.PollFd{{Fd: int32(r.Int()), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(p, 5000)
		if err == unix.EINTR {
			continue
		}
		if n == 0 || err != nil {
			t.Fatalf("no signal in five seconds: %v", err)
		}
		return slices.Clone(Read(r, make([]byte, 64)))
	}
}

// Each is caught, with its number, whichever thread gets it and however often.
func TestCatch(t *testing.T) {
	if _, err := Catch(ToPassOn()...); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	defer close(stop)
	for range 4 { // threads to choose from, some of them busy with growing stacks
		go func() {
			for {
				select {
				case <-stop:
					return
				default:
					deep(100)
				}
			}
		}()
	}
	for range 20 {
		for _, s := range ToPassOn() {
			if err := unix.Kill(os.Getpid(), s); err != nil {
				t.Fatal(err)
			}
			if got := next(t); !slices.Equal(got, []byte{byte(s)}) {
				t.Fatalf("signal %d: caught %v", s, got)
			}
		}
	}
}

func deep(n int) int {
	var a [256]byte
	if n == 0 {
		return int(a[0])
	}
	return deep(n-1) + int(a[n])
}

// A pipe that nobody reads loses signals, and stops nobody.
func TestFlood(t *testing.T) {
	r, err := Catch(unix.SIGUSR1)
	if err != nil {
		t.Fatal(err)
	}
	fits, err := unix.FcntlInt(uintptr(r.Int()), unix.F_GETPIPE_SZ, 0)
	if err != nil {
		t.Fatal(err)
	}
	// To the thread itself, which has it before it goes on: what another one has not taken yet is one signal, however often it is sent.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for range 2 * fits {
		if err := unix.Tgkill(os.Getpid(), unix.Gettid(), unix.SIGUSR1); err != nil {
			t.Fatal(err)
		}
	}
	buf, got := make([]byte, 64), 0
	for n := len(Read(r, buf)); n > 0; n = len(Read(r, buf)) {
		got += n
	}
	if got != fits {
		t.Errorf("%d of %d signals caught, and %d fit", got, 2*fits, fits)
	}
}

// os/signal hears of what is given back, and children have no handlers.
func TestBesideTheRuntime(t *testing.T) {
	if _, err := Catch(unix.SIGHUP, unix.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	if err := GiveBack(unix.SIGUSR2, unix.SIGUSR1); err != nil { // the second was not ours
		t.Fatal(err)
	}
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, unix.SIGUSR2)
	defer signal.Stop(ch)
	if err := unix.Kill(os.Getpid(), unix.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ch:
	case <-time.After(5 * time.Second):
		t.Error("os/signal did not get its signal")
	}
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if ws := cmd.ProcessState.Sys().(interface{ Signal() unix.Signal }); ws.Signal() != unix.SIGHUP {
		t.Errorf("a child ended with %v", cmd.ProcessState)
	}
}

// What can be sent in place of a process is what os/signal can hear of, but for four.
func TestToPassOn(t *testing.T) {
	list := ToPassOn()
	for _, s := range []unix.Signal{unix.SIGKILL, unix.SIGSTOP, unix.SIGSEGV, unix.SIGBUS, unix.SIGFPE, unix.SIGILL, unix.SIGTRAP, unix.SIGSYS, unix.SIGCHLD, unix.SIGPIPE, unix.SIGPROF, unix.SIGURG} {
		if slices.Contains(list, s) {
			t.Errorf("%s is passed on", unix.SignalName(s))
		}
	}
	if len(list) != 48 {
		t.Errorf("%d signals", len(list))
	}
}
