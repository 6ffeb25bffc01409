package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"sort"
	"strings"
	"time"

	criclient "k8s.io/cri-client/pkg"
)

// removal takes the manifests away and waits until the node is as it was before them. The kubelet collects what
// is left of dead containers once a minute.
func (v *visit) removal(ctx context.Context) (string, error) {
	begin := time.Now()
	for _, w := range v.pods {
		if err := os.Remove(w.manifest()); err != nil {
			return "", err
		}
	}
	var dead time.Duration
	err := until(ctx, 4*time.Minute, func() error {
		now, err := look(ctx)
		if err != nil {
			return err
		}
		left := now.since(v.before)
		if dead == 0 && !slices.ContainsFunc(left, func(s string) bool { return strings.HasPrefix(s, "process ") }) {
			dead = time.Since(begin)
		}
		if len(left) > 0 {
			return errors.New("left:\n    " + strings.Join(left, "\n    "))
		}
		return nil
	})
	return fmt.Sprintf("no process after %.1f s, nothing at all after %.1f s", dead.Seconds(), time.Since(begin).Seconds()), err
}

// removePods is the rough way, for the end of a run that failed: through the CRI, without a kubelet.
func (v *visit) removePods(ctx context.Context) error {
	rs, err := criclient.NewRemoteRuntimeServiceBuilder().WithEndpoint("unix://" + socket).WithConnectionTimeout(time.Minute).Build(ctx)
	if err != nil {
		return nil //nolint:nilerr // no daemon, nothing to ask
	}
	defer func() { _ = rs.Close(ctx) }()
	list, err := rs.ListPodSandbox(ctx, nil)
	for _, p := range list {
		err = errors.Join(err, rs.StopPodSandbox(ctx, p.Id), rs.RemovePodSandbox(ctx, p.Id))
	}
	return err
}

// variable matches what differs between two lines that say the same.
var variable = regexp.MustCompile(`^[EW]\d{4} [0-9:.]+ +\d+ |[0-9a-f]{12,}|\d+(\.\d+)?(ms|s|m)?\b|"[^"]*/[^"]*"`)

// known are the complaints that have nothing to do with the runtime: there is no API server, no cloud, no swap, no DNS.
var known = regexp.MustCompile(`no API client|mirror pod|standalone|kubeClient|Nameserver|/etc/resolv.conf|client-ca|anonymous|read-only|deprecated|` +
	`iptables|KubeletInUserNamespace|node "walk"|CSINode|csi_plugin|machine-id|static pod|volume plugin|kubeconfig`)

// complaints counts the kubelet's warnings and errors by their text. It fails where one is about the CRI and not in the list of what is to come.
func (v *visit) complaints(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "journalctl", "--no-pager", "-o", "cat", "-u", kubeletUnit).Output()
	if err != nil {
		return "", err
	}
	count := map[string]int{}
	for _, line := range strings.Split(string(out), "\n") {
		if len(line) > 5 && (line[0] == 'E' || line[0] == 'W') && line[1] >= '0' && line[1] <= '9' && !known.MatchString(line) {
			count[variable.ReplaceAllString(line, "#")]++
		}
	}
	var lines []string
	for text, n := range count {
		lines = append(lines, fmt.Sprintf("%4d x %.400s", n, text))
	}
	sort.Strings(lines)
	return fmt.Sprintf("%d kinds\n%s", len(lines), strings.Join(lines, "\n")), nil
}

// explain shows the last words of both services.
func (v *visit) explain(ctx context.Context) {
	for _, unit := range []string{daemonUnit, kubeletUnit} {
		fmt.Printf("--- %s\n%s", unit, journal(ctx, unit, 25))
	}
}
