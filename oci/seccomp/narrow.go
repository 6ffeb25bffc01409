package seccomp

import "strings"

// narrowText lists, for calls that people filter by arguments, the indexes of those which the kernel declares as int, unsigned int or a type
// of 32 bits or less (SYSCALL_DEFINE in the kernel's sources), so that it never sees the upper word. clone(2) declares a long and takes its
// lower word. A call that is missing here is compared in 64 bits.
const narrowText = `accept 0
accept4 03
access 1
bind 02
bpf 02
clock_adjtime 0
clock_getres 0
clock_gettime 0
clock_nanosleep 01
clock_settime 0
clone 0
close 0
close_range 012
connect 02
copy_file_range 025
delete_module 1
dup 0
dup2 01
dup3 012
epoll_create 0
epoll_create1 0
epoll_ctl 012
eventfd 0
eventfd2 01
execveat 04
faccessat 02
faccessat2 023
fallocate 01
fanotify_init 01
fanotify_mark 013
fchmod 01
fchmodat 02
fchmodat2 023
fchown 012
fchownat 0234
fcntl 01
fcntl64 01
finit_module 02
flock 01
fsconfig 014
fsmount 012
fsopen 1
fspick 02
futex 125
getpgid 0
getpriority 01
getrandom 2
getsockopt 012
getxattrat 02
inotify_add_watch 02
inotify_init1 0
inotify_rm_watch 01
io_uring_enter 0123
io_uring_register 013
io_uring_setup 0
ioctl 01
ioprio_get 01
ioprio_set 012
ipc 01
kcmp 012
keyctl 0
kill 01
landlock_add_rule 013
landlock_create_ruleset 2
landlock_restrict_self 01
linkat 024
listen 01
lseek 02
madvise 2
membarrier 012
memfd_create 1
memfd_secret 0
mkdir 1
mkdirat 02
mknod 12
mknodat 023
mlock2 2
mlockall 0
mount_setattr 02
move_mount 024
mq_open 12
msgctl 01
msgget 01
msgrcv 04
msgsnd 03
msync 2
name_to_handle_at 04
open 12
open_by_handle_at 02
open_tree 02
openat 023
openat2 0
perf_event_open 123
personality 0
pidfd_getfd 012
pidfd_open 01
pidfd_send_signal 013
pipe2 1
pkey_free 0
pkey_mprotect 3
prctl 0
preadv2 5
prlimit64 01
process_madvise 034
process_mrelease 01
pwritev2 5
quotactl 02
quotactl_fd 012
reboot 012
recvfrom 03
recvmmsg 023
recvmsg 02
renameat 02
renameat2 024
rt_sigqueueinfo 01
rt_tgsigqueueinfo 012
sched_getscheduler 0
sched_setattr 02
sched_setparam 0
sched_setscheduler 01
seccomp 01
semctl 012
semget 012
semop 02
semtimedop 02
sendmmsg 023
sendmsg 02
sendto 035
setfsgid 0
setfsuid 0
setgid 0
setgroups 0
setitimer 0
setns 01
setpgid 01
setpriority 012
setregid 01
setresgid 012
setresuid 012
setreuid 01
setsockopt 0124
setuid 0
shmat 02
shmctl 01
shmget 02
shutdown 01
signalfd4 03
socket 012
socketcall 0
socketpair 012
splice 025
statx 023
swapon 1
symlinkat 1
syslog 02
tee 013
tgkill 012
timer_create 0
timerfd_create 01
timerfd_settime 01
tkill 01
umask 0
umount2 1
unlinkat 02
userfaultfd 0
utimensat 03
vmsplice 03
wait4 02
waitid 013
`

// narrowCalls maps a call's name to a bit set of its 32-bit arguments.
func narrowCalls(goarch string) map[string]uint8 {
	m := make(map[string]uint8, 256)
	for line := range strings.Lines(narrowText) {
		name, digits, _ := strings.Cut(strings.TrimSpace(line), " ")
		var set uint8
		for _, d := range digits {
			set |= 1 << (d - '0')
		}
		m[name] = set
	}
	if goarch == "s390x" {
		m["clone"] = 1 << 1 // the new stack comes before the flags there
	}
	return m
}
