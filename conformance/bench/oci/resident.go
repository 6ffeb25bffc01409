package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci"
)

// startPod starts a pod with a monitor of its own.
func (w *worker) startPod(name string) (*oci.Pod, error) {
	c := oci.PodConfig{ID: name, Dir: filepath.Join(w.dir, name), Hostname: "glass", PauseCgroup: -1}
	if err := os.Mkdir(c.Dir, 0o700); err != nil {
		return nil, err
	}
	return w.rt.StartPod(w.ctx, c)
}

// config makes what a daemon makes for each container: its cgroup, its directory and a mount of its root.
func (w *worker) config(pod *oci.Pod, id string, s *specs.Spec) (c oci.ContainerConfig, err error) {
	c = oci.ContainerConfig{ID: id, Spec: s, Dir: filepath.Join(w.dir, pod.ID(), id)}
	if c.Cgroup, err = w.leaf(w.ours, id); err != nil {
		return c, err
	}
	if err := os.Mkdir(c.Dir, 0o700); err != nil {
		return c, err
	}
	c.Rootfs, err = sys.OpenTree(unix.AT_FDCWD, s.Root.Path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	return c, err
}

// resident measures a container from nothing to nothing through a monitor.
func (w *worker) resident(s *specs.Spec) (sample, error) {
	w.count++
	id := "c" + strconv.Itoa(w.count)
	cpu := w.usage() + burnt() // in this order: to look is not what is measured
	begin := time.Now()
	c, err := w.config(w.pod, id, s)
	if err != nil {
		return sample{}, err
	}
	p, err := w.pod.Create(w.ctx, c)
	if err != nil {
		return sample{}, err
	}
	if err := p.Start(w.ctx); err != nil {
		return sample{}, err
	}
	e, open := <-w.pod.Events()
	if !open || e.Kind != oci.Exited || e.ID != id || e.Status.ExitCode() != 0 {
		return sample{}, fmt.Errorf("waiting for %s: %+v, %v", id, e, open)
	}
	if err := p.Remove(w.ctx); err != nil {
		return sample{}, err
	}
	if err := removeLeaf(w.ours, id); err != nil {
		return sample{}, err
	}
	if err := oci.RemoveDir(c.Dir); err != nil {
		return sample{}, err
	}
	return sample{Wall: time.Since(begin), CPU: burnt() + w.usage() - cpu}, nil
}

// unseen returns the spec of a case with a variable that no other container has.
func (w *worker) unseen(name string) *specs.Spec {
	s, p := *w.specs[name], *w.specs[name].Process
	s.Process, p.Env = &p, append(slices.Clone(p.Env), "CONTAINER="+strconv.Itoa(w.count))
	return &s
}

// startTarget starts the container that execs go to.
func (w *worker) startTarget() error {
	p, err := w.sleeper(w.pod, "target")
	if err != nil {
		return err
	}
	w.target = p
	w.targets, err = sys.OpenAt2(w.ours.Int(), "target", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	return err
}

// sleeper starts a container that stays.
func (w *worker) sleeper(pod *oci.Pod, id string) (*oci.Process, error) {
	s, err := w.spec(caseE3, "sleep", "100000")
	if err != nil {
		return nil, err
	}
	c, err := w.config(pod, id, s)
	if err != nil {
		return nil, err
	}
	p, err := pod.Create(w.ctx, c)
	if err != nil {
		return nil, err
	}
	return p, p.Start(w.ctx)
}

// residentExec measures an exec from request to exit code.
func (w *worker) residentExec() (sample, error) {
	s := w.specs[caseE3]
	cpu := w.usage() + burnt() // in this order: to look is not what is measured
	begin := time.Now()
	if err := w.execIn(w.target, w.targets, s); err != nil {
		return sample{}, err
	}
	return sample{Wall: time.Since(begin), CPU: burnt() + w.usage() - cpu}, nil
}

func (w *worker) execIn(p *oci.Process, cgroup *sys.FD, s *specs.Spec) error {
	c := oci.ExecConfig{Process: s.Process, Seccomp: s.Linux.Seccomp}
	if cgroup != nil {
		var err error
		if c.Cgroup, err = cgroup.Dup(); err != nil {
			return err
		}
	}
	e, err := p.Exec(w.ctx, c)
	if err != nil {
		return err
	}
	status, err := e.Wait(w.ctx)
	if err == nil && status.ExitCode() != 0 {
		err = fmt.Errorf("exec: %+v", status)
	}
	return err
}

// usage is the CPU time of the monitors and of all containers that they ever had.
func (w *worker) usage() time.Duration {
	b, err := os.ReadFile("/proc/self/fd/" + strconv.Itoa(w.ours.Int()) + "/cpu.stat")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "usage_usec "); ok {
			n, _ := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
			return time.Duration(n) * time.Microsecond
		}
	}
	return 0
}

// memory reports what a monitor with one container keeps for itself after 20 execs, at once and when it has settled.
// A second pod is there, as on any node: the pages of the binary are shared by all monitors, but the kernel counts those of a memfd as
// private dirty where only one process has them mapped.
func (w *worker) memory() (string, error) {
	pod, err := w.startPod("memory")
	if err != nil {
		return "", err
	}
	p, err := w.sleeper(pod, "memory-sleeper")
	if err != nil {
		return "", err
	}
	s := w.specs[caseE3]
	idle := privateDirty(pod.MonitorPid())
	for range 20 {
		if err := w.execIn(p, nil, s); err != nil {
			return "", err
		}
	}
	busy := privateDirty(pod.MonitorPid())
	time.Sleep(12 * time.Second)
	settled := privateDirty(pod.MonitorPid())
	text := fmt.Sprintf("\nprivate dirty memory of a monitor with one container (smaps_rollup, KiB): before execs %d, after 20 %d, 12 s later %d   goal 800: %s\n",
		idle, busy, settled, verdict(max(busy, settled) <= 800))
	return text, pod.Kill()
}

// privateDirty reads smaps_rollup, in KiB.
func privateDirty(pid int) int {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "Private_Dirty:" {
			n, _ := strconv.Atoi(f[1])
			return n
		}
	}
	return -1
}
