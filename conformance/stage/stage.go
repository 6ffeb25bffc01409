package stage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/klog/v2"
)

// base is where everything of the stage lives; /run is a tmpfs of our own.
const base = "/run/stage"

// Bridge is the bridge of the pod network, and Gateway its address: the host, as pods see it.
const (
	Bridge  = "vitrine0"
	Gateway = "10.86.0.1"
	subnet  = "10.86.0.0/24"
	network = "vitrine"
)

// Stage is the place inside the private surroundings. It is made by Enter; whoever holds it is the player.
type Stage struct {
	Registry *Registry
	Bin      string // directory of vitrine, vitrine-oci and cni/
	Driver   string // cgroup driver of the daemon: cgroupfs or systemd
	Daemons  string // the program of daemons that are started from now on; "" is vitrine in Bin

	Root    string // the daemon's --root
	RunDir  string // the daemon's --run-dir
	Socket  string // the daemon's --listen
	LogDir  string // for pods: PodSandboxConfig.LogDirectory goes below it
	Scratch string // for whatever a test wants to mount into a pod

	Config         string // the daemon's --config, an empty file
	RegistriesConf string // the daemon's registries.conf; drop-ins go into its name with .d
	Policy         string // the daemon's policy.json
	PolicyDir      string // policies of namespaces; not there yet
	Network        string // the CNI list of the pod network
	CDIDir         string // specs of devices; not there yet

	ipamDir  string
	cniCache string
	tmpDir   string
	pods     string // cgroup that the pods' are in
	machine  bool   // the stage is the whole machine
	flags    []string
	daemon   *Daemon
}

// newStage furnishes the rest of the surroundings: directories, registry, network configuration.
func newStage(driver string, machine bool) (*Stage, error) {
	// The client library logs each error that it also returns.
	klog.SetSlogLogger(slog.New(slog.DiscardHandler))
	bin, err := findBin()
	if err != nil {
		return nil, err
	}
	s := &Stage{
		Bin: bin, Root: base + "/lib", RunDir: "/run/vitrine", Socket: "/run/vitrine/vitrine.sock",
		LogDir: base + "/logs", Scratch: base + "/scratch", ipamDir: base + "/ipam", cniCache: base + "/cni-cache", tmpDir: base + "/tmp",
		Driver: driver, pods: "/kubepods", machine: machine,
	}
	if machine {
		s.Root, s.RunDir, s.Socket, s.pods = machineRoot, base+"/run", base+"/run/vitrine.sock", machinePods[driver]
	}
	for _, d := range []string{s.Root, s.LogDir, s.Scratch, s.ipamDir, s.cniCache, s.tmpDir, base + "/net.d", "/run/netns"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	if err := s.makePodCgroup(s.pods); err != nil {
		return nil, err
	}
	if s.Registry, err = StartRegistry(); err != nil {
		return nil, fmt.Errorf("start registry: %w", err)
	}
	if s.RegistriesConf, s.Policy, err = WriteImageConfig(base, s.Registry.Addr()); err != nil {
		return nil, err
	}
	s.PolicyDir, s.CDIDir = base+"/policies", base+"/cdi"
	if err := s.writeNetwork(); err != nil {
		return nil, err
	}
	s.flags = []string{
		"--config", base + "/vitrine.toml", "--root", s.Root, "--run-dir", s.RunDir, "--listen", s.Socket,
		"--cni-conf-dir", base + "/net.d", "--cni-bin-dir", filepath.Join(bin, "cni"), "--cni-cache-dir", s.cniCache,
		"--cgroup-driver", driver, "--registries-conf", s.RegistriesConf, "--policy", s.Policy, "--policy-dir", s.PolicyDir,
		"--allow-writable-cgroups", "--cdi-spec-dirs", s.CDIDir,
	}
	if missing := MissingControllers(); len(missing) > 0 {
		s.flags = append(s.flags, "--allow-unenforced-limits")
	}
	s.Config = base + "/vitrine.toml"
	return s, os.WriteFile(s.Config, nil, 0o644)
}

// writeNetwork writes the CNI list: a bridge with the host as gateway, and addresses by host-local. No address
// translation: nothing here leaves the machine, and so neither iptables nor nft is needed.
func (s *Stage) writeNetwork() error {
	text := fmt.Sprintf(`{
  "cniVersion": "1.1.0",
  "name": %q,
  "plugins": [
    {
      "type": "bridge",
      "bridge": %q,
      "isGateway": true,
      "ipam": {
        "type": "host-local",
        "dataDir": %q,
        "ranges": [[{ "subnet": %q }]],
        "routes": [{ "dst": "0.0.0.0/0" }]
      }
    }
  ]
}
`, network, Bridge, s.ipamDir, subnet)
	s.Network = base + "/net.d/10-vitrine.conflist"
	return os.WriteFile(s.Network, []byte(text), 0o644)
}

// MissingControllers returns which of the controllers that the daemon wants the root of this cgroup2 hierarchy lacks. What a cgroup in it
// has is its parents' to say.
func MissingControllers() []string {
	text, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	have := strings.Fields(string(text))
	var missing []string
	for _, c := range []string{"cpu", "cpuset", "memory", "pids"} {
		found := false
		for _, h := range have {
			found = found || h == c
		}
		if err != nil || !found {
			missing = append(missing, c)
		}
	}
	return missing
}

// findBin returns the directory with the binaries: $VITRINE_BIN, or bin/ at the top of the source tree.
func findBin() (string, error) {
	if dir := os.Getenv("VITRINE_BIN"); dir != "" {
		return filepath.Abs(dir)
	}
	at, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(at, "go.mod")); err == nil {
			return filepath.Join(at, "bin"), nil
		}
		if at == filepath.Dir(at) {
			return "", errors.New("find bin: run this inside the source tree, or set VITRINE_BIN")
		}
		at = filepath.Dir(at)
	}
}

// checkBin sees that all is built, so that a forgotten make is said at once and not by a failing pod.
func (s *Stage) checkBin() error {
	for _, name := range []string{"vitrine", "vitrine-oci", "cni/bridge", "cni/host-local"} {
		if _, err := os.Stat(filepath.Join(s.Bin, name)); err != nil {
			return fmt.Errorf("%w (run make first)", err)
		}
	}
	return nil
}

// Close stops the daemon, if one runs, and the registry.
func (s *Stage) Close() error {
	var err error
	if s.daemon != nil {
		err = s.daemon.Stop()
	}
	err = errors.Join(err, s.Registry.Close())
	if s.machine {
		err = errors.Join(err, s.closeMachine())
	}
	return err
}

// Scale returns a time that is right for a machine of the build's kind, made longer where the machine is a guest: emulation is five to
// fifteen times slower.
func (s *Stage) Scale(d time.Duration) time.Duration {
	if s.machine {
		return 6 * d
	}
	return d
}

// IsMachine reports whether the stage is a whole machine with systemd, and not private namespaces.
func (s *Stage) IsMachine() bool { return s.machine }

// Push offers an image in the loopback registry.
func (s *Stage) Push(ctx context.Context, repository, tag string, img *Image) (string, error) {
	return s.Registry.Push(ctx, repository, tag, img)
}

// SeedBusybox makes the busybox image and pushes it to the loopback registry; see BusyboxImage.
func (s *Stage) SeedBusybox(ctx context.Context, repository, tag string) (string, *Image, error) {
	img, err := BusyboxImage(repository + ":" + tag)
	if err != nil {
		return "", nil, err
	}
	ref, err := s.Registry.Push(ctx, repository, tag, img)
	return ref, img, err
}
