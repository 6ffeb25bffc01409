package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
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
	err := until(ctx, 6*time.Minute, func() error {
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

// about matches the complaints that can be about the runtime: the kubelet's files that call it or live by what it answers, and CNI.
var about = regexp.MustCompile(`remote_(runtime|image)\.go|_stats_provider|kuberuntime|eviction_manager|generic\.go|pod_workers|container_log_manager|probe.*rror|watcher\.go|network`)

// noTransport matches what the kubelet's gRPC client says itself of a daemon that is not there, or goes away under a call. Any other Unavailable is
// an answer of the daemon's: that systemd, a monitor or a registry does not answer is never right here, whatever words of a transport
// its cause has. So the words must come first. The log quotes what it quotes once more.
var noTransport = regexp.MustCompile(`code = Unavailable desc = ` +
	`(closing transport due to: |last connection error: |connection error: desc = |[\\"])*` +
	`(transport: [Ee]rror while dialing|transport is closing|transport: failed to write|error reading (from server|server preface)|write unix` +
	`|received goaway|no active streams left to process while draining|the connection is draining|the stream is rejected because server is draining)`)

// expected are those of them that are right, each with the reason.
var expected = []struct {
	pattern *regexp.Regexp
	why     string
}{
	{regexp.MustCompile(`code = Canceled|runtime status check may not have completed|pleg has yet to be`), "a service is restarting"},
	{noTransport, "a service is restarting"},
	{regexp.MustCompile(`code = Unavailable desc = [^"]*the daemon is (stopping|ending)\b`), "a service is restarting"},
	{regexp.MustCompile(`code = Unavailable desc = measure [^"]*the first measuring goes on`), "a daemon that just started has not measured the disk"},
	{regexp.MustCompile(`code = NotFound desc = container .*: not found`), "the kubelet has several collectors of dead containers, and one comes first"},
	{regexp.MustCompile(`ExecSync.*(is exited|is dead|the container has ended|died before execve: SIGKILL)`), "a probe and the end of its container"},
	{regexp.MustCompile(`PodSandbox.*pod_sandbox_id: must be set`), "the kubelet's way to ask whether there are statistics of pods"},
	{regexp.MustCompile(`the network plugins have not answered for`), "a busy machine, and a daemon that just started"},
	{regexp.MustCompile(`no imagefs label for configured runtime`), "cAdvisor knows labels of file systems for two runtimes only"},
	{regexp.MustCompile(`(watcher\.go|ContainerInfoV2).*/exec-`), "cAdvisor looks at every cgroup, and that of an exec is short-lived"},
	{regexp.MustCompile(`ContainerInfoV2.*RecentStats: unable to find data in memory cache`), "cAdvisor knows a cgroup before its first look at it (google/cadvisor#2867)"},
	{regexp.MustCompile(`no default route`), "the guest has no network"},
	{regexp.MustCompile(`ImagePullBackOff|CrashLoopBackOff|failed to "StartContainer"`), "the back-off between two lives of a container"},
}

// complaints counts the kubelet's warnings and errors by their text, for the time of this run. One about the runtime without a known reason
// fails the step.
func (v *visit) complaints(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "journalctl", "--no-pager", "-o", "cat", "-u", kubeletUnit, "--since", v.begin.Format("2006-01-02 15:04:05")).Output()
	if err != nil {
		return "", err
	}
	count, reasons, all := map[string]int{}, map[string]int{}, 0
	for _, line := range strings.Split(string(out), "\n") {
		if len(line) < 6 || line[0] != 'E' && line[0] != 'W' || line[1] < '0' || line[1] > '9' {
			continue
		}
		all++
		if !about.MatchString(line) {
			continue
		}
		if why := reason(line); why != "" {
			reasons[why]++
			continue
		}
		count[variable.ReplaceAllString(line, "#")]++
	}
	if len(count) > 0 {
		return "", errors.New("\n    " + strings.Join(byText(count), "\n    "))
	}
	return fmt.Sprintf("%d errors and warnings, those about the runtime with a known reason:\n    %s", all, strings.Join(byText(reasons), "\n    ")), nil
}

// reason returns why a complaint is right, or nothing.
func reason(line string) string {
	for _, e := range expected {
		if e.pattern.MatchString(line) {
			return e.why
		}
	}
	return ""
}

// byText makes a sorted list of counted texts.
func byText(count map[string]int) []string {
	var lines []string
	for text, n := range count {
		lines = append(lines, fmt.Sprintf("%.500s (%d times)", text, n))
	}
	slices.Sort(lines)
	return lines
}

// explain shows the last words of both services.
func (v *visit) explain(ctx context.Context) {
	for _, unit := range []string{daemonUnit, kubeletUnit} {
		fmt.Printf("--- %s\n%s", unit, journal(ctx, unit, 25))
	}
}
