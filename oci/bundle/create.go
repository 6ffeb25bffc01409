package bundle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/specjson"
	"github.com/vitrine-runtime/vitrine/internal/step"
	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/executor"
	"github.com/vitrine-runtime/vitrine/oci/netdev"
	"github.com/vitrine-runtime/vitrine/oci/program"
	"github.com/vitrine-runtime/vitrine/oci/source"
)

// CreateOptions are the settings of Create that are not in the bundle.
type CreateOptions struct {
	// Bundle is the directory with config.json.
	Bundle string
	// Stdio are descriptors that become the container's 0, 1 and 2, where it has no
	// terminal. They stay the caller's.
	Stdio [3]int
	// PidFile gets the pid of the container's process, if not empty.
	PidFile string
	// PreserveFDs is how many descriptors of ours from 3 on the process is to have.
	PreserveFDs int
	// ConsoleSocket is the path of a Unix socket that gets the master of the
	// container's terminal.
	ConsoleSocket string

	console *sys.FD // in place of ConsoleSocket, where it is Run that serves the terminal
	bundle  *bundle // in place of Bundle, where it was read
	tiny    *tiny   // where the child is to be born; create ends it

	straight bool // it is started at once
	attended bool // by us, who pass signals on to it
}

// Create makes a container and lets it run to its start wait. It returns it locked;
// the caller closes it. After an error nothing of it is left.
func (r *Runtime) Create(ctx context.Context, id string, o CreateOptions) (*Container, error) {
	c, child, err := r.create(ctx, id, o)
	if err != nil {
		return nil, err
	}
	return c, child.Close()
}

// create is Create for who wants to start the child himself.
func (r *Runtime) create(ctx context.Context, id string, o CreateOptions) (*Container, *executor.Child, error) {
	if err := CheckID(id); err != nil {
		return nil, nil, err
	}
	if o.tiny == nil {
		o.tiny = enterTiny()
	}
	defer o.tiny.leave()
	b := o.bundle
	if b == nil {
		var err error
		if b, err = r.openBundle(o.Bundle); err != nil {
			return nil, nil, err
		}
	}
	m := &maker{r: r, opts: o, bundle: b}
	defer func() { _ = m.close() }() // copies: the child has its own
	if err := m.check(); err != nil {
		return nil, nil, err
	}
	// Neither of these needs the other, and each takes about as long.
	placed := make(chan error, 1)
	go func() { placed <- m.place(id) }() // ends with create
	err := m.compile()
	if err == nil {
		err = harden()
	}
	if perr := <-placed; err == nil {
		err = perr
	}
	if err == nil {
		if err = m.make(ctx); err != nil {
			err = fmt.Errorf("create container %s: %w", id, err)
		}
	}
	if err != nil {
		return nil, nil, errors.Join(err, m.undo())
	}
	if m.keep != nil {
		m.keep()
	}
	return m.c, m.child, nil
}

// bundle is what a container is to be made from.
type bundle struct {
	path string
	text []byte // of config.json
	spec *specs.Spec
}

// openBundle reads a bundle for a container that is made here.
func (r *Runtime) openBundle(path string) (*bundle, error) {
	b, err := openBundle(path)
	if err == nil && r.Mapped {
		translate(b.spec.Linux)
	}
	return b, err
}

func openBundle(path string) (*bundle, error) {
	if path == "" {
		path = "."
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	b := &bundle{path: abs, spec: new(specs.Spec)}
	if b.text, err = sys.ReadFile(filepath.Join(abs, configName)); err != nil {
		return nil, err
	}
	if err := specjson.Unmarshal(b.text, b.spec); err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(abs, configName), err)
	}
	if b.spec.Root == nil || b.spec.Root.Path == "" {
		return nil, fmt.Errorf("root.path is missing: %w", program.ErrInvalid)
	}
	return b, nil
}

// rootfs is the host's path of the root filesystem.
func (b *bundle) rootfs() string {
	if filepath.IsAbs(b.spec.Root.Path) {
		return b.spec.Root.Path
	}
	return filepath.Join(b.path, b.spec.Root.Path)
}

// place takes the id and makes the cgroup.
func (m *maker) place(id string) error {
	if err := m.reserve(id); err != nil || m.group == nil {
		return err
	}
	err := m.group.make(m.c.rec.Cgroup, id, m.bundle.spec.Linux.Resources)
	if err == nil {
		return nil
	}
	if err = m.unlimited(err); err == nil {
		m.group.close()
		m.group, m.c.rec.Cgroup = nil, nil
		err = m.c.save()
	}
	if err != nil {
		return fmt.Errorf("create container %s: %w", id, err)
	}
	return nil
}

// reserve takes the id and writes down what is known.
func (m *maker) reserve(id string) error {
	r, b := m.r, m.bundle
	p, err := r.plan(id, b.spec.Linux.CgroupsPath)
	if err != nil {
		return err
	}
	if p == nil && Stand() != Privileged {
		err = noLimits(b.spec.Linux.Resources)
	} else if m.group, err = p.open(); err != nil {
		p, err = nil, m.unlimited(err)
	}
	if err != nil {
		return err
	}
	dir, err := r.makeDir(id)
	if err != nil {
		return err
	}
	m.c = &Container{r: r, dir: dir, spec: b.spec, rec: record{Cgroup: p, State: State{
		Version: specs.Version, ID: id, Status: specs.StateCreating, Bundle: b.path, Annotations: b.spec.Annotations,
		Rootfs: b.rootfs(), Created: time.Now().UTC().Format(time.RFC3339Nano), Owner: owner(),
	}}}
	err = dir.write(configName, b.text)
	if err == nil {
		err = m.c.save()
	}
	if err != nil {
		m.c = nil
		return errors.Join(err, dir.remove(), dir.Close())
	}
	return nil
}

// maker makes one container. What it opens is closed by close; what it makes is
// undone by undo.
type maker struct {
	r       *Runtime // nil to explain
	opts    CreateOptions
	bundle  *bundle
	guess   bool // open nothing: the program is to be looked at
	sources *source.Set
	table   table
	opened  []*sys.FD // of the table, but for the sources
	keep    func()    // the filter that was compiled, for others
	maps    *sys.IDMaps
	program []byte
	c       *Container
	group   *group
	child   *executor.Child
}

// check finds out whether there is enough to begin with.
func (m *maker) check() error {
	spec := m.bundle.spec
	if spec.Process == nil || spec.Linux == nil {
		return fmt.Errorf("spec without process or linux section: %w", program.ErrInvalid)
	}
	if err := checkDevices(spec.Linux.Resources); err != nil {
		return err
	}
	return checkHooks(spec.Hooks)
}

// compile makes the program. Nothing that it opens leaves a trace.
func (m *maker) compile() (err error) {
	spec := *m.bundle.spec
	spec.Hooks = nil // ours
	p := *spec.Process
	p.Rlimits = withFileLimit(p.Rlimits)
	spec.Process = &p
	code, flags, keep, err := m.r.filter(spec.Linux.Seccomp)
	if err != nil {
		return err
	}
	m.keep = keep
	in := program.Input{Spec: &spec, Seccomp: code, SeccompFlags: flags, HookGate: hasCreateHooks(m.bundle.spec.Hooks),
		NetGate: len(spec.Linux.NetDevices) > 0, KeepGroups: keepsGroups()}
	open := source.Open
	if m.guess {
		open = source.Guess
	}
	if m.sources, err = open(&spec, m.bundle.path); err != nil {
		return err
	}
	m.sources.Apply(&in)
	m.table.files = slices.Clone(m.sources.Files())
	if m.opened, err = joinNamespaces(&spec, &in, &m.table, m.guess); err != nil {
		return err
	}
	if err := m.terminal(&spec, &in); err != nil {
		return err
	}
	fds, err := inherited(m.r.firstFD(), m.opts.PreserveFDs)
	m.opened = append(m.opened, fds...)
	if err != nil {
		return err
	}
	for _, f := range fds {
		in.Preserve = append(in.Preserve, m.table.add(f))
	}
	m.maps = idMaps(spec.Linux)
	if m.maps != nil && len(spec.Linux.TimeOffsets) > 0 {
		if m.maps.Clocks, err = program.ClockText(spec.Linux.TimeOffsets); err != nil {
			return err
		}
		in.ClocksAtGate = true
	}
	prog, err := program.Compile(in)
	if err != nil {
		return err
	}
	m.program, err = prog.Encode()
	return err
}

// terminal opens the way out for the master of a terminal.
func (m *maker) terminal(spec *specs.Spec, in *program.Input) (err error) {
	s := m.opts.console
	if s == nil {
		if s, err = socketFor(spec.Process, m.opts.ConsoleSocket); s == nil || err != nil {
			return err
		}
		m.opened = append(m.opened, s)
	}
	in.ConsoleSocket = m.table.add(s)
	return nil
}

// make does the rest, in an order in which delete finds what there is.
func (m *maker) make(ctx context.Context) (err error) {
	c := m.c
	if err := m.showCgroup(); err != nil {
		return err
	}
	if err := m.fork(); err != nil {
		return err
	}
	c.rec.Init.Pid, c.rec.Hands = m.child.Pid(), m.child.Hands()
	p, err := readProc(m.child.Pid())
	if err != nil {
		return err
	}
	c.rec.Init.Start = p.start
	if err := c.save(); err != nil {
		return err
	}
	if err := c.dir.write(programName, m.program); err != nil { // for start; the child has its own
		return err
	}
	if err := m.settle(ctx); err != nil {
		return err
	}
	c.rec.Status, c.rec.Pid = specs.StateCreated, m.child.Pid()
	if err := c.save(); err != nil {
		return err
	}
	return writePidFile(m.opts.PidFile, m.child.Pid())
}

// showCgroup gives a container without a cgroup namespace its cgroup to look at:
// the one that was made for it, or else ours, which it is born in.
func (m *maker) showCgroup() error {
	err := m.sources.ShowCgroup(func() (*sys.FD, error) {
		if m.group != nil {
			return m.group.dir.Dup()
		}
		return cgroupOf(os.Getpid())
	})
	copy(m.table.files, m.sources.Files())
	return err
}

// fork starts the child, in its cgroup and in a copy of the tiny namespace.
func (m *maker) fork() error {
	pipes, err := m.c.dir.pipes()
	if err != nil {
		return err
	}
	a := executor.Attr{Program: m.program, CgroupFD: -1, PIDNS: -1, ProcFD: -1, Stdio: m.opts.Stdio, Pipes: pipes, IDMaps: m.maps, Files: m.table.ints()}
	if m.group != nil {
		a.CgroupFD = m.group.dir.Int()
	}
	raiseLimits(m.bundle.spec.Linux, m.bundle.spec.Process.Rlimits)
	if m.child, err = m.opts.tiny.fork(a); m.group != nil && errors.Is(err, unix.EACCES) {
		err = fmt.Errorf("be born in cgroup %s, which takes a right to write to the one above it and ours: %w", m.c.rec.Cgroup.Path, err)
	}
	return err
}

// settle does to the child what is to be done before it is created: its unit, its
// place for the OOM killer.
func (m *maker) settle(ctx context.Context) error {
	if adj := m.bundle.spec.Process.OOMScoreAdj; adj != nil {
		if err := setOOM(m.child.Pid(), *adj); err != nil {
			return err
		}
	}
	if m.group != nil {
		if err := m.group.scope.Place(ctx, m.child.Pid()); err != nil {
			return err
		}
	}
	if m.opts.straight && m.child.Free() && len(hooksOf(m.bundle.spec.Hooks, startContainer)) == 0 {
		if m.opts.attended { // it may be sent one at once
			if err := catchAll(); err != nil {
				return err
			}
		}
		if err := m.child.Allow(); err != nil {
			return err
		}
	}
	for err := m.child.Ready(); ; err = m.child.Pass() {
		if err != nil {
			return err
		}
		switch gate := m.child.At(); gate {
		case "":
			return nil
		case step.GateHooks:
			if err := m.c.createHooks(m.child.Pid(), m.child.PidFD(), m.table.files[0]); err != nil {
				return err
			}
		case step.GateNet:
			if err := netdev.Move(m.bundle.spec.Linux.NetDevices, -1, m.child.PidFD().Int()); err != nil {
				return err
			}
		default:
			return fmt.Errorf("the program waits to %s, which nobody does: %w", gate, unix.ENOSYS)
		}
	}
}

// undo takes back what make has made.
func (m *maker) undo() error {
	if m.c == nil {
		return nil
	}
	if m.child != nil { // by what we have in hand: the record may not name it yet
		_ = sys.PidfdSignal(m.child.PidFD(), unix.SIGKILL) // it may have ended
	}
	err := m.c.destroy()
	if m.child != nil {
		_, _ = reap(m.child.PidFD()) // it is ours, and dead
		m.child.Close()
	}
	return errors.Join(err, m.c.Close())
}

func (m *maker) close() error {
	m.group.close()
	for _, f := range m.opened {
		f.Close()
	}
	if m.sources != nil {
		return m.sources.Close()
	}
	return nil
}

// writePidFile writes a pid where the caller's monitor looks for it, whole. The
// directory may be one that others write to, and what they put in our way is not written
// through.
func writePidFile(path string, pid int) error {
	if path == "" {
		return nil
	}
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	const flags = os.O_WRONLY | os.O_CREATE | os.O_EXCL
	f, err := os.OpenFile(tmp, flags, 0o644)
	if errors.Is(err, fs.ErrExist) { // or left by one of ours that was killed
		if err := os.Remove(tmp); err != nil {
			return err
		}
		f, err = os.OpenFile(tmp, flags, 0o644)
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString(strconv.Itoa(pid))
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
