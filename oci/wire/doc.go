// Package wire is the protocol between the daemon and the monitor of a pod: a
// fixed header, a compact body written by hand, and descriptors beside it, over
// a SEQPACKET unix socket in the pod's directory.
//
//	0        4         6      8            16       20      22      24
//	+--------+---------+------+------------+--------+-------+-------+----------
//	| magic  | version | type | request id | length | flags | files | body ...
//	+--------+---------+------+------------+--------+-------+-------+----------
//
// All numbers are little-endian. Strings and lists carry their length in front.
// A body larger than [MaxInline] travels as a sealed memfd, which is then the
// first descriptor of the message; `files` counts the others.
//
// The daemon asks and the monitor answers with the id of the request, in any
// order: a create that takes long holds up nothing else. Events carry the id of
// the request that they belong to (exec) or 0. Several daemons may be connected
// at once; each sees its own answers and every container's exit from its
// connect on, and asks for the rest with [List].
//
// Versions: [Hello] and [Welcome] keep their layout for ever (later fields are
// only appended, an older reader skips them). They agree on one version, and
// every other message is then written exactly as that version says; a decoder
// refuses trailing bytes.
//
// Decoders take bytes from another process: they never panic, and allocate no
// more than what the message itself could hold.
package wire

import "errors"

// Magic begins every message: "VTRN".
const Magic uint32 = 0x4e525456

// Versions that this build speaks.
const (
	Lowest uint16 = 1
	// 2 counts OOM kills: Status.OOMKills, Create.PodCgroup; 3 ends the start wait of an exec's program; 4 has
	// Listener; 5 has terminals and Attach: Create.TTY, Create.Output, Stdin, Detach; 6 has programs with a gate for hooks;
	// 7 has pid namespaces that are not the pod's: Create.OwnPID, Create.Target.
	Highest uint16 = 7
)

// Limits of a message. A unix SEQPACKET message may have at most 212,960 bytes
// with the kernel's default send buffer; large bodies do not get near it.
const (
	HeaderSize = 24
	MaxInline  = 16 << 10 // bytes of a body inside the message
	MaxBody    = 4 << 20  // bytes of a body in a memfd
	MaxString  = 8 << 10  // one string
	MaxFiles   = 250      // descriptors; the kernel's SCM_MAX_FD is 253
	MaxProgram = 16 << 20 // bytes of an encoded program
)

// Files in the directory of a container.
const (
	// ExitName is the exit record.
	ExitName = "exit.json"
	// KilledName is an empty file that is there if it was the daemon who killed the
	// container, and nothing else.
	KilledName = "killed"
)

// SocketName is the monitor's socket in the pod's directory.
const SocketName = "monitor.sock"

// Errors of decoding and of the connection.
var (
	// ErrMalformed is wrapped by every refusal of bytes that are no message.
	ErrMalformed = errors.New("malformed message")
	// ErrTooLarge says that a message would break one of the limits above.
	ErrTooLarge = errors.New("message too large")
	// ErrBlocked says that the peer has stopped reading and its socket is full.
	ErrBlocked = errors.New("peer does not read")
)

// Type says what a message is.
type Type uint16

// The protocol. A request has one answer: the type on its right, or Failure.
// Requests marked "later" have their number and are answered with Failure
// {CodeNotYet}, and so is a type that the monitor has never heard of.
//
//	daemon                                monitor
//	-----------------------------------   ------------------------------------
//	Hello{lowest, highest}            ->
//	                                  <-  Welcome{version, pid, pod, pause}
//	GetPod{}                          ->
//	                                  <-  PodInfo{started, note}+net,ipc,uts
//	Create{id, ...}+program,dir,...   ->      fork; the program runs to its wait
//	                                  <-  Created{pid, oom_score_adj, note}
//	Start{id}                         ->      the gate opens, if it has one, and at
//	                                          the next Start the wait ends; execve
//	                                  <-  Done{}
//	Signal{id, signal}                ->
//	                                  <-  Done{}
//	List{}                            ->
//	                                  <-  States{state ...}
//	Exec{id}+program,cgroup,0,1,2,... ->      fork; execve
//	                                  <-  ExecStarted{pid}
//	                                  <-  ExecExited{status}   (same request id)
//	ReopenLog{id}                     ->
//	                                  <-  Done{}
//	Remove{id}                        ->      forgets a container that is dead
//	                                  <-  Done{}
//	Stop{}                            ->      every container must be dead
//	                                  <-  Done{}, then the monitor exits
//	Attach{id, ...}+1,2               ->
//	                                  <-  Attached{}+stdin or terminal
//	Stdin{id}                         ->      closes it
//	                                  <-  Done{}
//	Detach{attach's request id}       ->
//	                                  <-  Attached{lost}
//	                                  <-  Exited{id, status}   (event, id 0)
//	later: Resize TTY Update Stats
//	                                  <-  Failure{code, step, errno, text}
const (
	TypeHello Type = 1 + iota
	TypeGetPod
	TypeCreate
	TypeStart
	TypeSignal
	TypeList
	TypeExec
	TypeReopenLog
	TypeRemove
	TypeStop
	TypeAttach
	TypeStdin
	TypeResize
	TypeTTY
	TypeDetach
	TypeUpdate
	TypeStats
	endRequests
)

// Types from the monitor.
const (
	TypeWelcome Type = 0x8000 + iota
	TypePodInfo
	TypeCreated
	TypeDone
	TypeStates
	TypeExecStarted
	TypeFailure
	TypeAttached
	endReplies
)

// Events from the monitor.
const (
	TypeExited Type = 0xc000 + iota
	TypeExecExited
	endEvents
)

var requestNames = [...]string{
	TypeHello: "hello", TypeGetPod: "pod-info", TypeCreate: "create", TypeStart: "start", TypeSignal: "signal",
	TypeList: "list", TypeExec: "exec", TypeReopenLog: "reopen-log", TypeRemove: "remove", TypeStop: "stop",
	TypeAttach: "attach", TypeStdin: "stdin", TypeResize: "resize", TypeTTY: "tty", TypeDetach: "detach",
	TypeUpdate: "update", TypeStats: "stats",
}

// String returns the verb of a request, or what kind of answer t is.
func (t Type) String() string {
	switch {
	case t > 0 && t < endRequests:
		return requestNames[t]
	case t >= TypeExited:
		return "event"
	case t >= TypeWelcome:
		return "reply"
	}
	return "unknown"
}
