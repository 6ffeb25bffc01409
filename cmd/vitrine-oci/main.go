// Command vitrine-oci is the small one of the two binaries: an OCI runtime for the
// command line, the monitor behind each pod, and the looking glass for programs.
//
//	vitrine-oci create --bundle DIR ID    and the other verbs of an OCI runtime
//	vitrine-oci explain --bundle DIR      compile DIR/config.json and print the program
//	vitrine-oci monitor                   started by the daemon, never by people
//
// docs/vitrine-oci.md describes the verbs. This package has their flags and what they
// print; what they do is in package bundle.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/signals"
	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/bundle"
	"github.com/vitrine-runtime/vitrine/oci/monitor"
)

// version is set by the linker (-X main.version=...).
var version = "devel"

// say writes for people; there is nobody to tell that it could not.
func say(w io.Writer, text string) { _, _ = io.WriteString(w, text) }

func main() {
	if err := sealFor(os.Args[1:]); err != nil {
		say(os.Stderr, "vitrine-oci: "+err.Error()+"\n")
		os.Exit(1)
	}
	if slices.Contains(os.Args[1:], "run") || slices.Contains(os.Args[1:], "create") { // or the value of a flag is
		bundle.Hurry()
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// sealFor calls seal for the verbs that fork into a container.
func sealFor(args []string) error {
	for _, a := range args {
		switch a { // it may be the value of a flag: that costs a millisecond, and harms nobody
		case "create", "run", "exec", "start":
			return seal()
		}
	}
	return nil
}

// call is one use of the command line.
type call struct {
	rt      *bundle.Runtime
	log     *logger
	in      io.Reader
	out     io.Writer
	errs    io.Writer
	globals []option
}

// untilInterrupted returns a context that a terminal's interrupt ends, for who may have to
// wait. It is not for all: it costs a thread.
func untilInterrupted() context.Context {
	_ = signals.GiveBack(unix.SIGINT, unix.SIGTERM) // what was caught can be
	ctx, _ := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	return ctx
}

// waiting is the context for making a cgroup: systemd lets one wait.
func (c *call) waiting() context.Context {
	if c.rt.Manager == bundle.ManagerSystemd {
		return untilInterrupted()
	}
	return context.Background()
}

// verb is what the command line can do.
type verb struct {
	name string
	args string // after the flags
	help string
	// prepare returns the flags and what is to be done with the rest.
	prepare func(c *call) (options []option, do func(args []string) (code int, err error))
}

// verbs in the order of the help.
func verbs() []verb {
	return []verb{
		{"create", "ID", "make a container, up to but without its program", prepareCreate},
		{"start", "ID", "execute the program of a created container", prepareStart},
		{"run", "ID", "create and start a container and wait for its end", prepareRun},
		{"state", "ID", "print the state of a container", prepareState},
		{"kill", "ID [SIGNAL]", "send a signal, SIGTERM if none is given", prepareKill},
		{"delete", "ID", "remove a stopped container", prepareDelete},
		{"exec", "ID COMMAND...", "run a further process in a container", prepareExec},
		{"pause", "ID", "stop all processes of a container", preparePause},
		{"resume", "ID", "let them go on", prepareResume},
		{"ps", "ID", "print the processes of a container", preparePs},
		{"update", "ID", "change the limits of a container", prepareUpdate},
		{"events", "ID", "print statistics and out-of-memory events", prepareEvents},
		{"spec", "", "write a config.json to begin with", prepareSpec},
		{"features", "", "print what of the specification is supported", prepareFeatures},
		{"list", "", "print all containers", prepareList},
		{"explain", "[ID]", "print the system calls that make a container", prepareExplain},
		{"version", "", "print the version", prepareVersion},
		{"checkpoint", "", "not supported", prepareMissing},
		{"restore", "", "not supported", prepareMissing},
	}
}

// run executes the command line and returns the exit code: 0, 1 for a failure, the
// program's own for run and exec, 2 for a command line without a verb.
func run(args []string, out, errs io.Writer) int {
	if len(args) == 1 && args[0] == "monitor" {
		return monitor.Main()
	}
	// What we were started with beside stdio is passed on where --preserve-fds says so,
	// and to nobody else, such as hooks.
	if err := sys.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		say(errs, "vitrine-oci: "+err.Error()+"\n")
		return 1
	}
	if len(args) == 4 && args[0] == "hooks" { // started by the daemon as well
		pid, _ := strconv.Atoi(args[3])
		if err := bundle.CreateHooks(args[1], args[2], pid); err != nil {
			say(errs, err.Error())
			return 1
		}
		return 0
	}
	// A terminal's interrupt ends a wait, and nothing in the middle; who waits for a program
	// passes signals on.
	if _, err := signals.Catch(unix.SIGINT, unix.SIGTERM); err != nil {
		say(errs, "vitrine-oci: "+err.Error()+"\n")
		return 1
	}
	defer func() { _ = signals.GiveBack(unix.SIGINT, unix.SIGTERM) }() // for tests: we end now
	c := &call{log: &logger{errs: errs}, in: os.Stdin, out: out, errs: errs}
	c.rt = &bundle.Runtime{Root: bundle.DefaultRoot(), Manager: bundle.ManagerCgroupfs, Warn: c.log.warn}
	code, err := c.run(args)
	if err != nil {
		c.log.fail(err)
	}
	return code
}

func (c *call) run(args []string) (int, error) {
	var help, showVersion bool
	c.globals = c.globalOptions(&help, &showVersion)
	rest, err := parse(c.globals, args)
	if err != nil {
		return 1, err
	}
	if err := c.log.check(); err != nil {
		return 1, err
	}
	switch {
	case showVersion:
		rest = []string{"version"}
	case help || len(rest) > 0 && rest[0] == "help":
		c.usage(c.out)
		return 0, nil
	case len(rest) == 0:
		c.usage(c.errs)
		return 2, nil
	}
	for _, v := range verbs() {
		if v.name == rest[0] {
			return c.verb(&v, rest[1:])
		}
	}
	return 2, fmt.Errorf("no verb %q: %w", rest[0], errUsage)
}

func (c *call) verb(v *verb, args []string) (int, error) {
	options, do := v.prepare(c)
	help := false
	rest, err := parse(append(options, toggle("help,h", "print this", &help)), args)
	if err != nil {
		return 1, fmt.Errorf("%s: %w", v.name, err)
	}
	if help {
		say(c.out, "usage: vitrine-oci "+v.name+" [flags] "+v.args+"\n"+v.help+"\n")
		describe(c.out, options)
		return 0, nil
	}
	code, err := do(rest)
	if err != nil && code == 0 {
		code = 1
	}
	return code, err
}

// rootless takes --rootless: what the caller is, which the kernel says anyway, or that it
// is ourselves who calls.
func (c *call) rootless(v string) error {
	switch {
	case v == "auto":
		return nil
	case (v == bundle.InsideFlag || v == bundle.MountedFlag) && bundle.Stand() == bundle.Confined:
		c.rt.Inside, c.rt.Mapped = true, v == bundle.InsideFlag
		return nil
	}
	yes, err := strconv.ParseBool(v)
	if root := bundle.Stand() == bundle.Privileged; err == nil && yes == root {
		return fmt.Errorf("--rootless=%s: the caller is root: %v: %w", v, root, bundle.ErrInvalid)
	}
	return err
}

func (c *call) globalOptions(help, showVersion *bool) []option {
	return []option{
		text("root", "DIR", "where states are kept (default "+bundle.DefaultRoot()+")", &c.rt.Root),
		text("log", "FILE", "write what goes wrong to this file", &c.log.file),
		text("log-format", "FORM", "of the log: text or json", &c.log.form),
		toggle("debug", "write more to the log", &c.log.debug),
		{"systemd-cgroup", "", "let systemd make the cgroups: linux.cgroupsPath is slice:prefix:name", func(v string) error {
			yes, err := strconv.ParseBool(v)
			if yes {
				c.rt.Manager = bundle.ManagerSystemd
			}
			return err
		}},
		text("cgroup-manager", "WHO", "makes cgroups: cgroupfs, systemd or disabled", &c.rt.Manager),
		{"rootless", "BOOL", "true, false or auto: an error where the caller is something else", c.rootless},
		toggle("help,h", "print this", help),
		toggle("version,v", "print the version", showVersion),
	}
}

func (c *call) usage(w io.Writer) {
	say(w, "usage: vitrine-oci [flags] VERB [flags] [arguments]\n\nverbs (VERB --help has the flags of each):\n")
	for _, v := range verbs() {
		say(w, fmt.Sprintf("  %-12s %-14s %s\n", v.name, v.args, v.help))
	}
	say(w, "  monitor                     run as the monitor of a pod (started by vitrine)\n\nflags:\n")
	describe(w, c.globals)
}

func prepareVersion(c *call) ([]option, func([]string) (int, error)) {
	return nil, func([]string) (int, error) {
		say(c.out, "vitrine-oci version "+version+"\nspec: "+specs.Version+"\n")
		return 0, nil
	}
}

func prepareMissing(*call) ([]option, func([]string) (int, error)) {
	return nil, func([]string) (int, error) {
		return 1, errors.New("checkpoint and restore: not supported")
	}
}

// oneID returns the only argument.
func oneID(args []string) (string, error) {
	if len(args) != 1 {
		return "", fmt.Errorf("%d arguments where the id of a container is expected: %w", len(args), errUsage)
	}
	return args[0], bundle.CheckID(args[0])
}
