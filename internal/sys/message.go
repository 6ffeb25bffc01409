package sys

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// SendMessage is sendmsg(2) on a connected socket and returns how much of b went. With
// MSG_DONTWAIT it is a brief call. The error is a bare errno.
func SendMessage(fd int, b, oob []byte, flags int) (int, error) {
	n, _, _, err := message(unix.SYS_SENDMSG, fd, b, oob, flags)
	return n, err
}

// ReceiveMessage is recvmsg(2) without the sender's address: how much there is now
// in b and oob, and the flags that the kernel says of it. With MSG_DONTWAIT it is a
// brief call. The error is a bare errno.
func ReceiveMessage(fd int, b, oob []byte, flags int) (n, oobn, got int, err error) {
	return message(unix.SYS_RECVMSG, fd, b, oob, flags)
}

func message(nr uintptr, fd int, b, oob []byte, flags int) (n, oobn, got int, err error) {
	var one [1]byte
	v := unix.Iovec{Base: &one[0]}
	if len(b) > 0 {
		v.Base = &b[0]
	}
	v.SetLen(len(b))
	m := unix.Msghdr{Iov: &v, Iovlen: 1}
	if len(oob) > 0 {
		m.Control = &oob[0]
		m.SetControllen(len(oob))
	}
	for {
		var r uintptr
		var errno unix.Errno
		if flags&unix.MSG_DONTWAIT != 0 {
			r, _, errno = unix.RawSyscall(nr, uintptr(fd), uintptr(unsafe.Pointer(&m)), uintptr(flags))
		} else {
			r, _, errno = unix.Syscall(nr, uintptr(fd), uintptr(unsafe.Pointer(&m)), uintptr(flags))
		}
		switch errno {
		case 0:
			return int(r), int(m.Controllen), int(m.Flags), nil
		case unix.EINTR:
			continue
		}
		return 0, 0, 0, errno
	}
}

// ReceiveFD receives the one descriptor that a message carries, beside whatever it says. More or less
// than one is EBADMSG.
func ReceiveFD(fd, flags int) (*FD, error) {
	text, oob := make([]byte, 64), make([]byte, unix.CmsgSpace(4))
	_, n, got, err := ReceiveMessage(fd, text, oob, flags|unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("recvmsg", err)
	}
	h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
	if n < unix.CmsgLen(4) || got&unix.MSG_CTRUNC != 0 || h.Level != unix.SOL_SOCKET || h.Type != unix.SCM_RIGHTS || int(h.Len) != unix.CmsgLen(4) {
		return nil, unix.EBADMSG
	}
	return NewFD(int(*(*int32)(unsafe.Pointer(&oob[unix.CmsgLen(0)])))), nil
}

// HungUp says whether the other side of a connected socket has closed its direction to us, whatever of it is still to be
// read. It does not wait.
func HungUp(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0
}
