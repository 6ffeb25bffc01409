package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	newRoot  = "/newroot"
	disk     = "/dev/vda"
	agentDir = "/run/vitrine-vm"
)

// initialize is the whole life as /init; it returns only an error.
func initialize() error {
	if err := mountInitial(); err != nil {
		return err
	}
	if err := loadModules("/modules"); err != nil {
		return err
	}
	if err := mountRoot(); err != nil {
		return err
	}
	if err := leaveAgent(newRoot); err != nil {
		return err
	}
	return becomeSystemd()
}

func mountInitial() error {
	for _, m := range []struct{ kind, dir string }{{"devtmpfs", "/dev"}, {"proc", "/proc"}} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.dir, m.kind, unix.MS_NOSUID, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	return nil
}

// loadModules loads what the harness put into the initrd, in the order of the names.
func loadModules(dir string) error {
	files, err := filepath.Glob(dir + "/*.ko*")
	if err != nil {
		return err
	}
	sort.Strings(files)
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		flags := 0
		if !strings.HasSuffix(file, ".ko") {
			flags = unix.MODULE_INIT_COMPRESSED_FILE
		}
		err = unix.FinitModule(int(f.Fd()), "", flags)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load %s: %w", file, err)
		}
	}
	return nil
}

func mountRoot() error {
	if err := os.MkdirAll(newRoot, 0o755); err != nil {
		return err
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := unix.Mount(disk, newRoot, "ext4", 0, "")
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("mount %s: %w", disk, err)
		}
		time.Sleep(5 * time.Millisecond) // the driver finds its disk a moment after it was loaded
	}
}

// leaveAgent makes the guest's /run and puts there what systemd is to find: our binary, our unit and the wish to start it.
func leaveAgent(root string) error {
	if err := unix.Mount("tmpfs", root+"/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755,size=25%"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	units := root + "/run/systemd/system"
	for _, d := range []string{root + agentDir, units + "/sysinit.target.wants"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	if err := copyFile("/init", root+agentDir+"/agent", 0o755); err != nil {
		return err
	}
	files, err := filepath.Glob("/units/*")
	if err != nil {
		return err
	}
	for _, f := range files {
		name := filepath.Base(f)
		if err := copyFile(f, units+"/"+name, 0o644); err != nil {
			return err
		}
		if err := os.Symlink("../"+name, units+"/sysinit.target.wants/"+name); err != nil {
			return err
		}
	}
	return nil
}

func copyFile(from, to string, mode os.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// becomeSystemd moves the new root over the old and executes systemd. The initrd's files are removed first: they are memory.
func becomeSystemd() error {
	for _, p := range []string{"/init", "/modules", "/units"} {
		if err := os.RemoveAll(p); err != nil {
			return err
		}
	}
	for _, dir := range []string{"/dev", "/proc"} {
		if err := unix.Mount(dir, newRoot+dir, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s: %w", dir, err)
		}
	}
	if err := os.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	const systemd = "/lib/systemd/systemd"
	return fmt.Errorf("execute %s: %w", systemd, unix.Exec(systemd, []string{systemd}, []string{"TERM=linux", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}))
}
