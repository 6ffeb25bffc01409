package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// Config is all that can be set. Its tags are the only place that names a setting:
// toml is the key in a file, flag and short are those of the command line, and the
// two are documented by help. What is empty by default follows from other settings.
//
// What counts more comes later: defaults, /etc/vitrine/vitrine.toml, the files of
// vitrine.toml.d in the order of their names, flags.
type Config struct {
	Root        string `toml:"root" flag:"root" default:"/var/lib/vitrine" help:"directory for what survives a reboot: images, layers, changes of containers"`
	RunDir      string `toml:"run_dir" flag:"run-dir" default:"/run/vitrine" help:"directory for what lives until the next boot: pods, sockets"`
	Listen      string `toml:"listen" flag:"listen" help:"unix socket for CRI clients (default: vitrine.sock in the run directory)"`
	MonitorPath string `toml:"monitor_path" flag:"monitor-path" help:"the vitrine-oci program (default: beside this program, then in PATH)"`
	SELinux     bool   `toml:"selinux" flag:"selinux" default:"true" help:"give containers SELinux labels where the kernel has SELinux and its policy knows containers"`

	CNI    CNIConfig    `toml:"cni"`
	CDI    CDIConfig    `toml:"cdi"`
	Cgroup CgroupConfig `toml:"cgroup"`
	Image  ImageConfig  `toml:"image"`
	Stream StreamConfig `toml:"stream"`
	NRI    NRIConfig    `toml:"nri"`
	Log    LogConfig    `toml:"log"`

	// Handlers are in files only, by name; see HandlerConfig.
	Handlers map[string]HandlerConfig `toml:"handlers"`
}

// CNIConfig is about the network of pods.
type CNIConfig struct {
	ConfDir  string   `toml:"conf_dir" flag:"cni-conf-dir" default:"/etc/cni/net.d" help:"directory of network configurations; the first by name counts"`
	BinDirs  []string `toml:"bin_dirs" flag:"cni-bin-dir" default:"/opt/cni/bin" help:"directories of network plugins"`
	CacheDir string   `toml:"cache_dir" flag:"cni-cache-dir" help:"directory for results of network plugins (default: cni in the root directory)"`
}

// CDIConfig is about devices of the Container Device Interface.
type CDIConfig struct {
	SpecDirs []string `toml:"spec_dirs" flag:"cdi-spec-dirs" default:"/etc/cdi,/var/run/cdi" help:"directories of device specs; what is in a later one counts more. They are read when a container asks for a device"`
}

// CgroupConfig is about limits.
type CgroupConfig struct {
	Root            string `toml:"root" flag:"cgroup-root" default:"/sys/fs/cgroup" help:"mount point of the cgroup2 hierarchy"`
	Driver          string `toml:"driver" flag:"cgroup-driver" default:"auto" help:"who makes cgroups: auto, systemd or cgroupfs"`
	AllowUnenforced bool   `toml:"allow_unenforced_limits" flag:"allow-unenforced-limits" default:"false" help:"run where cgroup controllers are missing; Status says what is not enforced"`
	AllowWritable   bool   `toml:"allow_writable" flag:"allow-writable-cgroups" default:"false" help:"let pods have their containers' cgroups writable, by the annotation vitrine.dev/writable-cgroup"`
}

// ImageConfig is about registries.
type ImageConfig struct {
	RegistriesConf    string `toml:"registries_conf" flag:"registries-conf" help:"a containers-registries.conf(5) (default: /etc/containers/registries.conf if it is there)"`
	RegistriesConfDir string `toml:"registries_conf_dir" flag:"registries-conf-dir" help:"its drop-ins (default: its name with .d)"`
	Policy            string `toml:"policy" flag:"policy" help:"a containers-policy.json(5) (default: /etc/containers/policy.json if it is there)"`
	PolicyDir         string `toml:"policy_dir" flag:"policy-dir" default:"/etc/vitrine/policies" help:"policies for the pods of single namespaces, NAMESPACE.json, in place of the node's"`
	RegistriesDir     string `toml:"registries_dir" flag:"registries-dir" default:"/etc/containers/registries.d" help:"a containers-registries.d(5): where signatures are"`
	CertsDir          string `toml:"certs_dir" flag:"certs-dir" help:"a containers-certs.d(5): certificates for registries (default: /etc/containers/certs.d, then /etc/docker/certs.d)"`
	AuthFile          string `toml:"auth_file" flag:"auth-file" help:"a containers-auth.json(5) for pulls without credentials (default: none)"`

	TokenHosts []string `toml:"token_hosts" flag:"token-hosts" help:"hosts that registries of other sites may have credentials turned into tokens at"`
	Pinned     []string `toml:"pinned" flag:"pinned-images" help:"images that the kubelet is told not to remove: names, or patterns with * at one end or both"`
}

// StreamConfig is about exec, attach and port-forward.
type StreamConfig struct {
	Address     string `toml:"address" flag:"stream-address" default:"127.0.0.1:0" help:"where exec, attach and port-forward are served, host:port; port 0 is any that is free. What is not of the loopback interface needs a certificate"`
	TLSCert     string `toml:"tls_cert" flag:"stream-tls-cert" help:"certificate in PEM, with which streams are served by TLS; read again when it changes (default: none)"`
	TLSKey      string `toml:"tls_key" flag:"stream-tls-key" help:"its key"`
	IdleMinutes int    `toml:"idle_minutes" flag:"stream-idle-minutes" default:"240" help:"minutes after which a connection ends on which nothing moves"`
}

// check refuses what cannot be served.
func (c *StreamConfig) check() error {
	if c.IdleMinutes < 1 || c.IdleMinutes > 10000 {
		return fmt.Errorf("stream.idle_minutes: must be between 1 and 10000, got %d", c.IdleMinutes)
	}
	if (c.TLSCert == "") != (c.TLSKey == "") {
		return fmt.Errorf("stream.tls_key: a certificate and its key go together")
	}
	return nil
}

// LogConfig is about the daemon's own log, which goes to stderr.
type LogConfig struct {
	Level   int    `toml:"level" flag:"log-level" short:"v" default:"2" help:"0: what went wrong; 2: also what was changed; 4: also reads; 5: all"`
	VModule string `toml:"vmodule" flag:"log-vmodule" help:"levels for single source files: pattern=level,..."`
}

// complete derives what is empty and refuses what cannot work.
func (c *Config) complete() error {
	c.Listen = strings.TrimPrefix(c.Listen, "unix://")
	for _, d := range []struct {
		v    *string
		from string
	}{
		{&c.Listen, filepath.Join(c.RunDir, "vitrine.sock")},
		{&c.CNI.CacheDir, filepath.Join(c.Root, "cni")},
	} {
		if *d.v == "" {
			*d.v = d.from
		}
	}
	if !slices.Contains([]string{"auto", "systemd", "cgroupfs"}, c.Cgroup.Driver) {
		return fmt.Errorf("cgroup.driver: must be auto, systemd or cgroupfs, got %q", c.Cgroup.Driver)
	}
	if c.Log.Level < 0 || c.Log.Level > 10 {
		return fmt.Errorf("log.level: must be between 0 and 10, got %d", c.Log.Level)
	}
	if err := errors.Join(c.Stream.check(), c.NRI.check()); err != nil {
		return err
	}
	if err := c.checkHandlers(); err != nil {
		return err
	}
	return c.checkPaths()
}

// checkPaths wants absolute paths: a daemon's working directory is nobody's.
func (c *Config) checkPaths() error {
	if len(c.CNI.BinDirs) == 0 {
		return fmt.Errorf("cni.bin_dirs: must have at least one directory")
	}
	for _, o := range options(c) {
		if slices.Contains([]string{"cgroup.driver", "log.vmodule", "stream.address", "image.token_hosts", "image.pinned", "nri.required"}, o.key) {
			continue
		}
		var paths []string
		switch v := o.value.Interface().(type) {
		case string:
			paths = []string{v}
		case []string:
			paths = v
		}
		for _, p := range paths {
			if p != "" && !filepath.IsAbs(p) {
				return fmt.Errorf("%s: must be an absolute path, got %q", o.key, p)
			}
		}
	}
	return nil
}
