package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sort"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/internal/userns"
	"github.com/vitrine-runtime/vitrine/oci/wire"
)

// logName is what a monitor's stderr is, in the pod's directory: a monitor
// that held the daemon's would keep a service's journal pipe, or a test's,
// open for the life of the pod.
const logName = "monitor.log"

// monitorEnv is a monitor's whole environment. Two threads at work are plenty; a
// small heap is collected often. The runtime would hold files of the host's
// cgroup open, to follow its CPU limit.
var monitorEnv = []string{
	"GOMAXPROCS=1", "GOGC=50", "GOTRACEBACK=single", "GODEBUG=containermaxprocs=0,updatemaxprocs=0",
}

// Runtime starts monitors. It is safe for concurrent use and holds for as long
// as the daemon lives.
type Runtime struct {
	// Monitor is a sealed, executable copy of vitrine-oci in memory. Until its
	// execve a container's init has it as /proc/<pid>/exe: nobody, root in a
	// container included, can write through that to a file of the host.
	Monitor *sys.FD
	// MonitorCgroup is the cgroup directory that monitors are born in, or -1 for
	// the daemon's own. It stays the caller's.
	MonitorCgroup int
}

// NewRuntime reads vitrine-oci from monitorPath into memory. A binary that is
// replaced on disk is used after the daemon's next start; monitors that run
// keep theirs.
func NewRuntime(monitorPath string, monitorCgroup int) (*Runtime, error) {
	b, err := os.ReadFile(monitorPath)
	if err != nil {
		return nil, fmt.Errorf("read monitor: %w", err)
	}
	mem, err := sys.SealedMemfd("vitrine-oci", b, true)
	if err != nil {
		return nil, fmt.Errorf("copy monitor: %w", err)
	}
	defer mem.Close()
	high, err := highFD(mem.Int())
	if err != nil {
		return nil, err
	}
	return &Runtime{Monitor: sys.NewFD(high), MonitorCgroup: monitorCgroup}, nil
}

// highFD duplicates a descriptor to a number that os/exec's shuffling of
// ExtraFiles never comes near: the child executes it by number.
func highFD(fd int) (int, error) {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 64)
	return n, os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
}

// PodConfig says what pod to start. Nothing of it is kept by the Pod.
type PodConfig struct {
	ID  string
	Dir string // /run/vitrine/pods/<id>; exists with mode 0700
	// MountLabel is the SELinux label of the files that mask paths in the pod's containers, and of the root of its pause; "" for none.
	MountLabel string

	Hostname string // set in the pod's own uts namespace; not with HostNetwork, which shares the host's
	// HostNetwork shares the host's network and uts namespaces, HostIPC its ipc
	// namespace, HostPID its pid namespace.
	HostNetwork, HostIPC, HostPID bool
	// SharedPID gives the pod one pid namespace, with a pause as its pid 1.
	SharedPID bool
	// UserNS are the maps of the pod's own user namespace, to which its other namespaces
	// then belong, or nil for the host's. The monitor stays in the host's: what it does for the
	// pod is not the pod's root's to do. Not with HostIPC or HostPID.
	UserNS *sys.IDMaps
	// Sysctls of the pod's own network and ipc namespaces. One that belongs to
	// another namespace is refused.
	Sysctls map[string]string
	// PauseCgroup is the cgroup directory that the pause is born in, or -1 for the
	// monitor's. It stays the caller's.
	PauseCgroup int
}

// StartPod starts a monitor in fresh namespaces and returns when it answers. If
// it fails, or ctx ends before, no process and no socket is left.
func (r *Runtime) StartPod(ctx context.Context, c PodConfig) (_ *Pod, err error) {
	if c.HostPID && c.SharedPID {
		return nil, fmt.Errorf("start pod %s: a host's pid namespace that is the pod's: %w", c.ID, ErrInvalid)
	}
	if c.UserNS != nil && (c.HostIPC || c.HostPID) {
		return nil, fmt.Errorf("start pod %s: a user namespace with the host's ipc or pid namespace: %w", c.ID, ErrInvalid)
	}
	dir, err := sys.OpenAt2(unix.AT_FDCWD, c.Dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	l := launch{rt: r, cfg: &c, dir: dir}
	defer l.closeFiles()
	if err := l.prepare(); err != nil {
		return nil, fmt.Errorf("start pod %s: %w", c.ID, err)
	}
	defer func() {
		if err != nil {
			l.undo()
		}
	}()
	if err := l.run(ctx); err != nil {
		return nil, fmt.Errorf("start pod %s: %w", c.ID, err)
	}
	return dialPod(ctx, dir)
}

// launch is one StartPod under way.
type launch struct {
	rt    *Runtime
	cfg   *PodConfig
	dir   *sys.FD
	ready *os.File // read end
	log   *os.File
	files []*os.File // ExtraFiles: what package monitor calls ListenFD and so on
	cmd   *exec.Cmd
	ended chan struct{} // closed when the monitor was reaped
}

// prepare makes the descriptors that the monitor is given.
func (l *launch) prepare() error {
	socket, err := bindSocket(l.dir)
	if err != nil {
		return err
	}
	defer socket.Close()
	setup, err := sys.SealedMemfd("vitrine-setup", l.setup().Encode(), false)
	if err != nil {
		return err
	}
	defer setup.Close()
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return os.NewSyscallError("pipe2", err)
	}
	write := sys.NewFD(pipe[1])
	defer write.Close()
	// In the poller, so that closing it ends a read: the context's way in.
	if err := unix.SetNonblock(pipe[0], true); err != nil {
		unix.Close(pipe[0])
		return os.NewSyscallError("fcntl O_NONBLOCK", err)
	}
	l.ready = os.NewFile(uintptr(pipe[0]), "ready pipe")
	for _, fd := range []int{socket.Int(), l.dir.Int(), setup.Int(), write.Int(), l.cfg.PauseCgroup} {
		if fd < 0 {
			continue
		}
		n, err := highFD(fd)
		if err != nil {
			return err
		}
		l.files = append(l.files, os.NewFile(uintptr(n), "monitor's"))
	}
	n, err := unix.Openat(l.dir.Int(), logName, unix.O_WRONLY|unix.O_CREAT|unix.O_APPEND|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("open %s: %w", logName, err)
	}
	l.log = os.NewFile(uintptr(n), logName)
	return nil
}

func (l *launch) setup() *wire.Setup {
	c := l.cfg
	s := &wire.Setup{
		Pod: c.ID, Hostname: c.Hostname, HostNet: c.HostNetwork, HostIPC: c.HostIPC, HostPID: c.HostPID,
		SharedPID: c.SharedPID, Cgroup: c.PauseCgroup >= 0, UserNS: c.UserNS != nil, Label: c.MountLabel,
	}
	for k, v := range c.Sysctls {
		s.Sysctls = append(s.Sysctls, wire.Sysctl{Key: k, Value: v})
	}
	sort.Slice(s.Sysctls, func(i, j int) bool { return s.Sysctls[i].Key < s.Sysctls[j].Key })
	return s
}

// bindSocket binds the pod's socket, mode 0600 from its first moment. The path
// goes through the directory's descriptor: a socket's may have 107 bytes.
func bindSocket(dir *sys.FD) (*sys.FD, error) {
	n, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	s := sys.NewFD(n)
	if err := unix.Fchmod(n, 0o600); err != nil {
		s.Close()
		return nil, os.NewSyscallError("fchmod socket", err)
	}
	// A socket of that name belongs to nobody: two daemons cannot have one state
	// directory, and this one starts a pod once.
	_ = unix.Unlinkat(dir.Int(), wire.SocketName, 0)
	if err := unix.Bind(n, socketAddr(dir)); err != nil {
		s.Close()
		return nil, fmt.Errorf("bind %s: %w", wire.SocketName, err)
	}
	return s, nil
}

func socketAddr(dir *sys.FD) *unix.SockaddrUnix {
	return &unix.SockaddrUnix{Name: "/proc/self/fd/" + strconv.Itoa(dir.Int()) + "/" + wire.SocketName}
}

// run starts the process and waits until it says that it serves.
func (l *launch) run(ctx context.Context) error {
	l.cmd = &exec.Cmd{
		Path:        "/proc/self/fd/" + strconv.Itoa(l.rt.Monitor.Int()),
		Args:        []string{"vitrine-oci", "monitor"},
		Env:         monitorEnv,
		Dir:         "/",
		Stderr:      l.log,
		ExtraFiles:  l.files,
		SysProcAttr: &syscall.SysProcAttr{Cloneflags: l.cfg.cloneFlags(), Setsid: true},
	}
	if fd := l.rt.MonitorCgroup; fd >= 0 {
		l.cmd.SysProcAttr.UseCgroupFD, l.cmd.SysProcAttr.CgroupFD = true, fd
	}
	err := l.start()
	runtime.KeepAlive(l.rt.Monitor)
	if err != nil {
		l.cmd = nil
		return fmt.Errorf("start monitor: %w", err)
	}
	l.ended = make(chan struct{})
	go func() { // ends with the monitor, or with us
		_ = l.cmd.Wait()
		close(l.ended)
	}()
	l.closeFiles() // the pipe must end when the monitor does
	return l.awaitReady(ctx)
}

// start forks the monitor. A clone that makes a user namespace, too, would put the monitor into it, so where the
// pod has one the namespaces are made before, and a thread goes there to fork.
func (l *launch) start() error {
	if l.cfg.UserNS == nil {
		return l.cmd.Start()
	}
	ns, err := userns.Make(*l.cfg.UserNS, uint32(l.cfg.podFlags()))
	if err != nil {
		return err
	}
	defer ns.Close()
	return sys.OnLostThread(func() error {
		if err := ns.Enter(); err != nil {
			return err
		}
		return l.cmd.Start()
	})
}

// podFlags are the namespaces that the pod has of its own, and its monitor is in.
func (c *PodConfig) podFlags() (flags uintptr) {
	if !c.HostNetwork {
		flags |= unix.CLONE_NEWNET | unix.CLONE_NEWUTS
	}
	if !c.HostIPC {
		flags |= unix.CLONE_NEWIPC
	}
	return flags
}

// cloneFlags are those that the fork of the monitor makes.
func (c *PodConfig) cloneFlags() uintptr {
	if c.UserNS != nil {
		return unix.CLONE_NEWNS
	}
	return unix.CLONE_NEWNS | c.podFlags()
}

// awaitReady reads what the monitor says of its start.
func (l *launch) awaitReady(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { l.ready.Close() })
	defer stop()
	b, err := io.ReadAll(io.LimitReader(l.ready, wire.MaxString))
	l.ready.Close()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return fmt.Errorf("read what the monitor says: %w", err)
	case len(b) == 0:
		return fmt.Errorf("%w: ended before it was ready%s", ErrNoMonitor, l.lastWords())
	case b[0] == readyByte:
		return nil
	case b[0] == invalidByte:
		return fmt.Errorf("%w: %s", ErrInvalid, b[1:])
	}
	return errors.New(string(b))
}

// These are monitor.ReadyByte and monitor.InvalidByte; importing the monitor's package would
// bring its executor into every user of this one.
const (
	readyByte   = '\n'
	invalidByte = '!'
)

// lastWords returns the end of the monitor's stderr, for an error's text.
func (l *launch) lastWords() string {
	b, err := os.ReadFile(filepath.Join(l.cfg.Dir, logName))
	if err != nil || len(b) == 0 {
		return ""
	}
	return ": " + string(bytes.TrimSpace(b[max(0, len(b)-1000):]))
}

func (l *launch) closeFiles() {
	for _, f := range l.files {
		f.Close()
	}
	l.files = nil
	if l.log != nil {
		l.log.Close()
	}
}

// undo ends the monitor and takes its socket away.
func (l *launch) undo() {
	if l.ready != nil {
		l.ready.Close()
	}
	if l.cmd != nil {
		killFamily(l.cmd.Process)
		<-l.ended
	}
	_ = unix.Unlinkat(l.dir.Int(), wire.SocketName, 0)
	_ = unix.Unlinkat(l.dir.Int(), logName, 0)
}

// killFamily ends a monitor that has not become a pod, and the pause, if it has
// come so far: killing the monitor alone would leave that running. A monitor that
// took the signal is our child, so its number is its own; stopped, it forks nobody.
func killFamily(monitor *os.Process) {
	if monitor.Signal(unix.SIGSTOP) != nil {
		return // dead, and reaped
	}
	task := filepath.Join("/proc", strconv.Itoa(monitor.Pid), "task")
	threads, _ := os.ReadDir(task)
	for _, t := range threads {
		b, _ := os.ReadFile(filepath.Join(task, t.Name(), "children"))
		for _, f := range bytes.Fields(b) {
			if child, err := strconv.Atoi(string(f)); err == nil {
				_ = unix.Kill(child, unix.SIGKILL)
			}
		}
	}
	_ = monitor.Kill()
}
