package spec

import (
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The bounds of the real-time signals as libc hands them out; the kernel's first two are its own.
const (
	sigRTMin = 34
	sigRTMax = 64
)

// StopSignal returns the signal that asks the container to stop, and its CRI name for the status: the
// request's, else the image's, else SIGTERM. An image with nonsense in the field stops by SIGTERM: it is
// the image's mistake, and refusing to run it helps nobody.
func StopSignal(c *runtimeapi.ContainerConfig, image string) (syscall.Signal, runtimeapi.Signal, error) {
	if s := c.GetStopSignal(); s != runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
		name, ok := runtimeapi.Signal_name[int32(s)]
		if !ok {
			return 0, 0, Invalid("stop_signal", itoa(int64(s)), "unknown signal")
		}
		sig, ok := signalNumber(strings.TrimPrefix(name, "SIGNAL_"))
		if !ok {
			return 0, 0, Invalid("stop_signal", name, "unknown signal")
		}
		return sig, s, nil
	}
	if sig, ok := signalNumber(image); ok {
		return sig, signalName(sig), nil
	}
	return syscall.SIGTERM, runtimeapi.Signal_SIGNAL_SIGTERM, nil
}

// signalNumber understands SIGTERM, TERM, 15, SIGRTMIN, SIGRTMIN+3, SIGRTMINPLUS3, SIGRTMAX-1.
func signalNumber(s string) (syscall.Signal, bool) {
	if n, err := strconv.Atoi(s); err == nil {
		return syscall.Signal(n), n >= 1 && n <= sigRTMax
	}
	up := "SIG" + strings.TrimPrefix(strings.ToUpper(s), "SIG")
	up = strings.NewReplacer("PLUS", "+", "MINUS", "-").Replace(up)
	for base, n := range map[string]int{"SIGRTMIN": sigRTMin, "SIGRTMAX": sigRTMax} {
		rest, ok := strings.CutPrefix(up, base)
		if !ok {
			continue
		}
		off := 0
		if rest != "" {
			var err error
			if off, err = strconv.Atoi(rest); err != nil {
				return 0, false
			}
		}
		n += off
		return syscall.Signal(n), n >= sigRTMin && n <= sigRTMax
	}
	switch up {
	case "SIGCLD":
		up = "SIGCHLD"
	case "SIGPOLL":
		up = "SIGIO"
	case "SIGIOT":
		up = "SIGABRT"
	}
	n := unix.SignalNum(up)
	return n, n != 0
}

// signalName finds the CRI's name of a signal, RUNTIME_DEFAULT for one that it has none for.
func signalName(sig syscall.Signal) runtimeapi.Signal {
	for v := range int32(len(runtimeapi.Signal_name)) {
		if n, ok := signalNumber(strings.TrimPrefix(runtimeapi.Signal_name[v], "SIGNAL_")); ok && n == sig {
			return runtimeapi.Signal(v)
		}
	}
	return runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT
}
