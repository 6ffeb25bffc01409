package sys

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// IDMap is one line of a user namespace's map: Count ids from Inside are those
// from Outside in the namespace of who writes the map.
type IDMap struct {
	Inside, Outside, Count uint32
}

// IDMaps are the maps of a new user namespace.
type IDMaps struct {
	UIDs, GIDs []IDMap
	// DenySetgroups denies setgroups(2) in the namespace for good. The kernel demands
	// it of an unprivileged user who maps his own group himself.
	DenySetgroups bool
	// Helpers has newuidmap(1) and newgidmap(1) write what the kernel does not let us
	// write: the subordinate ids of an unprivileged user. They refuse processes that
	// are not dumpable. They are those of the system: neither $PATH nor anything else of the
	// environment is asked or passed on.
	Helpers bool
	// Clocks is what timens_offsets of the process is to get: the clocks of the time
	// namespace that its children are born in, and that belongs to its user namespace.
	// Empty for nothing.
	Clocks string
}

// Write maps the ids of the user namespace that process pid was born in. pid must
// be a child of the caller that was not reaped, so that the number is its own. proc
// is a directory of a procfs that shows the process, or -1 for /proc; either is
// verified. A map is written once; a second time is EPERM.
func (m *IDMaps) Write(proc, pid int) error {
	dir, err := openProcess(proc, pid)
	if err != nil {
		return err
	}
	defer dir.Close()
	if m.DenySetgroups {
		if err := writeProc(dir, "setgroups", "deny"); err != nil {
			return err
		}
	}
	for _, k := range []struct {
		file, helper string
		lines        []IDMap
	}{{"uid_map", "newuidmap", m.UIDs}, {"gid_map", "newgidmap", m.GIDs}} {
		err := writeMap(dir, k.file, k.lines)
		if m.Helpers && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES)) {
			err = runHelper(k.helper, pid, k.lines)
		}
		if err != nil {
			return err
		}
	}
	if m.Clocks != "" {
		return writeProc(dir, "timens_offsets", m.Clocks)
	}
	return nil
}

// openProcess opens the directory of a process in a procfs.
func openProcess(proc, pid int) (*FD, error) {
	if proc < 0 {
		host, err := OpenAt2(unix.AT_FDCWD, "/proc", unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_NO_SYMLINKS)
		if err != nil {
			return nil, err
		}
		defer host.Close()
		proc = host.Int()
	}
	const inside = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV
	dir, err := OpenAt2(proc, strconv.Itoa(pid), unix.O_PATH|unix.O_DIRECTORY, inside)
	if err != nil {
		return nil, err
	}
	if err := isProcfs(dir); err != nil {
		dir.Close()
		return nil, err
	}
	return dir, nil
}

// isProcfs refuses what only looks like a procfs.
func isProcfs(f *FD) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(f.Int(), &st); err != nil {
		return os.NewSyscallError("fstatfs", err)
	}
	if st.Type != unix.PROC_SUPER_MAGIC {
		return fmt.Errorf("procfs of magic %#x: %w", st.Type, unix.EXDEV)
	}
	return nil
}

func writeMap(dir *FD, name string, lines []IDMap) error {
	var text strings.Builder
	for _, l := range lines {
		fmt.Fprintf(&text, "%d %d %d\n", l.Inside, l.Outside, l.Count)
	}
	if text.Len() >= os.Getpagesize() {
		return fmt.Errorf("write %s: %d bytes do not fit a page: %w", name, text.Len(), unix.EINVAL)
	}
	return writeProc(dir, name, text.String())
}

// writeProc writes a file of a process in one call, as the maps demand.
func writeProc(dir *FD, name, text string) error {
	f, err := OpenAt2(dir.Int(), name, unix.O_WRONLY, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_MAGICLINKS|unix.RESOLVE_NO_XDEV)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := isProcfs(f); err != nil {
		return err
	}
	_, err = unix.Write(f.Int(), []byte(text))
	if err != nil {
		return fmt.Errorf("write %s of child: %w", name, err)
	}
	return nil
}

// helperTime is how long such a program may take: it may ask a name service. A variable for tests.
var helperTime = 30 * time.Second

// runHelper has a set-user-ID program write a map.
func runHelper(name string, pid int, lines []IDMap) error {
	path, err := findHelper(name)
	if err != nil {
		return err
	}
	args := []string{name, strconv.Itoa(pid)}
	for _, l := range lines {
		for _, v := range []uint32{l.Inside, l.Outside, l.Count} {
			args = append(args, strconv.FormatUint(uint64(v), 10))
		}
	}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	p, err := os.StartProcess(path, args, &os.ProcAttr{Dir: "/", Env: []string{}, Files: []*os.File{null, null, w}})
	w.Close()
	if err != nil {
		return err
	}
	timer := time.AfterFunc(helperTime, func() { _ = p.Kill() }) // its real user is ours
	defer timer.Stop()
	_ = r.SetReadDeadline(time.Now().Add(helperTime))
	said := make([]byte, 512)
	n, _ := r.Read(said) // what it says is for people; its status decides
	state, err := p.Wait()
	if err != nil {
		return err
	}
	if !state.Success() {
		return fmt.Errorf("%s: %s: %s: %w", name, state, strings.TrimSpace(string(said[:n])), unix.EPERM)
	}
	return nil
}

// helperDirs are where systems have those programs; a variable for tests. $PATH is not
// asked: it may be somebody else's idea, and what is found decides who the container's users are.
var helperDirs = []string{"/usr/bin", "/bin", "/run/wrappers/bin"}

func findHelper(name string) (string, error) {
	for _, dir := range helperDirs {
		if path := dir + "/" + name; unix.Access(path, unix.X_OK) == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("find %s in %s: %w", name, strings.Join(helperDirs, ", "), unix.ENOENT)
}

// firstUserNS is PROC_USER_INIT_INO of linux/proc_ns.h.
const firstUserNS = 0xeffffffd

// InFirstUserNS says whether this process is in the user namespace that the machine
// began with: the one whose root is the machine's.
func InFirstUserNS() bool {
	var st unix.Stat_t
	err := unix.Stat("/proc/self/ns/user", &st)
	return err != nil || st.Ino == firstUserNS
}
