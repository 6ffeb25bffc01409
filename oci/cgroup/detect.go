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

// checkDriver resolves auto. systemdDir exists where systemd is the service
// manager: that is its own documented test (sd_booted).
func checkDriver(driver, systemdDir string) error {
	info, err := os.Lstat(systemdDir)
	systemd := err == nil && info.IsDir()
	switch {
	case driver == string(DriverCgroupfs):
		return nil
	case driver == string(DriverSystemd), (driver == "auto" || driver == "") && systemd:
		return fmt.Errorf("choose cgroup driver: the systemd driver comes with the next stage: %w; "+
			"cgroupfs works in a cgroup that is delegated to us (cgroup.driver, --cgroup-driver)", ErrDriver)
	case driver == "auto" || driver == "":
		return nil
	}
	return fmt.Errorf("choose cgroup driver %q: %w: one of auto, cgroupfs, systemd", driver, ErrDriver)
}
