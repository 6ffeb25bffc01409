package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/sandbox/spec"
)

// Sandbox is one pod: its namespaces, its network, its files, and the monitor that holds the processes. It
// is made by Manager.RunPodSandbox or found again by Open, and ends with RemovePodSandbox.
//
// The fields above mu never change. Everything that a reader may ask for comes from them and from facts.
type Sandbox struct {
	m       *Manager
	id      string
	dir     string
	config  *runtimeapi.PodSandboxConfig
	plan    *spec.Pod // nil for a pod whose record could not be read: it can only be erased
	record  podRecord // without facts
	facts   atomic.Pointer[podFacts]
	gate    *gate       // open while containers may be made
	taken   atomic.Bool // somebody was told the id
	stats   podStats
	watched sync.Map // container id -> *Container: all, also half-made ones; who is told of exits

	ending chan struct{} // holds a token while somebody tears the pod down or erases it

	limits   atomic.Pointer[podLimits]
	changing turn // whose it is to change the limits

	told  stage // guarded by Manager.feed.mu
	heard heard

	mu     sync.Mutex
	erased bool          // guarded by mu: the directory is on its way out, no record is written any more
	levels []spec.Labels // guarded by mu: whose levels are held for the pod and its containers

	monMu sync.Mutex // never held over a system call: readers take it
	mon   monitor    // guarded by monMu; nil before the start, after the end, and while nobody answers
	apart bool       // guarded by monMu: nobody is to connect any more, because the pod or the daemon ends

	dialing chan struct{} // holds a token while somebody dials the monitor again
	silent  time.Time     // until when a monitor that did not answer is not asked again by who stops something; guarded by dialing
}

// newSandbox prepares a pod; nothing exists of it yet.
func (m *Manager) newSandbox(id string, cfg *runtimeapi.PodSandboxConfig, plan *spec.Pod, h chosen) (*Sandbox, error) {
	raw, err := encodeMessage(cfg)
	if err != nil {
		return nil, err
	}
	sb := m.emptySandbox(id)
	sb.config, sb.plan = cfg, plan
	sb.record = podRecord{Version: recordVersion, ID: id, BootID: m.cfg.bootID, Handler: h.name, Rules: &h.rules, Config: raw, OwnCG: plan.CgroupParent == ""}
	if sb.record.OwnCG {
		sb.record.Cgroup, err = m.cfg.Cgroups.PodParent(m.cfg.CgroupParent, id)
	} else {
		sb.record.Cgroup, err = m.cfg.Cgroups.Parent(plan.CgroupParent)
	}
	if err != nil {
		return nil, fmt.Errorf("config.linux.cgroup_parent: %w", cgroupError(err))
	}
	sb.record.Labels, err = m.newLabels(cfg)
	sb.levels = []spec.Labels{sb.record.Labels}
	return sb, spec.InConfig(err)
}

func (m *Manager) emptySandbox(id string) *Sandbox {
	sb := &Sandbox{m: m, id: id, dir: m.podDir(id), gate: newGate(), ending: make(chan struct{}, 1), dialing: make(chan struct{}, 1), changing: newTurn()}
	sb.config = &runtimeapi.PodSandboxConfig{}
	sb.facts.Store(&podFacts{})
	sb.limits.Store(&podLimits{})
	return sb
}

// ID returns the pod's id: 64 hex digits.
func (sb *Sandbox) ID() string { return sb.id }

func (m *Manager) podDir(id string) string { return filepath.Join(m.cfg.RunDir, "pods", id) }

// podName is the key by which a pod is idempotent.
func podName(md *runtimeapi.PodSandboxMetadata) string {
	return fmt.Sprintf("pod %s/%s %s %d", md.GetNamespace(), md.GetName(), md.GetUid(), md.GetAttempt())
}

// update changes the facts and writes the record. f must return the new facts; it sees the latest ones.
// The facts in memory change even if the record cannot be written: the kernel has changed already.
func (sb *Sandbox) update(f func(podFacts) podFacts) error {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	n := f(*sb.facts.Load())
	sb.facts.Store(&n)
	err := sb.writeLocked()
	sb.tell()
	return err
}

// writeLocked writes the record. Preconditions: sb.mu is held.
func (sb *Sandbox) writeLocked() error {
	if sb.plan == nil || sb.erased {
		return nil
	}
	r := sb.record
	r.Facts, r.Limits = *sb.facts.Load(), nil
	if l := sb.limits.Load(); l.given() {
		r.Limits = l
	}
	return sb.m.disk.write(sb.dir, "pod.json", &r)
}

// containers returns all of the pod, also those on their way in or out that cannot be seen.
func (sb *Sandbox) containers() []*Container {
	var out []*Container
	sb.watched.Range(func(_, c any) bool {
		out = append(out, c.(*Container))
		return true
	})
	return out
}

// makeDir makes the pod's directory and writes the first record.
func (sb *Sandbox) makeDir() error {
	if err := os.Mkdir(sb.dir, 0o700); err != nil {
		return err
	}
	return sb.update(func(f podFacts) podFacts { return f })
}

// errUnreadable is why a pod without a usable record is only erased.
var errUnreadable = errors.New("record cannot be read")
