// Package userns makes user namespaces, and further ones that belong to them, for a process that cannot enter one itself.
//
//	Make ── start ──► a program of 200 bytes ── unshare(USER|NET|IPC|UTS) ── waits ── ends
//	     ◄── one byte ──────────────────────────────────┘        ▲
//	     ── uid_map, gid_map, open /proc/<pid>/ns/* ─────────────┘
//
// A process with threads may not make a user namespace, and a copy of the daemon would copy its page tables. So a
// program that has neither is executed, and what keeps the namespaces when it has gone are the descriptors.
package userns

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/pause"
	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// makeTime bounds what takes the kernel a millisecond.
const makeTime = 10 * time.Second

// Set is a user namespace and what was made with it. The caller closes it.
type Set struct {
	User          *sys.FD
	Net, IPC, UTS *sys.FD // nil where they were not asked for
}

// Close closes what is there.
func (s *Set) Close() {
	if s == nil {
		return
	}
	for _, f := range []*sys.FD{s.User, s.Net, s.IPC, s.UTS} {
		f.Close()
	}
}

// Enter moves the calling thread, which is never to be used for anything else, into the namespaces of the set but the
// user namespace.
func (s *Set) Enter() error {
	for _, f := range []*sys.FD{s.Net, s.IPC, s.UTS} {
		if f == nil {
			continue
		}
		if err := unix.Setns(f.Int(), 0); err != nil {
			return os.NewSyscallError("setns", err)
		}
	}
	return nil
}

// Make makes a user namespace with these maps, and the namespaces of flags (CLONE_NEWNET, CLONE_NEWIPC, CLONE_NEWUTS), which
// belong to it. No process is left. ENOSPC means that the machine's limit (user.max_user_namespaces and
// the like) is reached.
func Make(m sys.IDMaps, flags uint32) (*Set, error) {
	s := &Set{}
	if err := s.make(m, flags); err != nil {
		s.Close()
		return nil, fmt.Errorf("make user namespace: %w", err)
	}
	return s, nil
}

func (s *Set) make(m sys.IDMaps, flags uint32) error {
	elf, err := sys.SealedMemfd("vitrine-userns", pause.Unsharer(flags|unix.CLONE_NEWUSER), true)
	if err != nil {
		return err
	}
	defer elf.Close()
	cmd := exec.Cmd{Path: "/proc/self/fd/" + strconv.Itoa(elf.Int()), Args: []string{"vitrine-userns"}, Env: []string{}, Dir: "/"}
	end, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	said, err := cmd.StdoutPipe()
	if err != nil {
		end.Close()
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	timer := time.AfterFunc(makeTime, func() { _ = cmd.Process.Kill() })
	err = s.take(m, flags, said, cmd.Process.Pid)
	end.Close()
	werr := cmd.Wait() // which is also what keeps the number its own until here
	if timer.Stop(); err == nil {
		err = werr
	}
	return err
}

// take writes the maps and opens the namespaces of a process that waits in them.
func (s *Set) take(m sys.IDMaps, flags uint32, said io.Reader, pid int) error {
	var errno [1]byte
	if _, err := io.ReadFull(said, errno[:]); err != nil {
		return err
	}
	if errno[0] != 0 {
		return os.NewSyscallError("unshare", unix.Errno(errno[0]))
	}
	if err := m.Write(-1, pid); err != nil {
		return err
	}
	for _, ns := range []struct {
		flag uint32
		name string
		to   **sys.FD
	}{{unix.CLONE_NEWUSER, "user", &s.User}, {unix.CLONE_NEWNET, "net", &s.Net}, {unix.CLONE_NEWIPC, "ipc", &s.IPC}, {unix.CLONE_NEWUTS, "uts", &s.UTS}} {
		if (flags|unix.CLONE_NEWUSER)&ns.flag == 0 {
			continue
		}
		fd, err := sys.OpenAt2(unix.AT_FDCWD, fmt.Sprintf("/proc/%d/ns/%s", pid, ns.name), unix.O_RDONLY, 0)
		if err != nil {
			return err
		}
		*ns.to = fd
	}
	return nil
}

// Owner returns the user namespace that another namespace belongs to.
func Owner(ns *sys.FD) (*sys.FD, error) {
	n, err := unix.IoctlRetInt(ns.Int(), unix.NS_GET_USERNS)
	if err != nil {
		return nil, os.NewSyscallError("ioctl NS_GET_USERNS", err)
	}
	return sys.NewFD(n), nil
}
