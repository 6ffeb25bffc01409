package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"

	"github.com/vitrine-runtime/vitrine/sandbox/spec"
)

// Manager owns the pods and containers of a node. There is one per run directory; the caller makes sure of
// that (a lock on the state directory). All methods may be called concurrently.
//
// What it made survives it: Close, or the death of the process, leaves every pod running, and the next Open
// finds them.
type Manager struct {
	cfg     Config
	host    spec.Host
	disk    recordDisk
	volumes *volumeOpener
	flights flights
	armor   appArmor
	labels  *selinuxLabels
	stop    context.CancelFunc
	index   atomic.Pointer[index]
	feed    eventFeed
	known   sync.Map // pod id -> *Sandbox: all that plugins know of, also before they can be seen
	stats   stats

	mu        sync.Mutex
	leftovers map[string]eraser // guarded by mu: what could not be taken back yet, by id
	running   sync.WaitGroup    // the watchers of monitors and the sweeper
}

// eraser is a pod or container that is on its way out.
type eraser interface {
	erase(ctx context.Context) error
}

// Open reads every pod directory, dials the monitors, and brings records and reality together: pods without
// a monitor, or from before a reboot, become NOTREADY and their processes are killed; half-made ones are
// erased; networks, root file systems and pins that belong to no pod are released. A pod that cannot be
// recovered in time does not keep the others from it.
//
// ctx bounds the recovery only. The caller closes the Manager.
func Open(ctx context.Context, cfg Config) (*Manager, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	host, err := hostFacts()
	if err != nil {
		return nil, err
	}
	if cfg.bootID == "" {
		b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			return nil, err
		}
		cfg.bootID = strings.TrimSpace(string(b))
	}
	if err := os.MkdirAll(filepath.Join(cfg.RunDir, "pods"), 0o700); err != nil {
		return nil, err
	}
	armor := openAppArmor(ctx, host, cfg.RunDir)
	if err := os.RemoveAll(cfg.RunDir + "-hooks"); err != nil { // of creations that a daemon before us did not end
		return nil, err
	}
	labels := openLabels(host, cfg.SELinux)
	m := &Manager{cfg: cfg, host: *host, armor: armor, labels: labels, volumes: newVolumeOpener(cfg.VolumeTimeout), leftovers: map[string]eraser{}}
	m.index.Store(&index{pods: map[string]*Sandbox{}, containers: map[string]*Container{}, names: map[string]string{}})
	m.flights.m = map[string]*operation{}
	m.flights.base, m.stop = context.WithCancel(context.Background())
	m.startStats(m.flights.base)
	if err := m.recover(ctx); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	m.running.Add(1)
	go m.sweeper() // ends with Close
	return m, nil
}

// Close cancels running operations, waits until they have been rolled back, and lets go of the monitors.
// Pods and containers go on.
func (m *Manager) Close() error {
	m.flights.mu.Lock() // no operation begins after this
	m.stop()
	m.flights.mu.Unlock()
	m.flights.wg.Wait()
	m.endStats()
	var errs []error
	for _, sb := range m.index.Load().pods {
		errs = append(errs, sb.letGo())
	}
	m.mu.Lock()
	for _, e := range m.leftovers {
		if sb, ok := e.(*Sandbox); ok {
			errs = append(errs, sb.letGo())
		}
	}
	m.mu.Unlock()
	m.running.Wait()
	return errors.Join(errs...)
}

// leave remembers something that could not be erased, for the sweeper.
func (m *Manager) leave(id string, e eraser) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.leftovers[id] = e
}

// sweeper tries again and again to erase what is left over: a network plugin that failed at the first DEL
// may succeed at the tenth, and until then its address is lost to the node. It also asks the monitors again
// that did not answer.
func (m *Manager) sweeper() {
	defer m.running.Done()
	tick := time.NewTicker(m.cfg.sweep)
	defer tick.Stop()
	for {
		select {
		case <-m.flights.base.Done():
			return
		case <-tick.C:
			m.sweepOnce(m.flights.base)
			for _, sb := range m.index.Load().pods {
				if sb.facts.Load().NotReady == 0 && sb.monitor() == nil {
					sb.reconnect(m.flights.base, nil, m.cfg.StopTimeout)
				}
			}
		}
	}
}

func (m *Manager) sweepOnce(ctx context.Context) {
	m.mu.Lock()
	todo := make(map[string]eraser, len(m.leftovers))
	for id, e := range m.leftovers {
		todo[id] = e
	}
	m.mu.Unlock()
	for id, e := range todo {
		ctx, cancel := context.WithTimeout(ctx, m.cfg.StopTimeout)
		err := e.erase(ctx)
		cancel()
		if err != nil {
			klog.ErrorS(err, "Leftover stays", "id", id)
			continue
		}
		m.mu.Lock()
		delete(m.leftovers, id)
		m.mu.Unlock()
		klog.InfoS("Leftover erased", "id", id)
	}
}

// rollBack erases e after a failed request. What cannot be erased now is left to the sweeper.
func (m *Manager) rollBack(ctx context.Context, id string, e eraser) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.cfg.StopTimeout)
	defer cancel()
	if err := e.erase(ctx); err != nil {
		m.leave(id, e)
		return fmt.Errorf("roll back %s: %w", id, err)
	}
	return nil
}
