package monitor

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/scratch"
	"github.com/vitrine-runtime/vitrine/internal/signals"
	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/executor"
	"github.com/vitrine-runtime/vitrine/oci/wire"
)

// Descriptors that a monitor is started with, beside 0, 1 and 2. Everything
// else that it may have inherited is closed.
const (
	ListenFD = 3 + iota // SEQPACKET socket, bound and not yet listening
	DirFD               // the pod's directory
	SetupFD             // a memfd with an encoded wire.Setup
	ReadyFD             // pipe: one byte when the monitor serves, or an error's text
	CgroupFD            // the pause's cgroup, if Setup.Cgroup
)

// ReadyByte is what goes into ReadyFD once requests are served. It begins no
// error text.
const ReadyByte = '\n'

// InvalidByte goes before an error's text in ReadyFD where the fault is in what was asked
// for: a setting that this kernel does not have, or a value that it does not take.
const InvalidByte = '!'

// monitor is the whole process.
type monitor struct {
	setup   *wire.Setup
	dir     *sys.FD // the pod's
	proc    *procfs
	null    *sys.FD
	ns      [3]*sys.FD // net, ipc, uts
	started int64
	note    string   // what could not be done as asked, for PodInfo
	pause   *process // nil unless the pod shares a pid namespace
	family  family
	pod     pod
	ledger  ledger
	conns   daemons       // who gets events
	peers   daemons       // who may have asked for something
	ended   chan struct{} // closed by Stop
	tidying atomic.Bool   // a tidyLater is under way
	untidy  atomic.Int32  // requests and deaths since the last one
}

// Main runs the monitor until the pod is stopped and returns its exit code. It
// expects the descriptors above and takes the process over: memory, signals,
// mount namespace.
func Main() int {
	ready := os.NewFile(ReadyFD, "ready pipe")
	m, err := start()
	if err == nil {
		err = m.serve(ready)
		if err != nil && m.pause != nil {
			m.pause.kill()
		}
	} else {
		text := err.Error()
		if asked := (*askedError)(nil); errors.As(err, &asked) {
			text = string(InvalidByte) + text
		}
		// StartPod reads it; if that is gone already, nobody needs it.
		_, _ = io.WriteString(ready, text)
	}
	if err != nil {
		lastWords(err.Error())
		return 1
	}
	return 0
}

// lastWords writes to monitor.log in the pod's directory. There is nobody to tell
// that it could not; os.Stderr would die of it.
func lastWords(text string) { _, _ = unix.Write(2, []byte("vitrine-oci monitor: "+text+"\n")) }

// start does everything that happens before requests are served, in an order in
// which each step still finds what it needs: descriptors from the host's /proc,
// then the private mounts, then settings inside the pod's namespaces.
func start() (*monitor, error) {
	m := &monitor{started: time.Now().UnixNano(), ended: make(chan struct{})}
	if err := quiet(); err != nil {
		return nil, err
	}
	if err := closeInherited(); err != nil {
		return nil, err
	}
	if err := m.readSetup(); err != nil {
		return nil, err
	}
	if err := m.openHandles(); err != nil {
		return nil, err
	}
	if err := scratch.Enter(m.setup.Label); err != nil {
		return nil, err
	}
	n, err := unix.Open("/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /null: %w", err)
	}
	m.null = sys.NewFD(n)
	if err := m.applySetup(); err != nil {
		return nil, err
	}
	if err := m.family.init(); err != nil {
		return nil, err
	}
	m.pod.init()
	if m.setup.HostPID {
		if err := m.family.adoptOrphans(); err != nil {
			return nil, err
		}
	}
	if m.setup.SharedPID {
		return m, m.startPause()
	}
	return m, nil
}

// quiet makes the process unreadable for others, and deaf to the signals that a
// terminal or a service manager sends to groups: a monitor that ends before its
// containers loses their exit codes.
func quiet() error {
	// A forked child shares this until its execve: nobody may trace a blocked init
	// or open its /proc files through a container's uid.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl PR_SET_DUMPABLE: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl PR_SET_CHILD_SUBREAPER: %w", err)
	}
	if err := resetIgnored(); err != nil {
		return err
	}
	// Handlers, and not SIG_IGN: what is ignored stays ignored over execve. Package
	// os/signal would keep two threads for it.
	_, err := signals.Catch(unix.SIGHUP, unix.SIGINT, unix.SIGTERM, unix.SIGPIPE)
	return err
}

func (m *monitor) readSetup() error {
	f := os.NewFile(SetupFD, "setup")
	defer f.Close()
	b, err := io.ReadAll(io.NewSectionReader(f, 0, wire.MaxBody))
	if err != nil {
		return fmt.Errorf("read setup: %w", err)
	}
	m.setup, err = wire.ParseSetup(b)
	return err
}

// openHandles takes the descriptors that were handed over and opens what the
// host's /proc has to give, as long as it is in sight.
func (m *monitor) openHandles() (err error) {
	m.dir = sys.NewFD(DirFD)
	for i, name := range []string{"net", "ipc", "uts"} {
		n, err := unix.Open("/proc/self/ns/"+name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open %s namespace: %w", name, err)
		}
		m.ns[i] = sys.NewFD(n)
	}
	if m.proc, err = openProcfs(); err != nil {
		return err
	}
	if err := executor.HoldPIDNS(); err != nil {
		return err
	}
	// After this, whatever the runtime maps outside of its heap is its own
	// bookkeeping; the heap is hidden again before each fork.
	return executor.HideMemory()
}

func (m *monitor) applySetup() error {
	m.proc.setComm("vitrine-monitor")
	m.proc.lowerOwnOOM()
	if !m.setup.HostNet && m.setup.Hostname != "" {
		if err := unix.Sethostname([]byte(m.setup.Hostname)); err != nil {
			return fmt.Errorf("set hostname %s: %w", m.setup.Hostname, err)
		}
	}
	for _, s := range m.setup.Sysctls {
		if err := m.proc.sysctl(m.setup, s.Key, s.Value); err != nil {
			return blame(fmt.Errorf("config.linux.sysctls: %w", err))
		}
	}
	return nil
}

// askedError says that not the node, but what was asked for is at fault.
type askedError struct{ error }

// blame says that of the errnos with which procfs refuses a name, a value, or a place.
func blame(err error) error {
	for _, errno := range []unix.Errno{unix.ENOENT, unix.EINVAL, unix.ERANGE, unix.EPERM, unix.EACCES} {
		if errors.Is(err, errno) {
			return &askedError{err}
		}
	}
	return err
}

// serve listens, tells StartPod, and answers until Stop.
func (m *monitor) serve(ready *os.File) error {
	l, err := listen(sys.NewFD(ListenFD))
	if err != nil {
		return err
	}
	defer l.Close()
	if _, err := ready.Write([]byte{ReadyByte}); err != nil {
		return fmt.Errorf("tell that the monitor is ready: %w", err)
	}
	ready.Close()
	m.tidyLater()
	go m.accept(l) // ends when l is closed
	<-m.ended
	return nil
}

// tidyAfter is how long a monitor keeps what its last requests have left, if those were
// tidyMany since the last time: each leaves some three kilobytes.
const (
	tidyAfter = 10 * time.Second
	tidyMany  = 150
)

// tidyLater gives memory back to the kernel, once things have settled: a pod is
// busy for a second and then quiet for weeks, in which the collector would
// not run, and there may be hundreds of us. A collection leaves a quarter of a
// megabyte of its own behind, so it is not for a pod that has started its
// containers and is probed now and then.
func (m *monitor) tidyLater() {
	if m.untidy.Add(1) >= tidyMany && m.tidying.CompareAndSwap(false, true) {
		time.AfterFunc(tidyAfter, func() {
			m.tidying.Store(false)
			m.untidy.Store(0)
			debug.FreeOSMemory()
		})
	}
}
