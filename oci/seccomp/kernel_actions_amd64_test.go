package seccomp

import (
	"encoding/binary"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// getppidUnder is a profile whose only rule is for getppid, which nothing else in the victim calls.
func getppidUnder(action specs.LinuxSeccompAction, errno *uint) *specs.LinuxSeccomp {
	return &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, ListenerPath: "/run/listener",
		Syscalls: []specs.LinuxSyscall{{Names: []string{"getppid"}, Action: action, ErrnoRet: errno}}}
}

// TestKernelActions: what each action is to the kernel.
func TestKernelActions(t *testing.T) {
	for _, c := range []struct {
		action specs.LinuxSeccompAction
		errno  *uint
		want   syscall.Errno
		ends   string // how the victim ends, if it does
	}{
		{action: specs.ActErrno, want: unix.EPERM},
		{action: specs.ActErrno, errno: ptr(uint(77)), want: 77},
		{action: specs.ActErrno, errno: ptr(uint(4094)), want: 4094},
		{action: specs.ActErrno, errno: ptr(uint(0))},
		{action: specs.ActLog},
		{action: specs.ActTrace, want: unix.ENOSYS},  // no tracer
		{action: specs.ActNotify, want: unix.ENOSYS}, // no listener
		{action: specs.ActTrap, ends: "exit status 2"},
		{action: specs.ActKill, ends: "exit status 42"},
		{action: specs.ActKillThread, ends: "exit status 42"},
		{action: specs.ActKillProcess, ends: "signal: bad system call"},
	} {
		f, err := CompileWith(getppidUnder(c.action, c.errno), Options{Notify: true})
		if err != nil {
			t.Fatal(err)
		}
		f.Flags &^= flagNewListener // the victim that answers is another one
		out, msg, err := runVictim(t, "calls", assignment{filters: []*Filter{f}, calls: []kernelCall{{Number: unix.SYS_GETPPID}}})
		switch {
		case c.ends != "":
			if err == nil || !strings.HasPrefix(err.Error(), c.ends) {
				t.Errorf("%s: %v, want %s\n%.300s", c.action, err, c.ends, msg)
			}
			if c.action == specs.ActTrap && !strings.Contains(string(msg), "SIGSYS") {
				t.Errorf("TRAP: %.300s", msg)
			}
		case err != nil:
			t.Errorf("%s: %v\n%.300s", c.action, err, msg)
		default:
			if got := syscall.Errno(binary.NativeEndian.Uint64(out)); got != c.want {
				t.Errorf("%s: %v, want %v", c.action, got, c.want)
			}
		}
	}
}

// TestKernelFlags: the kernel takes every combination of flags that Compile makes.
func TestKernelFlags(t *testing.T) {
	names := []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog, specs.LinuxSeccompFlagSpecAllow, specs.LinuxSeccompFlagWaitKillableRecv, "SECCOMP_FILTER_FLAG_TSYNC"}
	seen := map[uint64]bool{}
	for set := range 1 << len(names) {
		for _, action := range []specs.LinuxSeccompAction{specs.ActErrno, specs.ActNotify} {
			p := getppidUnder(action, nil)
			p.Flags = []specs.LinuxSeccompFlag{}
			for i, n := range names {
				if set&(1<<i) != 0 {
					p.Flags = append(p.Flags, n)
				}
			}
			f, err := CompileWith(p, Options{Notify: true})
			if err != nil {
				t.Fatal(err)
			}
			if seen[f.Flags] {
				continue
			}
			seen[f.Flags] = true
			results(t, f, []kernelCall{{Number: unix.SYS_GETUID}})
		}
	}
	if len(seen) != 4+8 {
		t.Errorf("%d combinations", len(seen))
	}
}

// TestKernelNotify: a call under NOTIFY gets what the holder of the listener says, and reaches it with its number and arguments.
func TestKernelNotify(t *testing.T) {
	p := getppidUnder(specs.ActNotify, nil)
	p.Flags = []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagWaitKillableRecv}
	f, err := CompileWith(p, Options{Notify: true})
	if err != nil {
		t.Fatal(err)
	}
	out := startVictim(t, "notify", assignment{filters: []*Filter{f}, calls: []kernelCall{{Number: unix.SYS_GETPPID, Args: [6]uint64{1 << 40, 2, 3, 4, 5, 6}}}})
	want := []uint64{unix.SYS_GETPPID, uint64(host().abis[0].token), 1 << 40, 6, 0x55}
	for i, w := range want {
		if got := binary.NativeEndian.Uint64(out[8*i:]); got != w {
			t.Errorf("word %d: %#x, want %#x", i, got, w)
		}
	}
}

// The structures of seccomp_unotify(2), in words of 32 bits: id, pid, flags, and seccomp_data; id, value, error, flags.
type (
	notification struct {
		id         uint64
		pid, flags uint32
		data       [16]uint32
	}
	notificationAnswer struct {
		id           uint64
		value        int64
		error, flags uint32
	}
)

// victimNotify answers its own call, which is made by another thread, with errno 0x55.
func victimNotify() {
	flags, programs, calls := readOrder()
	listener, errno := make(chan int), make(chan syscall.Errno)
	go func() {
		runtime.LockOSThread()
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			die("no_new_privs:", err)
		}
		fprog := unix.SockFprog{Len: uint16(len(programs[0]) / 8), Filter: (*unix.SockFilter)(unsafe.Pointer(&programs[0][0]))}
		fd, _, e := syscall.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(flags[0]), uintptr(unsafe.Pointer(&fprog)))
		if e != 0 {
			die("load:", e)
		}
		listener <- int(fd)
		c := calls[0]
		_, _, e = syscall.Syscall6(uintptr(c.Number), uintptr(c.Args[0]), uintptr(c.Args[1]), uintptr(c.Args[2]), uintptr(c.Args[3]), uintptr(c.Args[4]), uintptr(c.Args[5]))
		errno <- e
		select {}
	}()
	fd := <-listener
	var n notification
	if _, _, e := syscall.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&n))); e != 0 {
		die("receive:", e)
	}
	a := notificationAnswer{id: n.id, error: ^uint32(0x55) + 1}
	if _, _, e := syscall.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&a))); e != 0 {
		die("send:", e)
	}
	args := (*[6]uint64)(unsafe.Pointer(&n.data[4]))
	out := []uint64{uint64(n.data[0]), uint64(n.data[1]), args[0], args[5], uint64(<-errno)}
	if err := binary.Write(os.NewFile(4, "out"), binary.NativeEndian, out); err != nil {
		die("write:", err)
	}
}
