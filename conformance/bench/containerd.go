package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/vitrine-runtime/vitrine/conformance/stage"
)

// containerd is a daemon of that name on our stage, with its own directories and our registry.
type containerd struct {
	dir, socket string
	cmd         *exec.Cmd
}

// ociName is the name by which this program is an OCI runtime: see beOCI.
const ociName = "bench-oci"

const containerdConfig = `version = 3
root = "%[1]s/root"
state = "%[1]s/state"
[grpc]
  address = "%[1]s/sock"
[ttrpc]
  address = "%[1]s/ttrpc"
[plugins."io.containerd.cri.v1.images"]
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
        BinaryName = "%[1]s/bench-oci"
        SystemdCgroup = false
[plugins."io.containerd.nri.v1.nri"]
  disable = true
`

// startContainerd starts the containerd in bin, which holds its shim as well, and returns when it answers.
func startContainerd(ctx context.Context, place *stage.Stage, bin, crun string) (*containerd, error) {
	c := &containerd{dir: filepath.Join(place.Scratch, "containerd")}
	c.socket = c.dir + "/sock"
	ref, err := pushSandbox(ctx, place)
	if err != nil {
		return nil, err
	}
	registry, _, _ := strings.Cut(ref, "/")
	hosts := fmt.Sprintf("server = \"http://%[1]s\"\n[host.\"http://%[1]s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", place.Registry.Addr())
	conflist := `{"cniVersion": "1.0.0", "name": "none", "plugins": [{"type": "loopback"}]}`
	self, err := os.Executable()
	if err == nil {
		crun, err = exec.LookPath(crun)
	}
	if err == nil {
		crun, err = filepath.Abs(crun)
	}
	if err != nil {
		return nil, err
	}
	for _, d := range []string{c.dir + "/certs.d/" + registry, c.dir + "/net.d"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(
		os.WriteFile(c.dir+"/certs.d/"+registry+"/hosts.toml", []byte(hosts), 0o644),
		os.WriteFile(c.dir+"/net.d/10-none.conflist", []byte(conflist), 0o644),
		os.WriteFile(c.dir+"/config.toml", fmt.Appendf(nil, containerdConfig, c.dir, ref, place.Bin), 0o644),
		os.Symlink(self, c.dir+"/"+ociName), os.Symlink(crun, c.dir+"/crun"),
	); err != nil {
		return nil, err
	}
	return c, c.start(ctx, bin)
}

func (c *containerd) start(ctx context.Context, bin string) error {
	log, err := os.Create(c.dir + "/log")
	if err != nil {
		return err
	}
	defer log.Close()
	c.cmd = exec.Command(filepath.Join(bin, "containerd"), "--config", c.dir+"/config.toml")
	c.cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
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
	var manifest ocispec.Manifest
	if err := json.Unmarshal(img.Manifest, &manifest); err != nil {
		return "", err
	}
	var config ocispec.Image
	if err := json.Unmarshal(img.Blobs[manifest.Config.Digest.String()], &config); err != nil {
		return "", err
	}
	config.Config.Cmd = []string{"/bin/sleep", "100000"}
	text, err := json.Marshal(config)
	if err != nil {
		return "", err
	}
	manifest.Config.Digest, manifest.Config.Size = digest.FromBytes(text), int64(len(text))
	img.Blobs[manifest.Config.Digest.String()] = text
	if img.Manifest, err = json.Marshal(manifest); err != nil {
		return "", err
	}
	return place.Registry.Push(ctx, "bench/sandbox", "1", img)
}

// beOCI is this program as the OCI runtime of containerd: crun, with the limits taken out of the bundle where the
// hierarchy has no controllers. crun refuses to start with limits that it cannot set, and containerd always sets some.
func beOCI() error {
	verb, bundle := "", "."
	for i, arg := range os.Args[1:] {
		switch arg {
		case "create", "run", "update":
			if verb == "" {
				verb = arg
			}
		case "--bundle", "-b":
			if i+2 < len(os.Args) {
				bundle = os.Args[i+2]
			}
		}
	}
	if len(stage.MissingControllers()) > 0 {
		if verb == "update" {
			return nil
		}
		if verb != "" {
			if err := dropLimits(filepath.Join(bundle, "config.json")); err != nil {
				return err
			}
		}
	}
	crun := filepath.Join(filepath.Dir(os.Args[0]), "crun")
	return syscall.Exec(crun, append([]string{crun}, os.Args[1:]...), os.Environ())
}

func dropLimits(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var spec map[string]any
	if err := d.Decode(&spec); err != nil {
		return err
	}
	linux, _ := spec["linux"].(map[string]any)
	if r, ok := linux["resources"].(map[string]any); ok {
		linux["resources"] = map[string]any{"devices": r["devices"]}
	}
	if text, err = json.Marshal(spec); err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o600)
}
