package image

import (
	"errors"
	"fmt"
	"math"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Two kinds of children meet a stranger's bytes first, and are copies of this
// program. What they can do if those bytes take one over:
//
//	                 vitrine-inflate            vitrine-unpack
//	files            none                       those of the layer: its directory is a mount of its own, without any above it
//	devices          none                       they can be made, not opened (nodev)
//	system calls     read, write, memory        the same and those on files
//	user             nobody                     root with the capabilities of tar
//	memory           512 MiB                    512 MiB
//	processor        30 min                     30 min
//	file size        0                          what the layer may have
//	bytes, entries   inflateOrder               the same
//
// There is no network in either list, nor execve, mount, chroot, another process, or a signal to one. A child of the first
// kind that was taken over, by a fault in decompressing, can only say another tar, whose digest the second kind takes: what
// the store says of a layer's content rests on archive/tar and a hash, not on zstd.
const (
	maxInflateMemory = 512 << 20
	maxUnpackMemory  = 512 << 20
	maxInflateCPU    = 30 * 60 // seconds
	maxUnpackCPU     = 30 * 60
	nobody           = 65534
)

// confineInflate gives away everything but the three descriptors. The working
// directory is an empty one.
func confineInflate() error {
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("leave the root directory: %w", err)
	}
	if err := limitResources(maxInflateMemory, maxInflateCPU, 0, 32); err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(nobody), syscall.Setuid(nobody)); err != nil {
			return fmt.Errorf("become nobody: %w", err)
		}
	}
	return allowCalls(runtimeCalls)
}

// confineUnpack leaves everything but the layer's directory.
func confineUnpack() error {
	if err := errors.Join(unix.Fchdir(unpackRoot), unix.Chroot("."), unix.Close(unpackRoot)); err != nil {
		return fmt.Errorf("enter the layer's directory: %w", err)
	}
	if err := limitResources(maxUnpackMemory, maxUnpackCPU, uint64(defaultLimits.image), 64); err != nil {
		return err
	}
	if err := dropCapabilities(unpackCapabilities); err != nil {
		return err
	}
	return allowCalls(append(append([]uintptr{}, runtimeCalls...), fileCalls...))
}

// unpackCapabilities: SYS_ADMIN is for the attribute that makes a directory of the
// overlay opaque; what else it allows is not among the system calls.
var unpackCapabilities = []int{
	unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_MKNOD,
	unix.CAP_SETFCAP, unix.CAP_SYS_ADMIN,
}

// limitResources bounds memory in bytes, processor time in seconds, the size of
// files and the number of descriptors.
func limitResources(memory, cpu, file, files uint64) error {
	signal.Ignore(unix.SIGXFSZ) // a write that is too long is EFBIG, which says what it is
	for _, l := range []struct {
		kind int
		name string
		max  uint64
	}{
		// What is merely reserved does not count, unlike with RLIMIT_AS.
		{unix.RLIMIT_DATA, "memory", memory},
		{unix.RLIMIT_CPU, "processor time", cpu},
		{unix.RLIMIT_FSIZE, "file size", file},
		{unix.RLIMIT_NOFILE, "descriptors", files},
		{unix.RLIMIT_CORE, "core dumps", 0},
	} {
		if err := unix.Setrlimit(l.kind, &unix.Rlimit{Cur: l.max, Max: l.max}); err != nil {
			return fmt.Errorf("limit %s: %w", l.name, err)
		}
	}
	return nil
}

// everyThread makes a system call in all threads of the process. Where there is
// cgo (tests with the race detector) only the calling one does.
func everyThread(trap, a1, a2, a3 uintptr) error {
	_, _, errno := syscall.AllThreadsSyscall(trap, a1, a2, a3)
	if errno == syscall.ENOTSUP {
		_, _, errno = syscall.Syscall(trap, a1, a2, a3)
	}
	if errno != 0 {
		return errno
	}
	return nil
}

// dropCapabilities keeps those of keep in the effective and the permitted set, and
// none anywhere else.
func dropCapabilities(keep []int) error {
	if os.Geteuid() != 0 {
		return nil
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have, want [2]unix.CapUserData
	if err := unix.Capget(&head, &have[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	for _, c := range keep {
		want[c/32].Permitted |= 1 << (c % 32)
	}
	for i := range want {
		want[i].Permitted &= have[i].Permitted
		want[i].Effective = want[i].Permitted
	}
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&head)
	pin.Pin(&want[0])
	if err := everyThread(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&want[0])), 0); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return nil
}

// allowCalls makes every other system call fail with EPERM, for all threads and
// for good. A program for another architecture's table dies.
func allowCalls(calls []uintptr) error {
	if err := everyThread(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	const arch, number = 4, 0 // offsets in struct seccomp_data
	prog := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: arch},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 1, K: auditArch},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_KILL_PROCESS},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: number},
	}
	for _, c := range calls {
		if more := argumentsOf(c); more != nil {
			prog = append(append(prog, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: uint8(len(more)), K: uint32(c)}), more...)
			continue
		}
		prog = append(prog,
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: uint32(c)},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
	}
	prog = append(prog, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)})
	if len(prog) > math.MaxUint16 {
		return errors.New("the filter is too long")
	}
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	_, _, errno := syscall.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&fprog)))
	if errno != 0 {
		return fmt.Errorf("load filter of system calls: %w", errno)
	}
	return nil
}

// argumentsOf is the rest of the filter for a call that is allowed for this process and its threads only: clone, where it makes a
// thread in the same namespaces; tgkill and prlimit64 for the process itself. nil for all others.
func argumentsOf(call uintptr) []unix.SockFilter {
	const argument, namespaces = 16, unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET
	load := unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: argument} // the low half: little endian
	allow := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}
	refuse := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)}
	same := func(v int) []unix.SockFilter {
		return []unix.SockFilter{load, {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: uint32(v)}, allow, refuse}
	}
	switch call {
	case unix.SYS_CLONE:
		return []unix.SockFilter{load, {Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, Jt: 2, K: namespaces},
			{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, Jf: 1, K: unix.CLONE_THREAD}, allow, refuse}
	case unix.SYS_TGKILL:
		return same(os.Getpid())
	case unix.SYS_PRLIMIT64:
		return same(0)
	}
	return nil
}

// runtimeCalls are what Go's runtime needs once it runs, and reading and writing.
var runtimeCalls = append([]uintptr{
	unix.SYS_READ, unix.SYS_WRITE, unix.SYS_READV, unix.SYS_WRITEV, unix.SYS_PREAD64, unix.SYS_PWRITE64, unix.SYS_CLOSE, unix.SYS_FCNTL,
	unix.SYS_MMAP, unix.SYS_MUNMAP, unix.SYS_MPROTECT, unix.SYS_MADVISE, unix.SYS_MREMAP, unix.SYS_MINCORE, unix.SYS_BRK,
	unix.SYS_PRCTL, // names of memory mappings; with no_new_privs and without capabilities it gives nothing
	unix.SYS_FUTEX, unix.SYS_CLONE, unix.SYS_EXIT, unix.SYS_EXIT_GROUP, unix.SYS_SET_ROBUST_LIST, unix.SYS_RSEQ,
	unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK, unix.SYS_TGKILL,
	unix.SYS_GETPID, unix.SYS_GETTID, unix.SYS_RESTART_SYSCALL, unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY,
	unix.SYS_NANOSLEEP, unix.SYS_CLOCK_GETTIME, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_GETRANDOM, unix.SYS_GETRUSAGE,
	unix.SYS_TIMER_CREATE, unix.SYS_TIMER_SETTIME, unix.SYS_TIMER_DELETE, unix.SYS_SETITIMER,
	unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_PWAIT, unix.SYS_EVENTFD2, unix.SYS_PIPE2,
	unix.SYS_GETEUID, unix.SYS_GETUID, unix.SYS_GETEGID, unix.SYS_GETGID,
}, archRuntimeCalls...)

// fileCalls are what unpacking needs besides.
var fileCalls = append([]uintptr{
	unix.SYS_OPENAT, unix.SYS_FSTAT, unix.SYS_STATX, unix.SYS_READLINKAT, unix.SYS_GETDENTS64, unix.SYS_LSEEK, unix.SYS_FACCESSAT, unix.SYS_FACCESSAT2,
	unix.SYS_MKDIRAT, unix.SYS_MKNODAT, unix.SYS_SYMLINKAT, unix.SYS_LINKAT, unix.SYS_UNLINKAT, unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2,
	unix.SYS_FCHOWN, unix.SYS_FCHOWNAT, unix.SYS_FCHMOD, unix.SYS_FCHMODAT, unix.SYS_UTIMENSAT, unix.SYS_FTRUNCATE, unix.SYS_COPY_FILE_RANGE,
	unix.SYS_SPLICE, unix.SYS_SENDFILE,
	unix.SYS_SETXATTR, unix.SYS_LSETXATTR, unix.SYS_FSETXATTR, unix.SYS_GETXATTR, unix.SYS_LGETXATTR, unix.SYS_LISTXATTR, unix.SYS_LLISTXATTR,
	unix.SYS_CHDIR, unix.SYS_FCHDIR, unix.SYS_GETCWD, unix.SYS_UMASK, unix.SYS_UNAME,
	unix.SYS_CAPGET, // the library asks itself whether it is root
}, archFileCalls...)
