// Command vm runs things in a Debian of its own: systemd as PID 1, all controllers of cgroup v2, the kernels of Debian 12 and 13. Package
// machine makes and boots it, package link is the way in, command agent is what answers there.
//
//	vm build               make the root of the guest, if the cache does not have it
//	vm up | down           keep a guest running in the background, until it was idle for -idle; end it
//	vm shell               a shell in the guest
//	vm run COMMAND...      run a command in the guest; its exit code is ours
//	vm put DIR FILE...     copy files into the guest
//	vm test [PACKAGE...]   run Go tests in the guest, with -run, -count and -v as go test has them; without a package: the -set
//	vm exec BINARY ARG...  what vm test gives to `go test -exec`: carry a test binary in and run it
//	vm reboot | powercut | jump DURATION | pause | resume | log
//
// A verb uses the guest that is up, and otherwise boots one for itself, which others may use until it is done. The first
// is the way to work: `vm up`, and then each try costs seconds. Everything has a deadline but a shell, which is a person's. The exit code is
// the command's, 125 where the harness itself was at fault.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vitrine-runtime/vitrine/conformance/vm/machine"
)

// options are the flags of all verbs.
type options struct {
	debian  string
	accel   string
	memory  int
	cpus    int
	nice    int
	idle    time.Duration
	timeout time.Duration
	run     string
	skip    string
	count   int
	verbose bool
	short   bool
	set     string
	agent   string
	kernel  string
	cache   string
	more    string
	name    string
}

// exitCode is an error that only carries the exit code of a command in the guest.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

const harnessFault = 125

func main() {
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	o, args, err := parse(args)
	if err != nil {
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if most := o.deadline(args[0]); most > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, most)
		defer cancel()
	}
	err = o.do(ctx, args)
	var code exitCode
	if errors.As(err, &code) {
		return int(code)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
		return harnessFault
	}
	return 0
}

func parse(args []string) (*options, []string, error) {
	o := &options{}
	f := flag.NewFlagSet("vm", flag.ContinueOnError)
	f.StringVar(&o.debian, "debian", orEnv("DEBIAN", "13"), "release of the guest: 12 or 13")
	f.StringVar(&o.accel, "accel", "auto", "auto, kvm or tcg")
	f.IntVar(&o.memory, "memory", 3072, "memory of the guest in MiB")
	f.IntVar(&o.cpus, "cpus", 2, "CPUs of the guest")
	f.IntVar(&o.nice, "nice", 15, "niceness of QEMU")
	f.DurationVar(&o.idle, "idle", 10*time.Minute, "up: end the guest when nobody used it for so long")
	f.DurationVar(&o.timeout, "timeout", 0, "end everything after so long; 0: the verbs' own deadlines only (test, run, put: 45m; shell: none)")
	f.StringVar(&o.run, "run", "", "test: only tests that match")
	f.StringVar(&o.skip, "skip", "", "test: no tests that match")
	f.IntVar(&o.count, "count", 1, "test: run each test so many times")
	f.BoolVar(&o.verbose, "v", false, "test: show all output")
	f.BoolVar(&o.short, "short", false, "test: pass -short to the tests")
	f.StringVar(&o.set, "set", "whole", "test: what to run where no package is named: short or whole")
	f.StringVar(&o.kernel, "kernel", "", "more kernel arguments for the guest")
	f.StringVar(&o.cache, "cache", "", "directory for roots and guests (default: the user's cache directory)")
	f.StringVar(&o.more, "with", "", "more packages of Debian's in the guest, separated by commas; it is a guest of its own")
	f.StringVar(&o.name, "name", "", "another guest of the same release, beside the one without a name")
	f.Usage = func() {
		fmt.Fprintln(f.Output(), "usage: vm [flags] build|up|down|shell|run|put|test|exec|reboot|powercut|jump|pause|resume|log [arguments]")
		f.PrintDefaults()
	}
	if err := f.Parse(args); err != nil {
		return nil, nil, err
	}
	if f.NArg() == 0 {
		f.Usage()
		return nil, nil, flag.ErrHelp
	}
	if o.cache == "" {
		dir, err := machine.CacheDir()
		if err != nil {
			fmt.Fprintln(os.Stderr, "vm:", err)
			return nil, nil, err
		}
		o.cache = dir
	}
	return o, f.Args(), os.MkdirAll(o.cache, 0o755)
}

// deadline is that of a whole verb. Those that have none here have their own, but for a shell, which is a person's.
func (o *options) deadline(verb string) time.Duration {
	if o.timeout == 0 && (verb == "run" || verb == "put") {
		return runTime
	}
	return o.timeout
}

func orEnv(name, value string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return value
}

// do carries out a verb.
func (o *options) do(ctx context.Context, args []string) error {
	verb, args := args[0], args[1:]
	switch verb {
	case "build":
		return o.build(ctx)
	case "up":
		return o.up(ctx)
	case "hold":
		return o.hold(ctx)
	case "down", "reboot", "powercut", "jump", "pause", "resume", "log":
		return o.order(ctx, verb, strings.Join(args, " "))
	case "shell":
		return o.with(ctx, func(g *guest) error { return shell(ctx, g) })
	case "run":
		return o.with(ctx, func(g *guest) error { return runCommand(ctx, g, args) })
	case "put":
		return o.with(ctx, func(g *guest) error { return putFiles(ctx, g, args) })
	case "test":
		return o.test(ctx, args)
	case "exec":
		return o.exec(ctx, args)
	}
	return fmt.Errorf("unknown verb %q", verb)
}

func (o *options) build(ctx context.Context) error {
	recipe, err := machine.NewRecipe(o.debian, o.packages()...)
	if err != nil {
		return err
	}
	root, err := machine.BuildRoot(ctx, o.cache, recipe, os.Stderr)
	if err != nil {
		return err
	}
	word := "was there"
	if root.Fresh {
		word = fmt.Sprintf("built in %.1f s", root.Took.Seconds())
	}
	fmt.Printf("root of Debian %s %s: %s\n", o.debian, word, root.Dir)
	return nil
}

// agentPath builds nothing: the agent lies beside this program, where `make` put both.
func agentPath() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	path := filepath.Join(filepath.Dir(self), "agent")
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("find agent: %w (run it by make, which builds both)", err)
	}
	return path, nil
}
