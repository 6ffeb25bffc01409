package monitor

import (
	"bytes"
	"errors"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/wire"
)

// reapTime bounds how long the attribution waits for a neighbour whose cgroup
// is gone: its main process has left that already and only has to be reaped.
const reapTime = time.Second

// ledger knows how many processes of each container the kernel's OOM killer has
// taken. The number is in the container's cgroup, and goes with it: systemd
// removes a scope as soon as nobody is left in it, which may be before we hear of
// the death. The pod's cgroup stays, and its counter is that of all who were ever
// below it:
//
//	pod's counter - settled containers - cgroups that can be read = cgroups that went unread
//
// The kernel counts a kill before it sends the signal, so that at the time of a
// death every number holds it.
type ledger struct {
	mu      sync.Mutex
	pod     *sys.FD       // nil where the cgroup above has others in it, too
	settled uint64        // by containers that are settled, and by whoever was there before them
	open    []*oomAccount // of containers that are not, in the order of their creation
}

// oomAccount is one container's. It is opened before the fork, and settled once.
type oomAccount struct {
	scope  *sys.FD       // the container's
	events *sys.FD       // its memory.events, while it runs; nil if that is not there. Guarded by ledger.mu
	reaped chan struct{} // closed when how is known
	how    ending        // guarded by reaped
	kills  uint64        // guarded by ledger.mu
	done   bool          // guarded by ledger.mu: settled
}

// ending is what a reaped main process tells of its death.
type ending struct {
	status wire.Status
	byUs   bool // the daemon has killed it, or we did for him
}

// killed says whether the death looks like one by the OOM killer: SIGKILL, also
// where a shell waited for who was killed, and passes it on.
func (e ending) killed() bool {
	return e.status.Signal == int32(unix.SIGKILL) || e.status.Code == 128+int32(unix.SIGKILL)
}

// add opens an account. The ledger looks at scope until the account is settled or
// closed; pod moves into it.
func (l *ledger) add(scope, pod *sys.FD) *oomAccount {
	a := &oomAccount{scope: scope, reaped: make(chan struct{})}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pod != nil || pod == nil {
		pod.Close()
	} else if n, err := oomKills(pod); err == nil {
		// What the pod's cgroup has seen before is nobody's here.
		l.pod, l.settled = pod, n-min(n, l.sumLocked())
	} else {
		pod.Close()
	}
	l.open = append(l.open, a)
	return a
}

// follow keeps the counter of a container that runs open, so that its death has to read it only.
func (l *ledger) follow(a *oomAccount) {
	if a.scope == nil {
		return
	}
	if n, err := sys.BriefOpen(a.scope.Int(), eventsName, unix.O_RDONLY, 0); err == nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		a.events = sys.NewFD(n)
	}
}

// readLocked reads the container's counter. One that is open and tells nothing may have gone
// with its controller only, and come back: what there is now decides.
func (a *oomAccount) readLocked() (uint64, error) {
	if a.events != nil {
		if k, err := killsIn(a.scope, a.events); err == nil {
			return k, nil
		}
	}
	return oomKills(a.scope)
}

// sumLocked adds up the cgroups that can be read.
func (l *ledger) sumLocked() (n uint64) {
	for _, a := range l.open {
		if k, err := a.readLocked(); err == nil {
			n += k
		}
	}
	return n
}

// count returns how many were taken so far.
func (l *ledger) count(a *oomAccount) uint32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !a.done {
		if k, err := a.readLocked(); err == nil {
			a.kills = max(a.kills, k)
		}
	}
	return a.count()
}

// settle is told how the main process ended, and completes the status: how many
// processes of the container the OOM killer took, and whether that was its end.
//
// It was not if the daemon has killed the container; a process that was taken
// before, and that the container survived, is then only counted.
func (l *ledger) settle(a *oomAccount, how ending) wire.Status {
	a.how = how
	close(a.reaped)
	l.mu.Lock()
	if k, err := a.readLocked(); err == nil || !isGone(err) {
		l.closeLocked(a, max(k, a.kills))
	}
	done := a.done
	l.mu.Unlock()
	if !done {
		l.settleUnread()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closeLocked(a, a.kills) // still open: nothing tells
	s := how.status
	s.OOMKills = a.count()
	s.OOMKilled = a.kills > 0 && how.killed() && !how.byUs
	return s
}

// again takes in who was taken between the main process's death and that of the
// last one in the container, and returns the number: else the pod's counter would
// hold a kill that is nobody's, and it would be found with the next neighbour.
func (l *ledger) again(a *oomAccount) uint32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k, err := a.readLocked(); err == nil && k > a.kills {
		l.settled += k - a.kills
		a.kills = k
	}
	return a.count()
}

// count is what goes into a status. Preconditions: ledger.mu is held.
func (a *oomAccount) count() uint32 { return uint32(min(a.kills, 1<<32-1)) }

// drop closes the account of a container that was never there.
func (l *ledger) drop(a *oomAccount) {
	if a == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	k, err := a.readLocked()
	if err != nil {
		k = a.kills
	}
	l.closeLocked(a, k)
}

func (l *ledger) closeLocked(a *oomAccount, kills uint64) {
	if a.done {
		return
	}
	a.done, a.kills = true, kills
	a.events.BriefClose()
	a.events = nil
	l.settled += kills
	for i, o := range l.open {
		if o == a {
			l.open = append(l.open[:i], l.open[i+1:]...)
			return
		}
	}
}

// settleUnread settles all whose cgroups went before their counters were read.
// Several may have gone at once, when we were stopped or slow; what the pod's
// counter has left over is then theirs together, and how each has died decides.
func (l *ledger) settleUnread() {
	limit := time.NewTimer(reapTime)
	defer limit.Stop()
	for _, a := range l.unread() {
		select {
		case <-a.reaped:
		case <-limit.C:
			limit.Reset(0) // and no patience for the others
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pod == nil {
		return
	}
	total, err := oomKills(l.pod)
	if err != nil {
		return
	}
	var group []*oomAccount
	left := total - min(total, l.settled)
	for _, a := range l.open {
		k, err := a.readLocked()
		switch {
		case err == nil:
			left -= min(left, k)
		case isGone(err) && a.isReaped():
			group = append(group, a)
			left -= min(left, a.kills) // as far as it was seen
		}
	}
	for i, n := range apportion(left, group) {
		l.closeLocked(group[i], group[i].kills+n)
	}
}

func (a *oomAccount) isReaped() bool {
	select {
	case <-a.reaped:
		return true
	default:
		return false
	}
}

// unread returns the accounts whose cgroups are gone.
func (l *ledger) unread() (gone []*oomAccount) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range l.open {
		if _, err := a.readLocked(); isGone(err) {
			gone = append(gone, a)
		}
	}
	return gone
}

// apportion says how many of n kills fell on each of some containers that are dead.
// Nobody else explains the deaths of those that were killed, and not by us: each
// of them has one kill, the one that died first before the others. A further kill
// is one of those, too, if there are any; else it was survived by a container that
// ended by itself; and else by one that we have killed.
func apportion(n uint64, group []*oomAccount) []uint64 {
	share := make([]uint64, len(group))
	first := -1
	for n > 0 {
		next := -1
		for i, a := range group {
			if a.how.killed() && !a.how.byUs && share[i] == 0 && (next < 0 || a.how.status.At < group[next].how.status.At) {
				next = i
			}
		}
		if next < 0 {
			break
		}
		share[next]++
		n--
		if first < 0 {
			first = next
		}
	}
	for i, a := range group {
		if first < 0 && !a.how.byUs {
			first = i
		}
	}
	if len(group) > 0 {
		share[max(first, 0)] += n
	}
	return share
}

// isGone says whether an error of oomKills means that the cgroup was removed.
func isGone(err error) bool { return errors.Is(err, unix.ENODEV) }

// oomKills reads how many processes in a cgroup and below it the OOM killer took,
// for the cgroup's own limit or anybody's above it. ENODEV: the cgroup is gone.
// ENOENT: nobody counts, since there is no memory controller. EBADF: no cgroup.
func oomKills(cgroup *sys.FD) (uint64, error) {
	if cgroup == nil {
		return 0, unix.EBADF
	}
	k, err := killsIn(cgroup, nil)
	if errors.Is(err, unix.ENOENT) && sys.BriefExists(cgroup.Int(), populatedName) != nil {
		err = unix.ENODEV
	}
	return k, err
}

const eventsName = "memory.events"

// killsIn reads the number out of a cgroup's memory.events, through f if that is open already.
func killsIn(cgroup, f *sys.FD) (uint64, error) {
	b, err := look(cgroup, f, eventsName, make([]byte, 512))
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(b) {
		if v, ok := bytes.CutPrefix(line, []byte("oom_kill ")); ok {
			return strconv.ParseUint(string(bytes.TrimSpace(v)), 10, 64)
		}
	}
	return 0, unix.ENODATA
}
