package wire

// bodyless is what messages share that say everything by their type.
type bodyless struct{}

func (bodyless) Files() int             { return 0 }
func (bodyless) encode(b []byte) []byte { return b }
func (bodyless) decode(*reader)         {}

// named is what requests share that say nothing but which container is meant.
type named struct {
	ID string
}

func (*named) Files() int               { return 0 }
func (n *named) encode(b []byte) []byte { return appendString(b, n.ID) }
func (n *named) decode(r *reader)       { n.ID = r.str() }

// Hello opens a connection: the versions that the daemon speaks.
type Hello struct {
	Lowest, Highest uint16
}

// Type implements Body.
func (*Hello) Type() Type { return TypeHello }

// Files implements Body.
func (*Hello) Files() int { return 0 }

func (m *Hello) encode(b []byte) []byte {
	return order.AppendUint16(order.AppendUint16(b, m.Lowest), m.Highest)
}

func (m *Hello) decode(r *reader) { m.Lowest, m.Highest = r.u16(), r.u16() }

// GetPod asks for the pod's namespaces and settings.
type GetPod struct{ bodyless }

// Type implements Body.
func (*GetPod) Type() Type { return TypeGetPod }

// Create makes a container: the monitor forks, and the child runs the program
// up to its start wait. Descriptors, in this order: the encoded program (a
// sealed memfd), the container's directory, the log's directory if LogName is
// set, the cgroup if Cgroup is set, the cgroup above it if PodCgroup is set, two for
// a Listener, then the program's own table.
type Create struct {
	ID        string
	LogName   string // file below the log directory; "" discards the output
	UID       uint32 // owner of the stdio pipes, so that /dev/stdout can be opened again
	Stdin     bool   // a pipe whose write end the monitor keeps, instead of /dev/null
	StdinOnce bool   // nothing to the monitor: the daemon sends Stdin when it is over
	TTY       bool   // served since version 5: the monitor adds a socket for the terminal to the program's table
	Cgroup    bool
	SetOOM    bool
	OOMScore  int32  // oom_score_adj, if SetOOM
	Table     uint16 // descriptors in the program's table
	PodCgroup bool   // since version 2; the cgroup holds nothing but this pod
	// Listener, since version 4, names the socket of who answers the notifications
	// of the process's seccomp filter, below the first of its two descriptors. The
	// second is a memfd with what to send along with the filter's listener.
	Listener string
	// Output, since version 5, has the monitor read the output also without a log, for
	// whoever attaches.
	Output bool
	// OwnPID, since version 7, says that the program makes its pid namespace, also in a pod that shares one.
	OwnPID bool
	// Target, since version 7, is the container whose pid namespace the program joins, "" for none. The monitor puts its pidfd
	// behind the program's table (and a terminal's socket behind that).
	Target string
}

// Type implements Body.
func (*Create) Type() Type { return TypeCreate }

// Files implements Body.
func (m *Create) Files() int {
	n := 2 + int(m.Table)
	if m.LogName != "" {
		n++
	}
	if m.Cgroup {
		n++
	}
	if m.PodCgroup {
		n++
	}
	return n + listenerFiles(m.Listener)
}

func listenerFiles(name string) int {
	if name == "" {
		return 0
	}
	return 2
}

func (m *Create) encode(b []byte) []byte {
	b = appendString(appendString(b, m.ID), m.LogName)
	b = order.AppendUint32(b, m.UID)
	for _, v := range []bool{m.Stdin, m.StdinOnce, m.TTY, m.Cgroup, m.SetOOM} {
		b = appendBool(b, v)
	}
	return order.AppendUint16(order.AppendUint32(b, uint32(m.OOMScore)), m.Table)
}

func (m *Create) encodeAs(b []byte, version uint16) []byte {
	if b = m.encode(b); version >= 2 {
		b = appendBool(b, m.PodCgroup)
	}
	if version >= 4 {
		b = appendString(b, m.Listener)
	}
	if version >= 5 {
		b = appendBool(b, m.Output)
	}
	if version >= 7 {
		b = appendString(appendBool(b, m.OwnPID), m.Target)
	}
	return b
}

func (m *Create) decode(r *reader) {
	m.ID, m.LogName, m.UID = r.str(), r.str(), r.u32()
	for _, v := range []*bool{&m.Stdin, &m.StdinOnce, &m.TTY, &m.Cgroup, &m.SetOOM} {
		*v = r.boolean()
	}
	m.OOMScore, m.Table = r.i32(), r.u16()
	m.PodCgroup = r.version >= 2 && r.boolean()
	if r.version >= 4 {
		m.Listener = r.str()
	}
	m.Output = r.version >= 5 && r.boolean()
	if r.version >= 7 {
		m.OwnPID, m.Target = r.boolean(), r.str()
	}
}

// Start ends the wait that a container is at: since version 6 that for its hooks, if its program has a gate for
// them, and then its start wait.
type Start struct{ named }

// Type implements Body.
func (*Start) Type() Type { return TypeStart }

// NewStart returns the request for container id.
func NewStart(id string) *Start { return &Start{named{id}} }

// Signal sends a signal to a container's main process.
type Signal struct {
	ID     string
	Signal int32
}

// Type implements Body.
func (*Signal) Type() Type { return TypeSignal }

// Files implements Body.
func (*Signal) Files() int { return 0 }

func (m *Signal) encode(b []byte) []byte {
	return order.AppendUint32(appendString(b, m.ID), uint32(m.Signal))
}

func (m *Signal) decode(r *reader) { m.ID, m.Signal = r.str(), r.i32() }

// List asks for the state of every container.
type List struct{ bodyless }

// Type implements Body.
func (*List) Type() Type { return TypeList }

// Exec starts a further process in a running container. Descriptors, in this
// order: the encoded program, the cgroup if Cgroup is set, those of stdin,
// stdout and stderr that Stdio names (bit 0, 1, 2; the others are /dev/null),
// two for a Listener, then the program's own table without its file 0, which is the container's
// pidfd and is added by the monitor.
type Exec struct {
	ID     string
	Cgroup bool
	Stdio  uint8
	Table  uint16
	// Listener is as in Create.
	Listener string
}

// Type implements Body.
func (*Exec) Type() Type { return TypeExec }

// Files implements Body.
func (m *Exec) Files() int {
	n := 1 + int(m.Table) + int(m.Stdio&1+m.Stdio>>1&1+m.Stdio>>2&1)
	if m.Cgroup {
		n++
	}
	return n + listenerFiles(m.Listener)
}

func (m *Exec) encode(b []byte) []byte {
	b = appendBool(appendString(b, m.ID), m.Cgroup)
	return order.AppendUint16(append(b, m.Stdio), m.Table)
}

func (m *Exec) encodeAs(b []byte, version uint16) []byte {
	if b = m.encode(b); version >= 4 {
		b = appendString(b, m.Listener)
	}
	return b
}

func (m *Exec) decode(r *reader) {
	m.ID, m.Cgroup, m.Stdio, m.Table = r.str(), r.boolean(), r.u8(), r.u16()
	if r.version >= 4 {
		m.Listener = r.str()
	}
	r.bad = r.bad || m.Stdio > 7
}

// ReopenLog makes the monitor open a container's log file anew (rotation).
type ReopenLog struct{ named }

// Type implements Body.
func (*ReopenLog) Type() Type { return TypeReopenLog }

// NewReopenLog returns the request for container id.
func NewReopenLog(id string) *ReopenLog { return &ReopenLog{named{id}} }

// Remove makes the monitor forget a container that is dead.
type Remove struct{ named }

// Type implements Body.
func (*Remove) Type() Type { return TypeRemove }

// NewRemove returns the request for container id.
func NewRemove(id string) *Remove { return &Remove{named{id}} }

// Stop ends the monitor. Every container must be dead.
type Stop struct{ bodyless }

// Type implements Body.
func (*Stop) Type() Type { return TypeStop }

// Reserved is a request that this version gives a number and nothing else, or
// that comes from a newer daemon. Its body is kept and not looked at.
type Reserved struct {
	Of    Type
	Raw   []byte
	count int
}

// Type implements Body.
func (m *Reserved) Type() Type { return m.Of }

// Files implements Body.
func (m *Reserved) Files() int { return m.count }

func (m *Reserved) encode(b []byte) []byte { return append(b, m.Raw...) }
func (m *Reserved) decode(r *reader)       { m.Raw = append([]byte(nil), r.take(len(r.b))...) }
