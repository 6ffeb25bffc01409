package wire

// Welcome answers Hello. The monitor's pid is as seen from the host: a monitor
// has no pid namespace of its own.
type Welcome struct {
	Version uint16 // that both sides speak from here on
	Pid     int32
	Pod     string
	Pause   int32 // pid of the pause; 0 in a pod without a shared pid namespace
}

// Type implements Body.
func (*Welcome) Type() Type { return TypeWelcome }

// Files implements Body.
func (*Welcome) Files() int { return 0 }

func (m *Welcome) encode(b []byte) []byte {
	b = order.AppendUint32(order.AppendUint16(b, m.Version), uint32(m.Pid))
	return order.AppendUint32(appendString(b, m.Pod), uint32(m.Pause))
}

func (m *Welcome) decode(r *reader) {
	m.Version, m.Pid, m.Pod, m.Pause = r.u16(), r.i32(), r.str(), r.i32()
}

// PodInfo answers GetPod. Descriptors: the pod's net, ipc and uts namespaces;
// where the pod uses the host's, it is the host's.
type PodInfo struct {
	Started int64  // of the monitor, ns since 1970
	Note    string // what could not be done as asked, and was not fatal
}

// Type implements Body.
func (*PodInfo) Type() Type { return TypePodInfo }

// Files implements Body.
func (*PodInfo) Files() int { return 3 }

func (m *PodInfo) encode(b []byte) []byte {
	return appendString(order.AppendUint64(b, uint64(m.Started)), m.Note)
}

func (m *PodInfo) decode(r *reader) { m.Started, m.Note = r.i64(), r.str() }

// Created answers Create: init is blocked at its start wait.
type Created struct {
	Pid      int32
	OOMScore int32  // oom_score_adj as the kernel now has it
	Note     string // what could not be done as asked, and was not fatal
}

// Type implements Body.
func (*Created) Type() Type { return TypeCreated }

// Files implements Body.
func (*Created) Files() int { return 0 }

func (m *Created) encode(b []byte) []byte {
	b = order.AppendUint32(order.AppendUint32(b, uint32(m.Pid)), uint32(m.OOMScore))
	return appendString(b, m.Note)
}

func (m *Created) decode(r *reader) { m.Pid, m.OOMScore, m.Note = r.i32(), r.i32(), r.str() }

// Done answers requests that have nothing more to say than that they are.
type Done struct{ bodyless }

// Type implements Body.
func (*Done) Type() Type { return TypeDone }

// Phase is how far a container has come. It only grows.
type Phase uint8

// Phases of a container.
const (
	Creating Phase = iota // forked, on its way to the start wait
	Blocked               // blocked at its start wait
	Running               // execve succeeded
	Dead                  // reaped; its exit record is on disk
)

// Status is how a process ended. Exactly one of Code and Signal means
// something: a process that was killed has Signal > 0.
type Status struct {
	Code      int32
	Signal    int32
	OOMKilled bool   // it ended because the kernel's OOM killer took it, or one that it waited for
	At        int64  // ns since 1970
	OOMKills  uint32 // processes of the container that the OOM killer took; since version 2
}

const statusSize = 4 + 4 + 1 + 8 // of version 1, which is the shortest

func (s *Status) encode(b []byte) []byte {
	b = order.AppendUint32(order.AppendUint32(b, uint32(s.Code)), uint32(s.Signal))
	return order.AppendUint64(appendBool(b, s.OOMKilled), uint64(s.At))
}

func (s *Status) encodeAs(b []byte, version uint16) []byte {
	if b = s.encode(b); version >= 2 {
		b = order.AppendUint32(b, s.OOMKills)
	}
	return b
}

func (s *Status) decode(r *reader) {
	s.Code, s.Signal, s.OOMKilled, s.At = r.i32(), r.i32(), r.boolean(), r.i64()
	if r.version >= 2 {
		s.OOMKills = r.u32()
	}
}

// State is what the monitor knows of one container.
type State struct {
	ID      string
	Phase   Phase
	Pid     int32
	Created int64  // ns since 1970
	Started int64  // 0: execve never succeeded
	Status         // if Phase is Dead; OOMKills before that, too
	LogLost uint64 // bytes of output that were dropped since the log could not be written
}

const stateSize = 2 + 1 + 4 + 8 + 8 + statusSize + 8

// States answers List.
type States struct {
	List []State
}

// Type implements Body.
func (*States) Type() Type { return TypeStates }

// Files implements Body.
func (*States) Files() int { return 0 }

func (m *States) encode(b []byte) []byte { return m.encodeAs(b, 1) }

func (m *States) encodeAs(b []byte, version uint16) []byte {
	b = order.AppendUint32(b, uint32(len(m.List)))
	for i := range m.List {
		s := &m.List[i]
		b = append(appendString(b, s.ID), byte(s.Phase))
		b = order.AppendUint32(b, uint32(s.Pid))
		b = order.AppendUint64(order.AppendUint64(b, uint64(s.Created)), uint64(s.Started))
		b = order.AppendUint64(s.Status.encodeAs(b, version), s.LogLost)
	}
	return b
}

func (m *States) decode(r *reader) {
	n := r.count(stateSize)
	if n == 0 {
		return
	}
	m.List = make([]State, n)
	for i := range m.List {
		s := &m.List[i]
		s.ID, s.Phase, s.Pid, s.Created, s.Started = r.str(), Phase(r.u8()), r.i32(), r.i64(), r.i64()
		s.Status.decode(r)
		s.LogLost = r.u64()
		r.bad = r.bad || s.Phase > Dead
	}
}

// ExecStarted answers Exec: its execve succeeded.
type ExecStarted struct {
	Pid int32
}

// Type implements Body.
func (*ExecStarted) Type() Type { return TypeExecStarted }

// Files implements Body.
func (*ExecStarted) Files() int { return 0 }

func (m *ExecStarted) encode(b []byte) []byte { return order.AppendUint32(b, uint32(m.Pid)) }
func (m *ExecStarted) decode(r *reader)       { m.Pid = r.i32() }

// ExecExited follows ExecStarted under the same request id, to the connection
// that asked.
type ExecExited struct {
	Status
}

// Type implements Body.
func (*ExecExited) Type() Type { return TypeExecExited }

// Files implements Body.
func (*ExecExited) Files() int { return 0 }

// Exited is the event that a container's main process is dead and its exit
// record is on disk.
type Exited struct {
	ID string
	Status
}

// Type implements Body.
func (*Exited) Type() Type { return TypeExited }

// Files implements Body.
func (*Exited) Files() int { return 0 }

func (m *Exited) encode(b []byte) []byte { return m.encodeAs(b, 1) }

func (m *Exited) encodeAs(b []byte, version uint16) []byte {
	return m.Status.encodeAs(appendString(b, m.ID), version)
}

func (m *Exited) decode(r *reader) {
	m.ID = r.str()
	m.Status.decode(r)
}

// Code says of which kind a failure is.
type Code uint16

// Codes of Failure.
const (
	CodeInternal Code = iota // none of the others
	CodeVersion              // no common version
	CodeNotYet               // the request is not served by this monitor
	CodeInvalid              // the request makes no sense
	CodeNotFound             // no such container
	CodeExists               // the id is taken
	CodeState                // not possible in the container's phase
	CodeStep                 // a step of a program: Step, Errno, and its name as Text
	CodeDied                 // the child ended before its execve and no step says why
	endCodes
)

// Failure is the answer to a request that was not carried out.
type Failure struct {
	Code  Code
	Step  int32  // index of the program's step, if Code is CodeStep
	Errno uint32 // 0 if there is none
	Text  string // what was done, for people: the step's name, or an error
}

// Type implements Body.
func (*Failure) Type() Type { return TypeFailure }

// Files implements Body.
func (*Failure) Files() int { return 0 }

func (m *Failure) encode(b []byte) []byte {
	b = order.AppendUint32(order.AppendUint16(b, uint16(m.Code)), uint32(m.Step))
	return appendString(order.AppendUint32(b, m.Errno), m.Text)
}

func (m *Failure) decode(r *reader) {
	m.Code, m.Step, m.Errno, m.Text = Code(r.u16()), r.i32(), r.u32(), r.str()
}

// Error implements error.
func (m *Failure) Error() string { return m.Text }
