package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/vitrine-runtime/vitrine/conformance/vm/link"
)

// pass is one run of tally in a set.
type pass struct {
	name     string
	env      []string
	packages []string
	short    bool // with -short
	run      string
	skip     string
}

// Packages by what a guest has to say of them. Those that only compute are not here: the build machine's word is as good.
var (
	kernelPackages = []string{"./internal/step/", "./internal/sys/", "./oci/program/", "./oci/executor/", "./oci/monitor/", "./oci/", "./oci/cgroup/"}
	morePackages   = []string{"./internal/atomicfile/", "./oci/crilog/", "./oci/seccomp/...", "./cni/", "./image/"}
	linePackages   = []string{"./cmd/vitrine-oci/", "./oci/bundle/", "./oci/source/", "./oci/netdev/", "./oci/notify/", "./internal/userns/", "./internal/early/",
		"./internal/dbus/", "./internal/signals/", "./internal/sysctl/", "./internal/unixsocket/"} // the command line, and what is below it
	partPackages = []string{"./sandbox/", "./cmd/vitrine/"} // of these only what wants controllers or systemd
	wholeDaemon  = []string{"./conformance/stage/", "./conformance/integration/"}
)

// parts are the tests of package sandbox and of the daemon whose checks depend on controllers, or on systemd: what they look at is not there natively.
const parts = "^Test(MonitorScope|RereadLimits|Update[A-Z].*|UpdatesAtOnce|PodLimits|MetricsLife|StatsLife)$"

// requests are tests of thousands of requests, or of a hundred clients, whose checks are the same on any kernel: an emulated machine would need
// minutes for each, up to a quarter of an hour.
const requests = "^Test(Matrix|Crowd|EventsUnread|AttachMany)$"

// computed are tests that ask no kernel: ciphers, one evaluator of filters against another, and tables that want a Go to be made again. With an
// emulated processor they take eight minutes of the whole set.
const computed = "^Test(RandomProfilesAgainstEvaluator|LongJumps|Signatures|ManySignatures|TablesAreGenerated)$"

// neither are tests whose subject is neither the kernel nor systemd. They run natively, with the cgroupfs driver, on each run of the build machine.
const neither = "Churn|FullLogDisk|Reopen|LogIsNotFollowed|LongLines|Images|BadProgram|UnknownIDs|Twice|SameAttempt|AbandonedRequest|SecondDaemon|TwoPods" +
	"|ExecDrain|ExecMissing|ExecSlowReader|AttachMany|AttachOverRestart|AccountFiles|Matrix|Crowd|Bad|WrongStates|ForeignAnnotations|Stuck|NRI|CDI|EveryCall|Soak" +
	"|HostPorts|DualStack|BandwidthLimits|EventsUnread|StopSignals|EnvIsBytes|ExecSyncIsCut"

// driven are the daemon's tests whose subject is cgroups, limits, or what goes with a cgroup: where another driver does other things. With the driver
// systemd all of the daemon's run in the same guest, and natively all run with cgroupfs.
const driven = "^Test(CPULimit|DaemonKilled|DevicePermissions|ExecInADeadPIDNamespace|ExecLeftBehind|ExecTimeoutKillsTheTree|ForkBomb|LifeOfAContainer|MemoryHigh|Metrics" +
	"|NRIUpdate|NothingSurvives|OOMBesideAStop|OOMKilled|OOMKilledUnseen|OOMScores|OOMSurvived|OOMWithoutADaemon|PodDiesWithoutDaemon|Posture|RT08DeviceFilter" +
	"|RT10CgroupIsReadOnly|RemoveRunning|RuntimeHandlers|StatsOfCPUAndMemory|StatsOfNetworkAndLayer|StatusSaysWhatIsMissing|StopSendsTERMFirst|StoppedAfterRestart" +
	"|TableOfLimits|TwoMegabytes|Update|UpdatePodWithoutParent|UserNamespace|UserNamespaceDaemonKilled|WritableCgroup|WritableCgroupRefused)$"

// long are tests of many containers that the short set leaves to the whole one, and to the native run.
const long = "PIDNamespaceOfATarget|PrivilegedWithoutHostDevices"

// reloads are rows whose daemon-reload takes an emulated machine seconds; of both tests the short set runs those that show most.
const reloads = "TestDevicesAcrossReload/other|TestPropertiesAreTheFiles/even|TestPropertiesAreTheFiles/none"

// sets are what `vm test` runs when no package is named, the longest pass first.
var sets = map[string][]pass{
	"short": {
		{name: "packages", packages: kernelPackages, short: true, skip: reloads},
		{name: "daemon, driver systemd", packages: wholeDaemon[1:], env: []string{"VITRINE_DRIVER=systemd"}, short: true, skip: neither + "|" + long},
		{name: "daemon, driver cgroupfs", packages: wholeDaemon[1:], env: []string{"VITRINE_DRIVER=cgroupfs"}, short: true,
			run: "^Test(LifeOfAContainer|ExecTimeoutKillsTheTree|DaemonKilled|CPULimit|ForkBomb|WritableCgroup|StatusSaysWhatIsMissing)$"},
		{name: "parts of the daemon", packages: partPackages, run: parts, short: true},
	},
	"whole": {
		{name: "more packages", packages: morePackages, skip: computed},
		// In two halves: on a slow machine all of it takes longer than a package may.
		{name: "daemon O to Z, driver systemd", packages: wholeDaemon, env: []string{"VITRINE_DRIVER=systemd"}, run: "^Test[O-Z]", skip: requests},
		{name: "daemon A to N, driver systemd", packages: wholeDaemon, env: []string{"VITRINE_DRIVER=systemd"}, run: "^Test[A-N]", skip: requests},
		{name: "packages", packages: kernelPackages},
		{name: "command line", packages: linePackages},
		{name: "daemon, driver cgroupfs", packages: wholeDaemon[1:], env: []string{"VITRINE_DRIVER=cgroupfs"}, run: driven},
		{name: "parts of the daemon", packages: partPackages, run: parts},
	},
}

// count is what the last line of tally says.
type count struct{ passed, failed, skipped int }

const countFormat = "%d passed, %d failed, %d skipped"

func (c *count) add(o count) {
	c.passed, c.failed, c.skipped = c.passed+o.passed, c.failed+o.failed, c.skipped+o.skipped
}

// test lets tally run `go test -exec` with this program as the way into the guest: building, selection, caching of builds and the count
// stay what they are for every other test of the tree. A guest that is lost on the way is a failure with the end of its serial log.
//
// The passes of a set are shared out to two guests, since QEMU may have only one thread for all CPUs of a guest.
func (o *options) test(ctx context.Context, packages []string) error {
	ctx, cancel := context.WithTimeout(ctx, testTime)
	defer cancel()
	if len(packages) > 0 {
		r := &report{live: os.Stdout}
		o.guestOf(ctx, &queue{left: []pass{{packages: packages, short: o.short}}}, r)
		return r.failed
	}
	passes := sets[o.set]
	if passes == nil {
		return fmt.Errorf("unknown set %q: short or whole", o.set)
	}
	if err := o.build(ctx); err != nil { // or both would
		return err
	}
	beside := *o
	beside.name = orElse(o.name, "lane") + "2"
	q, r := &queue{left: slices.Clone(passes), own: o.run == "" && o.skip == ""}, &report{}
	var both sync.WaitGroup
	for _, each := range []*options{o, &beside} {
		both.Go(func() { each.guestOf(ctx, q, r) }) // ends with ctx at the latest
	}
	both.Wait()
	if left := q.drop(); left > 0 {
		r.end("", count{failed: left}, fmt.Errorf("%d passes were not run", left), nil)
	}
	fmt.Printf(countFormat+"\n", r.sum.passed, r.sum.failed, r.sum.skipped)
	return r.failed
}

// queue are passes that wait for a guest.
type queue struct {
	own bool // which is to be one of its own: PID 1 and the bus may be restarted there

	mu   sync.Mutex
	left []pass // guarded by mu
}

func (q *queue) next() (p pass, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.left) == 0 {
		return p, false
	}
	p, q.left = q.left[0], q.left[1:]
	return p, true
}

// drop empties the queue and returns how many were left.
func (q *queue) drop() int {
	n := 0
	for _, ok := q.next(); ok; _, ok = q.next() {
		n++
	}
	return n
}

// report is what the passes said, each as a whole when it has ended, and their sum.
type report struct {
	live io.Writer // where the only pass writes at once

	mu     sync.Mutex
	sum    count // guarded by mu
	failed error // guarded by mu
}

func (r *report) end(name string, c count, err error, out []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, _ = os.Stdout.Write(out)
	var code exitCode
	if err != nil && !errors.As(err, &code) {
		fmt.Printf("vm: %s: %v\n", name, err)
	}
	r.sum.add(c)
	r.failed = errors.Join(r.failed, err)
}

// guestOf runs passes one after another in a guest, until there are none or the guest is lost.
func (o *options) guestOf(ctx context.Context, q *queue, r *report) {
	use := o.with
	if q.own {
		use = o.withOwn
	}
	err := use(ctx, func(g *guest) error {
		for ctx.Err() == nil {
			p, ok := q.next()
			if !ok {
				break
			}
			if err := o.onePass(ctx, p, g, r); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		r.end("guest", count{failed: 1}, err, nil)
	}
}

// onePass runs a pass and tells what came of it. It returns an error if the guest is lost.
func (o *options) onePass(ctx context.Context, p pass, g *guest, r *report) error {
	var kept bytes.Buffer
	var out io.Writer = &kept
	if r.live != nil {
		out = r.live
	}
	began := time.Now()
	if p.name != "" {
		fmt.Fprintf(out, "--- Debian %s, %s\n", o.debian, p.name)
	}
	c, err := o.runPass(ctx, p, g.own, out)
	if p.name != "" {
		fmt.Fprintf(out, "--- Debian %s, %s: %.0f s\n", o.debian, p.name, time.Since(began).Seconds())
	}
	r.end(p.name, c, err, kept.Bytes())
	if err == nil {
		return nil
	}
	return o.lost(g)
}

// runPass runs tally, or with -v go test itself, which counts nothing. Its exit code is an exitCode; a deadline is an error and one
// failure.
func (o *options) runPass(ctx context.Context, p pass, own bool, out io.Writer) (count, error) {
	self, err := os.Executable()
	if err != nil {
		return count{}, err
	}
	// One package at a time: the guest is slow and its tests look at clocks.
	args := []string{"-p", "1", "-count", strconv.Itoa(o.count), "-timeout", "20m", "-ldflags", "-s -w", "-tags", tags,
		"-exec", fmt.Sprintf("%s -debian %s -cache %s -with %q -name %q exec", self, o.debian, o.cache, o.more, o.name)}
	if run := orElse(o.run, p.run); run != "" {
		args = append(args, "-run", run)
	}
	if skip := orElse(o.skip, p.skip); skip != "" {
		args = append(args, "-skip", skip)
	}
	if p.short {
		args = append(args, "-short")
	}
	program := filepath.Join(filepath.Dir(self), "tally")
	if o.verbose {
		program, args = "go", append([]string{"test", "-v"}, args...)
	}
	cmd := exec.CommandContext(ctx, program, append(args, p.packages...)...)
	cmd.Env = append(append(os.Environ(), "CGO_ENABLED=0"), p.env...)
	if own && !p.short {
		cmd.Env = append(cmd.Env, "VITRINE_OWN_GUEST=1") // tests may restart PID 1 and the bus: nobody else is there
	}
	var last lastCount
	all := io.MultiWriter(out, &last) // one for both: it is not written to by two at once then
	cmd.Stdout, cmd.Stderr = all, all
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 30 * time.Second
	err = cmd.Run()
	c := last.count()
	if err != nil && c.failed == 0 {
		c.failed = 1 // not by a test, or by one that was interrupted
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && ctx.Err() == nil {
		return c, exitCode(exit.ExitCode())
	}
	return c, errors.Join(err, ctx.Err())
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// lost returns the end of the serial log if the guest does not answer any more.
func (o *options) lost(g *guest) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	_, err := g.client.Run(ctx, link.Command{Args: []string{"true"}}, link.Streams{})
	if err == nil {
		return nil
	}
	g2, err := o.dial()
	if err != nil {
		return fmt.Errorf("the guest is lost, and who holds it does not answer: %w", err)
	}
	defer g2.client.Close()
	ctx, cancel = context.WithTimeout(context.Background(), 30*time.Second) // of its own: a guest that hangs has used up the other one
	defer cancel()
	answer, err := g2.client.Ask(ctx, link.Order{Verb: "log"})
	return errors.Join(fmt.Errorf("the guest does not answer; its serial log ends so:\n%s", answer.Text), err)
}

// lastCount remembers the last line that is a count.
type lastCount struct {
	part  bytes.Buffer // the line that has no end yet
	found *count
}

// Write never fails.
func (l *lastCount) Write(p []byte) (int, error) {
	l.part.Write(p)
	for {
		line, err := l.part.ReadString('\n')
		if err != nil {
			l.part.Reset()
			l.part.WriteString(line)
			return len(p), nil //nolint:nilerr // the rest of the line is to come
		}
		var c count
		if n, err := fmt.Sscanf(line, countFormat, &c.passed, &c.failed, &c.skipped); err == nil && n == 3 {
			l.found = &c
		}
	}
}

func (l *lastCount) count() count {
	if l.found == nil {
		return count{}
	}
	return *l.found
}
