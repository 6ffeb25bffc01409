// Command bench measures the start of a container in a pod, from the CRI request to the running process, beside
// crun starting the same container from the same root filesystem and OCI spec, in one interleaved run: one of ours, one
// of crun's, and so on, so that whatever else the machine does falls on both. It prints medians, the CPU time beside
// the wall time, and their ratio.
//
//	vitrine   CreateContainer + StartContainer over the socket, mounting the image's layers included
//	crun run  create and start of a bundle whose root filesystem is there already, until the process runs (--detach);
//	          once with a cgroup of its own, and once without any, which spares it the kernel's move of a process
//
// All join the pod's network, ipc and uts namespaces.
//
// As "bench stats" it measures instead what the statistics of many containers cost, beside containerd where that is
// given, also interleaved. As "bench image" it measures pulls of a large image beside containerd and skopeo, and the time
// until a container's root is mounted beside the bare system calls. As "bench cri" it measures lives of pods beside the
// containerd that is given and that of the distribution, and then their statistics.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/conformance/stage"
	"github.com/vitrine-runtime/vitrine/image"
)

func main() {
	if image.Init() { // unpacks a layer, and is a child
		return
	}
	rounds := flag.Int("rounds", 60, "how often each is measured")
	count := flag.Int("containers", 100, "stats, cri: how many containers")
	dir := flag.String("containerd", "", "stats, image, cri: directory of a containerd 2 and its shim, to be measured beside")
	crun := flag.String("crun", "crun", "stats, cri: the OCI runtime of that containerd")
	size := flag.Int("mb", 700, "image: size of its layers, unpacked")
	flag.Parse()
	place, err := stage.Enter()
	if err != nil {
		fmt.Fprintln(os.Stderr, "make bench:", err)
		os.Exit(1)
	}
	var peers []peer
	if *dir != "" {
		peers = append(peers, peer{name: givenPeer, bin: *dir, crun: *crun})
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	switch flag.Arg(0) {
	case "":
		err = (&bench{Stage: place}).run(ctx, *rounds)
	case "stats":
		err = runStats(ctx, place, *rounds, *count, peers)
	case "cri":
		err = runCRI(ctx, place, *rounds, *count, append(peers, installed()...))
	case "image":
		err = runImage(ctx, place, *rounds, *size, *dir)
	default:
		err = fmt.Errorf("unknown mode %q", flag.Arg(0))
	}
	err = errors.Join(err, place.Close())
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is one run: a pod, and a bundle for crun that joins it.
type bench struct {
	*stage.Stage
	cri   *stage.Client
	ref   string
	pod   *runtimeapi.PodSandboxConfig
	podID string
	crun  *crun

	create, start, ours samples
	ourCPU              time.Duration
	theirs              [2]samples // by crunManagers
	theirCPU            [2]time.Duration
}

func (b *bench) run(ctx context.Context, rounds int) error {
	if err := b.open(ctx); err != nil {
		return err
	}
	const warmUp = 3
	for i := range rounds + warmUp {
		if i == warmUp {
			b.create, b.start, b.ours, b.ourCPU = nil, nil, nil, 0
			b.theirs, b.theirCPU = [2]samples{}, [2]time.Duration{}
		}
		if err := b.oneOfOurs(ctx, i); err != nil {
			return fmt.Errorf("vitrine, round %d: %w", i, err)
		}
		for j, manager := range crunManagers {
			wall, cpu, err := b.crun.once(manager, fmt.Sprintf("bench-%d-%s", i, manager))
			if err != nil {
				return fmt.Errorf("crun, round %d: %w", i, err)
			}
			b.theirs[j], b.theirCPU[j] = append(b.theirs[j], wall), b.theirCPU[j]+cpu
		}
	}
	b.print()
	return b.close(ctx)
}

// open starts the daemon and the pod, and makes the bundle out of a first container's OCI spec.
func (b *bench) open(ctx context.Context) error {
	if _, err := b.StartDaemon(ctx); err != nil {
		return err
	}
	ref, img, err := b.SeedBusybox(ctx, "bench/busybox", "1")
	if err != nil {
		return err
	}
	b.ref = ref
	if b.cri, err = b.Connect(ctx); err != nil {
		return err
	}
	if _, err := b.cri.Pull(ctx, ref); err != nil {
		return err
	}
	if b.pod, err = b.PodConfig("bench"); err != nil {
		return err
	}
	if b.podID, err = b.cri.RunPodSandbox(ctx, b.pod, ""); err != nil {
		return err
	}
	id, err := b.cri.CreateContainer(ctx, b.podID, b.config("model"), b.pod)
	if err != nil {
		return err
	}
	if err := b.cri.StartContainer(ctx, id); err != nil {
		return err
	}
	b.crun, err = newCrun(b.Scratch+"/bundle", b.RunDir+"/pods/"+b.podID+"/"+id+"/config.json", "/sys/fs/cgroup"+b.pod.Linux.CgroupParent, id, img)
	return err
}

func (b *bench) config(name string) *runtimeapi.ContainerConfig {
	return stage.ContainerConfig(name, b.ref, "/bin/sleep", "1000")
}

// oneOfOurs starts one container and takes it away again; only the first is timed.
func (b *bench) oneOfOurs(ctx context.Context, i int) error {
	cfg := b.config(fmt.Sprintf("c%d", i))
	cpu := runtimeCPU(b.Daemon().Pid())
	begin := time.Now()
	id, err := b.cri.CreateContainer(ctx, b.podID, cfg, b.pod)
	if err != nil {
		return err
	}
	created := time.Now()
	if err := b.cri.StartContainer(ctx, id); err != nil {
		return err
	}
	started := time.Now()
	b.ourCPU += runtimeCPU(b.Daemon().Pid()) - cpu
	b.create, b.start, b.ours = append(b.create, created.Sub(begin)), append(b.start, started.Sub(created)), append(b.ours, started.Sub(begin))
	return errors.Join(b.cri.StopContainer(ctx, id, 0), b.cri.RemoveContainer(ctx, id))
}

// print prints the table. The ratio is of the medians.
func (b *bench) print() {
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	n := len(b.ours)
	fmt.Printf("start of a container in a pod, %d rounds, interleaved\n\n%-36s %9s %9s %9s %9s\n", n, "", "median", "p10", "p95", "cpu")
	row := func(name string, s samples, cpu time.Duration) {
		text := ""
		if cpu > 0 {
			text = fmt.Sprintf("%9.2f", ms(cpu/time.Duration(n)))
		}
		fmt.Printf("%-36s %9.2f %9.2f %9.2f %s\n", name, ms(s.quantile(0.5)), ms(s.quantile(0.1)), ms(s.quantile(0.95)), text)
	}
	row("vitrine  CRI request to process", b.ours, b.ourCPU)
	row("         of which CreateContainer", b.create, 0)
	row("         of which StartContainer", b.start, 0)
	row("crun     run --detach", b.theirs[0], b.theirCPU[0])
	row("         without a cgroup", b.theirs[1], b.theirCPU[1])
	fmt.Printf("\nmilliseconds; cpu is the mean of daemon, monitor and children, and of crun and its children\n%s\n", b.crun.version)
	for j, manager := range crunManagers {
		fmt.Printf("vitrine / crun (cgroup manager %s): %.2fx wall, %.2fx cpu\n", manager,
			float64(b.ours.quantile(0.5))/float64(b.theirs[j].quantile(0.5)), float64(b.ourCPU)/float64(b.theirCPU[j]))
	}
}

// close removes the pod.
func (b *bench) close(ctx context.Context) error {
	return errors.Join(b.cri.StopPodSandbox(ctx, b.podID), b.cri.RemovePodSandbox(ctx, b.podID), b.Forget(b.pod), b.cri.Close(ctx))
}
