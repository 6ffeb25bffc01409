package main

import (
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"

	"github.com/BurntSushi/toml"

	"github.com/vitrine-runtime/vitrine/sandbox/spec"
	"github.com/vitrine-runtime/vitrine/server"
)

// HandlerConfig is a runtime handler: rules for the pods whose runtime class names it. What it says nothing of is as for
// pods without one. Where a file and a drop-in have the same handler, the later counts as a whole.
type HandlerConfig struct {
	AllowWritable     *bool  `toml:"allow_writable_cgroups,omitempty"` // nil is cgroup.allow_writable
	RefusePrivileged  bool   `toml:"refuse_privileged,omitempty"`
	PrivilegedDevices string `toml:"privileged_devices,omitempty"` // of privileged containers: host, none; "" is host
	UserNamespaces    string `toml:"user_namespaces,omitempty"`    // allowed, required, refused; "" is allowed
	Seccomp           string `toml:"seccomp,omitempty"`            // of containers that name no profile: unconfined, runtime/default; "" is unconfined
}

// handlerName is what Kubernetes lets a RuntimeClass name.
var handlerName = regexp.MustCompile("^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")

// checkHandlers refuses what no handler can be.
func (c *Config) checkHandlers() error {
	for name, h := range c.Handlers {
		key := "handlers." + name
		switch {
		case !handlerName.MatchString(name):
			return fmt.Errorf("handlers: %q must be at most 63 lower case letters, digits and '-', which is neither first nor last", name)
		case !slices.Contains([]string{"", "host", "none"}, h.PrivilegedDevices):
			return fmt.Errorf("%s.privileged_devices: must be host or none, got %q", key, h.PrivilegedDevices)
		case !slices.Contains([]string{"", "allowed", "required", "refused"}, h.UserNamespaces):
			return fmt.Errorf("%s.user_namespaces: must be allowed, required or refused, got %q", key, h.UserNamespaces)
		case !slices.Contains([]string{"", "unconfined", "runtime/default"}, h.Seccomp):
			return fmt.Errorf("%s.seccomp: must be unconfined or runtime/default, got %q", key, h.Seccomp)
		}
	}
	return nil
}

// handlers are the rules of all handlers, that of the default one among them.
func (c *Config) handlers() map[string]spec.Handler {
	all := map[string]spec.Handler{"": {WritableCgroup: c.Cgroup.AllowWritable}}
	for name, h := range c.Handlers {
		r := spec.Handler{
			WritableCgroup: c.Cgroup.AllowWritable, NoPrivileged: h.RefusePrivileged,
			DefaultSeccomp: h.Seccomp == "runtime/default", NoHostDevices: h.PrivilegedDevices == "none",
		}
		if h.AllowWritable != nil {
			r.WritableCgroup = *h.AllowWritable
		}
		if h.UserNamespaces != "allowed" {
			r.UserNS = spec.UserNSPolicy(h.UserNamespaces)
		}
		all[name] = r
	}
	return all
}

// criHandlers are those that Status tells of, by name.
func (c *Config) criHandlers() []server.Handler {
	var all []server.Handler
	for _, name := range slices.Sorted(maps.Keys(c.Handlers)) {
		all = append(all, server.Handler{Name: name, NoUserNamespaces: c.Handlers[name].UserNamespaces == "refused"})
	}
	return all
}

// printHandlers writes the handlers as a file has them.
func (c *Config) printHandlers(w io.Writer) error {
	for _, name := range slices.Sorted(maps.Keys(c.Handlers)) {
		text, err := toml.Marshal(c.Handlers[name])
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(w, "\n[handlers.%s]\n%s", name, text); err != nil {
			return err
		}
	}
	return nil
}
