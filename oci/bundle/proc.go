package bundle

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// proc is what /proc/<pid>/stat says of a process.
type proc struct {
	state byte   // R, S, D, T, Z, X …
	ppid  int    // parent
	flags uint64 // PF_*
	start uint64 // clock ticks after boot: with the pid, who it is
}

// forkNoExec is PF_FORKNOEXEC of linux/sched.h: it has not executed anything yet.
const forkNoExec = 0x40

// exiting is PF_EXITING: it has begun to end, and executes nothing any more.
const exiting = 0x4

func (p proc) dead() bool { return p.state == 'Z' || p.state == 'X' || p.state == 'x' }

// readProc reads a process's stat. One that is gone is fs.ErrNotExist.
func readProc(pid int) (proc, error) {
	b, err := readShort("/proc/" + strconv.Itoa(pid) + "/stat")
	if errors.Is(err, unix.ESRCH) {
		err = fs.ErrNotExist
	}
	if err != nil {
		return proc{}, err
	}
	// The command's name in parentheses may hold anything.
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(f) < 20 {
		return proc{}, fmt.Errorf("read stat of process %d: %d fields: %w", pid, len(f), ErrInvalid)
	}
	p := proc{state: f[0][0]}
	var errs [3]error
	p.ppid, errs[0] = strconv.Atoi(string(f[1]))
	p.flags, errs[1] = strconv.ParseUint(string(f[6]), 10, 64)
	p.start, errs[2] = strconv.ParseUint(string(f[19]), 10, 64)
	return p, errors.Join(errs[:]...)
}

// readShort reads a file of the kernel's that is shorter than 4 KiB and comes in one piece.
func readShort(path string) ([]byte, error) {
	n, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(n)
	b := make([]byte, 4096)
	m, err := unix.Read(n, b)
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: path, Err: err}
	}
	return b[:m], nil
}

// identity is a process for as long as the machine is up: numbers are used again,
// numbers with their time of birth are not.
type identity struct {
	Pid   int    `json:"pid"`
	Start uint64 `json:"startTime"`
}

// look returns the process, or ok false if it is gone or a zombie.
func (i identity) look() (p proc, ok bool, err error) {
	if i.Pid == 0 {
		return p, false, nil
	}
	p, err = readProc(i.Pid)
	if errors.Is(err, fs.ErrNotExist) {
		return p, false, nil
	}
	return p, err == nil && p.start == i.Start && !p.dead(), err
}

// open returns a descriptor of the process; ErrNotRunning if it is gone.
func (i identity) open() (*sys.FD, error) {
	if i.Pid == 0 {
		return nil, ErrNotRunning
	}
	fd, err := sys.PidfdOpen(i.Pid)
	if errors.Is(err, unix.ESRCH) {
		return nil, ErrNotRunning
	}
	if err != nil {
		return nil, err
	}
	// The descriptor is of whoever has the number now. If that was the right one a
	// moment later, it is.
	if _, ok, err := i.look(); err != nil || !ok {
		fd.Close()
		if err == nil {
			err = ErrNotRunning
		}
		return nil, err
	}
	return fd, nil
}

// awaitEnd waits until the process behind pidfd has ended, at most d.
func awaitEnd(pidfd *sys.FD, d time.Duration) bool {
	deadline := time.Now().Add(d)
	for {
		left := max(time.Until(deadline), 0)
		ts := unix.NsecToTimespec(int64(left))
		n, err := unix.Ppoll([]unix.PollFd{{Fd: int32(pidfd.Int()), Events: unix.POLLIN}}, &ts, nil)
		if n > 0 {
			return true
		}
		if err != unix.EINTR || left == 0 {
			return false
		}
	}
}
