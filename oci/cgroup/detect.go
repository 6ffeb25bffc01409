package cgroup

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// checkHierarchy tells a pure cgroup v2 from everything else, and everything
// else apart, because the way out differs.
func checkHierarchy(root string) error {
	fs, err := statfs(root)
	if err != nil {
		return fmt.Errorf("look for cgroups: %w", err)
	}
	if fs.Type == unix.CGROUP2_SUPER_MAGIC {
		return nil
	}
	what := "nothing of cgroups is mounted"
	if unified, err := statfs(filepath.Join(root, "unified")); err == nil && unified.Type == unix.CGROUP2_SUPER_MAGIC {
		what = "v1 and v2 are mounted side by side (hybrid)"
	} else if fs.Type == unix.CGROUP_SUPER_MAGIC || hasV1(root) {
		what = "cgroup v1 is mounted"
	}
	return fmt.Errorf("open cgroups at %s: %s: %w; boot the kernel with systemd.unified_cgroup_hierarchy=1, "+
		"or without systemd with cgroup_no_v1=all and cgroup2 mounted there", root, what, ErrHierarchy)
}

func statfs(path string) (st unix.Statfs_t, err error) {
	if err := unix.Statfs(path, &st); err != nil {
		return st, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	return st, nil
}

// hasV1 looks for the mounts of v1 controllers below a tmpfs.
func hasV1(root string) bool {
	es, _ := os.ReadDir(root)
	for _, e := range es {
		if fs, err := statfs(filepath.Join(root, e.Name())); err == nil && fs.Type == unix.CGROUP_SUPER_MAGIC {
			return true
		}
	}
	return false
}

// chooseDriver resolves auto. systemdDir exists where systemd is the service
// manager: that is its own documented test (sd_booted).
func chooseDriver(driver, systemdDir string) (Driver, error) {
	info, err := os.Lstat(systemdDir)
	systemd := err == nil && info.IsDir()
	switch driver {
	case string(DriverCgroupfs):
		return DriverCgroupfs, nil
	case string(DriverSystemd):
		if !systemd {
			return "", fmt.Errorf("choose cgroup driver: systemd is not PID 1 here: %w; cgroupfs works everywhere (cgroup.driver, --cgroup-driver)", ErrDriver)
		}
		return DriverSystemd, nil
	case "auto", "":
		if systemd {
			return DriverSystemd, nil
		}
		return DriverCgroupfs, nil
	}
	return "", fmt.Errorf("choose cgroup driver %q: %w: one of auto, cgroupfs, systemd", driver, ErrDriver)
}
