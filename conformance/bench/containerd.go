package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/conformance/stage"
)

// containerd is a daemon of that name on our stage, with its own directories, our registry, and our CNI plugins.
type containerd struct {
	dir, socket, program string
	cmd                  *exec.Cmd
}

// configCommon begins the configuration of every version, and those of a version follow.
const configCommon = `version = %[5]d
root = "%[1]s/root"
state = "/run/%[4]s"
[grpc]
  address = "/run/%[4]s.sock"
[ttrpc]
  address = "/run/%[4]s.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "%[1]s/opt"
`

const configOf2 = `[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = %[2]q
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = "%[1]s/certs.d"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  tolerate_missing_hugetlb_controller = true
  disable_hugetlb_controller = true
  enable_unprivileged_icmp = false
  enable_unprivileged_ports = false
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["%[3]s/cni"]
    conf_dir = "%[1]s/net.d"
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "bench"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.bench]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.bench.options]
        BinaryName = "%[1]s/oci"
        SystemdCgroup = false
[plugins."io.containerd.nri.v1.nri"]
  disable = true
`

const configOf1 = `[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %[2]q
  restrict_oom_score_adj = true
  tolerate_missing_hugetlb_controller = true
  disable_hugetlb_controller = true
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "%[1]s/certs.d"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "%[3]s/cni"
    conf_dir = "%[1]s/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "bench"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.bench]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.bench.options]
        BinaryName = "%[1]s/oci"
        SystemdCgroup = false
`

// startContainerd starts a containerd, of version 1 or 2, and returns when it answers.
func startContainerd(ctx context.Context, place *stage.Stage, p peer) (*containerd, error) {
	c := &containerd{dir: filepath.Join(place.Scratch, p.name), socket: "/run/" + p.name + ".sock"}
	var err error
	if c.program, err = exec.LookPath(filepath.Join(p.bin, "containerd")); err != nil {
		return nil, err
	}
	said, err := exec.Command(c.program, "--version").Output()
	if err != nil {
		return nil, fmt.Errorf("ask %s for its version: %w", c.program, err)
	}
	ref, err := pushSandbox(ctx, place)
	if err != nil {
		return nil, err
	}
	version, own := 2, configOf1
	if strings.Contains(string(said), "/containerd/v2 ") {
		version, own = 3, configOf2
	}
	config := fmt.Sprintf(configCommon+own, c.dir, ref, place.Bin, p.name, version)
	if err := errors.Join(c.writeHosts(place, ref), c.writeNetwork(place), c.writeOCI(place, p.crun, p.bin == "")); err != nil {
		return nil, err
	}
	if err := os.WriteFile(c.dir+"/config.toml", []byte(config), 0o644); err != nil {
		return nil, err
	}
	return c, c.start(ctx)
}

// writeHosts says that our registry speaks plain HTTP.
func (c *containerd) writeHosts(place *stage.Stage, ref string) error {
	registry, _, _ := strings.Cut(ref, "/")
	dir := c.dir + "/certs.d/" + registry
	text := fmt.Sprintf("server = \"http://%[1]s\"\n[host.\"http://%[1]s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", place.Registry.Addr())
	return errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(dir+"/hosts.toml", []byte(text), 0o644))
}

// writeNetwork copies our network, in the version of CNI that old libraries know, too.
func (c *containerd) writeNetwork(place *stage.Stage) error {
	dir := c.dir + "/net.d"
	text, err := os.ReadFile(place.Network)
	if err != nil {
		return err
	}
	text = bytes.Replace(text, []byte(`"1.1.0"`), []byte(`"1.0.0"`), 1)
	return errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(dir+"/10-bench.conflist", text, 0o644))
}

// writeOCI makes the OCI runtime: crun, or, where the hierarchy has no controllers, crun without limits; see nolimits.c. A crun of
// before 1.9 gives up where it may not raise its limit of locked memory, which old kernels want for a device filter: where
// we may not, it gets no filter.
func (c *containerd) writeOCI(place *stage.Stage, crun string, old bool) error {
	path, err := exec.LookPath(crun)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return err
	}
	all := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	bare := old && unix.Setrlimit(unix.RLIMIT_MEMLOCK, &all) != nil
	if len(stage.MissingControllers()) == 0 && !bare {
		return os.Symlink(path, c.dir+"/oci")
	}
	if bare {
		err = os.WriteFile(c.dir+"/nodevices", nil, 0o644)
	}
	return errors.Join(err, os.Symlink(path, c.dir+"/crun"), os.Symlink(filepath.Join(place.Bin, "dev", "nolimits"), c.dir+"/oci"))
}

func (c *containerd) start(ctx context.Context) error {
	log, err := os.Create(c.dir + "/log")
	if err != nil {
		return err
	}
	defer log.Close()
	c.cmd = exec.Command(c.program, "--config", c.dir+"/config.toml")
	c.cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(c.program)+":"+os.Getenv("PATH"))
	c.cmd.Stdout, c.cmd.Stderr = log, log
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := c.cmd.Start(); err != nil {
		return err
	}
	for {
		if _, err := os.Stat(c.socket); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("its socket does not appear: %w\n%s", ctx.Err(), c.tail())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// stop ends the daemon. Its shims end with the stage.
func (c *containerd) stop() error {
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	timer := time.AfterFunc(10*time.Second, func() { _ = c.cmd.Process.Kill() })
	defer timer.Stop()
	_ = c.cmd.Wait() // how it ends is its own affair
	return nil
}

// tail returns the end of the daemon's log.
func (c *containerd) tail() string {
	text, _ := os.ReadFile(c.dir + "/log")
	return string(text[max(0, len(text)-4000):])
}

// pushSandbox pushes an image that sleeps: containerd runs one in each pod.
func pushSandbox(ctx context.Context, place *stage.Stage) (string, error) {
	img, err := stage.BusyboxImage("sandbox")
	if err != nil {
		return "", err
	}
	img, err = img.With(nil, func(c *ocispec.Image) { c.Config.Cmd = []string{"/bin/sleep", "100000"} })
	if err != nil {
		return "", err
	}
	return place.Registry.Push(ctx, "bench/sandbox", "1", img)
}
