package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/conformance/stage"
)

// statsBench measures the statistics of many containers, ours and containerd's, one call of each in turn.
type statsBench struct {
	meter   meter
	count   int
	parties []*party
}

// held are the pods of a party.
type held struct {
	pods []*runtimeapi.PodSandboxConfig
	ids  []string
}

// statsVerbs are what is measured.
var statsVerbs = []string{"ListContainerStats", "ListPodSandboxStats", "ListContainers"}

func runStats(ctx context.Context, place *stage.Stage, rounds, count int, peers []peer) (err error) {
	parties, stop, err := gather(ctx, place, peers)
	defer func() { err = errors.Join(err, stop()) }()
	if err != nil {
		return err
	}
	b := &statsBench{count: count, parties: parties}
	if err = beginMeter(); err != nil {
		return err
	}
	return b.run(ctx, rounds)
}

// run starts each party's pods, measures and prints, and takes the pods away.
func (b *statsBench) run(ctx context.Context, rounds int) (err error) {
	var all []*held
	defer func() {
		for i, h := range all {
			err = errors.Join(err, h.leave(ctx, b.parties[i]))
		}
	}()
	for _, p := range b.parties {
		h := &held{}
		all = append(all, h)
		for i := range b.count {
			if err := h.add(ctx, p, fmt.Sprintf("%s-%d", p.name, i)); err != nil {
				return fmt.Errorf("%s, pod %d: %w", p.name, i, err)
			}
		}
	}
	if err := b.measure(ctx, rounds); err != nil {
		return err
	}
	b.print()
	return nil
}

// add starts a pod. It uses the host's network: statistics of containers know none, and setting up hundreds of interfaces
// would take longer than all of this.
func (h *held) add(ctx context.Context, p *party, name string) error {
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
	h.pods, h.ids = append(h.pods, cfg), append(h.ids, id)
	c := stage.ContainerConfig("c", p.ref, "/bin/sleep", "100000")
	c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	ctr, err := p.cri.CreateContainer(ctx, id, c, cfg)
	if err != nil {
		return err
	}
	return p.cri.StartContainer(ctx, ctr)
}

// leave removes the pods. What others leave in the pods' cgroups is their affair.
func (h *held) leave(ctx context.Context, p *party) error {
	var errs []error
	for i, id := range h.ids {
		errs = append(errs, p.cri.StopPodSandbox(ctx, id), p.cri.RemovePodSandbox(ctx, id))
		if p.ours {
			errs = append(errs, p.place.Forget(h.pods[i]))
		}
	}
	return errors.Join(append(errs, p.cri.Close(ctx))...)
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
				cpu := b.meter.used()
				begin := time.Now()
				if err := p.call(ctx, verb, b.count); err != nil {
					return err
				}
				wall := time.Since(begin)
				if i >= warmUp {
					p.note(verb, wall, b.meter.used()-cpu)
				}
			}
		}
	}
	return nil
}

func (b *statsBench) print() {
	fmt.Printf("statistics of %d pods of one container, %d rounds, interleaved, load %s\n\n", b.count, len(b.parties[0].wall[statsVerbs[0]]), loadAverage())
	printRows(b.parties, statsVerbs)
	for _, p := range b.parties {
		fmt.Printf("%-11s %s\n", p.name, p.version)
	}
	fmt.Println()
	for _, verb := range statsVerbs {
		goal := 0.0
		if verb == "ListContainerStats" {
			goal = 0.1
		}
		printRatios(b.parties, verb, goal)
	}
}
