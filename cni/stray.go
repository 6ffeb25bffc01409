package cni

import (
	"bytes"
	"context"
	"errors"
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

// stray is a process of a plugin that a daemon before this one left running.
type stray struct {
	pod string
	pid int
	fd  *sys.FD // of the process; whoever has the stray closes it
}

// killStrays kills the plugins that a daemon before this one has left running
// for these pods when it was killed. Without that, an ADD that is still at work
// gives an address away after the DEL that was to free it. It returns those that have not ended within strayWait.
//
// A plugin is known by its environment and by leading a process group in another
// process's session, which is how ExecPlugin starts it; its group goes with it. A
// daemon that a plugin has started for good is not meant: those begin a session.
// A container that takes on both marks has to know the random id of its pod, and
// takes only itself out.
func killStrays(pods []string) []stray {
	if len(pods) == 0 {
		return nil
	}
	var dying []stray
	for leader, group := range processGroups() {
		pod := podOfStray(leader, pods)
		if pod == "" {
			continue
		}
		dying = append(dying, hold(pod, group)...) // before they die, to wait for
		_ = killGroup(leader)
	}
	end := time.Now().Add(strayWait)
	return slices.DeleteFunc(dying, func(s stray) bool {
		if !s.ends(time.Until(end)) {
			return false
		}
		s.fd.Close()
		return true
	})
}

// ends waits for the end of the process; a negative time is none.
func (s stray) ends(within time.Duration) bool {
	poll := []unix.PollFd{{Fd: int32(s.fd.Int()), Events: unix.POLLIN}}
	for end := time.Now().Add(within); ; {
		n, err := unix.Poll(poll, int(max(time.Until(end).Milliseconds(), 0)))
		if !errors.Is(err, unix.EINTR) {
			return n == 1
		}
	}
}

// keepTurns keeps the turns of pods whose plugins do not even end by SIGKILL, until they do.
func (n *Network) keepTurns(left []stray) {
	byPod := map[string][]stray{}
	for _, s := range left {
		byPod[s.pod] = append(byPod[s.pod], s)
	}
	for id, strays := range byPod {
		t := n.turns.use(id)
		t.held <- struct{}{} // nobody else is there yet
		t.note("process %d, of a plugin that a daemon before this one began", strays[0].pid)
		n.turns.giveUp(t)
		go func() { // ends with the last of them
			awaitAll(strays)
			n.turns.give(id, t)
		}()
	}
}

// awaitAll waits until the processes have ended, and closes them.
func awaitAll(strays []stray) {
	for _, s := range strays {
		for !s.ends(time.Hour) {
		}
		s.fd.Close()
	}
}

// endGroup kills what a plugin that was started by ctx's turn has left of its group, and waits for the end of that, so that a DEL, which
// is about to come, has the last word.
func endGroup(ctx context.Context, leader int) {
	if killGroup(leader) != nil {
		return // nobody is left
	}
	strays := hold("", processGroups()[leader])
	if len(strays) != 0 {
		defer note(ctx, "process %d, which plugin %d has left", strays[0].pid, leader)()
		awaitAll(strays)
	}
}

// hold gets hold of processes; the caller closes them. One that has ended and was reaped is none.
func hold(pod string, pids []int) (held []stray) {
	for _, pid := range pids {
		if fd, err := sys.PidfdOpen(pid); err == nil {
			held = append(held, stray{pod, pid, fd})
		}
	}
	return held
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

// podOfStray is the one of the pods that a process is a plugin at work for, or "". One that has ended has no environment.
func podOfStray(leader int, pods []string) string {
	if sid, err := unix.Getsid(leader); err != nil || sid == leader {
		return ""
	}
	env, err := os.ReadFile("/proc/" + strconv.Itoa(leader) + "/environ")
	if err != nil || !bytes.Contains(env, []byte("CNI_COMMAND=")) {
		return ""
	}
	for _, v := range strings.Split(string(env), "\x00") {
		if id, ok := strings.CutPrefix(v, "CNI_CONTAINERID="); ok && slices.Contains(pods, id) {
			return id
		}
	}
	return ""
}
