package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// quiet is how long nothing may change after a restart: several rounds of the kubelet's syncs and probes.
const quiet = 15 * time.Second

// killed kills the first process of a container behind everybody's back.
func (v *visit) killed(ctx context.Context) (string, error) {
	const name = "guaranteed/main"
	was := v.ids[name]
	if err := syscall.Kill(was.pid, syscall.SIGKILL); err != nil {
		return "", err
	}
	return v.comesBack(ctx, "guaranteed", "main", 137)
}

// unhealthy takes away what the liveness probe of a container looks for; its next life makes it anew.
func (v *visit) unhealthy(ctx context.Context) (string, error) {
	live, err := v.livePods(ctx)
	if err != nil {
		return "", err
	}
	alive := filepath.Join(klDir, "pods", live["besteffort"].Metadata.UID, "volumes/kubernetes.io~empty-dir/shared/alive")
	if err := os.Remove(alive); err != nil {
		return "", err
	}
	return v.comesBack(ctx, "besteffort", "main", 0)
}

// comesBack waits until a container was restarted and its pod is Ready, checks how its last life ended and that nothing else was touched.
func (v *visit) comesBack(ctx context.Context, podName, name string, code int) (string, error) {
	begin := time.Now()
	was := v.ids[podName+"/"+name]
	var c container
	err := until(ctx, 2*time.Minute, func() error {
		live, err := v.livePods(ctx)
		if err != nil {
			return err
		}
		if c = live[podName].container(name); c.RestartCount == 0 || c.id() == was.id {
			return fmt.Errorf("%s was not restarted", name)
		}
		return live[podName].isReady()
	})
	if err != nil {
		return "", err
	}
	took := time.Since(begin)
	end := c.LastState.Terminated
	if c.RestartCount != 1 || end == nil || end.ExitCode != code {
		return "", fmt.Errorf("restarted %d times, the last state is %+v", c.RestartCount, end)
	}
	if err := v.untouched(ctx, podName+"/"+name); err != nil {
		return "", err
	}
	if v.ids, err = v.processes(ctx); err != nil {
		return "", err
	}
	return fmt.Sprintf("Ready again after %.1f s, last state %s %d, the other %d untouched", took.Seconds(), end.Reason, end.ExitCode, len(v.ids)-1), nil
}

func (v *visit) restartKubelet(ctx context.Context) (string, error) {
	return v.restart(ctx, kubeletUnit, func() error {
		_, err := systemctl(ctx, "restart", kubeletUnit)
		return err
	})
}

func (v *visit) restartDaemon(ctx context.Context) (string, error) {
	return v.restart(ctx, daemonUnit, func() error {
		_, err := systemctl(ctx, "restart", daemonUnit)
		return err
	})
}

// killDaemon is the end that nobody prepared for; systemd starts the next one.
func (v *visit) killDaemon(ctx context.Context) (string, error) {
	return v.restart(ctx, daemonUnit, func() error {
		_, err := systemctl(ctx, "kill", "--kill-whom=main", "--signal=KILL", daemonUnit)
		return err
	})
}

// restart does something to a service and then wants a new main process, every container's process the same, now and for a while, and all
// pods Ready after it.
func (v *visit) restart(ctx context.Context, unit string, do func() error) (string, error) {
	old, err := mainPID(ctx, unit)
	if err != nil {
		return "", err
	}
	begin := time.Now()
	if err := do(); err != nil {
		return "", err
	}
	err = until(ctx, time.Minute, func() error {
		pid, err := mainPID(ctx, unit)
		if err != nil {
			return err
		}
		if pid == old {
			return errors.New("the old process is still there")
		}
		_, err = systemctl(ctx, "is-active", unit)
		return err
	})
	if err != nil {
		return "", err
	}
	if err := v.healthy(ctx); err != nil {
		return "", err
	}
	if err := until(ctx, time.Minute, func() error { return v.allReady(ctx) }); err != nil {
		return "", err
	}
	took := time.Since(begin)
	for end := time.Now().Add(quiet); time.Now().Before(end); time.Sleep(time.Second) {
		if err := errors.Join(v.untouched(ctx), ctx.Err()); err != nil {
			return "", err
		}
	}
	// A kubelet forgets what its probes had found, and calls a pod unready until they have run again.
	if err := until(ctx, time.Minute, func() error { return v.allReady(ctx) }); err != nil {
		return "", err
	}
	return fmt.Sprintf("all Ready after %.1f s, and %d processes the same for %v more", took.Seconds(), len(v.ids), quiet), nil
}

func (v *visit) allReady(ctx context.Context) error {
	live, err := v.livePods(ctx)
	if err != nil {
		return err
	}
	for _, w := range v.pods {
		if live[w.name] == nil {
			return fmt.Errorf("%s is not known", w.name)
		}
		if err := live[w.name].isReady(); err != nil {
			return err
		}
	}
	return nil
}
