package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	state   = "/var/lib/vitrine-walk" // of the kubelet and the pods; on the guest's disk
	config  = "/run/vitrine-walk"
	podLogs = state + "/logs"
	klDir   = state + "/kubelet"
	static  = config + "/manifests"
	socket  = "/run/vitrine/vitrine.sock"
	units   = "/run/systemd/system"

	daemonUnit  = "vitrine.service"
	kubeletUnit = "vitrine-walk-kubelet.service"
	nodeName    = "walk"
)

// node is the machine with its two services.
type node struct {
	driver   string // of cgroups: what the daemon was told, and after its start what it says
	criStats bool   // the kubelet takes all statistics from the runtime
}

// daemonDropIn adapts the unit that we ship (contrib/systemd) to where the binaries are here.
const daemonDropIn = `[Service]
ExecStart=
ExecStart=%[1]s/vitrine serve --log-level 2 --cgroup-driver %[2]s --cni-conf-dir %[3]s/net.d --cni-bin-dir %[1]s/cni --registries-conf %[3]s/registries.conf --policy %[3]s/policy.json
`

// kubeletService is the kubelet's unit.
//
// Two dead containers of each name are kept, not one: the collector counts one that is created and not started as a dead one, and takes the one
// before it, whose end the walk looks at.
const kubeletService = `[Unit]
Description=A standalone kubelet on Vitrine
After=vitrine.service
[Service]
ExecStart=%[1]s/kubelet --config=%[2]s/kubelet.yaml --root-dir=%[3]s --cert-dir=%[3]s/pki --hostname-override=%[4]s --maximum-dead-containers-per-container=2 --v=2
KillMode=process
Restart=no
`

// kubeletConfig is a node without an API server. What is not a path or a port is here because a trial must be quick (frequencies), because
// the guest is small (eviction, image garbage), or because it is looked at: the memory policy makes the kubelet send memory.min, low and high.
const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://%[1]s
staticPodPath: %[2]s
podLogsDir: %[3]s
resolvConf: %[4]s/resolv.conf
address: 127.0.0.1
readOnlyPort: 10255
healthzBindAddress: 127.0.0.1
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
failSwapOn: false
fileCheckFrequency: 2s
syncFrequency: 5s
evictionHard: {memory.available: "50Mi", nodefs.available: "1%%", imagefs.available: "1%%"}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
makeIPTablesUtilChains: false
enableControllerAttachDetach: false
memoryReservationPolicy: TieredReservation
memoryThrottlingFactor: 0.9
featureGates: {PodAndContainerStatsFromCRI: %[5]t}
`

// network is a bridge with addresses by host-local; nothing leaves the machine.
const network = `{"cniVersion": "1.1.0", "name": "walk", "plugins": [{"type": "bridge", "bridge": "vitrine0", "isGateway": true,
 "ipam": {"type": "host-local", "dataDir": "` + config + `/ipam", "ranges": [[{"subnet": "10.86.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
`

// write writes everything that the two services read.
func (n *node) write(service string) error {
	for _, d := range []string{static, podLogs, klDir, config + "/net.d", units + "/" + daemonUnit + ".d"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	files := map[string]string{
		units + "/" + daemonUnit:                   service,
		units + "/" + daemonUnit + ".d/walk.conf":  fmt.Sprintf(daemonDropIn, home, n.driver, config),
		units + "/" + kubeletUnit:                  fmt.Sprintf(kubeletService, home, config, klDir, nodeName),
		config + "/kubelet.yaml":                   fmt.Sprintf(kubeletConfig, socket, static, podLogs, config, n.criStats),
		config + "/resolv.conf":                    "nameserver 10.86.0.1\n",
		filepath.Join(config, "net.d/10.conflist"): network,
	}
	for path, text := range files {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// systemctl runs one verb.
func systemctl(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, "systemctl", args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("systemctl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return strings.TrimSpace(string(out)), err
}

// mainPID returns a service's main process.
func mainPID(ctx context.Context, unit string) (int, error) {
	text, err := systemctl(ctx, "show", "-P", "MainPID", unit)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(text)
	if err == nil && pid == 0 {
		err = fmt.Errorf("%s is not running", unit)
	}
	return pid, err
}

// journal returns the last lines that a unit wrote.
func journal(ctx context.Context, unit string, lines int) string {
	out, err := exec.CommandContext(ctx, "journalctl", "--no-pager", "-o", "cat", "-u", unit, "-n", strconv.Itoa(lines)).CombinedOutput()
	if err != nil {
		return err.Error()
	}
	return string(out)
}

// until asks again and again whether something holds. What it still lacks when the time is over is the error.
func until(ctx context.Context, most time.Duration, holds func() error) error {
	deadline := time.Now().Add(most)
	for {
		err := holds()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not within %v: %w", most, err)
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// tearDown ends both services and whatever a failed run left running, and removes our files.
func (v *visit) tearDown(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if _, err := os.Stat(units + "/" + kubeletUnit); err != nil {
		return nil //nolint:nilerr // nothing was set up
	}
	_, err := systemctl(ctx, "stop", kubeletUnit)
	if daemonErr := v.removePods(ctx); daemonErr != nil {
		err = errors.Join(err, daemonErr)
	}
	_, stopErr := systemctl(ctx, "stop", daemonUnit)
	err = errors.Join(err, stopErr)
	if v.registry != nil {
		err = errors.Join(err, v.registry.Close())
	}
	for _, p := range []string{units + "/" + daemonUnit, units + "/" + daemonUnit + ".d", units + "/" + kubeletUnit, config, state} {
		err = errors.Join(err, os.RemoveAll(p))
	}
	_, reloadErr := systemctl(ctx, "daemon-reload")
	return errors.Join(err, reloadErr)
}
