package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/vitrine-runtime/vitrine/sandbox/spec"
)

// load runs what a command line would: files of a directory of the test's own, then
// flags.
func load(t *testing.T, files map[string]string, args ...string) (*Config, error) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	f := configFlags(flags)
	if err := flags.Parse(append([]string{"--config", filepath.Join(dir, "c[1].toml")}, args...)); err != nil {
		t.Fatal(err)
	}
	return f()
}

// What counts more comes later: defaults, file, drop-ins by name, flags.
func TestConfigOrder(t *testing.T) {
	c, err := load(t, map[string]string{
		"c[1].toml":            "root = '/file'\nrun_dir = '/file'\n[log]\nlevel = 1\n[cni]\nbin_dirs = ['/a', '/b']\nconf_dir = '/file'\n",
		"c[1].toml.d/20.toml":  "run_dir = '/20'\n",
		"c[1].toml.d/10.toml":  "run_dir = '/10'\n[log]\nlevel = 3\n",
		"c[1].toml.d/readme":   "this is no configuration",
		"c1.toml.d/other.toml": "run_dir = '/other'\n",
	}, "--cni-conf-dir", "/flag", "--allow-unenforced-limits")
	if err != nil {
		t.Fatal(err)
	}
	want := defaults()
	want.Root, want.RunDir, want.Listen = "/file", "/20", "/20/vitrine.sock"
	want.Log.Level, want.Cgroup.AllowUnenforced = 3, true
	want.CNI = CNIConfig{ConfDir: "/flag", BinDirs: []string{"/a", "/b"}, CacheDir: "/file/cni"}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
}

func TestConfigRefusals(t *testing.T) {
	rows := []struct{ text, want string }{
		{"rooot = '/x'", "unknown setting rooot"},
		{"[cni]\nconfdir = '/x'", "unknown setting cni.confdir"},
		{"[cri]\nx = 1", "unknown setting cri"},
		{"root = 3", "root"},
		{"root = 'x'", "root: must be an absolute path"},
		{"root = ", "c[1].toml"},
		{"[cgroup]\ndriver = 'x'", "cgroup.driver"},
		{"[log]\nlevel = -1", "log.level"},
		{"[cni]\nbin_dirs = []", "cni.bin_dirs"},
		{"[cni]\nbin_dirs = ['/a', 'b']", "cni.bin_dirs"},
		{"listen = 'unix://x'", "listen: must be an absolute path"},
		{"[handlers.a]\nuser_namespaces = 'yes'", "handlers.a.user_namespaces"},
		{"[handlers.a]\nseccomp = 'x'", "handlers.a.seccomp"},
		{"[handlers.a]\nprivileged_devices = 'some'", "handlers.a.privileged_devices: must be host or none, got \"some\""},
		{"[handlers.a]\nx = 1", "unknown setting handlers.a.x"},
		{"[handlers.A]", "handlers: \"A\" must be"},
		{"[handlers.'']", "handlers: \"\" must be"},
	}
	for _, r := range rows {
		_, err := load(t, map[string]string{"c[1].toml": r.text})
		if err == nil || !strings.Contains(err.Error(), r.want) {
			t.Errorf("%q: %v, want %q", r.text, err, r.want)
		}
		_, err = load(t, map[string]string{"c[1].toml": "", "c[1].toml.d/a.toml": r.text})
		if err == nil {
			t.Errorf("%q in a drop-in: accepted", r.text)
		}
	}
	if _, err := load(t, nil); err == nil || !strings.Contains(err.Error(), "c[1].toml") {
		t.Errorf("a file that was asked for and is not there: %v", err)
	}
}

func TestListenAsURL(t *testing.T) {
	c, err := load(t, map[string]string{"c[1].toml": ""}, "--listen", "unix:///run/x.sock")
	if err != nil || c.Listen != "/run/x.sock" {
		t.Errorf("%v, %v", c, err)
	}
}

// What config prints is a file with the same meaning, and each setting is documented.
func TestConfigPrintsItself(t *testing.T) {
	first, err := load(t, map[string]string{"c[1].toml": ""}, "--root", "/a \"b\"/ü", "-v", "5", "--cni-bin-dir", "/x,/y")
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := first.print(&b); err != nil {
		t.Fatal(err)
	}
	second, err := load(t, map[string]string{"c[1].toml": b.String()})
	if err != nil || !reflect.DeepEqual(first, second) {
		t.Errorf("%v\n%s\ngot  %+v\nwant %+v", err, b.String(), second, first)
	}
	if got, want := strings.Count(b.String(), "\n# ")+1, len(options(first)); got != want {
		t.Errorf("%d comments for %d settings", got, want)
	}
}

// Handlers say what is different in them, and are printed as they were read.
func TestConfigOfHandlers(t *testing.T) {
	text := "[handlers.a]\n[handlers.b]\nallow_writable_cgroups = false\nrefuse_privileged = true\nuser_namespaces = 'required'\nseccomp = 'runtime/default'\n[handlers.c]\nuser_namespaces = 'refused'\nprivileged_devices = 'none'"
	c, err := load(t, map[string]string{"c[1].toml": text, "c[1].toml.d/d.toml": "[handlers.d]\nuser_namespaces = 'allowed'\nprivileged_devices = 'host'"}, "--allow-writable-cgroups")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]spec.Handler{
		"": {WritableCgroup: true}, "a": {WritableCgroup: true}, "b": {NoPrivileged: true, UserNS: spec.UserNSRequired, DefaultSeccomp: true},
		"c": {WritableCgroup: true, UserNS: spec.UserNSRefused, NoHostDevices: true}, "d": {WritableCgroup: true},
	}
	if got := c.handlers(); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if got := fmt.Sprint(c.criHandlers()); got != "[{a false} {b false} {c true} {d false}]" {
		t.Errorf("for Status: %s", got)
	}
	var b bytes.Buffer
	if err := c.print(&b); err != nil {
		t.Fatal(err)
	}
	again, err := load(t, map[string]string{"c[1].toml": b.String()})
	if err != nil || !reflect.DeepEqual(again, c) {
		t.Errorf("%v\n%s", err, b.String())
	}
}

// The page of handlers has a row for each setting, and none of another.
func TestHandlersPage(t *testing.T) {
	b, err := os.ReadFile("../../docs/handlers.md")
	if err != nil {
		t.Fatal(err)
	}
	var got, want []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\|").FindAllSubmatch(b, -1) {
		got = append(got, string(m[1]))
	}
	for i := range reflect.TypeFor[HandlerConfig]().NumField() {
		key, _, _ := strings.Cut(reflect.TypeFor[HandlerConfig]().Field(i).Tag.Get("toml"), ",")
		want = append(want, key)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("the page has %v, handlers have %v", got, want)
	}
}

// The tags are the only source: every setting has all of them, and no two share one.
func TestTags(t *testing.T) {
	seen := make(map[string]bool)
	for _, o := range options(new(Config)) {
		for _, tag := range []string{"toml", "flag", "help"} {
			if o.tag.Get(tag) == "" {
				t.Errorf("%s has no %s", o.key, tag)
			}
		}
		for _, name := range []string{"key " + o.key, "flag " + o.tag.Get("flag")} {
			if seen[name] {
				t.Errorf("%s is there twice", name)
			}
			seen[name] = true
		}
	}
}

func TestSemver(t *testing.T) {
	for in, want := range map[string]string{
		"v1.2.3": "1.2.3", "0.1.0-dev": "0.1.0-dev", "v1.2.3-4-gabcdef-dirty": "1.2.3-4-gabcdef-dirty",
		"abcdef0-dirty": "0.0.0-dev+abcdef0-dirty", "unknown": "0.0.0-dev+unknown", "1.2": "0.0.0-dev+1.2", "01.2.3": "0.0.0-dev+01.2.3", "a_b": "0.0.0-dev+a-b",
	} {
		if got := semver(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

func TestCommands(t *testing.T) {
	run := func(args ...string) (string, error) {
		var b bytes.Buffer
		root := rootCommand()
		root.SetArgs(args)
		root.SetOut(&b)
		root.SetErr(&b)
		err := root.Execute()
		return b.String(), err
	}
	if out, err := run("version"); err != nil || !strings.HasPrefix(out, "vitrine 0.1.0-dev (go1.") {
		t.Errorf("version: %q, %v", out, err)
	}
	if out, err := run("config", "--run-dir", "/r"); err != nil || !strings.Contains(out, `listen = "/r/vitrine.sock"`) {
		t.Errorf("config: %q, %v", out, err)
	}
	for _, args := range [][]string{{"serve", "x"}, {"config", "--nope"}, {"serve", "--config", "/nonexistent/x"}, {"nope"}} {
		if _, err := run(args...); err == nil {
			t.Errorf("%v: accepted", args)
		}
	}
}
