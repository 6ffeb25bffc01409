package oci

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/notify"
	"github.com/vitrine-runtime/vitrine/oci/program"
	"github.com/vitrine-runtime/vitrine/oci/seccomp"
	"github.com/vitrine-runtime/vitrine/oci/wire"
)

// programName is the encoded program in a container's directory, for explain.
const programName = "program"

// ContainerConfig says what container to create. Its descriptors move into
// Create, which closes them also when it fails.
type ContainerConfig struct {
	ID   string
	Spec *specs.Spec
	// Dir is /run/vitrine/pods/<pod>/<ctr>, which exists with mode 0700. The daemon
	// writes `program` there and the monitor exit.json.
	Dir string
	// Rootfs is the detached mount that becomes the root.
	Rootfs *sys.FD
	// Mounts has the detached source tree of each bind mount by its index in
	// Spec.Mounts.
	Mounts map[int]*sys.FD
	// UserNS is what a container of a pod with a user namespace needs, nil for others.
	UserNS *UserNS
	// Cgroup is the directory of the container's cgroup, or nil for the monitor's.
	Cgroup *sys.FD
	// PodCgroup is the cgroup above it, if nobody but this pod is in there, or nil.
	// The monitor reads it where systemd has removed the container's before its
	// count of OOM kills was seen.
	PodCgroup *sys.FD
	// LogPath is absolute; the file is opened O_NOFOLLOW in its directory. "" discards
	// the output.
	LogPath               string
	Stdin, StdinOnce, TTY bool
	// Target is the running container of this pod whose pid namespace is joined, "" for none. The spec then names that namespace,
	// with any path.
	Target string
	// Output has the output read for who attaches also where there is no log.
	Output bool
	// Runtime runs the hooks of the spec (prestart, createRuntime, createContainer; others are refused). It may be nil
	// where there are none.
	Runtime *Runtime
	// Bundle is where the hooks find config.json and, empty, the place for the root; "" is Dir.
	Bundle string
	// OOMScoreAdj is what init runs with, or nil for the daemon's own. Where root may
	// not lower it, it is clamped, and the Process's Note says so.
	OOMScoreAdj *int
}

// Close closes what Create was not given.
func (c *ContainerConfig) Close() {
	c.Rootfs.Close()
	c.UserNS.Close()
	c.Cgroup.BriefClose()
	c.PodCgroup.BriefClose()
	for _, f := range c.Mounts {
		f.Close()
	}
}

// attached closes the mounts that the container has attached: ours are not the last
// references, whose end would unmount something, so that is brief.
func (c *ContainerConfig) attached() {
	c.Rootfs.BriefClose()
	for _, f := range c.Mounts {
		f.BriefClose()
	}
}

// Process is a handle on one container's main process, by its id. Nothing is in
// it that would have to be closed.
type Process struct {
	pod  *Pod
	id   string
	pid  atomic.Int64
	oom  atomic.Int64
	note atomic.Value // string
	dead atomic.Bool  // its end was told on this connection, and it was not removed since
}

// Process returns the handle on container id, which need not exist.
func (p *Pod) Process(id string) *Process {
	p.mu.Lock()
	defer p.mu.Unlock()
	pr := p.processes[id]
	if pr == nil {
		pr = &Process{pod: p, id: id}
		p.processes[id] = pr
	}
	return pr
}

// Create compiles the spec, forks the container's init and returns when that is
// blocked at its start wait. A step that failed on the way is a *StartError, and
// nothing of the container is then left in the monitor.
func (p *Pod) Create(ctx context.Context, c ContainerConfig) (*Process, error) {
	defer c.Close()
	if err := p.holdPause(c.UserNS); err != nil {
		return nil, fmt.Errorf("create container %s: %w", c.ID, err)
	}
	o, err := newOrder(&c, p.pausePid != 0, p.version)
	if err != nil {
		return nil, fmt.Errorf("create container %s: %w", c.ID, err)
	}
	id, call, err := p.send(&o.request, o.files, false)
	if err != nil {
		o.close()
		return nil, fmt.Errorf("create container %s: %w", c.ID, err)
	}
	// Also of what will fail; and now, since the answer takes longer.
	kerr := writeProgram(o.own[1], o.program.code)
	o.close()
	created, err := await[*wire.Created](ctx, p, id, call, &o.request)
	if err != nil {
		return nil, fmt.Errorf("create container %s: %w", c.ID, err)
	}
	if err := p.passHooks(ctx, &c, int(created.Pid)); err != nil {
		return nil, fmt.Errorf("create container %s: %w", c.ID, err)
	}
	if kerr != nil {
		created.Note = strings.TrimPrefix(created.Note+"; the program was not kept: "+kerr.Error(), "; ")
	}
	c.attached()
	pr := p.Process(c.ID)
	pr.pid.Store(int64(created.Pid))
	pr.oom.Store(int64(created.OOMScore))
	pr.note.Store(created.Note)
	return pr, nil
}

// order is a create request with the descriptors that go with it.
type order struct {
	request wire.Create
	files   []int
	own     []*sys.FD // those that were opened here: the program, the directory, the log's directory
	program coded     // as it is in own[0]
}

func (o *order) close() {
	for _, f := range o.own {
		f.BriefClose()
	}
	o.program.done()
}

// keep adds a descriptor that was opened here to the request.
func (o *order) keep(f *sys.FD, err error) error {
	if err == nil {
		o.own = append(o.own, f)
		o.files = append(o.files, f.Int())
	}
	return err
}

func newOrder(c *ContainerConfig, sharedPID bool, version uint16) (_ *order, err error) {
	o := &order{request: wire.Create{ID: c.ID, Stdin: c.Stdin, StdinOnce: c.StdinOnce, TTY: c.TTY, Cgroup: c.Cgroup != nil, Output: c.Output, Target: c.Target}}
	defer func() {
		if err != nil {
			o.close()
		}
	}()
	p, table, asked, err := compile(c, sharedPID, version)
	if err != nil {
		return nil, err
	}
	o.request.OwnPID = sharedPID && listsPID(c.Spec)
	o.program = p
	if err := o.keep(sys.SealedMemfd("vitrine-program", p.code, false)); err != nil {
		return nil, err
	}
	if err := o.keep(openDir(c.Dir)); err != nil {
		return nil, err
	}
	if c.LogPath != "" {
		if !filepath.IsAbs(c.LogPath) {
			return nil, fmt.Errorf("log path %q is not absolute: %w", c.LogPath, ErrInvalid)
		}
		o.request.LogName = filepath.Base(c.LogPath)
		if err := o.keep(openDir(filepath.Dir(c.LogPath))); err != nil {
			return nil, err
		}
	}
	if c.Cgroup != nil {
		o.files = append(o.files, c.Cgroup.Int())
	}
	if c.PodCgroup != nil && version >= 2 {
		o.files, o.request.PodCgroup = append(o.files, c.PodCgroup.Int()), true
	}
	if asked != nil {
		state := specs.State{Version: specs.Version, ID: c.ID, Status: specs.StateCreated, Pid: notify.Unknown, Bundle: c.Dir, Annotations: c.Spec.Annotations}
		dir, message, name, err := openListener(asked, state)
		if err != nil {
			return nil, err
		}
		_, _ = o.keep(dir, nil), o.keep(message, nil)
		o.request.Listener = name
	}
	o.files = append(o.files, table...)
	o.request.Table = uint16(len(table))
	o.request.UID = c.UserNS.outside(c.Spec)
	if c.OOMScoreAdj != nil {
		o.request.SetOOM, o.request.OOMScore = true, int32(*c.OOMScoreAdj)
	}
	return o, nil
}

// compile returns the encoded program, the descriptors of its table, which stay
// the config's, and who answers the notifications of its filter, if anybody does.
func compile(c *ContainerConfig, sharedPID bool, version uint16) (p coded, table []int, asked *seccomp.Listener, err error) {
	if c.Rootfs == nil || c.Spec == nil || c.Spec.Process == nil || c.Spec.Linux == nil {
		return p, nil, nil, fmt.Errorf("spec or root filesystem is missing: %w", ErrInvalid)
	}
	in := program.Input{Spec: c.Spec, Binds: map[int]program.Bind{}, Inherit: inherited(c.Spec.Linux.Namespaces, sharedPID)}
	if err := gateForHooks(&in, version); err != nil {
		return p, nil, nil, err
	}
	if in.Seccomp, in.SeccompFlags, asked, err = compileSeccomp(c.Spec.Linux.Seccomp, version); err != nil {
		return p, nil, nil, err
	}
	if c.TTY != c.Spec.Process.Terminal {
		return p, nil, nil, fmt.Errorf("process.terminal: is not TTY: %w", ErrInvalid)
	}
	if c.TTY && version < 5 {
		return p, nil, nil, fmt.Errorf("terminals of a monitor that an older version has started: %w", ErrNotYet)
	}
	table = []int{c.Rootfs.Int()}
	for i := range c.Spec.Mounts {
		source := c.Mounts[i]
		if source == nil {
			continue
		}
		var st unix.Stat_t
		if err := unix.Fstat(source.Int(), &st); err != nil {
			return p, nil, nil, fmt.Errorf("stat source of %s: %w", c.Spec.Mounts[i].Destination, err)
		}
		in.Binds[i] = program.Bind{File: len(table), Dir: st.Mode&unix.S_IFMT == unix.S_IFDIR, IDMapped: len(c.Spec.Mounts[i].UIDMappings) > 0}
		table = append(table, source.Int())
	}
	if table, err = c.UserNS.join(&in, table); err != nil {
		return p, nil, nil, err
	}
	behind := len(table) // what the monitor puts there
	if version < 7 && (c.Target != "" || sharedPID && listsPID(c.Spec)) {
		return p, nil, nil, fmt.Errorf("pid namespaces that are not the pod's, of a monitor that an older version has started: %w", ErrNotYet)
	}
	if c.Target != "" {
		if in.Join == nil {
			in.Join = map[specs.LinuxNamespaceType]int{}
		}
		in.Join[specs.PIDNamespace] = behind
		behind++
	}
	if c.TTY {
		in.ConsoleSocket = behind // it takes what comes out of it, too
	}
	if p, err = encodeContainer(in); err != nil {
		return p, nil, nil, fmt.Errorf("compile spec: %w", err)
	}
	return p, table, asked, nil
}

// inherited lists the namespaces that a container finds itself in: the pod's
// own, which are the monitor's, unless the spec lists one without a path, and so asks
// for a new one; and the pod's pid namespace, which the forking thread enters, unless the spec lists another.
func inherited(l []specs.LinuxNamespace, sharedPID bool) (in []specs.LinuxNamespaceType) {
	for _, t := range []specs.LinuxNamespaceType{specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace} {
		if !slices.Contains(l, specs.LinuxNamespace{Type: t}) {
			in = append(in, t)
		}
	}
	if sharedPID && !slices.ContainsFunc(l, isPID) {
		in = append(in, specs.PIDNamespace)
	}
	return in
}

func isPID(ns specs.LinuxNamespace) bool { return ns.Type == specs.PIDNamespace }

// listsPID says whether a container has another pid namespace than its pod shares.
func listsPID(s *specs.Spec) bool { return slices.ContainsFunc(s.Linux.Namespaces, isPID) }

func openDir(path string) (*sys.FD, error) {
	return sys.OpenAt2(unix.AT_FDCWD, path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// writeProgram leaves the program for whoever wants to look at it. It decides
// nothing: the monitor runs what came in the request. The directory is on a tmpfs, as
// for exit.json.
func writeProgram(dir *sys.FD, code []byte) error {
	f, err := sys.BriefOpen(dir.Int(), programName, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("create %s: %w", programName, err)
	}
	defer sys.BriefClose(f)
	n, err := sys.BriefWrite(f, code)
	if err == nil && n < len(code) {
		err = unix.ENOSPC
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", programName, err)
	}
	return nil
}

// ID returns the container's id.
func (pr *Process) ID() string { return pr.id }

// Pid returns the process id as the host sees it; 0 until Create or List has
// told it. It may be somebody else's once the process is dead.
func (pr *Process) Pid() int { return int(pr.pid.Load()) }

// Note returns what Create could not do as asked and what was no reason to fail
// (an oom_score_adj below one's own, say); "" is the rule. It is not known
// after a restart of the daemon.
func (pr *Process) Note() string {
	s, _ := pr.note.Load().(string)
	return s
}

// OOMScoreAdj returns what the kernel had as init's oom_score_adj after Create.
func (pr *Process) OOMScoreAdj() int { return int(pr.oom.Load()) }

// Start ends init's start wait and returns when its execve succeeded. If a step
// failed it is a *StartError; the container is then dead, with an exit record
// that has no start. ErrState: it runs or is dead already.
func (pr *Process) Start(ctx context.Context) error {
	_, err := ask[*wire.Done](ctx, pr.pod, wire.NewStart(pr.id))
	return pr.wrap("start", err)
}

// Signal sends a signal to the main process. ErrState: it is dead.
func (pr *Process) Signal(ctx context.Context, sig unix.Signal) error {
	_, err := ask[*wire.Done](ctx, pr.pod, &wire.Signal{ID: pr.id, Signal: int32(sig)})
	return pr.wrap("signal", err)
}

// ReopenLog makes the monitor write to a new file of the log's name, after the
// old one was renamed. If it fails, the old file stays in use.
func (pr *Process) ReopenLog(ctx context.Context) error {
	_, err := ask[*wire.Done](ctx, pr.pod, wire.NewReopenLog(pr.id))
	return pr.wrap("reopen log of", err)
}

// Remove makes the monitor forget a dead container; its id may be used again.
// The files in its directory stay. ErrState: it is not dead.
//
// Whoever was told of the death need not wait for the answer, which can only be yes: the
// monitor carries out what comes after this on the connection after it.
func (pr *Process) Remove(ctx context.Context) (err error) {
	if pr.dead.CompareAndSwap(true, false) {
		err = pr.pod.tell(wire.NewRemove(pr.id))
	} else {
		_, err = ask[*wire.Done](ctx, pr.pod, wire.NewRemove(pr.id))
	}
	if err == nil {
		pr.pod.mu.Lock()
		delete(pr.pod.processes, pr.id)
		pr.pod.mu.Unlock()
	}
	return pr.wrap("remove", err)
}

func (pr *Process) wrap(verb string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s container %s: %w", verb, pr.id, err)
}
