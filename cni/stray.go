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
// process's session, which is how ExecPlugin starts it; its group goes with it, and is known
// by any of its members: the leader may have ended by a kill that another did not. A
// daemon that a plugin has started for good is not meant: those begin a session.
// A container that takes on both marks has to know the random id of its pod, and
// takes only itself out.
func killStrays(pods []string) []stray {
	if len(pods) == 0 {
		return nil
	}
	var dying []stray
	for leader, group := range processGroups() {
		pod := podOfStrays(leader, group, pods)
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
		if n == 1 || time.Until(end) <= 0 {
			return n == 1
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			time.Sleep(memoryWait)
		}
	}
}

// memoryWait is how long is waited for memory or a descriptor of the kernel's that was not there.
const memoryWait = 100 * time.Millisecond

// keepTurns keeps the turns of pods whose plugins do not even end by SIGKILL, until they do.
func (n *Network) keepTurns(left []stray) {
	byPod := map[string][]stray{}
	for _, s := range left {
		byPod[s.pod] = append(byPod[s.pod], s)
	}
	for id, strays := range byPod {
		g := &grant{turn: n.turns.use(id), key: id}
		g.held <- struct{}{} // nobody else is there yet
		g.note("process %d, of a plugin that a daemon before this one began", strays[0].pid)
		n.turns.giveUp(g)
		go func() { // ends with the last of them
			awaitAll(strays, func(pid int) { g.note("process %d, of a plugin that a daemon before this one began", pid) })
			n.turns.give(g)
		}()
	}
}

// awaitAll waits until the processes have ended, and closes them. It tells for which it waits.
func awaitAll(strays []stray, tell func(pid int)) {
	for _, s := range strays {
		tell(s.pid)
		for !s.ends(time.Hour) {
		}
		s.fd.Close()
	}
}

// endGroup kills what a plugin that was started in ctx's turn has left of its group, and waits for the end of that, so that a DEL, which
// is about to come, has the last word.
func endGroup(ctx context.Context, leader int) {
	if killGroup(leader) != nil {
		return // nobody is left
	}
	defer note(ctx, "what plugin process %d has left", leader)()
	awaitAll(hold("", processGroups()[leader]), func(pid int) { note(ctx, "process %d, which plugin process %d has left", pid, leader) })
}

// hold gets hold of processes; the caller closes them. One that has ended and was reaped is none.
func hold(pod string, pids []int) (held []stray) {
	for _, pid := range pids {
		fd, err := sys.PidfdOpen(pid)
		for err != nil && !errors.Is(err, unix.ESRCH) { // it may live, and be about to do something
			time.Sleep(memoryWait)
			fd, err = sys.PidfdOpen(pid)
		}
		if err == nil {
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

// podOfStrays is the one of the pods that a process group is a plugin at work for, or "".
func podOfStrays(leader int, group []int, pods []string) string {
	for _, pid := range group {
		if sid, err := unix.Getsid(pid); err != nil || sid == leader {
			continue
		}
		if pod := podOfProcess(pid, pods); pod != "" {
			return pod
		}
	}
	return ""
}

// podOfProcess is that of one process. A thread that has ended has no environment, also the first one of a process whose others are there.
func podOfProcess(pid int, pods []string) string {
	envs, _ := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/environ")
	for _, file := range envs {
		env, err := os.ReadFile(file)
		if err != nil || len(env) == 0 {
			continue
		}
		if !bytes.Contains(env, []byte("CNI_COMMAND=")) {
			return ""
		}
		for _, v := range strings.Split(string(env), "\x00") {
			if id, ok := strings.CutPrefix(v, "CNI_CONTAINERID="); ok && slices.Contains(pods, id) {
				return id
			}
		}
	}
	return ""
}
