package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/vitrine-runtime/vitrine/cni"
	"github.com/vitrine-runtime/vitrine/image"
	"github.com/vitrine-runtime/vitrine/oci"
	"github.com/vitrine-runtime/vitrine/oci/cgroup"
	"github.com/vitrine-runtime/vitrine/sandbox"
	"github.com/vitrine-runtime/vitrine/sandbox/cdi"
	"github.com/vitrine-runtime/vitrine/server"
	"github.com/vitrine-runtime/vitrine/server/stream"
)

// serve runs the daemon until a signal ends it.
func serve(ctx context.Context, cfg *Config) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("serve: must be root")
	}
	if err := startLog(&cfg.Log); err != nil {
		return err
	}
	notify := newNotifier()
	ctx, stop := handleSignals(ctx)
	defer stop()
	syscall.Umask(0o022)

	var open closers
	defer func() { err = errors.Join(err, open.close()) }()
	if err := open.claim(cfg.Root, cfg.RunDir); err != nil {
		return err
	}
	d, err := openDaemon(ctx, cfg, &open)
	if err != nil {
		return err
	}
	l, err := listen(cfg.Listen)
	if err != nil {
		return err
	}
	streams, err := stream.Listen(stream.Config{
		Runtime: d.manager, Address: cfg.Stream.Address, CertFile: cfg.Stream.TLSCert, KeyFile: cfg.Stream.TLSKey,
		IdleTimeout: time.Duration(cfg.Stream.IdleMinutes) * time.Minute,
	})
	if err != nil {
		return errors.Join(err, l.Close())
	}
	srv := server.New(d.serverConfig(cfg, streams))
	served := make(chan error, 2)
	go func() { served <- srv.Serve(l) }()    // ends with Shutdown
	go func() { served <- streams.Serve() }() // as well
	if err := notify.send("READY=1\nSTATUS=Serving on " + cfg.Listen); err != nil {
		klog.ErrorS(err, "the service manager does not know that the daemon is ready")
	}
	klog.InfoS("serving", "version", semver(version), "socket", cfg.Listen, "cgroup", d.tree.Driver(), "unenforced", d.tree.Unenforced())

	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	if err := notify.send("STOPPING=1"); err != nil {
		klog.ErrorS(err, "the service manager does not know that the daemon ends")
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	ended := make(chan struct{})
	go func() { // ends a second after drainTime at the latest
		streams.Shutdown(drain)
		close(ended)
	}()
	srv.Shutdown(drain)
	<-ended
	return nil
}

// startLog sets klog up: to stderr, at the level of the configuration.
func startLog(c *LogConfig) error {
	var fs flag.FlagSet
	klog.InitFlags(&fs)
	if err := fs.Set("v", strconv.Itoa(c.Level)); err != nil {
		return fmt.Errorf("log.level: %w", err)
	}
	if err := fs.Set("vmodule", c.VModule); err != nil {
		return fmt.Errorf("log.vmodule: %w", err)
	}
	return nil
}

// closers close what was opened, the last first.
type closers []func() error

func (c *closers) add(f func() error) { *c = append(*c, f) }

func (c *closers) close() (err error) {
	for i := len(*c) - 1; i >= 0; i-- {
		err = errors.Join(err, (*c)[i]())
	}
	return err
}

// claim makes the daemon's directories and locks them.
func (c *closers) claim(dirs ...string) error {
	for _, dir := range dirs {
		if err := makeDir(dir); err != nil {
			return err
		}
		lock, err := lockDir(dir)
		if err != nil {
			return err
		}
		c.add(lock.Close)
	}
	return nil
}

// daemon is what the server stands on.
type daemon struct {
	images  *image.Store
	network *cni.Network
	tree    *cgroup.Tree
	cdi     *cdi.Registry
	manager *sandbox.Manager
}

// openDaemon opens everything from the bottom up. The last step is the recovery of
// the pods that a daemon before this one left running.
func openDaemon(ctx context.Context, cfg *Config, open *closers) (*daemon, error) {
	d := &daemon{cdi: cdi.New(cfg.CDI.SpecDirs)}
	var err error
	if d.images, err = image.Open(cfg.imageConfig()); err != nil {
		return nil, err
	}
	for _, p := range d.images.Repaired() {
		klog.InfoS("image store repaired", "problem", p.What, "repaired", p.Repaired)
	}
	open.add(d.images.Close)
	if d.network, err = cni.New(cni.Config{
		ConfDir:  cfg.CNI.ConfDir,
		BinDirs:  cfg.CNI.BinDirs,
		CacheDir: cfg.CNI.CacheDir,
		StateDir: filepath.Join(cfg.Root, "network"),
	}); err != nil {
		return nil, err
	}
	if d.tree, err = cgroup.Open(cgroup.Config{
		Root:            cfg.Cgroup.Root,
		Driver:          cfg.Cgroup.Driver,
		AllowUnenforced: cfg.Cgroup.AllowUnenforced,
		Prefix:          "vitrine-",
	}); err != nil {
		return nil, err
	}
	open.add(d.tree.Close)
	d.tree.KeepAsking()
	runtime, err := openRuntime(ctx, cfg, d.tree, open)
	if err != nil {
		return nil, err
	}
	plugins, err := cfg.NRI.open()
	if err != nil {
		return nil, err
	}
	if plugins != nil {
		open.add(plugins.Close) // after the manager, which tells them what it takes back
	}
	if d.manager, err = sandbox.Open(ctx, sandbox.Config{
		RunDir:  cfg.RunDir,
		CDI:     d.cdi,
		Images:  d.images,
		Network: d.network,
		Cgroups: d.tree,
		Runtime: runtime,

		Handlers: cfg.handlers(),
		Plugins:  plugins,
		SELinux:  cfg.SELinux,
	}); err != nil {
		return nil, err
	}
	open.add(d.manager.Close)
	if plugins != nil {
		err = plugins.Start(d.manager.ForPlugins())
	}
	return d, err
}

// openRuntime loads the monitor's program and makes the cgroup that monitors are in.
func openRuntime(ctx context.Context, cfg *Config, tree *cgroup.Tree, open *closers) (*oci.Runtime, error) {
	path, err := findMonitor(cfg.MonitorPath)
	if err != nil {
		return nil, err
	}
	fd, closeMonitors, err := openMonitors(ctx, cfg, tree)
	if err != nil {
		return nil, err
	}
	open.add(closeMonitors)
	r, err := oci.NewRuntime(path, fd)
	if err != nil {
		return nil, err
	}
	open.add(r.Monitor.Close)
	return r, nil
}

// findMonitor looks for vitrine-oci where the daemon's own program is, since the two
// are installed together, and then in PATH.
func findMonitor(path string) (string, error) {
	if path != "" {
		return path, nil
	}
	const name = "vitrine-oci"
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), name)
		if info, err := os.Stat(beside); err == nil && info.Mode().IsRegular() {
			return beside, nil
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("find monitor: %w; --monitor-path says where it is", err)
	}
	return path, nil
}

func (d *daemon) serverConfig(cfg *Config, streams server.Streams) server.Config {
	return server.Config{
		Manager:      d.manager,
		Images:       d.images,
		Network:      d.network,
		Streams:      streams,
		Version:      semver(version),
		CgroupDriver: criDriver(d.tree.Driver()),
		Handlers:     cfg.criHandlers(),
		Features: server.Features{
			RecursiveReadOnly:        recursiveReadOnly(),
			UserNamespaces:           d.images.IDMaps(),
			SupplementalGroupsPolicy: true, // needs nothing of a kernel
			MountOptions:             true, // mount_setattr, of 5.12: all that we support have it
			ImageVolumes:             true,
		},
		Info: func() map[string]any {
			// stateDir is where tools that know other runtimes look.
			config := cfg.asMap()
			config["stateDir"] = cfg.Root
			return map[string]any{
				"config": config,
				"cdi":    d.cdi.State(),
				"cgroup": map[string]any{
					"driver":      fmt.Sprint(d.tree.Driver()),
					"controllers": d.tree.Controllers(),
					"unenforced":  d.tree.Unenforced(),
				},
			}
		},
	}
}

func criDriver(d cgroup.Driver) runtimeapi.CgroupDriver {
	if d == cgroup.DriverSystemd {
		return runtimeapi.CgroupDriver_SYSTEMD
	}
	return runtimeapi.CgroupDriver_CGROUPFS
}
