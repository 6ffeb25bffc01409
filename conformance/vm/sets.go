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
}

// Packages by what a guest has to say of them. Those that only compute are not here: the build machine's word is as good.
var (
	kernelPackages = []string{"./internal/step/", "./internal/sys/", "./oci/program/", "./oci/executor/", "./oci/monitor/", "./oci/", "./oci/cgroup/"}
	morePackages   = []string{"./internal/atomicfile/", "./oci/crilog/", "./oci/seccomp/...", "./cni/", "./image/"}
	partPackages   = []string{"./sandbox/", "./cmd/vitrine/"} // of these only what wants controllers or systemd
	wholeDaemon    = []string{"./conformance/stage/", "./conformance/integration/"}
)

const parts = "^Test(MonitorScope|RereadLimits|UpdateBelowUsage)$"

// sets are what `vm test` runs when no package is named.
var sets = map[string][]pass{
	"short": {
		{name: "packages", packages: kernelPackages, short: true},
		{name: "parts of the daemon", packages: partPackages, run: parts, short: true},
		// Without those whose subject is neither the kernel nor systemd: they run natively in the same run of the build machine.
		{name: "daemon, driver systemd", packages: wholeDaemon[1:], env: []string{"VITRINE_DRIVER=systemd"}, short: true,
			skip: "Churn|FullLogDisk|Reopen|LogIsNotFollowed|LongLines|Images|BadProgram|UnknownIDs|Twice|SameAttempt|AbandonedRequest|SecondDaemon|TwoPods" +
				"|ExecDrain|ExecMissing|ExecSlowReader|AttachMany|AttachOverRestart|AccountFiles"},
		{name: "daemon, driver cgroupfs", packages: wholeDaemon[1:], env: []string{"VITRINE_DRIVER=cgroupfs"}, short: true,
			run: "^Test(LifeOfAContainer|ExecTimeoutKillsTheTree|DaemonKilled|CPULimit|ForkBomb|WritableCgroup|StatusSaysWhatIsMissing)$"},
	},
	"whole": {
		{name: "packages", packages: append(append([]string{}, kernelPackages...), morePackages...), skip: "TablesAreGenerated"}, // wants a Go
		{name: "parts of the daemon", packages: partPackages, run: parts},
		{name: "daemon, driver systemd", packages: wholeDaemon, env: []string{"VITRINE_DRIVER=systemd"}},
		{name: "daemon, driver cgroupfs", packages: wholeDaemon, env: []string{"VITRINE_DRIVER=cgroupfs"}},
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
	return o.with(ctx, func(g *guest) error {
		var sum count
		var failed error
		for _, p := range passes {
			began := time.Now()
			if p.name != "" {
				fmt.Printf("--- Debian %s, %s\n", o.debian, p.name)
			}
			c, err := o.runPass(ctx, p, g.own)
			sum.add(c)
			var code exitCode
			if err != nil && !errors.As(err, &code) {
				fmt.Fprintf(os.Stderr, "vm: %s: %v\n", p.name, err)
			}
			failed = errors.Join(failed, err)
			if p.name != "" {
				fmt.Printf("--- Debian %s, %s: %.0f s\n", o.debian, p.name, time.Since(began).Seconds())
			}
			if ctx.Err() != nil {
				break
			}
		}
		if failed != nil {
			if err := o.lost(g); err != nil {
				fmt.Fprintln(os.Stderr, "vm:", err)
			}
		}
		if len(passes) > 1 {
			fmt.Printf(countFormat+"\n", sum.passed, sum.failed, sum.skipped)
		}
		return failed
	})
}

// runPass runs tally, or with -v go test itself, which counts nothing. Its exit code is an exitCode; a deadline is an error and one
// failure.
func (o *options) runPass(ctx context.Context, p pass, own bool) (count, error) {
	self, err := os.Executable()
	if err != nil {
		return count{}, err
	}
	// One package at a time: the guest is slow and its tests look at clocks.
	args := []string{"-p", "1", "-count", strconv.Itoa(o.count), "-timeout", "20m", "-ldflags", "-s -w", "-tags", tags,
		"-exec", fmt.Sprintf("%s -debian %s -cache %s -with %q exec", self, o.debian, o.cache, o.more)}
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
	cmd.Stdout, cmd.Stderr = io.MultiWriter(os.Stdout, &last), os.Stderr
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
