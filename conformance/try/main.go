// Command try is the first thing that a newcomer runs: `make try`. In surroundings of its own (see conformance/stage)
// it starts the daemon, pulls an image from a loopback registry, runs a pod of two containers, lets them talk to each
// other and to the host, shows what can be seen from outside of the glass, removes everything, and looks for what was
// left. Its exit status is 0 only if nothing was.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/conformance/stage"
)

func main() {
	place, err := stage.Enter()
	if err != nil {
		fmt.Fprintln(os.Stderr, "make try:", err)
		fmt.Fprintln(os.Stderr, adviceToEnter(err))
		os.Exit(1)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	ctx, cancelTime := context.WithTimeout(ctx, 3*time.Minute)
	defer cancelTime()

	v := &visit{Stage: place, screen: newScreen(os.Stdout)}
	err = v.all(ctx)
	v.screen.stop()
	if err != nil {
		v.fail(err)
		os.Exit(1)
	}
}

// adviceToEnter says what to do when the surroundings cannot be made.
func adviceToEnter(err error) string {
	switch {
	case errors.Is(err, stage.ErrNotRoot):
		return "Namespaces and cgroups are made by root: run  sudo make try"
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EROFS), errors.Is(err, syscall.EACCES):
		return "Root here may not do what a container runtime does. Inside a container, that container has to be privileged\n" +
			"and needs a writable cgroup2 at /sys/fs/cgroup; a virtual machine is simpler."
	}
	return "The kernel must be 6.1 or newer, with cgroup2, overlayfs, bridge and veth."
}

// visit is one run through the whole path.
type visit struct {
	*stage.Stage
	screen *screen
	cri    *stage.Client
	ref    string
	pod    *runtimeapi.PodSandboxConfig
	podID  string
	ip     string
	before stage.Traces
	advice string // what to do if the current step fails
}

// all is the visit from nothing to nothing. What was made is removed even if something failed on the way.
func (v *visit) all(ctx context.Context) error {
	v.screen.title("Vitrine runs a pod")
	if err := v.open(ctx); err != nil {
		return errors.Join(err, v.Close())
	}
	var web, side string
	err := v.runPod(ctx)
	if err == nil {
		web, side, err = v.runContainers(ctx)
	}
	if err == nil {
		err = v.look(ctx, web, side)
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	return errors.Join(err, v.remove(undo))
}

// open brings up what a node has before any pod: registry, daemon, image.
func (v *visit) open(ctx context.Context) error {
	v.screen.did("surroundings", "private mount, PID, network, IPC and cgroup namespaces; the host sees none of this")
	if missing := stage.MissingControllers(); len(missing) > 0 {
		v.screen.note("this cgroup2 has no %v controller: limits would not be enforced, and the daemon is told to accept that", missing)
	}
	v.advice = "Run make deps, then make try again."
	v.screen.doing("registry")
	ref, img, err := v.SeedBusybox(ctx, "hello/busybox", "1")
	if err != nil {
		return fmt.Errorf("seed the registry: %w", err)
	}
	v.ref = ref
	v.screen.did("registry", "%s, an image of %d blobs made on the spot", v.Registry.Addr(), len(img.Blobs))

	v.advice = "The daemon's own words are above. Run make build, then make try again."
	v.screen.doing("daemon")
	d, err := v.StartDaemon(ctx)
	if err != nil {
		return err
	}
	if v.cri, err = v.Connect(ctx); err != nil {
		return err
	}
	version, err := v.cri.Version(ctx, "")
	if err != nil {
		return err
	}
	v.screen.did("daemon", "%s %s, CRI %s, pid %d, %s", version.RuntimeName, version.RuntimeVersion, version.RuntimeApiVersion, d.Pid(), v.Socket)

	v.screen.doing("image")
	begin := time.Now()
	id, err := v.cri.Pull(ctx, ref)
	if err != nil {
		return fmt.Errorf("pull %s: %w", ref, err)
	}
	v.screen.did("image", "%s in %s, %s", ref, since(begin), short(id))
	v.before = v.TracesAtRest()
	return nil
}

// runPod runs the sandbox.
func (v *visit) runPod(ctx context.Context) error {
	v.advice = "CNI made the network with the plugins in bin/cni: run make cni-plugins, and see that the kernel has bridge and veth."
	v.screen.doing("pod")
	cfg, err := v.PodConfig("hello")
	if err != nil {
		return err
	}
	v.pod = cfg
	begin := time.Now()
	if v.podID, err = v.cri.RunPodSandbox(ctx, cfg, ""); err != nil {
		return fmt.Errorf("run pod: %w", err)
	}
	took := since(begin)
	st, err := v.cri.PodSandboxStatus(ctx, v.podID, false)
	if err != nil {
		return err
	}
	v.ip = st.GetStatus().GetNetwork().GetIp()
	if v.ip == "" {
		return errors.New("the pod has no address")
	}
	v.screen.did("pod", "%s in %s, IP %s", short(v.podID), took, v.ip)
	return nil
}

// runContainers creates and starts the two containers.
func (v *visit) runContainers(ctx context.Context) (web, side string, err error) {
	v.advice = ""
	start := func(name, script string) (string, error) {
		v.screen.doing(name)
		begin := time.Now()
		id, err := v.cri.CreateContainer(ctx, v.podID, stage.ContainerConfig(name, v.ref, "/bin/sh", "-c", script), v.pod)
		if err != nil {
			return "", fmt.Errorf("create %s: %w", name, err)
		}
		created := since(begin)
		begin = time.Now()
		if err := v.cri.StartContainer(ctx, id); err != nil {
			return "", fmt.Errorf("start %s: %w", name, err)
		}
		v.screen.did(name, "%s created in %s, started in %s", short(id), created, since(begin))
		return id, nil
	}
	web, err = start("web", "mkdir /tmp/www && echo hello from web > /tmp/www/index.html && echo web serves port 8080 && exec httpd -f -p 8080 -h /tmp/www")
	if err != nil {
		return "", "", err
	}
	side, err = start("side", `i=0; while [ $i -lt 25 ] && ! wget -q -O /tmp/answer http://127.0.0.1:8080/; do i=$((i+1)); sleep 0.1; done
echo "over localhost, web says: $(cat /tmp/answer)"; echo "this line is for stderr" >&2; exec sleep 1000`)
	return web, side, err
}

// remove takes everything away and looks for what is left. It also runs after a failure.
func (v *visit) remove(ctx context.Context) error {
	v.screen.title("Everything is removed again")
	v.screen.doing("pod")
	begin := time.Now()
	var errs []error
	if v.podID != "" {
		errs = append(errs, v.cri.StopPodSandbox(ctx, v.podID), v.cri.RemovePodSandbox(ctx, v.podID))
	}
	if v.pod != nil {
		errs = append(errs, v.Forget(v.pod))
	}
	if err := errors.Join(errs...); err != nil {
		return errors.Join(fmt.Errorf("remove pod: %w", err), v.Close())
	}
	v.screen.did("pod", "stopped and removed in %s", since(begin))
	if err := v.cri.Close(ctx); err != nil {
		return errors.Join(err, v.Close())
	}
	v.screen.doing("leaks")
	if left := v.Settle(v.before); len(left) > 0 {
		for _, l := range left {
			v.screen.note("left behind: %s", l)
		}
		return errors.Join(fmt.Errorf("%d things were left behind", len(left)), v.Close())
	}
	v.screen.did("nothing left", "processes, mounts, network namespaces, veths, IPAM entries, CNI results, cgroups, files, descriptors: all as before the pod")
	if err := v.Close(); err != nil {
		return fmt.Errorf("stop daemon: %w", err)
	}
	v.screen.did("daemon", "stopped")
	return nil
}

// fail says what went wrong, what the daemon said, and what to do.
func (v *visit) fail(err error) {
	v.screen.failed(err)
	if d := v.Daemon(); d != nil {
		if tail := d.Tail(15); tail != "" {
			fmt.Fprintf(os.Stderr, "\nThe daemon's last lines:\n%s\n", tail)
		}
	}
	if v.advice == "" {
		v.advice = "This should not happen: please open an issue with the output above and that of uname -a."
	}
	fmt.Fprintf(os.Stderr, "\nWhat to do: %s\n", v.advice)
}

// short cuts an id to what people compare.
func short(id string) string {
	const prefix = "sha256:"
	if len(id) > len(prefix) && id[:len(prefix)] == prefix {
		id = id[len(prefix):]
	}
	return id[:min(12, len(id))]
}

// since returns the time passed in milliseconds.
func since(begin time.Time) string {
	return fmt.Sprintf("%.1f ms", float64(time.Since(begin).Microseconds())/1000)
}
