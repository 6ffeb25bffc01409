package stage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Environment variables of a machine that is the stage itself: the harness of conformance/vm sets the first in its guest, and whoever runs
// tests there chooses with the second, "systemd" (the default) or "cgroupfs".
const (
	machineEnv = "VITRINE_VM"
	driverEnv  = "VITRINE_DRIVER"
)

// machinePods are the cgroups of the pods on a whole machine, by driver. They are not the kubelet's, which may have its own there.
var machinePods = map[string]string{"cgroupfs": "/stagepods", "systemd": "/stagepods.slice"}

const (
	machineLock = "/run/vitrine-stage.lock"
	machineRoot = "/var/lib/vitrine-stage" // on the disk, where a node has it
	unitPrefix  = "vitrine-stage-"
)

// isMachine reports whether this machine is for us to use as it is: systemd is PID 1, and it is a guest of ours.
func isMachine() bool { return os.Getenv(machineEnv) != "" && underSystemd() }

// enterMachine makes the machine the stage. Others may use it for other things meanwhile, but one stage runs at a time: the
// next waits.
func enterMachine() (*Stage, error) {
	if err := lockMachine(20 * time.Minute); err != nil {
		return nil, err
	}
	driver := os.Getenv(driverEnv)
	if driver == "" {
		driver = "systemd"
	}
	if machinePods[driver] == "" {
		return nil, fmt.Errorf("%s=%s: neither systemd nor cgroupfs", driverEnv, driver)
	}
	// What a run left that was killed goes in the way in which it came, by a daemon.
	for d := range machinePods {
		if _, err := os.Stat("/sys/fs/cgroup" + machinePods[d]); err == nil {
			if err := clearMachine(d); err != nil {
				return nil, fmt.Errorf("clear what an earlier run left: %w", err)
			}
		}
	}
	if err := wipeMachine(); err != nil {
		return nil, err
	}
	return newStage(driver, true)
}

// lockMachine keeps other stages away for the life of this process.
func lockMachine(patience time.Duration) error {
	fd, err := unix.Open(machineLock, unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("open %s: %w", machineLock, err)
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(200 * time.Millisecond) {
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// clearMachine removes the pods of a run that was killed.
func clearMachine(driver string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	_ = exec.CommandContext(ctx, "systemctl", "stop", unitPrefix+"*.service").Run() // there may be none
	if _, err := os.Stat(base + "/run/pods"); err == nil {
		s, err := newStage(driver, true)
		if err != nil {
			return err
		}
		return errors.Join(s.removePods(ctx), s.Close())
	}
	return dropPodCgroups(machinePods[driver])
}

// removePods starts a daemon on what is there and removes every pod.
func (s *Stage) removePods(ctx context.Context) error {
	if err := s.EnsureDaemon(ctx); err != nil {
		return err
	}
	c, err := s.Connect(ctx)
	if err != nil {
		return err
	}
	pods, err := c.ListPodSandbox(ctx, &runtimeapi.PodSandboxFilter{})
	for _, p := range pods {
		err = errors.Join(err, c.StopPodSandbox(ctx, p.Id), c.RemovePodSandbox(ctx, p.Id))
	}
	return errors.Join(err, c.Close(ctx))
}

// wipeMachine removes the stage's files, and its bridge.
func wipeMachine() error {
	_ = exec.Command("ip", "link", "delete", Bridge).Run() // there may be none
	if err := unmountBelow(base, machineRoot); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(base), os.RemoveAll(machineRoot))
}

// unmountBelow detaches every mount below directories, the newest first.
func unmountBelow(dirs ...string) error {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	lines := strings.Split(string(info), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		f := strings.Fields(lines[i])
		for _, dir := range dirs {
			if len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
				if err := unix.Unmount(f[4], unix.MNT_DETACH); err != nil {
					return fmt.Errorf("unmount %s: %w", f[4], err)
				}
			}
		}
	}
	return nil
}

// closeMachine leaves the machine as it was.
func (s *Stage) closeMachine() error {
	return errors.Join(dropPodCgroups(s.pods), wipeMachine())
}

// dropPodCgroups removes the cgroup that all pods were in; whoever is left there is killed.
func dropPodCgroups(pods string) error {
	dir := "/sys/fs/cgroup" + pods
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err := os.WriteFile(dir+"/cgroup.kill", []byte("1"), 0); err != nil {
		return err
	}
	if strings.HasSuffix(pods, ".slice") {
		out, err := exec.Command("systemctl", "stop", filepath.Base(pods)).CombinedOutput() // takes the slices and scopes below along
		if err != nil {
			return fmt.Errorf("stop %s: %w: %s", pods, err, out)
		}
		return nil
	}
	root, err := os.Open("/sys/fs/cgroup")
	if err != nil {
		return err
	}
	defer root.Close()
	for range 100 {
		if err = removeCgroups(root, strings.TrimPrefix(pods, "/")); err == nil || errors.Is(err, os.ErrNotExist) {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("remove cgroup %s: %w", pods, err)
}

// startSlice asks systemd for a slice as the kubelet does: accounting for everything, so that all controllers are there.
func startSlice(name string) error {
	args := []string{"call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager", "StartTransientUnit",
		"ssa(sv)a(sa(sv))", name, "fail", "6", "DefaultDependencies", "b", "false", "CPUAccounting", "b", "true", "MemoryAccounting", "b", "true",
		"IOAccounting", "b", "true", "TasksAccounting", "b", "true", "Description", "s", "pod of the stage", "0"}
	out, err := exec.Command("busctl", args...).CombinedOutput()
	if err != nil && exec.Command("systemctl", "--quiet", "is-active", name).Run() == nil {
		return nil // a run that was killed has left it
	}
	if err != nil {
		return fmt.Errorf("start slice %s: %w: %s", name, err, out)
	}
	return nil
}

// makePodCgroup makes the cgroup of a pod, as the kubelet would.
func (s *Stage) makePodCgroup(parent string) error {
	dir := "/sys/fs/cgroup" + parent
	if s.Driver != "systemd" {
		return os.MkdirAll(dir, 0o755)
	}
	if err := startSlice(filepath.Base(parent)); err != nil {
		return err
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		_, err := os.Stat(dir)
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("start slice: %w", err)
		}
	}
}

// removePodCgroup removes a pod's cgroup. One that is not empty is an error: the runtime left something in it.
func (s *Stage) removePodCgroup(parent string) error {
	dir := "/sys/fs/cgroup" + parent
	if s.Driver != "systemd" {
		if err := os.Remove(dir); err != nil {
			return fmt.Errorf("the pod's cgroup is not empty: %w", err)
		}
		return nil
	}
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if e.IsDir() {
			err = errors.Join(err, fmt.Errorf("the pod's cgroup is not empty: it has %s", e.Name()))
		}
	}
	out, stop := exec.Command("systemctl", "stop", filepath.Base(parent)).CombinedOutput()
	if stop != nil {
		stop = fmt.Errorf("stop slice: %w: %s", stop, out)
	}
	return errors.Join(err, stop)
}
