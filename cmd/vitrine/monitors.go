package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/vitrine-runtime/vitrine/internal/pause"
	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/cgroup"
)

// The cgroup of all monitors is apart from the daemon's own, so that ending the
// daemon's service ends no monitor, and from the pods', whose limits are not for us.
const (
	monitorsCgroup = "vitrine-monitors" // with cgroupfs
	monitorsSlice  = "system.slice"     // with systemd, for the scope vitrine-monitors.scope
	monitorsID     = "monitors"
)

// openMonitors makes the cgroup that monitors are born in and returns its descriptor,
// whose number stays what it is until close.
func openMonitors(ctx context.Context, cfg *Config, tree *cgroup.Tree) (fd int, closeAll func() error, err error) {
	if tree.Driver() == cgroup.DriverSystemd {
		m := &monitorScope{tree: tree, id: scopeID(cfg.RunDir)}
		if err := m.open(ctx); err != nil {
			return -1, nil, fmt.Errorf("make scope of monitors: %w", err)
		}
		return m.dir.Int(), m.close, nil
	}
	slice, err := tree.Slice(monitorsCgroup)
	if err != nil {
		return -1, nil, err
	}
	return slice.Int(), func() error {
		_ = os.Remove(filepath.Join(cfg.Cgroup.Root, monitorsCgroup)) // stays where monitors live
		return slice.Close()
	}, nil
}

// scopeID gives each daemon of a node its own scope; there is one per run directory.
func scopeID(runDir string) string {
	if runDir == "/run/vitrine" {
		return monitorsID
	}
	sum := sha256.Sum256([]byte(runDir))
	return monitorsID + "-" + hex.EncodeToString(sum[:4])
}

// monitorScope is the scope of systemd in which monitors live.
//
// A scope needs a process to begin with and ends with its last one, and a cgroup that
// is about to be removed is no place for a monitor. So there is a keeper in it: a
// process that does nothing, dies with the daemon, and makes sure that the scope is
// there as long as somebody may start a monitor. After the daemon's end the monitors
// keep their scope alive themselves, and the last of them takes it along.
//
// If somebody ends the scope under us, the keeper's death tells, and there is a new
// one.
type monitorScope struct {
	tree *cgroup.Tree
	id   string

	dir    *sys.FD // of the cgroup; another one takes its place behind the same number
	keeper *keeper
	stop   context.CancelFunc
	done   chan struct{} // closed at the end of watch
}

func (m *monitorScope) open(ctx context.Context) (err error) {
	if m.dir, m.keeper, err = m.make(ctx); err != nil {
		return err
	}
	watched, stop := context.WithCancel(context.WithoutCancel(ctx))
	m.stop, m.done = stop, make(chan struct{})
	go m.watch(watched) // ends with close
	return nil
}

// make finds or makes the scope, with a new keeper in it.
func (m *monitorScope) make(ctx context.Context) (*sys.FD, *keeper, error) {
	for try := 0; ; try++ {
		dir, k, err := m.try(ctx)
		// One that a daemon before us left may be on its way out just now.
		if err == nil || try == 20 || !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
			return dir, k, err
		}
		select {
		case <-ctx.Done():
			return nil, nil, errors.Join(ctx.Err(), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (m *monitorScope) try(ctx context.Context) (_ *sys.FD, _ *keeper, err error) {
	scope, err := m.tree.Create(monitorsSlice, m.id, nil)
	if errors.Is(err, fs.ErrExist) {
		var path string
		if path, err = m.tree.ScopePath(monitorsSlice, m.id); err != nil {
			return nil, nil, err
		}
		scope = m.tree.Load(path)
	}
	if err != nil {
		return nil, nil, err
	}
	dir, err := scope.OpenDir()
	if err != nil {
		return nil, nil, err
	}
	k, err := startKeeper(dir)
	if err != nil {
		dir.Close()
		return nil, nil, err
	}
	// Where the unit lives, this finds that out.
	if err := scope.Place(ctx, k.pid); err != nil {
		k.end()
		dir.Close()
		return nil, nil, err
	}
	return dir, k, nil
}

// watch replaces a scope that was ended.
func (m *monitorScope) watch(ctx context.Context) {
	defer close(m.done)
	for {
		select {
		case <-ctx.Done():
			m.keeper.end()
			return
		case <-m.keeper.ended:
		}
		klog.InfoS("The scope of the monitors has lost its keeper; looking for it", "scope", m.id)
		dir, k, err := m.make(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			klog.ErrorS(err, "No pod can be started: the scope of the monitors cannot be made")
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Second):
				continue
			}
		}
		if err := unix.Dup3(dir.Int(), m.dir.Int(), unix.O_CLOEXEC); err != nil {
			klog.ErrorS(err, "The descriptor of the monitors' scope cannot be replaced")
		}
		dir.Close()
		m.keeper = k
	}
}

func (m *monitorScope) close() error {
	m.stop()
	<-m.done
	return m.dir.Close()
}

// keeper is a process that lives in a cgroup until end, or until the daemon dies.
type keeper struct {
	pid   int
	ended chan struct{} // closed when it was reaped
	kill  func()
}

func startKeeper(dir *sys.FD) (*keeper, error) {
	elf, err := sys.SealedMemfd("vitrine-keeper", pause.ELF(), true)
	if err != nil {
		return nil, err
	}
	defer elf.Close()
	k := &keeper{ended: make(chan struct{})}
	started := make(chan error)
	go func() { // ends with the keeper
		defer close(k.ended)
		// The death signal comes when the thread that forked ends; this one waits.
		runtime.LockOSThread()
		cmd := exec.Cmd{
			Path: "/proc/self/fd/" + strconv.Itoa(elf.Int()), Args: []string{"vitrine-keeper"}, Env: []string{}, Dir: "/",
			SysProcAttr: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, UseCgroupFD: true, CgroupFD: dir.Int(), Setsid: true},
		}
		err := cmd.Start()
		if err == nil {
			k.pid, k.kill = cmd.Process.Pid, func() { _ = cmd.Process.Kill() } // reaped already is fine
		}
		started <- err
		if err == nil {
			_ = cmd.Wait() // it is killed, whatever the way
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start keeper: %w", err)
	}
	return k, nil
}

// end kills the keeper and waits for its death.
func (k *keeper) end() {
	k.kill()
	<-k.ended
}
