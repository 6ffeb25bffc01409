package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	criclient "k8s.io/cri-client/pkg"

	"github.com/vitrine-runtime/vitrine/conformance/stage"
)

// furnish makes what a node has before its services start: an image in a registry, networks, units.
func (v *visit) furnish(ctx context.Context) (string, error) {
	if err := v.tearDown(ctx); err != nil { // of a run that was to stay
		return "", err
	}
	service, err := os.ReadFile(filepath.Join(home, daemonUnit))
	if err != nil {
		return "", err
	}
	if err := v.write(string(service)); err != nil {
		return "", err
	}
	if v.registry, err = stage.StartRegistry(); err != nil {
		return "", err
	}
	if _, _, err := stage.WriteImageConfig(config, v.registry.Addr()); err != nil {
		return "", err
	}
	img, err := stage.BusyboxImage("walk")
	if err != nil {
		return "", err
	}
	if _, err = v.registry.Push(ctx, image, "1", img); err != nil {
		return "", err
	}
	if _, err = systemctl(ctx, "daemon-reload"); err != nil {
		return "", err
	}
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	return "Linux " + strings.TrimSpace(string(release)) + ", registry on " + v.registry.Addr(), err
}

// startDaemon starts the service and asks it what the kubelet will ask: the driver.
func (v *visit) startDaemon(ctx context.Context) (string, error) {
	if _, err := systemctl(ctx, "start", daemonUnit); err != nil {
		return "", err
	}
	rs, err := criclient.NewRemoteRuntimeServiceBuilder().WithEndpoint("unix://" + socket).WithConnectionTimeout(time.Minute).Build(ctx)
	if err != nil {
		return "", err
	}
	defer func() { _ = rs.Close(ctx) }()
	version, err := rs.Version(ctx, "")
	if err != nil {
		return "", err
	}
	answer, err := rs.RuntimeConfig(ctx)
	if err != nil {
		return "", err
	}
	asked := v.driver
	v.driver = strings.ToLower(answer.GetLinux().GetCgroupDriver().String())
	if asked != "auto" && asked != v.driver {
		return "", fmt.Errorf("the driver is %s, and %s was asked for", v.driver, asked)
	}
	return fmt.Sprintf("%s %s, cgroup driver %s", version.RuntimeName, version.RuntimeVersion, v.driver), nil
}

func (v *visit) startKubelet(ctx context.Context) (string, error) {
	if _, err := systemctl(ctx, "start", kubeletUnit); err != nil {
		return "", err
	}
	if err := v.healthy(ctx); err != nil {
		return "", err
	}
	// It makes the cgroups of its QoS classes after it has said that it is healthy, and keeps them.
	err := until(ctx, 2*time.Minute, func() (err error) {
		if v.before, err = look(ctx); err != nil {
			return err
		}
		for _, what := range classTraces[v.driver] {
			if !v.before[what] {
				return errors.New("the kubelet has not made the " + what)
			}
		}
		return nil
	})
	return "healthy", err
}

// classTraces are what a kubelet leaves of its own, by cgroup driver.
var classTraces = map[string][]string{
	"systemd": {
		"cgroup kubepods.slice/kubepods-besteffort.slice", "cgroup kubepods.slice/kubepods-burstable.slice",
		"unit kubepods-besteffort.slice active", "unit kubepods-burstable.slice active", "unit kubepods.slice active",
	},
	"cgroupfs": {"cgroup kubepods/besteffort", "cgroup kubepods/burstable"},
}

// healthy waits until the kubelet says that it is, and answers /pods.
func (v *visit) healthy(ctx context.Context) error {
	return until(ctx, 2*time.Minute, func() error {
		code, text, err := get(ctx, http.DefaultClient, http.MethodGet, "http://127.0.0.1:10248/healthz", nil)
		if err != nil {
			if _, gone := mainPID(ctx, kubeletUnit); gone != nil {
				return gone
			}
			return err
		}
		if code != http.StatusOK {
			return fmt.Errorf("healthz answers %d: %s", code, text)
		}
		_, err = v.livePods(ctx)
		return err
	})
}

// ready places the manifests and waits for all pods at once.
func (v *visit) ready(ctx context.Context) (string, error) {
	begin := time.Now()
	for _, w := range v.pods {
		if err := w.place(stage.Host + "/" + image + ":1"); err != nil {
			return "", err
		}
	}
	took := map[string]time.Duration{}
	err := until(ctx, 5*time.Minute, func() error {
		live, err := v.livePods(ctx)
		if err != nil {
			return err
		}
		var not []error
		for _, w := range v.pods {
			p := live[w.name]
			if p == nil {
				not = append(not, fmt.Errorf("%s is not known", w.name))
			} else if err := p.isReady(); err != nil {
				not = append(not, err)
			} else if took[w.name] == 0 {
				took[w.name] = time.Since(begin)
			}
		}
		return errors.Join(not...)
	})
	var saw []string
	for _, w := range v.pods {
		saw = append(saw, fmt.Sprintf("%s after %.1f s", w.name, took[w.name].Seconds()))
	}
	return strings.Join(saw, ", "), err
}

// limits compares every container with what the kubelet wants for it, and takes note of the processes.
func (v *visit) limits(ctx context.Context) (string, error) {
	capacity, err := memory()
	if err != nil {
		return "", err
	}
	live, err := v.livePods(ctx)
	if err != nil {
		return "", err
	}
	var wrong []string
	files := 0
	for _, w := range v.pods {
		p := live[w.name]
		if p.Status.QOSClass != w.class {
			wrong = append(wrong, fmt.Sprintf("%s is %s", w.name, p.Status.QOSClass))
		}
		for _, name := range []string{"sidecar", "main", "log"} {
			c := p.container(name)
			path := v.cgroupOf(p, c.id())
			proc, err := first(path, c.id())
			if err != nil {
				wrong = append(wrong, err.Error())
				continue
			}
			want := w.expect(name, capacity)
			files += len(want)
			for _, diff := range compare(path, proc.pid, want) {
				wrong = append(wrong, w.name+"/"+name+": "+diff)
			}
		}
	}
	if len(wrong) > 0 {
		return "", errors.New(strings.Join(wrong, "\n    "))
	}
	v.ids, err = v.processes(ctx)
	return fmt.Sprintf("%d values of %d containers are the kubelet's", files, len(v.ids)), err
}

// reload lets systemd read its units again, at which it realises the cgroups that it knows anew. Those of the cgroupfs driver it does not know:
// what it then does to a hierarchy that it shares is not ours to promise. What has no property, memory.oom.group, it writes
// over, and the daemon puts it back a moment later (package cgroup): so a first look may find systemd's value, and says so.
func (v *visit) reload(ctx context.Context) (string, error) {
	if v.driver != "systemd" {
		return "not for this driver", nil
	}
	was := v.ids
	if _, err := systemctl(ctx, "daemon-reload"); err != nil {
		return "", err
	}
	began := time.Now()
	saw, err := v.limits(ctx)
	if first := err; first != nil && onlyOOMGroup(first) {
		for ; err != nil && onlyOOMGroup(err) && time.Since(began) < putBack; time.Sleep(50 * time.Millisecond) {
			saw, err = v.limits(ctx)
		}
		saw += fmt.Sprintf(" after %.1f s; at first: %v", time.Since(began).Seconds(), first)
	}
	v.ids = was
	return saw, errors.Join(err, v.untouched(ctx))
}

// onlyOOMGroup says whether nothing else is wrong than what systemd writes over for want of a property.
func onlyOOMGroup(wrong error) bool {
	for line := range strings.Lines(wrong.Error()) {
		if !strings.Contains(line, ": memory.oom.group is ") {
			return false
		}
	}
	return true
}

// putBack is how long the daemon has to put back what systemd wrote over, as in the tests of package cgroup.
const putBack = 2 * time.Second

// processes returns the first process of each container that runs.
func (v *visit) processes(ctx context.Context) (map[string]process, error) {
	live, err := v.livePods(ctx)
	if err != nil {
		return nil, err
	}
	found := map[string]process{}
	for _, w := range v.pods {
		p := live[w.name]
		if p == nil {
			return nil, fmt.Errorf("%s is not known", w.name)
		}
		for _, c := range p.containers() {
			if c.State.Running == nil {
				continue
			}
			proc, err := first(v.cgroupOf(p, c.id()), c.id())
			if err != nil {
				return nil, err
			}
			found[w.name+"/"+c.Name] = proc
		}
	}
	return found, nil
}

// untouched fails if a process is not the one that was noted, but for those named.
func (v *visit) untouched(ctx context.Context, but ...string) error {
	now, err := v.processes(ctx)
	if err != nil {
		return err
	}
	var wrong []error
	for name, was := range v.ids {
		if is := now[name]; is != was && !slices.Contains(but, name) {
			wrong = append(wrong, fmt.Errorf("%s was %+v and is %+v", name, was, is))
		}
	}
	return errors.Join(wrong...)
}
