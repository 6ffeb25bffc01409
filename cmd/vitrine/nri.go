package main

import (
	"context"
	"fmt"
	"regexp"
	"time"

	"k8s.io/klog/v2"

	"github.com/vitrine-runtime/vitrine/nri"
)

// NRIConfig is about plugins that are asked about pods and containers (docs/nri.md). There are none unless they are asked for:
// whoever reaches their socket is root of the node.
type NRIConfig struct {
	Enable              bool     `toml:"enable" flag:"nri" default:"false" help:"let plugins of the Node Resource Interface see and change what is made"`
	Socket              string   `toml:"socket" flag:"nri-socket" default:"/var/run/nri/nri.sock" help:"unix socket where plugins connect; whoever reaches it is root of the node"`
	PluginDir           string   `toml:"plugin_dir" flag:"nri-plugin-dir" help:"directory of plugins that are started with the daemon, NN-name (default: none)"`
	ConfigDir           string   `toml:"config_dir" flag:"nri-config-dir" default:"/etc/nri/conf.d" help:"directory of what these are given, NN-name.conf or name.conf"`
	RegistrationSeconds int      `toml:"registration_seconds" flag:"nri-registration-seconds" default:"5" help:"seconds that a plugin has to say its name once it has connected"`
	RequestSeconds      int      `toml:"request_seconds" flag:"nri-request-seconds" default:"2" help:"seconds that a plugin has for an answer, before it is hung up on"`
	Required            []string `toml:"required" flag:"nri-required" help:"plugins without which no pod and no container is made: name or NN-name"`
}

// pluginName is the grammar of a plugin's name, with or without its index.
var pluginName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)

// maxRequired bounds what each request looks for.
const maxRequired = 32

// check refuses what cannot work. A plugin that is required and nobody asks would be a promise that is not kept.
func (c *NRIConfig) check() error {
	for _, n := range []struct {
		key   string
		value int
	}{{"registration_seconds", c.RegistrationSeconds}, {"request_seconds", c.RequestSeconds}} {
		if n.value < 1 || n.value > 60 {
			return fmt.Errorf("nri.%s: must be between 1 and 60, got %d", n.key, n.value)
		}
	}
	if len(c.Required) > maxRequired {
		return fmt.Errorf("nri.required: %d plugins are more than %d", len(c.Required), maxRequired)
	}
	for _, name := range c.Required {
		if !pluginName.MatchString(name) {
			return fmt.Errorf("nri.required: not the name of a plugin: %q", name)
		}
	}
	if len(c.Required) > 0 && !c.Enable {
		return fmt.Errorf("nri.required: plugins are required, and nri.enable is false")
	}
	if c.Enable && c.Socket == "" {
		return fmt.Errorf("nri.socket: must be set")
	}
	return nil
}

// open returns the plugins, nil where there are to be none.
func (c *NRIConfig) open() (*nri.Plugins, error) {
	if !c.Enable {
		return nil, nil
	}
	return nri.Open(nri.Config{
		Version: semver(version), Socket: c.Socket, PluginDir: c.PluginDir, ConfigDir: c.ConfigDir,
		RegistrationTimeout: time.Duration(c.RegistrationSeconds) * time.Second, RequestTimeout: time.Duration(c.RequestSeconds) * time.Second,
		Required: c.Required, Log: nriLog{},
	})
}

// nriLog leads the log of the plugins' side into ours.
type nriLog struct{}

// Debugf logs what only a developer wants to know.
func (nriLog) Debugf(_ context.Context, format string, args ...any) {
	klog.V(5).InfofDepth(2, "nri: "+format, args...)
}

// Infof logs who comes and goes, and in which order plugins are asked.
func (nriLog) Infof(_ context.Context, format string, args ...any) {
	klog.V(2).InfofDepth(2, "nri: "+format, args...)
}

// Warnf logs what went wrong and was gone on without.
func (nriLog) Warnf(_ context.Context, format string, args ...any) {
	klog.WarningfDepth(2, "nri: "+format, args...)
}

// Errorf logs what failed.
func (nriLog) Errorf(_ context.Context, format string, args ...any) {
	klog.ErrorfDepth(2, "nri: "+format, args...)
}
