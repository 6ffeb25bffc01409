package sys

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// PidfdOpen returns a descriptor of the process pid, which stays bound to that
// process even when its number is used again. The error is ESRCH where there is none. Older kernels (6.12 is one) say EINVAL
// where the number of a process that is gone is still that of its session or process group.
func PidfdOpen(pid int) (*FD, error) {
	n, err := unix.PidfdOpen(pid, 0)
	if pid > 0 && errors.Is(err, unix.EINVAL) {
		err = unix.ESRCH
	}
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	return NewFD(n), nil
}

// PidfdSignal sends sig to the process behind pidfd. It returns an error that
// is os.ErrProcessDone (ESRCH) when that process is gone.
func PidfdSignal(pidfd *FD, sig unix.Signal) error {
	err := unix.PidfdSendSignal(pidfd.Int(), sig, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return os.ErrProcessDone
	}
	return os.NewSyscallError("pidfd_send_signal", err)
}

// PidfdGetfd returns a copy of descriptor n of the process behind pidfd. The
// caller needs ptrace rights over that process.
func PidfdGetfd(pidfd *FD, n int) (*FD, error) {
	fd, err := unix.PidfdGetfd(pidfd.Int(), n, 0)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_getfd", err)
	}
	return NewFD(fd), nil
}

// SealedMemfd returns a memory file with the given content that nobody can
// write, shrink, grow or unseal any more. With exec it may be executed, else
// it is marked as never executable where the kernel knows that (6.3).
func SealedMemfd(name string, data []byte, exec bool) (*FD, error) {
	fd, err := memfd(name, exec)
	if err != nil {
		return nil, err
	}
	if err := fillAndSeal(fd, data); err != nil {
		fd.Close()
		return nil, err
	}
	return fd, nil
}

func memfd(name string, exec bool) (*FD, error) {
	mode := unix.MFD_NOEXEC_SEAL
	if exec {
		mode = unix.MFD_EXEC
	}
	const base = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	n, err := unix.MemfdCreate(name, base|mode)
	if errors.Is(err, unix.EINVAL) { // before 6.3 the two mode flags are unknown
		n, err = unix.MemfdCreate(name, base)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	return NewFD(n), nil
}

func fillAndSeal(fd *FD, data []byte) error {
	for len(data) > 0 {
		n, err := unix.Write(fd.Int(), data)
		if err != nil && err != unix.EINTR {
			return os.NewSyscallError("write memfd", err)
		}
		data = data[max(n, 0):]
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	_, err := unix.FcntlInt(uintptr(fd.Int()), unix.F_ADD_SEALS, seals)
	return os.NewSyscallError("fcntl F_ADD_SEALS", err)
}
