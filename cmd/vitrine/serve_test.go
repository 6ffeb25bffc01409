package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/oci/cgroup"
)

func TestFindMonitor(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	if path, err := findMonitor("/somewhere/else"); err != nil || path != "/somewhere/else" {
		t.Errorf("given: %s, %v", path, err)
	}
	if _, err := findMonitor(""); err == nil || !strings.Contains(err.Error(), "--monitor-path") {
		t.Errorf("nowhere: %v", err)
	}
	want := filepath.Join(dir, "vitrine-oci")
	if err := os.WriteFile(want, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if path, err := findMonitor(""); err != nil || path != want {
		t.Errorf("in PATH: %s, %v", path, err)
	}
}

// A kernel that Vitrine runs on can do it (5.12), so a probe that says no is broken.
func TestRecursiveReadOnlyProbe(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: open_tree")
	}
	if !recursiveReadOnly() {
		t.Error("the probe says no")
	}
	if err := os.WriteFile(filepath.Join(t.TempDir(), "x"), nil, 0o600); err != nil {
		t.Errorf("the probe made something read-only: %v", err)
	}
}

func TestClosersRunBackwards(t *testing.T) {
	var c closers
	var order []int
	for i := range 3 {
		c.add(func() error { order = append(order, i); return os.ErrClosed })
	}
	if err := c.close(); !errors.Is(err, os.ErrClosed) || !slices.Equal(order, []int{2, 1, 0}) {
		t.Errorf("%v, %v", order, err)
	}
}

func TestDriverForTheKubelet(t *testing.T) {
	if criDriver(cgroup.DriverSystemd) != runtimeapi.CgroupDriver_SYSTEMD || criDriver(cgroup.DriverCgroupfs) != runtimeapi.CgroupDriver_CGROUPFS {
		t.Error("the kubelet would use another driver than the pods")
	}
}

func TestLogLevels(t *testing.T) {
	for _, c := range []LogConfig{{Level: 2}, {VModule: "server*=5"}} {
		if err := startLog(&c); err != nil {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if err := startLog(&LogConfig{VModule: "nonsense"}); err == nil || !strings.Contains(err.Error(), "log.vmodule") {
		t.Errorf("nonsense: %v", err)
	}
}

// A daemon that cannot start says why, and lets go of what it had: the next one can
// have it.
func TestServeRefuses(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: the image store")
	}
	for range 2 {
		cfg := defaults()
		dir := t.TempDir()
		cfg.Root, cfg.RunDir = filepath.Join(dir, "root"), filepath.Join(dir, "run")
		cfg.Cgroup.Root = filepath.Join(dir, "no-cgroup")
		if err := cfg.complete(); err != nil {
			t.Fatal(err)
		}
		err := serve(context.Background(), cfg)
		if err == nil || !strings.Contains(err.Error(), "no-cgroup") {
			t.Errorf("without cgroups: %v", err)
		}
		for _, d := range []string{cfg.Root, cfg.RunDir} {
			lock, err := lockDir(d)
			if err != nil {
				t.Fatalf("still locked: %v", err)
			}
			lock.Close()
		}
		if _, err := os.Lstat(cfg.Listen); err == nil {
			t.Error("left a socket")
		}
	}
}
