package sandbox

import (
	"errors"
	"fmt"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The reasons of an exit, as the kubelet and people know them.
const (
	reasonCompleted  = "Completed"
	reasonError      = "Error"
	reasonOOMKilled  = "OOMKilled"
	reasonStartError = "StartError"
	reasonUnknown    = "Unknown"
)

// unknownExitCode stands for an exit that nobody saw.
const unknownExitCode = 255

// facts are what is known of a container's life. A value is never changed once it is published: readers
// get it from an atomic pointer. Times are in ns since 1970; 0 means that it has not happened.
type facts struct {
	Created  int64  `json:"created,omitempty"`
	Started  int64  `json:"started,omitempty"`
	Finished int64  `json:"finished,omitempty"`
	Pid      int    `json:"pid,omitempty"`
	ExitCode int32  `json:"exitCode,omitempty"`
	Reason   string `json:"reason,omitempty"`
	Message  string `json:"message,omitempty"`
	OOMKills int    `json:"oomKills,omitempty"` // processes that the OOM killer took until the end
}

// state derives the CRI's state. There is nothing else to derive it from.
func (f facts) state() runtimeapi.ContainerState {
	switch {
	case f.Finished != 0:
		return runtimeapi.ContainerState_CONTAINER_EXITED
	case f.Started != 0:
		return runtimeapi.ContainerState_CONTAINER_RUNNING
	case f.Created != 0:
		return runtimeapi.ContainerState_CONTAINER_CREATED
	}
	return runtimeapi.ContainerState_CONTAINER_UNKNOWN
}

// happening is the sort of an event in a container's life.
type happening int

// What can happen to a container.
const (
	created     happening = iota // init is blocked at its start wait
	started                      // execve succeeded
	startFailed                  // execve, or a step before it, failed
	exited                       // the main process was reaped
	lost                         // the monitor is gone and left no exit record
)

// event is one happening with what is known about it.
type event struct {
	what  happening
	at    int64 // ns since 1970
	pid   int   // created
	code  int32 // startFailed, exited
	oom   bool  // exited
	kills int   // exited
	text  string
}

// errTransition says that an event cannot have happened to this container: a fault of ours.
var errTransition = errors.New("impossible transition")

// next returns the facts after e. It is the only place that makes facts.
//
//	          created          started           exited, lost
//	(none) ------------> CREATED -------> RUNNING ------------> EXITED
//	                        |                                     ^
//	                        '--- startFailed, exited, lost -------'
//
// The answer to a start and the exit of the process come by different ways. A program that ends at once may
// have exited before we hear that it started, and so may one whose execve failed: both are taken in, in
// either order. The first end of a container stands; a later one changes nothing.
func (f facts) next(e event) (facts, error) {
	s := f.state()
	switch {
	case e.what == created && s == runtimeapi.ContainerState_CONTAINER_UNKNOWN:
		f.Created, f.Pid = e.at, e.pid
	case e.what == created || s == runtimeapi.ContainerState_CONTAINER_UNKNOWN:
		return f, fmt.Errorf("event %d on %s: %w", e.what, s, errTransition)

	case e.what == started && f.Started != 0:
		return f, fmt.Errorf("second start: %w", errTransition)
	case e.what == started && f.Finished != 0:
		f.Started = min(e.at, f.Finished)
	case e.what == started:
		f.Started = e.at

	case e.what == startFailed && f.Started != 0:
		return f, fmt.Errorf("start failed after it succeeded: %w", errTransition)
	case e.what == startFailed:
		if f.Finished == 0 {
			f.Finished = e.at
		}
		f.ExitCode, f.Reason, f.Message = e.code, reasonStartError, sendable(e.text)

	case f.Finished != 0: // exited and lost: the first end stands
	case e.what == lost:
		f.Finished, f.ExitCode, f.Reason, f.Message = e.at, unknownExitCode, reasonUnknown, sendable(e.text)
	default:
		f.Finished, f.ExitCode, f.Reason, f.OOMKills = e.at, e.code, exitReason(e), e.kills
	}
	return f, nil
}

// maxMessage bounds why a container could not be started, in bytes.
const maxMessage = 4096

// sendable is a text that a message can hold. What a container could not be started by is a path that its author chose, in any bytes; one that is
// not UTF-8 would keep every status of the container, the events of all, and what plugins are told, from being sent.
func sendable(text string) string {
	return strings.ToValidUTF8(text[:min(len(text), maxMessage)], "?")
}

func exitReason(e event) string {
	switch {
	case e.oom:
		return reasonOOMKilled
	case e.code == 0:
		return reasonCompleted
	}
	return reasonError
}

// podFacts are what is known of a pod's life, in the same manner. Times only ever go from 0 to something.
type podFacts struct {
	Created  int64    `json:"created,omitempty"`  // everything is made
	NotReady int64    `json:"notReady,omitempty"` // a stop began, or the monitor was lost
	Stopped  int64    `json:"stopped,omitempty"`  // processes, network and namespaces are gone
	Reason   string   `json:"reason,omitempty"`   // why it is not ready, if nobody asked for it
	IPs      []string `json:"ips,omitempty"`      // primary first
}

// state derives the CRI's state.
func (f podFacts) state() runtimeapi.PodSandboxState {
	if f.Created != 0 && f.NotReady == 0 {
		return runtimeapi.PodSandboxState_SANDBOX_READY
	}
	return runtimeapi.PodSandboxState_SANDBOX_NOTREADY
}
