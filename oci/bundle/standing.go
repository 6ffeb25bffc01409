package bundle

import (
	"bytes"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// Standing is what the caller is to the kernel.
type Standing int

const (
	// Privileged is root of the first user namespace.
	Privileged Standing = iota
	// Confined is root of another user namespace, to which the mount namespace belongs, too:
	// what podman runs a runtime as, and what Enter makes of everybody else.
	Confined
	// Outside is who is neither, and has to Enter before a verb that makes processes.
	Outside
)

// Stand says what this process is. It stays that.
var Stand = sync.OnceValue(func() Standing {
	switch {
	case os.Geteuid() == 0 && sys.InFirstUserNS():
		return Privileged
	case os.Geteuid() == 0 && ownsMounts():
		return Confined
	}
	return Outside
})

// ownsMounts says whether the mount namespace belongs to our user namespace.
func ownsMounts() bool {
	mounts, err := sys.OpenAt2(unix.AT_FDCWD, "/proc/self/ns/mnt", unix.O_RDONLY, 0)
	if err != nil {
		return false
	}
	defer mounts.Close()
	n, err := unix.IoctlRetInt(mounts.Int(), unix.NS_GET_USERNS) // EPERM: to one above ours
	if err != nil {
		return false
	}
	defer unix.Close(n)
	return isUserNS(n)
}

// isUserNS says whether fd is our user namespace.
func isUserNS(fd int) bool {
	var a, b unix.Stat_t
	return unix.Fstat(fd, &a) == nil && unix.Stat("/proc/self/ns/user", &b) == nil && a.Dev == b.Dev && a.Ino == b.Ino
}

// keepsGroups says whether nobody here may set his groups: so it is where a user mapped
// his own group himself.
func keepsGroups() bool {
	if Stand() == Privileged {
		return false
	}
	b, err := readShort("/proc/self/setgroups")
	return err == nil && bytes.HasPrefix(b, []byte("deny"))
}

// outsideID is who our id 0 is in the user namespace above ours, by one of our maps, or what it is.
func outsideID(file string) (id uint32) {
	b, _ := readShort("/proc/self/" + file)
	for line := range bytes.Lines(b) {
		if f := bytes.Fields(line); len(f) == 3 && string(f[0]) == "0" {
			n, _ := strconv.ParseUint(string(f[1]), 10, 32)
			return uint32(n)
		}
	}
	return 0
}

// owner is the name of whoever calls, for lists.
func owner() string {
	uid := uint32(os.Geteuid())
	if uid == 0 {
		uid = outsideID("uid_map")
	}
	if uid == 0 {
		return "root"
	}
	return strconv.FormatUint(uint64(uid), 10)
}

// DefaultRoot is where states are kept if nobody says otherwise: for who is not root of the
// machine in his own directory, if he has one.
func DefaultRoot() string {
	if dir := os.Getenv("XDG_RUNTIME_DIR"); Stand() != Privileged && dir != "" && dir[0] == '/' {
		return dir + "/vitrine-oci"
	}
	return "/run/vitrine-oci"
}
