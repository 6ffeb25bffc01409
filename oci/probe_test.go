package oci

import (
	"os"
	"os/signal"
	"syscall"
	"testing"
)

// signalIgnored makes this process ignore signals as nohup and shells without
// job control do, until the test ends. Go's runtime takes over most ignored
// signals in a process that it starts in, and leaves those of job control.
func signalIgnored(t *testing.T) {
	ignored := []os.Signal{syscall.SIGUSR2, syscall.SIGHUP, syscall.SIGTSTP, syscall.SIGTTIN}
	signal.Ignore(ignored...)
	t.Cleanup(func() { signal.Reset(ignored...) })
}
