package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/conformance/stage"
)

// statsBench measures the statistics of many containers, ours and containerd's, one call of each in turn.
type statsBench struct {
	place   *stage.Stage
	count   int
	parties []*party
}

// party is one runtime with its containers, one in each pod.
type party struct {
	name    string
	place   *stage.Stage // for its socket
	cri     *stage.Client
	procs   []string // names of its processes, for their CPU time
	version string

	pods  []*runtimeapi.PodSandboxConfig
	ids   []string
	times map[string]samples // by verb
	cpu   map[string]samples
}

// statsVerbs are what is measured.
var statsVerbs = []string{"ListContainerStats", "ListPodSandboxStats", "ListContainers"}

func runStats(ctx context.Context, place *stage.Stage, count, rounds int, containerd, crun string) (err error) {
	b := &statsBench{place: place, count: count}
	if _, err := place.StartDaemon(ctx); err != nil {
		return err
	}
	if err := b.join(ctx, &party{name: "vitrine", place: place, procs: []string{"vitrine", "vitrine-oci"}}); err != nil {
		return err
	}
	if containerd != "" {
		peer, err := startContainerd(ctx, place, containerd, crun)
		if err != nil {
			return fmt.Errorf("containerd: %w", err)
		}
		defer func() { err = errors.Join(err, peer.stop()) }()
		other := *place
		other.Socket = peer.socket
		if err := b.join(ctx, &party{name: "containerd", place: &other, procs: []string{"containerd", "containerd-shim"}}); err != nil {
			return fmt.Errorf("containerd: %w\n%s", err, peer.tail())
		}
	}
	if err := b.measure(ctx, rounds); err != nil {
		return err
	}
	b.print()
	for _, p := range b.parties {
		err = errors.Join(err, p.leave(ctx))
	}
	return err
}

// join connects to a runtime and starts its pods. They use the host's network: statistics of containers know none,
// and setting up hundreds of interfaces would take longer than all of this.
func (b *statsBench) join(ctx context.Context, p *party) error {
	p.times, p.cpu = map[string]samples{}, map[string]samples{}
	ref, _, err := b.place.SeedBusybox(ctx, "bench/busybox", "stats")
	if err != nil {
		return err
	}
	if p.cri, err = p.place.Connect(ctx); err != nil {
		return err
	}
	v, err := p.cri.Version(ctx, "")
	if err != nil {
		return err
	}
	p.version = v.GetRuntimeName() + " " + v.GetRuntimeVersion()
	if _, err := p.cri.Pull(ctx, ref); err != nil {
		return err
	}
	for i := range b.count {
		if err := p.add(ctx, fmt.Sprintf("%s-%d", p.name, i), ref); err != nil {
			return fmt.Errorf("pod %d: %w", i, err)
		}
	}
	b.parties = append(b.parties, p)
	return nil
}

func (p *party) add(ctx context.Context, name, ref string) error {
	cfg, err := p.place.PodConfig(name)
	if err != nil {
		return err
	}
	cfg.Hostname = ""
	cfg.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	id, err := p.cri.RunPodSandbox(ctx, cfg, "")
	if err != nil {
		return err
	}
	p.pods, p.ids = append(p.pods, cfg), append(p.ids, id)
	c := stage.ContainerConfig("c", ref, "/bin/sleep", "100000")
	c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	ctr, err := p.cri.CreateContainer(ctx, id, c, cfg)
	if err != nil {
		return err
	}
	return p.cri.StartContainer(ctx, ctr)
}

// call makes one call, and checks that it brought what it is about.
func (p *party) call(ctx context.Context, verb string, want int) error {
	got := 0
	switch verb {
	case "ListContainerStats":
		list, err := p.cri.ListContainerStats(ctx, nil)
		if err != nil {
			return err
		}
		for _, s := range list {
			if s.GetCpu().GetUsageCoreNanoSeconds() != nil {
				got++
			}
		}
	case "ListPodSandboxStats":
		list, err := p.cri.ListPodSandboxStats(ctx, nil)
		if err != nil {
			return err
		}
		for _, s := range list {
			got += len(s.GetLinux().GetContainers())
		}
	case "ListContainers":
		list, err := p.cri.ListContainers(ctx, nil)
		if err != nil {
			return err
		}
		got = len(list)
	}
	if got != want {
		return fmt.Errorf("%s of %s: %d containers, want %d", verb, p.name, got, want)
	}
	return nil
}

// measure calls each verb of each runtime in turn, a while apart, as a kubelet would.
func (b *statsBench) measure(ctx context.Context, rounds int) error {
	const warmUp = 3
	for i := range rounds + warmUp {
		for _, verb := range statsVerbs {
			for _, p := range b.parties {
				time.Sleep(20 * time.Millisecond)
				cpu := cpuTime(p.procs)
				begin := time.Now()
				if err := p.call(ctx, verb, b.count); err != nil {
					return err
				}
				wall := time.Since(begin)
				if i >= warmUp {
					p.times[verb], p.cpu[verb] = append(p.times[verb], wall), append(p.cpu[verb], cpuTime(p.procs)-cpu)
				}
			}
		}
	}
	return nil
}

func (b *statsBench) print() {
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	fmt.Printf("statistics of %d pods of one container, %d rounds, interleaved\n\n%-34s %9s %9s %9s %9s\n", b.count, len(b.parties[0].times[statsVerbs[0]]), "", "median", "p10", "p95", "cpu")
	for _, verb := range statsVerbs {
		for _, p := range b.parties {
			t := p.times[verb]
			fmt.Printf("%-22s %-11s %9.2f %9.2f %9.2f %9.2f\n", verb, p.name, ms(t.quantile(0.5)), ms(t.quantile(0.1)), ms(t.quantile(0.95)), ms(p.cpu[verb].quantile(0.5)))
		}
	}
	fmt.Println("\nmilliseconds; cpu is the median of what the runtime's processes used during the call")
	for _, p := range b.parties {
		fmt.Println(p.version)
	}
	if len(b.parties) < 2 {
		return
	}
	for _, verb := range statsVerbs {
		ours, theirs := b.parties[0], b.parties[1]
		fmt.Printf("%s: %.3fx wall, %.3fx cpu\n", verb, float64(ours.times[verb].quantile(0.5))/float64(theirs.times[verb].quantile(0.5)),
			float64(ours.cpu[verb].quantile(0.5))/float64(theirs.cpu[verb].quantile(0.5)))
	}
}

// leave removes the pods.
func (p *party) leave(ctx context.Context) error {
	var errs []error
	for i, id := range p.ids {
		errs = append(errs, p.cri.StopPodSandbox(ctx, id), p.cri.RemovePodSandbox(ctx, id))
		if p.name == "vitrine" {
			errs = append(errs, p.place.Forget(p.pods[i]))
		}
	}
	return errors.Join(append(errs, p.cri.Close(ctx))...)
}

// cpuTime returns the CPU time that the processes with these names have used so far, by the scheduler's clock.
func cpuTime(names []string) time.Duration {
	var sum int64
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if e.Name()[0] < '0' || e.Name()[0] > '9' || !isOneOf(e.Name(), names) {
			continue
		}
		threads, _ := filepath.Glob("/proc/" + e.Name() + "/task/*/schedstat")
		for _, t := range threads {
			text, _ := os.ReadFile(t)
			var ns int64
			if _, err := fmt.Sscan(string(text), &ns); err == nil {
				sum += ns
			}
		}
	}
	return time.Duration(sum)
}

// isOneOf compares the name of a process, of which the kernel keeps 15 bytes.
func isOneOf(pid string, names []string) bool {
	comm, _ := os.ReadFile("/proc/" + pid + "/comm")
	for _, n := range names {
		if strings.TrimSpace(string(comm)) == n[:min(len(n), 15)] {
			return true
		}
	}
	return false
}
