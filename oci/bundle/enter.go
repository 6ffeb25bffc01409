package bundle

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/early"
	"github.com/vitrine-runtime/vitrine/internal/step"
	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/executor"
	"github.com/vitrine-runtime/vitrine/oci/program"
)

// A caller without root has this binary run once more, as root of a user namespace that is
// made for that, and waits for it:
//
//	caller  uid 1000 ──► vitrine-oci run c ─── waits, passes signals on, runs the hooks
//	                        │ clone3(USER, MOUNT), newuidmap, execve
//	  ┌ R: 0 = 1000, 100000 = 100000 … ─────────────────────────────────────────┐
//	  │                  vitrine-oci --rootless=inside run c    root of R       │
//	  │                     │ clone3(USER, MOUNT, PID, …), as ever              │
//	  │  ┌ the container's: 0 = 0 of R = 1000, 1 = 100000 … ─────────────────┐  │
//	  │  │                  init                                             │  │
//	  └──┴───────────────────────────────────────────────────────────────────┴──┘
//
// R has the ids of the spec's mappings under the numbers that they have outside, and the caller's
// own as 0. So there is one way to make a container, for root and for others. And the container
// is a namespace below the runtime's: whatever capabilities its own gives it, over the processes and
// mounts of the runtime it has none. Were the runtime in the container's namespace, as others do
// it, one with CAP_SYS_PTRACE that shares a pid namespace would get hold of the user's files.
//
// The maps are written from outside, while the child waits and can be looked into: newuidmap(1) and the
// kernel want the files of the child to be the user's. From its execve on it is as closed as ever.
//
// Who comes later (exec, start) enters the R of the container: the namespace directly below the
// caller's that the container's init is in, however deep that has gone on its own. Other verbs need none: signals,
// cgroups and files are the user's.

// Values of --rootless that the binary is run with: in a user namespace, and in a mount
// namespace only.
const (
	InsideFlag  = "inside"
	MountedFlag = "mounted"
)

// EnterBundle runs this command line again as root of a user namespace for a container of
// that bundle, with n descriptors from 3 on, and returns its exit code.
func (r *Runtime) EnterBundle(dir string, n int) (int, error) {
	if os.Geteuid() == 0 { // of a user namespace, in somebody else's mount namespace
		return r.enter(&entry{clone: unix.CLONE_NEWNS}, n)
	}
	b, err := openBundle(dir)
	if err != nil {
		return 0, err
	}
	maps, err := entryMaps(b.spec.Linux)
	if err != nil {
		return 0, err
	}
	return r.enter(&entry{clone: unix.CLONE_NEWUSER | unix.CLONE_NEWNS, maps: maps}, n)
}

// EnterContainer is EnterBundle for a container that there is.
func (r *Runtime) EnterContainer(id string, n int) (int, error) {
	if os.Geteuid() == 0 {
		return r.enter(&entry{clone: unix.CLONE_NEWNS}, n)
	}
	c, err := r.Look(id)
	if err != nil {
		return 0, err
	}
	ns, err := c.rec.Init.entered()
	if err != nil {
		return 0, fmt.Errorf("enter the user namespace of container %s: %w", id, err)
	}
	return r.enter(&entry{join: ns}, n)
}

// entryMaps are the maps of R.
func entryMaps(l *specs.Linux) (*sys.IDMaps, error) {
	if l == nil {
		return nil, fmt.Errorf("spec without process or linux section: %w", program.ErrInvalid)
	}
	own := false
	for i, ns := range l.Namespaces {
		if ns.Type == specs.UserNamespace {
			if own = ns.Path == ""; !own {
				return nil, fmt.Errorf("linux.namespaces[%d].path: join a user namespace: %w by who is not root", i, program.ErrUnsupported)
			}
		}
	}
	if !own {
		return nil, fmt.Errorf("linux.namespaces: %w without a user namespace, as uid %d (vitrine-oci spec --rootless writes one)", ErrNotRoot, os.Geteuid())
	}
	m := &sys.IDMaps{Helpers: true}
	for _, k := range []struct {
		field string
		maps  []specs.LinuxIDMapping
		id    int
		to    *[]sys.IDMap
	}{{"linux.uidMappings", l.UIDMappings, os.Geteuid(), &m.UIDs}, {"linux.gidMappings", l.GIDMappings, os.Getegid(), &m.GIDs}} {
		*k.to = []sys.IDMap{{Inside: 0, Outside: uint32(k.id), Count: 1}}
		for i, line := range k.maps {
			if line.HostID == uint32(k.id) && line.Size == 1 {
				continue
			}
			if line.HostID == 0 || line.HostID <= uint32(k.id) && uint32(k.id)-line.HostID < line.Size {
				return nil, fmt.Errorf("%s[%d]: %d ids from %d on are not those of uid %d: %w", k.field, i, line.Size, line.HostID, os.Geteuid(), program.ErrInvalid)
			}
			*k.to = append(*k.to, sys.IDMap{Inside: line.HostID, Outside: line.HostID, Count: line.Size})
		}
	}
	m.DenySetgroups = len(m.GIDs) == 1
	return m, nil
}

// translate writes the ids of the spec's mappings, which are the caller's, as they are called in R.
func translate(l *specs.Linux) {
	if l == nil {
		return
	}
	for file, maps := range map[string][]specs.LinuxIDMapping{"uid_map": l.UIDMappings, "gid_map": l.GIDMappings} {
		own := outsideID(file)
		for i := range maps {
			if maps[i].HostID == own {
				maps[i].HostID = 0
			}
		}
	}
}

// entered returns the user namespace directly below ours that a process is in.
func (i identity) entered() (*sys.FD, error) {
	fd, err := sys.OpenAt2(unix.AT_FDCWD, fmt.Sprintf("/proc/%d/ns/user", i.Pid), unix.O_RDONLY, 0)
	if _, alive, lerr := i.look(); lerr != nil || !alive { // or it was another's
		fd.Close()
		return nil, errors.Join(ErrNotRunning, lerr)
	}
	for err == nil {
		var n int
		if n, err = unix.IoctlRetInt(fd.Int(), unix.NS_GET_PARENT); err != nil {
			break // it is none of ours
		}
		above := sys.NewFD(n)
		if isUserNS(n) {
			above.Close()
			return fd, nil
		}
		fd.Close()
		fd = above
	}
	fd.Close()
	return nil, err
}

// entry says how the binary is run again.
type entry struct {
	clone uint64 // namespaces to make
	maps  *sys.IDMaps
	join  *sys.FD // or the user namespace to join
}

// enter runs the binary again and waits for it.
func (r *Runtime) enter(e *entry, n int) (code int, err error) {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := sys.NewFD(p[0]), sys.NewFD(p[1])
	defer ours.Close()
	fds, err := inherited(3, n)
	t := table{files: append([]*sys.FD{theirs}, fds...)}
	defer func() {
		for _, f := range t.files {
			f.Close()
		}
	}()
	if err != nil {
		return 0, err
	}
	if e.join != nil {
		t.add(e.join) // which is closed with the others
	}
	b, err := e.program(n).Encode()
	if err != nil {
		return 0, err
	}
	if err := catchAll(); err != nil {
		return 0, err
	}
	c, err := executor.Start(executor.Attr{Program: b, CgroupFD: -1, PIDNS: -1, ProcFD: -1, Stdio: [3]int{0, 1, 2}, IDMaps: e.maps, Files: t.ints()})
	if err != nil {
		return 0, fmt.Errorf("make a user namespace: %w", err)
	}
	defer c.Close()
	if err := c.Ready(); err != nil {
		_ = sys.PidfdSignal(c.PidFD(), unix.SIGKILL)
		_, _ = reap(c.PidFD()) // it is ours
		return 0, fmt.Errorf("enter a user namespace: %w", err)
	}
	theirs.Close()
	return attend(c.PidFD(), attendant{pass: passedOn, asked: ours})
}

// program is the way from a fork of ours to the binary. Files: the descriptors to be passed on, and the
// user namespace to join.
func (e *entry) program(n int) *step.Program {
	p := &hookBuilder{step.Program{Wait: step.NoWait, Clone: e.clone, Files: []string{"who is asked for hooks"}}}
	flag := MountedFlag
	if e.clone&unix.CLONE_NEWUSER != 0 || e.join != nil {
		flag = InsideFlag
	}
	n++
	for range n - 1 {
		p.Files = append(p.Files, "descriptor for the process")
	}
	if e.join != nil {
		p.Files = append(p.Files, "user namespace")
		p.add("join the user namespace", unix.SYS_SETNS, num(uint64(step.FirstFD+n)), num(unix.CLONE_NEWUSER))
		p.add("make a mount namespace", unix.SYS_UNSHARE, num(unix.CLONE_NEWNS))
	}
	if e.maps != nil {
		p.gate(step.GateMaps)
	}
	soft, hard := early.FileLimit() // the Go runtime has raised it
	p.add("limit descriptors as before", unix.SYS_PRLIMIT64, num(0), num(unix.RLIMIT_NOFILE), p.words(soft, hard), num(0))
	p.add("let all signals through", unix.SYS_RT_SIGPROCMASK, num(unix.SIG_SETMASK), p.words(0), num(0), num(8))
	for i := range n {
		p.add("pass a descriptor on", unix.SYS_FCNTL, num(uint64(step.FirstFD+i)), num(unix.F_SETFD), num(0))
	}
	argv := p.vector(append([]string{os.Args[0], "--rootless=" + flag}, os.Args[1:]...))
	envp := p.vector(os.Environ())
	// By its path it is found in the new mount namespace, where it can be sealed more cheaply.
	if path, err := os.Readlink(self); err == nil && filepath.IsAbs(path) {
		p.add("execute "+path, unix.SYS_EXECVE, p.str(path), argv, envp)
		p.Steps[len(p.Steps)-1].OnErr = []step.Branch{{Errno: uint16(unix.ENOENT)}, {Errno: uint16(unix.EACCES)}}
	}
	p.add("execute ourselves", unix.SYS_EXECVE, p.str(self), argv, envp)
	return &p.Program
}

// self is the binary that runs.
const self = "/proc/self/exe"
