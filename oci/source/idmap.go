package source

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/program"
)

// idmap gives file n of the table the mapping of ids that its mount asks for: its
// own, or else that of the container's user namespace.
func (s *Set) idmap(field string, n int, m *specs.Mount, o program.MountOptions) error {
	uids, gids := m.UIDMappings, m.GIDMappings
	field += ".uidMappings"
	if len(uids) == 0 {
		if !s.has(specs.UserNamespace) {
			return fmt.Errorf("%s: idmap without a mapping, in a container without a user namespace: %w", field, program.ErrInvalid)
		}
		uids, gids = s.spec.Linux.UIDMappings, s.spec.Linux.GIDMappings
	}
	if s.guess {
		return nil
	}
	userns := s.options.UserNS
	if len(m.UIDMappings) > 0 || userns == nil {
		var err error
		if userns, err = mappingNS(uids, gids); err != nil {
			return fmt.Errorf("%s: %w", field, err)
		}
		defer userns.Close()
	}
	if err := IDMap(s.files[n], userns, o.IDTree); err != nil {
		return fmt.Errorf("%s: %w", field, err)
	}
	return nil
}

// IDMap has the mount behind fd, or all mounts of the tree, show the ids of its
// files as the user namespace maps them: what belongs to 0 on disk belongs to who is
// 0 there. fd is a detached mount that nobody has attached yet, of a filesystem
// that supports it (EINVAL else), and not mapped already (EPERM).
func IDMap(fd, userns *sys.FD, recursive bool) error {
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	err := sys.MountSetattr(fd.Int(), "", flags, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns.Int())})
	runtime.KeepAlive(userns)
	return err
}

// mappingNS returns a user namespace that exists for its mapping alone.
//
// A namespace is born with a process, and a multi-threaded one cannot enter a new
// one; so a child is born in it, and stopped at its execve as one that is traced: it
// runs nothing. It dies here, and the descriptor keeps the namespace.
func mappingNS(uids, gids []specs.LinuxIDMapping) (fd *sys.FD, err error) {
	if len(uids) == 0 || len(gids) == 0 {
		return nil, fmt.Errorf("no mapping: %w", program.ErrInvalid)
	}
	done := make(chan error, 1)
	go func() { // who traces is a thread, not a process
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		pid, err := syscall.ForkExec("/proc/self/exe", []string{"vitrine-mapping"}, &syscall.ProcAttr{
			Sys: &syscall.SysProcAttr{Ptrace: true, Cloneflags: unix.CLONE_NEWUSER, Pdeathsig: syscall.SIGKILL},
		})
		if err != nil {
			done <- os.NewSyscallError("clone", err)
			return
		}
		fd, err = mapped(pid, uids, gids)
		done <- errors.Join(err, reap(pid))
	}()
	if err := <-done; err != nil {
		return nil, errors.Join(fmt.Errorf("make a user namespace: %w", err), fd.Close())
	}
	return fd, nil
}

func mapped(pid int, uids, gids []specs.LinuxIDMapping) (*sys.FD, error) {
	m := sys.IDMaps{UIDs: lines(uids), GIDs: lines(gids)}
	if err := m.Write(-1, pid); err != nil {
		return nil, err
	}
	// The child is ours and not reaped: the number is its own.
	return sys.OpenAt2(unix.AT_FDCWD, fmt.Sprintf("/proc/%d/ns/user", pid), unix.O_RDONLY, 0)
}

func lines(maps []specs.LinuxIDMapping) (out []sys.IDMap) {
	for _, m := range maps {
		out = append(out, sys.IDMap{Inside: m.ContainerID, Outside: m.HostID, Count: m.Size})
	}
	return out
}

func reap(pid int) error {
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		return os.NewSyscallError("kill", err)
	}
	for {
		var status unix.WaitStatus
		_, err := unix.Wait4(pid, &status, unix.WALL, nil)
		if errors.Is(err, unix.EINTR) || err == nil && status.Stopped() {
			continue
		}
		return os.NewSyscallError("wait4", err)
	}
}
