package program

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
)

// ErrUnsupported is wrapped by an error that names a field of the spec which
// is not honoured (yet). Nothing is ignored silently.
var ErrUnsupported = errors.New("not supported")

// ErrInvalid is wrapped by an error that names a field of the spec whose value
// makes no sense.
var ErrInvalid = errors.New("invalid")

// Bind says where the source of a bind mount comes from.
type Bind struct {
	File int  // index in the files that are handed over with the program; 0 is the root
	Dir  bool // whether the source is a directory, which decides what a missing mount point becomes

	IDMapped bool // it has the mapping of ids that the spec asks for
	Filled   bool // it is a tmpfs with a copy of what the root has at the destination
	Proc     bool // it is the root of a procfs, which may be bound to /proc
}

// Input is what a container's program is compiled from.
type Input struct {
	// Spec is the OCI spec. The root arrives as file 0, so root.path is not looked
	// at; root.readonly is.
	Spec *specs.Spec
	// Seccomp is the compiled filter, an array of struct sock_filter, or nil.
	Seccomp []byte
	// SeccompFlags are SECCOMP_FILTER_FLAG_* for loading it.
	SeccompFlags uint64
	// Binds has the source of each bind mount by its index in Spec.Mounts, and the
	// mount of each filesystem that a program does not make itself (see InProgram);
	// its options are then set already.
	Binds map[int]Bind
	// Targets has the place inside the root for a mount whose destination is a
	// symlink that leads nowhere, by its index in Spec.Mounts.
	Targets map[int]string
	// Devices has the files of device nodes by their clean path: where there is one,
	// it is bound and not made. A container with a user namespace needs all of them.
	Devices map[string]int
	// Visible are files of a procfs and a sysfs that a user namespace needs to see
	// before it may mount its own.
	Visible []int
	// Inherit lists the namespaces that the process that forks is already in (or
	// forks into): the spec may name them with a path for its readers, but nothing
	// is to be done for them.
	Inherit []specs.LinuxNamespaceType
	// Join has the descriptor of each namespace that the spec names with a path and
	// that is not in Inherit, as its index in the files that are handed over.
	Join map[specs.LinuxNamespaceType]int
	// KeepGroups says that the container's user namespace does not allow
	// setgroups(2), as one that an unprivileged user has mapped himself.
	KeepGroups bool
	// Rootless says that the forking process has its privileges only from the user
	// namespace that it joins, which is then the first that it joins.
	Rootless bool
	// Host are namespaces that are the host's own although the spec names them, by a
	// path say. Parameters of theirs are not written.
	Host []specs.LinuxNamespaceType
	// ClocksAtGate says that who writes the maps of a new user namespace writes the
	// offsets of linux.timeOffsets with them (sys.IDMaps.Clocks).
	ClocksAtGate bool
	// HookGate makes the program wait at step.GateHooks, just before the root is
	// entered, and NetGate at step.GateNet, when its network namespace is there.
	HookGate, NetGate bool
	// Preserve are the files that the process is to have as descriptors 3 and up, one
	// behind the other in the table.
	Preserve []int
	// ConsoleSocket is the index in the files of a connected Unix socket that the
	// master of the process's terminal is sent over, and 0 without a terminal.
	ConsoleSocket int
}

// Compile returns the program that makes the container and blocks at its start
// wait. It touches nothing: the same input gives the same program.
func Compile(in Input) (*step.Program, error) { return newBuilder().container(in) }

// Encode appends the encoding of the container's program to b, which is given back
// also where it fails. It makes a twentieth of the garbage that Compile and Encode of
// the program do.
func Encode(in Input, b []byte) ([]byte, error) {
	c := usedBuilder()
	defer c.recycle()
	p, err := c.container(in)
	if err != nil {
		return b, err
	}
	return p.Append(b)
}

func (b *builder) container(in Input) (*step.Program, error) {
	c := &compiler{builder: b, in: in, spec: in.Spec}
	if err := refuse(in.Spec); err != nil {
		return nil, err
	}
	if in.Spec.Linux.Seccomp != nil && len(in.Seccomp) == 0 {
		return nil, fmt.Errorf("linux.seccomp: profile without its compiled filter: %w", ErrInvalid)
	}
	if err := checkTerminal(in.Spec.Process, in.ConsoleSocket); err != nil {
		return nil, err
	}
	for _, section := range []func() error{
		c.files, c.sort, c.idMaps, c.netDevices, c.namespaces, c.root, c.clocks, c.sysctls, c.mounts, c.devices, c.terminal, c.paths, c.workdir, c.pivot,
	} {
		if err := section(); err != nil {
			return nil, err
		}
	}
	pr := process{builder: c.builder, spec: in.Spec.Process, seccomp: in.Seccomp, flags: in.SeccompFlags,
		domain: in.Spec.Linux.Personality, memory: in.Spec.Linux.MemoryPolicy, keepGroups: in.KeepGroups, keep: in.Preserve}
	if err := pr.initialAffinity(); err != nil {
		return nil, err
	}
	if err := pr.compile(true); err != nil {
		return nil, err
	}
	return c.finish()
}

// compiler compiles the parts that make a container; process does the rest.
type compiler struct {
	*builder
	in   Input
	spec *specs.Spec

	ns               namespaceSets
	rootUID, rootGID uint32                   // who makes the mounts, in a user namespace that is not the forking process's
	made             map[string]string        // clean destination -> filesystem that the program has mounted there
	procs            []string                 // prefixes of destinations in a procfs that is mounted elsewhere than on /proc
	again            map[string]*step.Arg     // destinations that are remounted, and where the number of the mount there stands
	kernel           map[string]step.Register // of keeps: where the kernel's files are mounted
}

// terminal gives the process its terminal.
func (c *compiler) terminal() error {
	if !c.spec.Process.Terminal {
		return nil
	}
	place := ownConsole
	if c.devBound() {
		place = foundConsole
	}
	return c.builder.terminal(c.spec.Process, rootFD, c.in.ConsoleSocket, place)
}

// files names the table of what is handed over: the root, a detached mount
// for each bind, which can be attached once, and the socket for the terminal.
func (c *compiler) files() error {
	c.p.Files = []string{"root filesystem"}
	for i, b := range c.in.Binds {
		field := fmt.Sprintf("mounts[%d]", i)
		if i < 0 || i >= len(c.spec.Mounts) {
			return fmt.Errorf("%s: there is none: %w", field, ErrInvalid)
		}
		if err := c.claim(field, b.File, "source of "+c.spec.Mounts[i].Destination); err != nil {
			return err
		}
	}
	for _, p := range slices.Sorted(maps.Keys(c.in.Devices)) {
		if err := c.claim("device "+p, c.in.Devices[p], "device "+p); err != nil {
			return err
		}
	}
	for _, t := range joinOrder {
		if f, ok := c.in.Join[t]; ok {
			if err := c.claim("linux.namespaces", f, string(t)+" namespace"); err != nil {
				return err
			}
		}
	}
	for _, f := range c.in.Visible {
		if err := c.claim("visible filesystem", f, "filesystem of the kernel"); err != nil {
			return err
		}
	}
	if n := c.in.ConsoleSocket; n > 0 {
		if err := c.claim("console socket", n, consoleSocket); err != nil {
			return err
		}
	}
	if err := claimPreserved(c.in.Preserve, c.claim); err != nil {
		return err
	}
	if i := slices.Index(c.p.Files, ""); i >= 0 {
		return fmt.Errorf("descriptor %d of %d has no use: %w", i, len(c.p.Files), ErrInvalid)
	}
	return nil
}

// claim takes a place in the table of files for one use.
func (c *compiler) claim(field string, file int, what string) error {
	if file < 1 || file >= step.MaxFiles || file < len(c.p.Files) && c.p.Files[file] != "" {
		return fmt.Errorf("%s: descriptor %d of its source: %w", field, file, ErrInvalid)
	}
	for file >= len(c.p.Files) {
		c.p.Files = append(c.p.Files, "")
	}
	c.p.Files[file] = what
	return nil
}

// ExecInput is what the program of a further process in a running container is
// compiled from.
type ExecInput struct {
	// Process is what to run.
	Process *specs.Process
	// Path is the file to execute where that is not the first argument.
	Path string
	// Seccomp and SeccompFlags are as in Input.
	Seccomp      []byte
	SeccompFlags uint64
	// Personality and MemoryPolicy are those of the container's spec: an exec has
	// them too.
	Personality  *specs.LinuxPersonality
	MemoryPolicy *specs.LinuxMemoryPolicy
	// CgroupNS says that the container has a cgroup namespace of its own.
	CgroupNS bool
	// Join are further CLONE_NEW* flags of namespaces to take over from the
	// container, among them CLONE_NEWUSER if it has a user namespace that is not the
	// forking process's. The mount namespace is always joined.
	Join uint64
	// UIDMappings and GIDMappings are what is known of a user namespace that is joined: without an id 0 it
	// is the process's user who makes its terminal. None means that there is one.
	UIDMappings, GIDMappings []specs.LinuxIDMapping
	// ConsoleSocket is as in Input; it can only be 1, or 0 without a terminal.
	ConsoleSocket int
	// Preserve is how many files at the end of the table the process is to have as
	// descriptors 3 and up.
	Preserve int
	// NoWait leaves out the start wait, for a monitor that would not end it.
	NoWait bool
	// KeepGroups is as in Input.
	KeepGroups bool
	// Sibling makes the program enter the container's pid namespace itself, by a
	// second clone, for who may not enter it before the first: a thread of an
	// unprivileged process has no rights over it until it is in the user namespace.
	Sibling bool
}

// CompileExec returns the program that joins the container whose init is
// behind file 0 (a pidfd) and executes a process there. It has a start wait too:
// what the monitor writes about the process is written before its execve.
// The pid namespace is the forking thread's business.
func CompileExec(in ExecInput) (*step.Program, error) { return newBuilder().further(in) }

// EncodeExec appends the encoding of that program to b.
func EncodeExec(in ExecInput, b []byte) ([]byte, error) {
	c := usedBuilder()
	defer c.recycle()
	p, err := c.further(in)
	if err != nil {
		return b, err
	}
	return p.Append(b)
}

func (b *builder) further(in ExecInput) (*step.Program, error) {
	if in.Process == nil {
		return nil, fmt.Errorf("process is missing: %w", ErrInvalid)
	}
	if err := checkLabels(in.Process); err != nil {
		return nil, err
	}
	if err := checkTerminal(in.Process, in.ConsoleSocket); err != nil {
		return nil, err
	}
	b.p.Files = []string{"init process of the container"}
	if in.ConsoleSocket > 1 {
		return nil, fmt.Errorf("console socket: descriptor %d: %w", in.ConsoleSocket, ErrInvalid)
	} else if in.ConsoleSocket == 1 {
		b.p.Files = append(b.p.Files, consoleSocket)
	}
	var keep []int
	for range in.Preserve {
		keep = append(keep, len(b.p.Files))
		b.p.Files = append(b.p.Files, preserved)
	}
	flags := in.Join | unix.CLONE_NEWNS
	if in.CgroupNS {
		flags |= unix.CLONE_NEWCGROUP
	}
	pr := process{builder: b, spec: in.Process, seccomp: in.Seccomp, flags: in.SeccompFlags, exec: true, domain: in.Personality, memory: in.MemoryPolicy,
		keepGroups: in.KeepGroups, path: in.Path, keep: keep}
	if in.Sibling {
		flags |= unix.CLONE_NEWPID
	} else if err := pr.begin(); err != nil {
		return nil, err
	}
	if flags&unix.CLONE_NEWUSER != 0 {
		b.hide()
	}
	if in.Process.ApparmorProfile != "" || in.Process.SelinuxLabel != "" {
		b.procfs() // in the container one might not be had: its own is masked
	}
	b.call("join the namespaces of the container", unix.SYS_SETNS, file(0), val(flags))
	if in.Sibling {
		b.secondClone(0)
		if err := pr.begin(); err != nil {
			return nil, err
		}
	}
	b.call("leave the old directory", unix.SYS_CHDIR, b.str("/"))
	if in.Process.Terminal {
		if flags&unix.CLONE_NEWUSER != 0 {
			b.becomeRoot(rootOf(in.UIDMappings, in.Process.User.UID), rootOf(in.GIDMappings, in.Process.User.GID))
		}
		if err := b.terminal(in.Process, val(atFDCWD), in.ConsoleSocket, noConsole); err != nil {
			return nil, err
		}
	}
	if err := pr.compile(!in.NoWait); err != nil {
		return nil, err
	}
	return b.finish()
}

// begin makes an exec a process of its own, on the processors that it begins on.
func (b process) begin() error {
	if err := b.initialAffinity(); err != nil {
		return err
	}
	b.call("become leader of a session", unix.SYS_SETSID)
	return nil
}
