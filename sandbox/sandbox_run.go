package sandbox

import (
	"context"
	"errors"
	"fmt"
	"math"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/vitrine-runtime/vitrine/cni"
	"github.com/vitrine-runtime/vitrine/image"
	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci"
	"github.com/vitrine-runtime/vitrine/oci/cgroup"
	"github.com/vitrine-runtime/vitrine/sandbox/spec"
)

// RunPodSandbox makes a pod: monitor, namespaces, network, files. It returns when the pod is READY. handler
// is one of Config.Handlers, whose rules the pod keeps for its life, or empty for the default one.
//
// If ctx ends first the work goes on under Config.OperationTimeout; a retry with an equal config gets its
// result. A pod of the same name whose id somebody was told already is ErrExists. After any other error
// nothing is left of the pod, or it is erased in the background and not shown.
func (m *Manager) RunPodSandbox(ctx context.Context, cfg *runtimeapi.PodSandboxConfig, handler string) (string, error) {
	h, err := m.handler(handler)
	if err != nil {
		return "", err
	}
	plan, err := m.planOf(cfg, h.rules)
	if err != nil {
		return "", err
	}
	if plan.UserNS != nil && !m.cfg.Images.IDMaps() {
		return "", imageError(fmt.Errorf("config.linux.security_context.namespace_options.userns_options: %w", image.ErrNoIDMaps))
	}
	if plan.Bandwidth, err = spec.BandwidthOf(cfg); err != nil {
		return "", spec.InConfig(err)
	}
	name := podName(cfg.GetMetadata())
	id, err := m.flights.do(ctx, name, "run "+name, m.cfg.OperationTimeout, func(ctx context.Context, op *operation) (string, error) {
		if sb := m.podNamed(name); sb != nil {
			return sb.id, sb.adoptable(name)
		}
		return m.runPod(ctx, op, name, cfg, plan, h)
	})
	if err != nil {
		return "", err
	}
	sb := m.index.Load().pods[id]
	switch {
	case sb == nil:
		return "", fmt.Errorf("%s: removed meanwhile: %w", name, ErrState)
	case !proto.Equal(sb.config, cfg) || sb.record.Handler != handler:
		return "", fmt.Errorf("%s: is pod sandbox %s, which was asked for with another config: %w", name, id, ErrExists)
	}
	sb.taken.Store(true)
	return id, nil
}

func (m *Manager) podNamed(name string) *Sandbox {
	i := m.index.Load()
	return i.pods[i.names[name]]
}

// adoptable tells whether a pod that exists may be the answer to a request for one of its name. It may if
// nobody was ever told its id: whoever asked for it first gave up, or a daemon before us was asked.
func (sb *Sandbox) adoptable(name string) error {
	if sb.taken.Load() || sb.facts.Load().state() != runtimeapi.PodSandboxState_SANDBOX_READY {
		return fmt.Errorf("%s: is pod sandbox %s: %w", name, sb.id, ErrExists)
	}
	return nil
}

// runPod makes the pod, step by step, and takes everything back if one of them fails.
func (m *Manager) runPod(ctx context.Context, op *operation, name string, cfg *runtimeapi.PodSandboxConfig, plan *spec.Pod, h chosen) (string, error) {
	sb, err := m.newSandbox(newID(), cfg, plan, h)
	if err != nil {
		return "", err
	}
	if err := sb.bringUp(ctx, op); err != nil {
		if rerr := m.rollBack(ctx, sb.id, sb); rerr != nil {
			klog.ErrorS(rerr, "Pod sandbox is half undone", "pod", sb.id)
		}
		return "", err
	}
	m.change(func(i *index) {
		i.pods[sb.id] = sb
		i.names[name] = sb.id
	})
	sb.tell()
	klog.V(2).InfoS("Pod sandbox runs", "pod", sb.id, "name", name, "ips", sb.facts.Load().IPs)
	return sb.id, nil
}

// bringUp makes what the pod consists of, in an order in which each step has what it needs. The network
// plugins, which take most of the time, run beside the making of the files.
func (sb *Sandbox) bringUp(ctx context.Context, op *operation) error {
	op.at("write record")
	if err := sb.makeDir(); err != nil {
		return err
	}
	op.at("limit pod")
	if err := sb.firstLimits(ctx); err != nil {
		return err
	}
	op.at("start monitor")
	if err := sb.startMonitor(ctx); err != nil {
		return err
	}
	var ips []string
	network := make(chan error, 1)
	go func() { // ends with the plugins, which ctx ends
		var err error
		ips, err = sb.connect(ctx)
		network <- err
	}()
	op.at("make files")
	err := sb.makeFiles()
	if err == nil {
		op.at("add network")
	}
	if nerr := <-network; err == nil {
		err = nerr
	}
	if err == nil {
		err = sb.writeHosts(ips)
	}
	if err == nil {
		op.at("ask plugins")
		err = sb.askRun(ctx, ips)
	}
	if err != nil {
		return err
	}
	op.at("write record")
	return sb.update(func(f podFacts) podFacts {
		f.Created, f.IPs = now(), ips
		return f
	})
}

// startMonitor starts the monitor, with its pause in a cgroup of its own where the pod shares a pid
// namespace.
func (sb *Sandbox) startMonitor(ctx context.Context) error {
	c := oci.PodConfig{
		ID: sb.id, Dir: sb.dir, Hostname: sb.plan.Hostname,
		HostNetwork: sb.plan.HostNetwork, HostIPC: sb.plan.HostIPC, HostPID: sb.plan.HostPID, SharedPID: sb.plan.SharedPID,
		Sysctls: sb.plan.Sysctls, PauseCgroup: -1, MountLabel: sb.record.Labels.Mount,
	}
	if u := sb.plan.UserNS; u != nil {
		maps := u.Maps()
		c.UserNS = &maps
	}
	var pause *cgroup.Scope
	if sb.plan.SharedPID {
		var fd *sys.FD
		var err error
		if pause, fd, err = sb.makePauseCgroup(); err != nil {
			return fmt.Errorf("make cgroup of the pause: %w", cgroupError(err))
		}
		defer fd.Close()
		c.PauseCgroup = fd.Int()
	}
	mon, err := sb.m.cfg.monitors.start(ctx, c)
	if err != nil {
		return fmt.Errorf("start monitor: %w", err)
	}
	if !sb.setMonitor(mon) {
		return fmt.Errorf("connect to the monitor: %w: the daemon is ending", ErrUnavailable)
	}
	if pause == nil {
		return nil
	}
	return cgroupError(placePause(ctx, pause))
}

// connect pins the network namespace and has the plugins connect it. In the host's network there is
// nothing to do.
func (sb *Sandbox) connect(ctx context.Context) ([]string, error) {
	if sb.plan.HostNetwork {
		return nil, nil
	}
	ns, err := sb.monitor().netns()
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	if err := pinNetNS(ns, sb.m.cfg.NetNSDir, sb.netns()); err != nil {
		return nil, err
	}
	res, err := sb.m.cfg.Network.Add(ctx, sb.networkPod())
	if err != nil {
		return nil, fmt.Errorf("add network: %w", networkError(err))
	}
	var ips []string
	for _, ip := range res.IPs {
		ips = append(ips, ip.String())
	}
	return ips, nil
}

// networkError gives an error of the network its kind.
func networkError(err error) error {
	if errors.Is(err, cni.ErrNotReady) || errors.Is(err, cni.ErrStuck) {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return err
}

// networkPod is what the network plugins are told of the pod. Package cni keeps it, for DEL.
func (sb *Sandbox) networkPod() cni.Pod {
	md := sb.config.GetMetadata()
	p := cni.Pod{
		ID: sb.id, Name: md.GetName(), Namespace: md.GetNamespace(), UID: md.GetUid(), NetNS: sb.netns(),
	}
	for _, port := range sb.plan.Ports {
		p.PortMappings = append(p.PortMappings, cni.PortMapping{
			Protocol: port.Protocol, HostIP: port.HostIP, HostPort: port.HostPort, ContainerPort: port.ContainerPort})
	}
	if b := sb.plan.Bandwidth; b != nil {
		p.Bandwidth = &cni.Bandwidth{
			IngressRate: b.Ingress, IngressBurst: burst(b.Ingress), EgressRate: b.Egress, EgressBurst: burst(b.Egress)}
	}
	return p
}

// burst is how many bits may pass at once under a rate; the plugins want one wherever a rate is. The annotations have none, and
// containerd gives 2^32-1. We give that, but not more than 256 seconds of the rate: the bandwidth plugin writes the burst as the time that
// it takes, in 32 bits that hold 274 seconds, and more wraps around to anything, even to less than a packet, with which nothing passes.
func burst(rate uint64) uint64 {
	if rate > math.MaxUint32/256 {
		return math.MaxUint32
	}
	return 256 * rate
}
