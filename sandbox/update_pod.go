package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/vitrine-runtime/vitrine/sandbox/spec"
)

// podLimits are those of a pod as a whole, as the CRI's messages, for the record and for people. A value is
// never changed once it is published.
type podLimits struct {
	Resources json.RawMessage `json:"resources,omitempty"` // LinuxContainerResources: the sum of the containers'
	Overhead  json.RawMessage `json:"overhead,omitempty"`  // LinuxContainerResources
	Took      json.RawMessage `json:"took,omitempty"`      // LinuxContainerResources: of the pod's cgroup, where it is ours
}

func (l *podLimits) given() bool { return l.Resources != nil || l.Overhead != nil }

func (l *podLimits) orNone() *podLimits {
	if l == nil {
		return &podLimits{}
	}
	return l
}

// sum returns what limits the pod's cgroup.
func (l *podLimits) sum(h spec.Host) (*specs.LinuxResources, error) {
	var of [2]*runtimeapi.LinuxContainerResources
	for i, raw := range []json.RawMessage{l.Resources, l.Overhead} {
		if raw == nil {
			continue
		}
		of[i] = &runtimeapi.LinuxContainerResources{}
		if err := decodeMessage(raw, of[i]); err != nil {
			return nil, err
		}
	}
	return spec.PodResources(of[0], of[1], h)
}

// with returns the limits after an update; nil leaves what it stands for alone.
func (l *podLimits) with(resources, overhead *runtimeapi.LinuxContainerResources) (*podLimits, error) {
	n := &podLimits{Resources: l.Resources, Overhead: l.Overhead}
	var errs [2]error
	if resources != nil {
		n.Resources, errs[0] = encodeMessage(resources)
	}
	if overhead != nil {
		n.Overhead, errs[1] = encodeMessage(overhead)
	}
	return n, errors.Join(errs[:]...)
}

// limitsOf says who limits the pod's cgroup: whoever made it.
func (sb *Sandbox) limitsOf() string {
	if sb.record.OwnCG {
		return "vitrine"
	}
	return "caller"
}

// UpdatePodSandboxResources changes the limits of a READY pod as a whole: overhead and resources, the sum of
// its containers'. Each replaces what it was before; nil leaves it.
//
// They are written to the pod's cgroup if that is ours, all of them or none, as in
// UpdateContainerResources. A cgroup that the caller named is the caller's, who has limited it before: the
// kubelet says so of this call. The new values are then kept, and shown by PodSandboxStatus.
func (m *Manager) UpdatePodSandboxResources(ctx context.Context, id string, overhead, resources *runtimeapi.LinuxContainerResources) error {
	sb, err := m.pod(id)
	if err != nil {
		return err
	}
	_, err = m.flights.do(ctx, "update "+newID(), "update pod sandbox "+sb.id, m.cfg.OperationTimeout, func(ctx context.Context, op *operation) (string, error) {
		op.at("ask plugins")
		if err := sb.askUpdate(ctx, overhead, resources); err != nil {
			return "", err
		}
		op.at("wait for another update")
		if err := sb.changing.take(ctx); err != nil {
			return "", err
		}
		defer sb.changing.giveBack()
		op.at("write limits")
		if err := sb.setLimits(ctx, overhead, resources); err != nil {
			return "", err
		}
		m.tell(ctx, api.Event_POST_UPDATE_POD_SANDBOX, sb, nil, func() {})
		return "", nil
	})
	return err
}

// setLimits changes the limits. sb.changing is held.
func (sb *Sandbox) setLimits(ctx context.Context, overhead, resources *runtimeapi.LinuxContainerResources) error {
	if sb.facts.Load().state() != runtimeapi.PodSandboxState_SANDBOX_READY {
		return fmt.Errorf("pod sandbox %s is not ready: %w", sb.id, ErrState)
	}
	old := sb.limits.Load()
	next, err := old.with(resources, overhead)
	if err != nil {
		return err
	}
	r, err := next.sum(sb.m.host)
	if err != nil {
		return err
	}
	if before, err := old.sum(sb.m.host); err == nil { // else there was none
		spec.Lifted(r, before)
	}
	if err := sb.limit(ctx, r, next); err != nil {
		return fmt.Errorf("update pod sandbox %s: %w", sb.id, cgroupError(err))
	}
	klog.V(2).InfoS("Pod sandbox updated", "pod", sb.id, "resources", resources, "overhead", overhead, "cgroup", sb.limitsOf())
	return nil
}

// limit writes r to the pod's cgroup if that is ours, and next to the record.
func (sb *Sandbox) limit(ctx context.Context, r *specs.LinuxResources, next *podLimits) error {
	if !sb.record.OwnCG {
		return sb.commit(next)
	}
	// It exists once a container or the pause needed it.
	fd, err := sb.m.cfg.Cgroups.Slice(sb.record.Cgroup)
	if err != nil {
		return err
	}
	fd.Close()
	return sb.m.cfg.Cgroups.Load(sb.record.Cgroup).UpdateThen(ctx, r, func(took *specs.LinuxResources) error {
		var err error
		if next.Took, err = encodeMessage(spec.ResourcesOf(took, 0)); err != nil {
			return err
		}
		return sb.commit(next)
	})
}

// commit writes new limits into the record and publishes them.
func (sb *Sandbox) commit(next *podLimits) error {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	old := sb.limits.Swap(next)
	err := sb.writeLocked()
	if err != nil {
		sb.limits.Store(old)
	}
	return err
}

// firstLimits applies what the request says about the pod as a whole, before there is a process in it.
func (sb *Sandbox) firstLimits(ctx context.Context) error {
	l := sb.config.GetLinux()
	if l.GetResources() == nil && l.GetOverhead() == nil {
		return nil
	}
	next, err := sb.limits.Load().with(l.GetResources(), l.GetOverhead())
	if err != nil {
		return err
	}
	r, err := next.sum(sb.m.host)
	if err != nil {
		return err
	}
	if err := sb.limit(ctx, r, next); err != nil {
		return fmt.Errorf("limit pod: %w", cgroupError(err))
	}
	return nil
}
