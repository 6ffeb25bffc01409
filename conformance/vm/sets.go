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
	"strconv"
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
	beside   bool // in the second lane
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

const parts = "^Test(MonitorScope|RereadLimits|UpdateBelowUsage)$"

// requests are tests of thousands of requests, whose checks are the same on any kernel: an emulated machine would need a quarter of an hour for each.
const requests = "^Test(Matrix|Crowd)$"

// neither are tests whose subject is neither the kernel nor systemd. They run natively, with the cgroupfs driver, on each run of the build machine.
const neither = "Churn|FullLogDisk|Reopen|LogIsNotFollowed|LongLines|Images|BadProgram|UnknownIDs|Twice|SameAttempt|AbandonedRequest|SecondDaemon|TwoPods" +
	"|ExecDrain|ExecMissing|ExecSlowReader|AttachMany|AttachOverRestart|AccountFiles|Matrix|Crowd|Bad|WrongStates|ForeignAnnotations|Stuck|NRI|CDI|EveryCall|Soak" +
	"|HostPorts|DualStack|BandwidthLimits"

// sets are what `vm test` runs when no package is named.
var sets = map[string][]pass{
	"short": {
		{name: "packages", packages: kernelPackages, short: true},
		{name: "parts of the daemon", packages: partPackages, run: parts, short: true, beside: true},
		{name: "daemon, driver systemd", packages: wholeDaemon[1:], env: []string{"VITRINE_DRIVER=systemd"}, short: true, beside: true, skip: neither},
		{name: "daemon, driver cgroupfs", packages: wholeDaemon[1:], env: []string{"VITRINE_DRIVER=cgroupfs"}, short: true, beside: true,
			run: "^Test(LifeOfAContainer|ExecTimeoutKillsTheTree|DaemonKilled|CPULimit|ForkBomb|WritableCgroup|StatusSaysWhatIsMissing)$"},
	},
	"whole": {
		{name: "packages", packages: append(append([]string{}, kernelPackages...), morePackages...), skip: "TablesAreGenerated"}, // wants a Go
		{name: "parts of the daemon", packages: partPackages, run: parts},
		// In two halves: on a slow machine all of it takes longer than a package may.
		{name: "daemon A to N, driver systemd", packages: wholeDaemon, env: []string{"VITRINE_DRIVER=systemd"}, run: "^Test[A-N]", skip: requests, beside: true},
		{name: "daemon O to Z, driver systemd", packages: wholeDaemon, env: []string{"VITRINE_DRIVER=systemd"}, run: "^Test[O-Z]", skip: requests, beside: true},
		// What has no cgroup for its subject runs with this driver natively, and with the other one here.
		{name: "daemon, driver cgroupfs", packages: wholeDaemon, env: []string{"VITRINE_DRIVER=cgroupfs"}, skip: neither, beside: true},
		{name: "command line", packages: linePackages, beside: true},
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
// A set has two lanes, each with a guest of its own, since QEMU may have only one thread for all CPUs of a guest.
func (o *options) test(ctx context.Context, packages []string) error {
	ctx, cancel := context.WithTimeout(ctx, testTime)
	defer cancel()
	passes := sets[o.set]
	if passes == nil {
		return fmt.Errorf("unknown set %q: short or whole", o.set)
	}
	if len(packages) > 0 {
		passes = []pass{{packages: packages, short: o.short}}
	}
	first, second := lanes(passes)
	if len(second) == 0 {
		_, err := o.runLane(ctx, first, os.Stdout)
		return err
	}
	if err := o.build(ctx); err != nil { // or both would
		return err
	}
	beside := *o
	beside.name = orElse(o.name, "lane") + "2"
	var more count
	var out bytes.Buffer
	done := make(chan error, 1)
	go func() { // ends with ctx at the latest
		var err error
		more, err = beside.runLane(ctx, second, &out)
		done <- err
	}()
	sum, err := o.runLane(ctx, first, os.Stdout)
	err = errors.Join(err, <-done)
	_, _ = os.Stdout.Write(out.Bytes())
	sum.add(more)
	fmt.Printf(countFormat+"\n", sum.passed, sum.failed, sum.skipped)
	return err
}

// lanes divides passes.
func lanes(all []pass) (first, second []pass) {
	for _, p := range all {
		if p.beside {
			second = append(second, p)
		} else {
			first = append(first, p)
		}
	}
	return first, second
}

// runLane runs passes one after another in a guest.
func (o *options) runLane(ctx context.Context, passes []pass, out io.Writer) (sum count, err error) {
	ran := false
	err = o.with(ctx, func(g *guest) error {
		ran = true
		var failed error
		for _, p := range passes {
			began := time.Now()
			if p.name != "" {
				fmt.Fprintf(out, "--- Debian %s, %s\n", o.debian, p.name)
			}
			c, err := o.runPass(ctx, p, g.own, out)
			sum.add(c)
			var code exitCode
			if err != nil && !errors.As(err, &code) {
				fmt.Fprintf(out, "vm: %s: %v\n", p.name, err)
			}
			failed = errors.Join(failed, err)
			if p.name != "" {
				fmt.Fprintf(out, "--- Debian %s, %s: %.0f s\n", o.debian, p.name, time.Since(began).Seconds())
			}
			if ctx.Err() != nil {
				break
			}
		}
		if failed != nil {
			if err := o.lost(g); err != nil {
				fmt.Fprintln(out, "vm:", err)
			}
		}
		return failed
	})
	if !ran {
		fmt.Fprintln(out, "vm:", err)
		sum.failed++
	}
	return sum, err
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
	c, counted := last.count()
	if err != nil && !counted {
		c.failed = 1
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
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
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

func (l *lastCount) count() (count, bool) {
	if l.found == nil {
		return count{}, false
	}
	return *l.found, true
}
