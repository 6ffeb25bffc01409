package seccomp

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Action is what a filter returns for a call: one of the kernel's SECCOMP_RET_* in the upper half, an errno or a tracer's message in the lower.
type Action uint32

// The actions, in the kernel's order of precedence where two filters disagree (as signed numbers, the lowest wins).
const (
	KillProcess Action = 0x80000000
	KillThread  Action = 0x00000000
	Trap        Action = 0x00030000
	Errno       Action = 0x00050000
	Notify      Action = 0x7fc00000
	Trace       Action = 0x7ff00000
	Log         Action = 0x7ffc0000
	Allow       Action = 0x7fff0000
)

const (
	actionFull = 0xffff0000
	dataMask   = 0x0000ffff

	eperm    = 1
	enosys   = 38
	maxErrno = 4095 // the kernel cuts larger ones down, silently
)

// ErrNotify is returned for profiles with SCMP_ACT_NOTIFY if Options.Notify is not set: nobody would hold the listener, and without one every such
// call is answered with ENOSYS.
var ErrNotify = errors.New("seccomp action SCMP_ACT_NOTIFY: there is nobody to pass the listener on")

var actions = map[specs.LinuxSeccompAction]Action{
	specs.ActKill:        KillThread,
	specs.ActKillThread:  KillThread,
	specs.ActKillProcess: KillProcess,
	specs.ActTrap:        Trap,
	specs.ActErrno:       Errno,
	specs.ActTrace:       Trace,
	specs.ActNotify:      Notify,
	specs.ActLog:         Log,
	specs.ActAllow:       Allow,
}

// resolveAction joins an action and its errno. The OCI text wants an error for an errno that the action cannot carry.
func resolveAction(name specs.LinuxSeccompAction, errnoRet *uint) (Action, error) {
	a, ok := actions[name]
	if !ok {
		return 0, fmt.Errorf("seccomp action %q: unknown", name)
	}
	if a != Errno && a != Trace {
		if errnoRet != nil {
			return 0, fmt.Errorf("seccomp action %s: takes no errno", name)
		}
		return a, nil
	}
	limit := uint(maxErrno)
	if a == Trace {
		limit = dataMask
	}
	switch {
	case errnoRet == nil:
		return a | eperm, nil
	case *errnoRet > limit:
		return 0, fmt.Errorf("seccomp action %s: errno %d is above %d", name, *errnoRet, limit)
	}
	return a | Action(*errnoRet), nil
}

// lenient says whether calls that meet the action run.
func (a Action) lenient() bool {
	switch a & actionFull {
	case Allow, Log, Trace:
		return true
	}
	return false
}

// String is for people: ALLOW, ERRNO(1).
func (a Action) String() string {
	switch a & actionFull {
	case KillProcess:
		return "KILL_PROCESS"
	case KillThread:
		return "KILL_THREAD"
	case Trap:
		return "TRAP"
	case Errno:
		return "ERRNO(" + strconv.Itoa(int(a&dataMask)) + ")"
	case Trace:
		return "TRACE(" + strconv.Itoa(int(a&dataMask)) + ")"
	case Notify:
		return "NOTIFY"
	case Log:
		return "LOG"
	case Allow:
		return "ALLOW"
	}
	return "0x" + strconv.FormatUint(uint64(a), 16)
}

// The flags of seccomp(2).
const (
	flagLog         = 1 << 1
	flagSpecAllow   = 1 << 2
	flagNewListener = 1 << 3
	flagWaitKill    = 1 << 5 // Linux 5.19; EINVAL without a listener
)

// resolveFlags turns the names into the argument of seccomp(2). A profile that says nothing gets SPEC_ALLOW, as under runc and crun: without it the
// kernel turns on mitigations that cost every container speed. An empty list is a statement and gets none.
func resolveFlags(p *specs.LinuxSeccomp, listener bool, w *warnings) (uint64, error) {
	var flags uint64
	if listener {
		flags = flagNewListener
	}
	if p.Flags == nil {
		return flags | flagSpecAllow, nil
	}
	for _, f := range p.Flags {
		switch f {
		case specs.LinuxSeccompFlagLog:
			flags |= flagLog
		case specs.LinuxSeccompFlagSpecAllow:
			flags |= flagSpecAllow
		case specs.LinuxSeccompFlagWaitKillableRecv:
			if !listener {
				w.add("flag " + string(f) + " has no effect without SCMP_ACT_NOTIFY")
				continue
			}
			flags |= flagWaitKill
		case "SECCOMP_FILTER_FLAG_TSYNC":
			// The filter is loaded by a process of one thread: all there are have it.
		default:
			return 0, fmt.Errorf("seccomp flag %q: unknown", f)
		}
	}
	return flags, nil
}

// warnings collects each text once, in order.
type warnings struct {
	list []string
	seen map[string]bool
}

func (w *warnings) add(text string) {
	if w.seen[text] {
		return
	}
	if w.seen == nil {
		w.seen = map[string]bool{}
	}
	w.seen[text] = true
	w.list = append(w.list, text)
}
