package program

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// flag is one bit, or field, with its name.
type flag struct {
	bits uint64
	name string
}

var cloneText = []flag{
	{unix.CLONE_NEWNS, "NEWNS"}, {unix.CLONE_NEWPID, "NEWPID"}, {unix.CLONE_NEWNET, "NEWNET"}, {unix.CLONE_NEWIPC, "NEWIPC"},
	{unix.CLONE_NEWUTS, "NEWUTS"}, {unix.CLONE_NEWCGROUP, "NEWCGROUP"}, {unix.CLONE_NEWUSER, "NEWUSER"}, {unix.CLONE_PIDFD, "PIDFD"},
	{unix.CLONE_NEWTIME, "NEWTIME"}, {unix.CLONE_CLEAR_SIGHAND, "CLEAR_SIGHAND"}, {unix.CLONE_PARENT, "PARENT"}, {unix.CLONE_PARENT_SETTID, "PARENT_SETTID"},
}

var openText = []flag{
	{unix.O_PATH, "PATH"}, {unix.O_DIRECTORY, "DIRECTORY"}, {unix.O_NOFOLLOW, "NOFOLLOW"}, {unix.O_CREAT, "CREAT"}, {unix.O_EXCL, "EXCL"},
	{unix.O_WRONLY, "WRONLY"}, {unix.O_RDWR, "RDWR"}, {unix.O_NOCTTY, "NOCTTY"}, {unix.O_CLOEXEC, "CLOEXEC"},
}

// atText has the flags of calls that take a descriptor and a path below it, those
// of open_tree among them.
var atText = []flag{
	{unix.AT_EMPTY_PATH, "EMPTY_PATH"}, {unix.AT_RECURSIVE, "RECURSIVE"}, {unix.AT_SYMLINK_NOFOLLOW, "NOFOLLOW"},
	{unix.OPEN_TREE_CLONE, "CLONE"}, {unix.OPEN_TREE_CLOEXEC, "CLOEXEC"},
}

var moveText = []flag{
	{unix.MOVE_MOUNT_F_EMPTY_PATH, "FROM_FD"}, {unix.MOVE_MOUNT_T_EMPTY_PATH, "TO_FD"}, {unix.MOVE_MOUNT_F_SYMLINKS, "FROM_SYMLINKS"},
	{unix.MOVE_MOUNT_T_SYMLINKS, "TO_SYMLINKS"}, {unix.MOVE_MOUNT_SET_GROUP, "SET_GROUP"},
}

var prctlNames = map[uint64]string{
	unix.PR_CAPBSET_DROP: "CAPBSET_DROP", unix.PR_CAP_AMBIENT: "CAP_AMBIENT", unix.PR_SET_KEEPCAPS: "SET_KEEPCAPS",
	unix.PR_SET_NO_NEW_PRIVS: "SET_NO_NEW_PRIVS", unix.PR_SET_DUMPABLE: "SET_DUMPABLE",
}

// fsconfigNames has the commands that the compiler uses.
var fsconfigNames = map[uint64]string{
	unix.FSCONFIG_SET_STRING: "SET_STRING", unix.FSCONFIG_SET_FLAG: "SET_FLAG", unix.FSCONFIG_CMD_CREATE: "CREATE",
	unix.FSCONFIG_CMD_RECONFIGURE: "RECONFIGURE",
}

var resolveText = []flag{
	{unix.RESOLVE_IN_ROOT, "in root"}, {unix.RESOLVE_BENEATH, "beneath"}, {unix.RESOLVE_NO_SYMLINKS, "no symlinks"},
	{unix.RESOLVE_NO_MAGICLINKS, "no magic links"}, {unix.RESOLVE_NO_XDEV, "no mounts"},
}

var attrText = []flag{
	{unix.MOUNT_ATTR_RDONLY, "RDONLY"}, {unix.MOUNT_ATTR_NOSUID, "NOSUID"}, {unix.MOUNT_ATTR_NODEV, "NODEV"}, {unix.MOUNT_ATTR_NOEXEC, "NOEXEC"},
	{unix.MOUNT_ATTR__ATIME, "ATIME"}, {unix.MOUNT_ATTR_NOATIME, "NOATIME"}, {unix.MOUNT_ATTR_STRICTATIME, "STRICTATIME"},
	{unix.MOUNT_ATTR_NODIRATIME, "NODIRATIME"}, {unix.MOUNT_ATTR_IDMAP, "IDMAP"}, {unix.MOUNT_ATTR_NOSYMFOLLOW, "NOSYMFOLLOW"},
}

var filterText = []flag{
	{unix.SECCOMP_FILTER_FLAG_TSYNC, "TSYNC"}, {unix.SECCOMP_FILTER_FLAG_LOG, "LOG"}, {unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, "SPEC_ALLOW"},
	{unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, "NEW_LISTENER"}, {unix.SECCOMP_FILTER_FLAG_TSYNC_ESRCH, "TSYNC_ESRCH"},
	{unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, "WAIT_KILLABLE_RECV"},
}

var propagationText = []flag{
	{unix.MS_PRIVATE, "PRIVATE"}, {unix.MS_SLAVE, "SLAVE"}, {unix.MS_SHARED, "SHARED"}, {unix.MS_UNBINDABLE, "UNBINDABLE"},
}

// ioctlNames has the requests that the compiler uses.
var ioctlNames = map[uint64]string{
	unix.SIOCSIFFLAGS: "SIOCSIFFLAGS", unix.TIOCSPTLCK: "TIOCSPTLCK", unix.TIOCGPTPEER: "TIOCGPTPEER", unix.TIOCSWINSZ: "TIOCSWINSZ",
	unix.TIOCSCTTY: "TIOCSCTTY",
}

// flagText names the flags of v; what has no name is shown in hexadecimal.
func flagText(v uint64, names []flag) string {
	var out []string
	for _, f := range names {
		if v&f.bits == f.bits {
			out = append(out, f.name)
			v &^= f.bits
		}
	}
	if v != 0 || len(out) == 0 {
		out = append(out, "0x"+strconv.FormatUint(v, 16))
	}
	return strings.Join(out, "|")
}
