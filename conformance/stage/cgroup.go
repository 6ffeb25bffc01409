package stage

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cgroupPrefix begins the name of the one directory that we make in the host's hierarchy; the rest is our pid.
const cgroupPrefix = "vitrine-stage-"

// hostCgroup is the directory in the host's cgroup2 hierarchy below which everything of a run lives. It is made and
// removed by the outer process.
type hostCgroup struct {
	parent *os.File // our own cgroup
	dir    *os.File
	name   string
}

// makeCgroup makes a cgroup below our own one. In a cgroup that is delegated to us (a scope, made by runInScope)
// it moves us into a leaf first and hands all controllers down; elsewhere it takes what the parent hands out and
// changes nothing in it.
func makeCgroup() (*hostCgroup, error) {
	parent, own, err := openOwnCgroup()
	if err != nil {
		return nil, err
	}
	sweep(parent)
	if own != "/" && underSystemd() {
		if err := vacate(parent); err != nil {
			return nil, err
		}
	}
	name := cgroupPrefix + strconv.Itoa(os.Getpid())
	if err := unix.Mkdirat(int(parent.Fd()), name, 0o755); err != nil {
		return nil, fmt.Errorf("mkdir %s in cgroup %s: %w (a writable cgroup2 hierarchy is needed)", name, own, err)
	}
	fd, err := unix.Openat(int(parent.Fd()), name, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return &hostCgroup{parent: parent, dir: os.NewFile(uintptr(fd), name), name: name}, nil
}

// remove removes the directory and all below it. Whoever was in it is dead or dying, so EBUSY passes.
func (c *hostCgroup) remove() {
	for range 100 {
		err := removeCgroups(c.parent, c.name)
		if err == nil || errors.Is(err, os.ErrNotExist) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	c.dir.Close()
	c.parent.Close()
}

// removeCgroups removes the cgroup name below dir, the deepest first.
func removeCgroups(dir *os.File, name string) error {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	d := os.NewFile(uintptr(fd), name)
	defer d.Close()
	entries, err := d.ReadDir(-1)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroups(d, e.Name()); err != nil {
				return err
			}
		}
	}
	return unix.Unlinkat(int(dir.Fd()), name, unix.AT_REMOVEDIR)
}

// sweep removes what earlier runs left whose outer process was killed.
func sweep(parent *os.File) {
	entries, err := parent.ReadDir(-1)
	if err != nil {
		return
	}
	for _, e := range entries {
		pid, ours := strings.CutPrefix(e.Name(), cgroupPrefix)
		if !ours {
			continue
		}
		if _, err := os.Stat("/proc/" + pid); errors.Is(err, os.ErrNotExist) {
			_ = removeCgroups(parent, e.Name()) // a run that is still dying keeps its own; the next run sees it again
		}
	}
}

// vacate moves this process into a leaf of its own cgroup, since a cgroup that has processes cannot hand out
// controllers, and then hands out all.
func vacate(own *os.File) error {
	fd := int(own.Fd())
	if err := unix.Mkdirat(fd, "outer", 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := writeAt(own, "outer/cgroup.procs", strconv.Itoa(os.Getpid())); err != nil {
		return fmt.Errorf("leave own cgroup: %w", err)
	}
	return handOut(own)
}

// handOut enables every controller of a cgroup for its children. A controller that refuses (cpu with realtime
// threads) is left out: the daemon says what it lacks.
func handOut(dir *os.File) error {
	fd, err := unix.Openat(int(dir.Fd()), "cgroup.controllers", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "cgroup.controllers")
	defer f.Close()
	line, _ := bufio.NewReader(f).ReadString('\n')
	for _, c := range strings.Fields(line) {
		_ = writeAt(dir, "cgroup.subtree_control", "+"+c)
	}
	return nil
}

// writeAt writes a cgroup file below a directory.
func writeAt(dir *os.File, name, value string) error {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte(value))
	return err
}

// openOwnCgroup opens our own directory in the cgroup2 hierarchy, and returns its path in it.
//
// Where the hierarchy is mounted anywhere, that mount is used. A fresh mount of cgroup2 from the initial cgroup
// namespace would set the options of the whole hierarchy anew, and so take nsdelegate away from systemd.
func openOwnCgroup() (*os.File, string, error) {
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, "", err
	}
	own := ""
	for _, line := range strings.Split(string(self), "\n") {
		if p, ok := strings.CutPrefix(line, "0::"); ok {
			own = p
		}
	}
	if own == "" {
		return nil, "", errors.New("this kernel has no cgroup2 hierarchy")
	}
	root, err := openHierarchy()
	if err != nil {
		return nil, "", err
	}
	defer root.Close()
	fd, err := unix.Openat(int(root.Fd()), "."+own, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, "", fmt.Errorf("open own cgroup %s: %w", own, err)
	}
	return os.NewFile(uintptr(fd), own), own, nil
}

// openHierarchy opens the root of the cgroup2 hierarchy by a mount of it, or, where there is none, by a detached one.
func openHierarchy() (*os.File, error) {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	for _, line := range strings.Split(string(info), "\n") {
		f := strings.Fields(line)
		// Without nsdelegate the mount is no node's; the detached one sets it for all.
		if len(f) < 7 || f[3] != "/" || !strings.Contains(line, " - cgroup2 ") || !strings.Contains(f[len(f)-1], "nsdelegate") {
			continue
		}
		if d, err := os.Open(filepath.Clean(f[4])); err == nil {
			return d, nil
		}
	}
	return detachedCgroup2()
}

// detachedCgroup2 mounts cgroup2 nowhere.
func detachedCgroup2() (*os.File, error) {
	fs, err := unix.Fsopen("cgroup2", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen cgroup2: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigSetFlag(fs, "nsdelegate"); err != nil { // as systemd has it
		return nil, fmt.Errorf("set nsdelegate of cgroup2: %w", err)
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("create cgroup2: %w", err)
	}
	m, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("fsmount cgroup2: %w", err)
	}
	return os.NewFile(uintptr(m), "cgroup2"), nil
}
