package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/vitrine-runtime/vitrine/conformance/stage"
)

// step is one thing that must hold. It returns what it saw, in a line.
type step struct {
	name string
	do   func(context.Context) (string, error)
}

// visit is one run through all steps, with what earlier ones found out.
type visit struct {
	node
	begin    time.Time
	registry *stage.Registry
	pods     []*wanted
	before   traces
	ids      map[string]process // by "pod/container": the processes that nothing may touch
}

// walk runs the steps in the guest. Whatever happens, the services are stopped at the end, unless keep is set.
func walk(ctx context.Context, n node, keep bool) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("run inside: must be root")
	}
	// Two runs in one guest would tear each other's services down.
	lock, err := os.OpenFile("/run/vitrine-walk.lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return fmt.Errorf("lock the guest: %w: another run is at work there", err)
	}
	v := &visit{begin: time.Now(), node: n, pods: podsWanted()}
	defer func() {
		if !keep {
			err = errors.Join(err, v.tearDown(context.WithoutCancel(ctx)))
		}
	}()
	for _, s := range v.steps() {
		from := time.Now()
		saw, err := s.do(ctx)
		took := time.Since(from).Seconds()
		if err != nil {
			fmt.Printf("FAIL %6.1f s  %s: %v\n", took, s.name, err)
			v.explain(ctx)
			return fmt.Errorf("step %q failed", s.name)
		}
		fmt.Printf("ok   %6.1f s  %s: %s\n", took, s.name, saw)
	}
	fmt.Printf("all of it in %.0f s\n", time.Since(v.begin).Seconds())
	return nil
}

func (v *visit) steps() []step {
	return []step{
		{"node", v.furnish},
		{"daemon as a service", v.startDaemon},
		{"kubelet", v.startKubelet},
		{"pods become Ready", v.ready},
		{"cgroups and limits in the kernel", v.limits},
		{"the same after systemctl daemon-reload", v.reload},
		{"logs through the kubelet's port", v.logs},
		{"run (ExecSync) through the kubelet's port", v.run},
		{"exec and port-forward through the kubelet's port", v.streams},
		{"statistics through the kubelet's port", v.statistics},
		{"a killed container is restarted", v.killed},
		{"a failed liveness probe restarts", v.unhealthy},
		{"restart of the kubelet", v.restartKubelet},
		{"restart of the daemon", v.restartDaemon},
		{"death of the daemon", v.killDaemon},
		{"removal leaves nothing", v.removal},
		{"what the kubelet complained about", v.complaints},
	}
}
