package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/conformance/stage"
)

// onDisk puts every store on a disk: the stage itself is a tmpfs, which would hide what files cost. What it returns takes
// the disk's directory away, when no daemon uses it any more.
func onDisk(place *stage.Stage) (back func() error, err error) {
	disk, err := os.MkdirTemp("/var/tmp", "vitrine-bench-")
	if err != nil {
		return nil, err
	}
	var bound []string
	back = func() error {
		var errs []error
		for _, dir := range bound {
			errs = append(errs, unix.Unmount(dir, unix.MNT_DETACH))
		}
		return errors.Join(append(errs, os.RemoveAll(disk))...)
	}
	for _, dir := range []string{place.Root, place.Scratch} {
		on := filepath.Join(disk, filepath.Base(dir))
		if err := os.Mkdir(on, 0o700); err != nil {
			return nil, errors.Join(err, back())
		}
		if err := unix.Mount(on, dir, "", unix.MS_BIND, ""); err != nil {
			return nil, errors.Join(fmt.Errorf("bind %s: %w", dir, err), back())
		}
		bound = append(bound, dir)
	}
	return back, nil
}

// hideState mounts a tmpfs on /var/lib, where the CNI library of containerd keeps results, whatever its configuration. It
// goes with the stage's mount namespace.
func hideState(place *stage.Stage) error {
	if place.IsMachine() {
		return errors.New("a whole machine has other things in /var/lib: run this on a stage")
	}
	if err := unix.Mount("tmpfs", "/var/lib", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("mount tmpfs on /var/lib: %w", err)
	}
	return nil
}
