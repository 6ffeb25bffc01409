package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/conformance/stage"
)

// criBench measures the life of a pod with one container by the CRI: ours, containerd's and, where it is installed, the
// distribution's containerd's, one life of each in turn. All use the same CNI plugins and the same network.
type criBench struct {
	meter   meter
	parties []*party
}

// What is measured of a life, in sums of requests.
const (
	podStart = "pod start"
	execSync = "ExecSync"
	podEnd   = "stop + remove"
	wholeCRI = "all, and what follows"
)

// criRows are what is printed: the sums, and the requests below them.
var criRows = []string{
	podStart, "  RunPodSandbox", "  CreateContainer", "  StartContainer", execSync,
	podEnd, "  StopContainer", "  StopPodSandbox", "  RemoveContainer", "  RemovePodSandbox", wholeCRI,
}

// runCRI measures lives, and then the statistics of many containers.
func runCRI(ctx context.Context, place *stage.Stage, rounds, count int, peers []peer) (err error) {
	back, err := onDisk(place)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, back()) }()
	b := &criBench{}
	parties, stop, err := gather(ctx, place, peers)
	defer func() { err = errors.Join(err, stop()) }()
	if err != nil {
		return err
	}
	b.parties = parties
	if err = beginMeter(); err != nil {
		return err
	}
	if err := b.measure(ctx, rounds); err != nil {
		return err
	}
	b.print()
	stats := &statsBench{meter: b.meter, count: count, parties: parties}
	return stats.run(ctx, rounds)
}

// measure lives through pods, the first of each round being another party's each time.
func (b *criBench) measure(ctx context.Context, rounds int) error {
	const warmUp = 3
	for i := range rounds + warmUp {
		for j := range b.parties {
			p := b.parties[(i+j)%len(b.parties)]
			if i == warmUp {
				p.forget()
			}
			if err := b.life(ctx, p, fmt.Sprintf("life-%d", i)); err != nil {
				return fmt.Errorf("%s, round %d: %w", p.name, i, err)
			}
		}
	}
	return nil
}

// life runs a pod from nothing to nothing. What a runtime still does behind its last answer is counted for a while.
func (b *criBench) life(ctx context.Context, p *party, name string) error {
	cfg, err := p.place.PodConfig(name)
	if err != nil {
		return err
	}
	cpu, begin := b.meter.used(), time.Now()
	if err := b.requests(ctx, p, cfg); err != nil {
		return err
	}
	wall := time.Since(begin)
	time.Sleep(100 * time.Millisecond)
	p.note(wholeCRI, wall, b.meter.used()-cpu)
	if err := p.place.Forget(cfg); err != nil && p.ours {
		return err
	}
	return nil
}

func (b *criBench) requests(ctx context.Context, p *party, cfg *runtimeapi.PodSandboxConfig) (err error) {
	var pod, ctr string
	err = b.sum(p, podStart,
		step{"RunPodSandbox", func() error { pod, err = p.cri.RunPodSandbox(ctx, cfg, ""); return err }},
		step{"CreateContainer", func() error {
			ctr, err = p.cri.CreateContainer(ctx, pod, stage.ContainerConfig("c", p.ref, "/bin/sleep", "100000"), cfg)
			return err
		}},
		step{"StartContainer", func() error { return p.cri.StartContainer(ctx, ctr) }})
	if err != nil {
		return err
	}
	for range 3 {
		if err := b.exec(ctx, p, ctr); err != nil {
			return err
		}
	}
	return b.sum(p, podEnd,
		step{"StopContainer", func() error { return p.cri.StopContainer(ctx, ctr, 0) }},
		step{"StopPodSandbox", func() error { return p.cri.StopPodSandbox(ctx, pod) }},
		step{"RemoveContainer", func() error { return p.cri.RemoveContainer(ctx, ctr) }},
		step{"RemovePodSandbox", func() error { return p.cri.RemovePodSandbox(ctx, pod) }})
}

// exec asks for a program that says something, and checks that it did.
func (b *criBench) exec(ctx context.Context, p *party, ctr string) error {
	cpu, begin := b.meter.used(), time.Now()
	out, _, err := p.cri.ExecSync(ctx, ctr, []string{"/bin/echo", "here"}, 10*time.Second)
	wall := time.Since(begin)
	p.note(execSync, wall, b.meter.used()-cpu)
	if err == nil && string(out) != "here\n" {
		err = fmt.Errorf("ExecSync says %q", out)
	}
	return err
}

// step is one request.
type step struct {
	name string
	call func() error
}

// sum makes requests one after the other, and notes each of them and their sum.
func (b *criBench) sum(p *party, name string, steps ...step) error {
	first, begin := b.meter.used(), time.Now()
	cpu, last := first, begin
	for _, s := range steps {
		if err := s.call(); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		now, used := time.Now(), b.meter.used()
		p.note("  "+s.name, now.Sub(last), used-cpu)
		cpu, last = used, time.Now()
	}
	p.note(name, last.Sub(begin), cpu-first)
	return nil
}

func (b *criBench) print() {
	fmt.Printf("life of a pod with one container, %d rounds, interleaved, load %s\n\n", len(b.parties[0].wall[podStart]), loadAverage())
	printRows(b.parties, criRows)
	for _, p := range b.parties {
		fmt.Printf("%-11s %s\n", p.name, p.version)
	}
	fmt.Println()
	printRatios(b.parties, podStart, 0.25)
	printRatios(b.parties, execSync, 0.25)
	printRatios(b.parties, podEnd, 0.5)
	printRatios(b.parties, wholeCRI, 0)
	fmt.Println()
}
