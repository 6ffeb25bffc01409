// Command kubelet tries the daemon under a real kubelet, in the virtual machine: a standalone kubelet, built from the
// modules that the file tool/go.mod beside this names, runs static pods through Vitrine, and each step looks at what came of it in the
// kernel of the guest. The first thing that does not hold ends the run with exit status 1.
//
//	host                              guest
//	make vm-kubelet                   kubelet-walk inside
//	  kubelet-walk carries ---------->  registry on loopback, vitrine.service, kubelet.service, pods
//	  binaries into /opt/vitrine-walk   reads /proc, /sys/fs/cgroup, ports 10250 and 10255
//
// Run it with -keep to look around afterwards.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// wholeRun bounds a run; it takes some three minutes in an emulated guest.
const wholeRun = 20 * time.Minute

func main() {
	inside := flag.Bool("inside", false, "this is the guest: run the steps")
	keep := flag.Bool("keep", false, "leave everything running at the end")
	driver := flag.String("driver", "auto", "cgroup driver of the daemon: auto, systemd or cgroupfs")
	criStats := flag.Bool("cri-stats", false, "switch the kubelet's gate PodAndContainerStatsFromCRI on: no cAdvisor for containers")
	vm := flag.String("vm", "bin/dev/vm", "the command of the virtual machine, with its flags")
	bin := flag.String("bin", "bin", "directory of vitrine, vitrine-oci and cni/")
	kubelet := flag.String("kubelet", "", "the kubelet to try")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, wholeRun)
	defer cancel()
	var err error
	if *inside {
		err = walk(ctx, node{driver: *driver, criStats: *criStats}, *keep)
	} else {
		err = carry(ctx, *vm, *bin, *kubelet, []string{"-inside", fmt.Sprintf("-keep=%v", *keep), fmt.Sprintf("-cri-stats=%v", *criStats), "-driver", *driver})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "kubelet-walk:", err)
		os.Exit(1)
	}
}
