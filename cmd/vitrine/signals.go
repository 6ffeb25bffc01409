package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"k8s.io/klog/v2"
)

// After SIGTERM, requests get drainTime to finish, and the process endTime to end.
// Then it ends anyway: it may be killed at any time, and a service manager that has
// to do so waits longer.
const (
	drainTime = 5 * time.Second
	endTime   = 9 * time.Second
)

// handleSignals returns a context that the first SIGTERM or SIGINT ends. The
// returned function gives the signals back.
//
// SIGHUP and SIGPIPE are caught and not ignored: what is ignored stays so across
// execve, and containers would inherit it.
func handleSignals(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	c := make(chan os.Signal, 8)
	signal.Notify(c, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	done := make(chan struct{})
	go func() { // ends with stop
		for {
			select {
			case <-done:
				return
			case s := <-c:
				handleSignal(s, ctx.Err() != nil, cancel)
			}
		}
	}()
	return ctx, func() {
		signal.Stop(c)
		close(done)
		cancel(nil)
	}
}

func handleSignal(s os.Signal, ending bool, cancel context.CancelCauseFunc) {
	switch s {
	case syscall.SIGPIPE:
	case syscall.SIGHUP:
		klog.InfoS("SIGHUP does nothing: restart to read the configuration, pods do not notice")
	default:
		if ending {
			exit("ended by a second signal")
		}
		klog.InfoS("ending", "signal", s.String())
		cancel(fmt.Errorf("%s", s))
		time.AfterFunc(endTime, func() { exit("ended with requests still running") })
	}
}

// exit is the end that waits for nothing.
func exit(why string) {
	klog.ErrorS(nil, why)
	klog.Flush()
	os.Exit(1)
}
