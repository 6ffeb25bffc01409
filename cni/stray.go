package cni

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// strayWait bounds how long New waits for the plugins that it has killed.
const strayWait = 5 * time.Second

// killStrays kills the plugins that a daemon before this one has left running
// for these pods when it was killed. Without that, an ADD that is still at work
// gives an address away after the DEL that was to free it.
//
// A plugin is known by its environment and by leading a process group in another
// process's session, which is how ExecPlugin starts it; its group goes with it. A
// daemon that a plugin has started for good is not meant: those begin a session.
// A container that takes on both marks has to know the random id of its pod, and
// takes only itself out.
func killStrays(pods []string) {
	if len(pods) == 0 {
		return
	}
	var dying []*sys.FD
	for leader, group := range processGroups() {
		if !isStray(leader, pods) {
			continue
		}
		for _, pid := range group { // held before they die, to wait for
			if fd, err := sys.PidfdOpen(pid); err == nil {
				defer fd.Close()
				dying = append(dying, fd)
			}
		}
		_ = killGroup(leader)
	}
	end := time.Now().Add(strayWait)
	for _, fd := range dying {
		left := max(time.Until(end).Milliseconds(), 0)
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd.Int()), Events: unix.POLLIN}}, int(left))
	}
}

// processGroups lists all processes by their group.
func processGroups() map[int][]int {
	dirs, _ := filepath.Glob("/proc/[1-9]*")
	groups := map[int][]int{}
	for _, d := range dirs {
		pid, err := strconv.Atoi(filepath.Base(d))
		if err != nil {
			continue
		}
		if pgid, err := unix.Getpgid(pid); err == nil {
			groups[pgid] = append(groups[pgid], pid)
		}
	}
	return groups
}

// isStray reports whether a process is a plugin at work for one of the pods. One
// that has ended has no environment.
func isStray(leader int, pods []string) bool {
	if sid, err := unix.Getsid(leader); err != nil || sid == leader {
		return false
	}
	env, err := os.ReadFile("/proc/" + strconv.Itoa(leader) + "/environ")
	if err != nil || !bytes.Contains(env, []byte("CNI_COMMAND=")) {
		return false
	}
	for _, v := range strings.Split(string(env), "\x00") {
		if id, ok := strings.CutPrefix(v, "CNI_CONTAINERID="); ok {
			return slices.Contains(pods, id)
		}
	}
	return false
}
