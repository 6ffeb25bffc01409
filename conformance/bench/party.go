package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"time"

	"github.com/vitrine-runtime/vitrine/conformance/stage"
)

// party is one runtime on the stage that is measured beside others, ours first. All have the same image, from the same
// registry.
type party struct {
	name, version string
	ours          bool
	place         *stage.Stage // for its socket
	cri           *stage.Client
	ref           string // of busybox

	wall, cpu map[string]samples // by what was measured
}

// peer is a containerd that is to be measured beside ours.
type peer struct {
	name string
	bin  string // directory of the daemon and its shim; else they are found by PATH
	crun string
}

// givenPeer is the name of the containerd that is given, built by whoever runs this.
const givenPeer = "containerd"

// gather starts our daemon and the peers', and connects to them. The peers' daemons are stopped by what it returns.
func gather(ctx context.Context, place *stage.Stage, peers []peer) (parties []*party, stop func() error, err error) {
	var daemons []*containerd
	stop = func() error {
		var errs []error
		for _, d := range daemons {
			errs = append(errs, d.stop())
		}
		return errors.Join(errs...)
	}
	if len(peers) > 0 {
		if err := hideState(place); err != nil {
			return nil, stop, err
		}
	}
	if _, err := place.StartDaemon(ctx); err != nil {
		return nil, stop, err
	}
	parties = []*party{{name: "vitrine", ours: true, place: place}}
	for _, p := range peers {
		d, err := startContainerd(ctx, place, p)
		if err != nil {
			return nil, stop, fmt.Errorf("%s: %w", p.name, err)
		}
		daemons = append(daemons, d)
		other := *place
		other.Socket = d.socket
		parties = append(parties, &party{name: p.name, place: &other})
	}
	for i, p := range parties {
		if err := p.connect(ctx); err != nil {
			if !p.ours {
				err = fmt.Errorf("%w\n%s", err, daemons[i-1].tail())
			}
			return nil, stop, fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return parties, stop, nil
}

// connect asks for the version, and pulls the image.
func (p *party) connect(ctx context.Context) (err error) {
	p.wall, p.cpu = map[string]samples{}, map[string]samples{}
	if p.ref, _, err = p.place.SeedBusybox(ctx, "bench/busybox", "1"); err != nil {
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
	_, err = p.cri.Pull(ctx, p.ref)
	return err
}

// note keeps one measurement.
func (p *party) note(what string, wall, cpu time.Duration) {
	p.wall[what], p.cpu[what] = append(p.wall[what], wall), append(p.cpu[what], cpu)
}

// forget drops what was measured so far.
func (p *party) forget() { clear(p.wall); clear(p.cpu) }

// installed returns the containerd and the crun of the distribution, where it has both.
func installed() []peer {
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "crun"} {
		if _, err := exec.LookPath(name); err != nil {
			fmt.Printf("%s is not installed: the distribution's containerd is not measured\n", name)
			return nil
		}
	}
	return []peer{{name: "installed", crun: "crun"}}
}

// printRows prints a row for each party and each thing measured.
func printRows(parties []*party, rows []string) {
	fmt.Printf("%-36s %9s %9s %9s %9s %9s\n", "", "median", "p10", "p95", "p99", "cpu")
	for _, what := range rows {
		for _, p := range parties {
			w := p.wall[what]
			fmt.Printf("%-24s %-11s %9.2f %9.2f %9.2f %9.2f %9.2f\n", what, p.name, millis(w.quantile(0.5)), millis(w.quantile(0.1)),
				millis(w.quantile(0.95)), millis(w.quantile(0.99)), millis(p.cpu[what].quantile(0.5)))
		}
	}
	fmt.Println("\nmilliseconds; cpu is the median of what all processes but the benchmark's own used, by the kernel's count for their cgroups")
}

// printRatios prints our medians by each peer's. A goal is for the containerd that was given.
func printRatios(parties []*party, what string, goal float64) {
	for _, p := range parties[1:] {
		ours := parties[0]
		wall := float64(ours.wall[what].quantile(0.5)) / float64(p.wall[what].quantile(0.5))
		cpu := float64(ours.cpu[what].quantile(0.5)) / float64(p.cpu[what].quantile(0.5))
		verdict := ""
		if goal > 0 && p.name == givenPeer {
			verdict = fmt.Sprintf("   goal %.2fx   %s", goal, map[bool]string{true: "met", false: "MISSED"}[wall <= goal])
		}
		fmt.Printf("%-24s vitrine / %-11s %.3fx wall, %.3fx cpu%s\n", what, p.name, wall, cpu, verdict)
	}
}
