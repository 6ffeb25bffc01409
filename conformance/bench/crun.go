package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/vitrine-runtime/vitrine/conformance/stage"
)

// crun is a bundle, and the runtime to run it with.
type crun struct {
	path    string
	bundle  string
	version string
}

// newCrun makes a bundle from the OCI spec of a container of ours that runs in the pod's cgroup: the same process,
// mounts, capabilities and seccomp profile, the namespaces of that container joined where the pod shares them. Resources
// are left out, since the hierarchy here may have no controllers.
func newCrun(bundle, config, cgroup, id string, img *stage.Image) (*crun, error) {
	path, err := exec.LookPath("crun")
	if err != nil {
		return nil, err
	}
	version, err := exec.Command(path, "--version").Output()
	if err != nil {
		return nil, err
	}
	first, _, _ := strings.Cut(string(version), "\n")
	rootfs := filepath.Join(bundle, "rootfs")
	if err := os.MkdirAll(rootfs, 0o755); err != nil {
		return nil, err
	}
	if err := img.Unpack(rootfs); err != nil {
		return nil, err
	}
	pid, err := firstPid(cgroup, id)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(config)
	if err != nil {
		return nil, err
	}
	var spec specs.Spec
	if err := json.Unmarshal(text, &spec); err != nil {
		return nil, fmt.Errorf("read %s: %w", config, err)
	}
	adapt(&spec, pid)
	if text, err = json.Marshal(&spec); err != nil {
		return nil, err
	}
	return &crun{path: path, bundle: bundle, version: first}, os.WriteFile(filepath.Join(bundle, "config.json"), text, 0o644)
}

// adapt changes what in our spec is for our own executor.
func adapt(spec *specs.Spec, pid int) {
	spec.Version = "1.0.2" // what an old crun knows; nothing later is asked for
	spec.Root.Path = "rootfs"
	spec.Hostname = ""
	spec.Process.OOMScoreAdj = nil
	spec.Linux.Resources, spec.Linux.Sysctl = nil, nil
	spec.Linux.CgroupsPath = "/crun-bench"
	spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.CgroupNamespace}}
	for kind, file := range map[specs.LinuxNamespaceType]string{specs.NetworkNamespace: "net", specs.IPCNamespace: "ipc", specs.UTSNamespace: "uts"} {
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: kind, Path: fmt.Sprintf("/proc/%d/ns/%s", pid, file)})
	}
}

// crunManagers are the ways in which crun is measured, by its --cgroup-manager.
var crunManagers = [2]string{"cgroupfs", "disabled"}

// once runs the bundle until its process runs, and takes it away; only the first is timed. CPU is that of crun and
// all that it waited for.
func (c *crun) once(manager, id string) (wall, cpu time.Duration, err error) {
	cmd := exec.Command(c.path, "--cgroup-manager="+manager, "run", "--detach", "--bundle", c.bundle, id)
	// A file and no pipe: the container keeps it open.
	said, err := os.Create(filepath.Join(c.bundle, "stderr"))
	if err != nil {
		return 0, 0, err
	}
	defer said.Close()
	cmd.Stderr = said
	begin := time.Now()
	err = cmd.Run()
	wall = time.Since(begin)
	if err != nil {
		text, _ := os.ReadFile(said.Name())
		return 0, 0, fmt.Errorf("%w: %s", err, text)
	}
	cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	out, err := exec.Command(c.path, "--cgroup-manager="+manager, "delete", "--force", id).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("delete: %w: %s", err, out)
	}
	return wall, cpu, err
}

// firstPid returns a process of a container by its cgroup.
func firstPid(cgroup, id string) (int, error) {
	pid := 0
	err := filepath.WalkDir(cgroup, func(path string, d os.DirEntry, err error) error {
		if err != nil || pid != 0 || d.Name() != "cgroup.procs" || !strings.Contains(path, id) {
			return err
		}
		text, err := os.ReadFile(path)
		if f := strings.Fields(string(text)); err == nil && len(f) > 0 {
			pid, err = strconv.Atoi(f[0])
		}
		return err
	})
	if err == nil && pid == 0 {
		err = errors.New("the container has no process")
	}
	return pid, err
}

// runtimeCPU returns the CPU time that the daemon, the monitors and the children that they waited for have used.
func runtimeCPU(daemon int) time.Duration {
	var ticks int64
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		comm, _ := os.ReadFile("/proc/" + e.Name() + "/comm")
		if pid != daemon && !strings.HasPrefix(string(comm), "vitrine-oci") {
			continue
		}
		stat, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue
		}
		// Behind the name in parentheses come the state and then numbers; utime, stime, cutime and cstime are 11 to 14.
		f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		for _, i := range []int{11, 12, 13, 14} {
			n, _ := strconv.ParseInt(f[i], 10, 64)
			ticks += n
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}
