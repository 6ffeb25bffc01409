package bundle

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// Sentinels for the callers' errors.Is. Their texts are those that containerd and
// podman look for in the output of a runtime.
var (
	// ErrNotExist: no container of that id.
	ErrNotExist = errors.New("container does not exist")
	// ErrExists: the id is taken.
	ErrExists = errors.New("container with given ID already exists")
	// ErrNotRunning: the verb needs a process, and there is none any more.
	ErrNotRunning = errors.New("container not running")
	// ErrState: the container is in a state that the verb is not for.
	ErrState = errors.New("wrong state")
	// ErrInvalid: an argument that makes no sense.
	ErrInvalid = errors.New("invalid")
	// ErrNotRoot: the caller lacks what making containers takes.
	ErrNotRoot = errors.New("needs root")
)

// Runtime is where containers are kept, and how they are made. It holds nothing
// open; any number of processes may have one on the same Root.
type Runtime struct {
	// Root is the directory of all states. It is made (0700) where it is missing.
	Root string
	// Manager says who makes cgroups: cgroupfs, systemd or disabled.
	Manager string
	// Inside says that it was ourselves who ran this binary, and waits (see enter), and Mapped
	// that it was in a user namespace of his making: ids of mappings are those of outside.
	Inside, Mapped bool
	// Warn is told what goes wrong without being a failure, such as a poststop hook
	// that fails. Nil drops it.
	Warn func(text string)
}

// Managers of cgroups.
const (
	ManagerCgroupfs = "cgroupfs"
	ManagerSystemd  = "systemd"
	ManagerDisabled = "disabled"
)

const (
	stateName   = "state.json"
	configName  = "config.json"
	programName = "program"
	startName   = "start"
	reportName  = "report"
)

func (r *Runtime) warn(text string) {
	if r.Warn != nil {
		r.Warn(text)
	}
}

// maxID is what a cgroup's or a unit's name leaves room for.
const maxID = 200

// CheckID says whether id may name a container: letters, digits, and _ + - . after
// the first. It is a directory's name and part of a unit's.
func CheckID(id string) error {
	ok := id != "" && len(id) <= maxID && id != "." && id != ".."
	for _, c := range []byte(id) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("_+-.", c) >= 0:
		default:
			ok = false
		}
	}
	if !ok {
		return fmt.Errorf("container id %.80q: %w: letters, digits, and _ + - . only", id, ErrInvalid)
	}
	return nil
}

// makeRoot makes the directory of all states. One that others can write to would let
// them name processes and cgroups that we kill.
func (r *Runtime) makeRoot() error {
	if err := os.MkdirAll(r.Root, 0o700); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(r.Root, &st); err != nil {
		return &fs.PathError{Op: "stat", Path: r.Root, Err: err}
	}
	if st.Mode&0o022 != 0 || int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("use %s for states: others may write there: %w", r.Root, fs.ErrPermission)
	}
	return nil
}

// directory is a container's, locked against all others until Close.
type directory struct {
	*os.File
	path string
}

// makeDir makes the directory of a new container, locked before anybody can see
// it.
func (r *Runtime) makeDir(id string) (*directory, error) {
	if err := r.makeRoot(); err != nil {
		return nil, err
	}
	tmp, err := os.MkdirTemp(r.Root, ".new-")
	if err != nil {
		return nil, err
	}
	d, err := lockDir(tmp)
	if err != nil {
		return nil, errors.Join(err, os.Remove(tmp))
	}
	d.path = filepath.Join(r.Root, id)
	if err := unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, d.path, unix.RENAME_NOREPLACE); err != nil {
		if errors.Is(err, unix.EEXIST) {
			err = ErrExists
		}
		return nil, errors.Join(fmt.Errorf("container %s: %w", id, err), d.Close(), os.Remove(tmp))
	}
	return d, nil
}

// openDir waits for the lock on the directory of a container.
func (r *Runtime) openDir(id string) (*directory, error) {
	if err := CheckID(id); err != nil {
		return nil, err
	}
	path := filepath.Join(r.Root, id)
	for {
		d, err := lockDir(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("container %s: %w", id, ErrNotExist)
		}
		if err != nil {
			return nil, err
		}
		// It may have been removed, or another one made, while we waited.
		mine, merr := d.Stat()
		there, terr := os.Stat(path)
		if merr == nil && terr == nil && os.SameFile(mine, there) {
			return d, nil
		}
		d.Close()
	}
}

func lockDir(path string) (*directory, error) {
	f, err := sys.OpenFile(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err == nil {
			return &directory{f, path}, nil
		}
		if err != unix.EINTR {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
	}
}

// write puts a file into the directory, whole or not at all.
func (d *directory) write(name string, content []byte) error {
	dir, tmp := int(d.Fd()), "."+name
	err := put(dir, tmp, content)
	for errors.Is(err, unix.EINTR) { // as some file systems do
		err = put(dir, tmp, content)
	}
	if err == nil {
		err = unix.Renameat(dir, tmp, dir, name)
	}
	if err != nil {
		return &fs.PathError{Op: "write", Path: filepath.Join(d.path, name), Err: err}
	}
	return nil
}

// put writes a file. Package os would ask first whether it can be polled.
func put(dir int, name string, content []byte) error {
	n, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(n)
	for err == nil && len(content) > 0 {
		var m int
		m, err = unix.Write(n, content)
		content = content[max(m, 0):]
	}
	return err
}

func (d *directory) read(name string) ([]byte, error) {
	return sys.ReadFile(filepath.Join(d.path, name))
}

// remove takes the directory away, and with it the container.
func (d *directory) remove() error {
	for _, name := range []string{stateName, configName, programName, startName, reportName} {
		_ = unix.Unlink(d.path + "/" + name) // it need not be there
	}
	if unix.Rmdir(d.path) == nil {
		return nil
	}
	return os.RemoveAll(d.path) // there is more, or nothing
}
