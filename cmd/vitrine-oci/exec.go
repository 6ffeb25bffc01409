package main

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/vitrine-runtime/vitrine/internal/specjson"
	"github.com/vitrine-runtime/vitrine/oci/bundle"
)

// execFailed is the exit code of an exec that did not come to its program, which may
// end with 1 itself.
const execFailed = 255

// execFlags are what an exec changes of the container's process, or the file with
// another one.
type execFlags struct {
	file, cwd, user string
	env, caps, gids []string
	tty, noNewPrivs bool
	apparmor, label string
	setPrivs        bool
}

func prepareExec(c *call) ([]option, func([]string) (int, error)) {
	var f execFlags
	o := bundle.ExecOptions{Stdio: [3]int{0, 1, 2}}
	options := []option{
		text("process,p", "FILE", "take the process from this file, as process in config.json", &f.file),
		text("cwd", "DIR", "working directory in the container", &f.cwd),
		list("env,e", "NAME=VALUE", "add to the environment", &f.env),
		text("user,u", "UID[:GID]", "run as this user", &f.user),
		list("additional-gids,g", "GID", "add a group", &f.gids),
		list("cap,c", "CAP", "add a capability", &f.caps),
		toggle("tty,t", "give it a terminal", &f.tty),
		{"no-new-privs", "", "never gain privileges", func(v string) (err error) {
			f.setPrivs = true
			f.noNewPrivs, err = strconv.ParseBool(v)
			return err
		}},
		text("apparmor", "PROFILE", "AppArmor profile", &f.apparmor),
		text("process-label", "LABEL", "SELinux label", &f.label),
		toggle("detach,d", "return when the program runs", &o.Detach),
		text("pid-file", "FILE", "write the pid of the process there", &o.PidFile),
		text("console-socket", "SOCKET", "send the master of the terminal there", &o.ConsoleSocket),
		toggle("ignore-paused", "also in a paused container, where it waits", &o.IgnorePaused),
		refused("cgroup", "PATH", "an exec is in the container's cgroup"),
		number("preserve-fds", "N", "pass on N descriptors, from 3 on", &o.PreserveFDs),
		ignored("no-subreaper", "", "an exec has no process between it and us"),
	}
	return options, func(args []string) (int, error) {
		code, err := c.exec(&f, o, args)
		if err != nil {
			code = execFailed
		}
		return code, err
	}
}

func (c *call) exec(f *execFlags, o bundle.ExecOptions, args []string) (int, error) {
	if len(args) == 0 || len(args) == 1 && f.file == "" {
		return 0, fmt.Errorf("exec: a container and what to run are expected: %w", errUsage)
	}
	if bundle.Stand() == bundle.Outside {
		return c.rt.EnterContainer(args[0], o.PreserveFDs)
	}
	ctr, err := c.rt.Load(args[0])
	if err != nil {
		return 0, err
	}
	defer func() { _ = ctr.Close() }() // a lock that ends with us
	if f.file != "" {
		o.Process, err = readProcess(f.file)
	} else {
		o.Process, err = f.process(ctr, args[1:])
	}
	if err != nil {
		return 0, err
	}
	if f.tty {
		o.Process.Terminal = true
	}
	return ctr.Exec(o)
}

func readProcess(file string) (*specs.Process, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	p := new(specs.Process)
	if err := specjson.Unmarshal(b, p); err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	return p, nil
}

// process is the container's own, changed as the flags say.
func (f *execFlags) process(ctr *bundle.Container, args []string) (*specs.Process, error) {
	s, err := ctr.Spec()
	if err != nil {
		return nil, err
	}
	p := *s.Process
	p.Args, p.Terminal, p.ConsoleSize = args, f.tty, nil
	p.Env = append(slices.Clone(p.Env), f.env...)
	if f.cwd != "" {
		p.Cwd = f.cwd
	}
	if f.apparmor != "" {
		p.ApparmorProfile = f.apparmor
	}
	if f.label != "" {
		p.SelinuxLabel = f.label
	}
	if f.setPrivs {
		p.NoNewPrivileges = f.noNewPrivs
	}
	if len(f.caps) > 0 {
		caps := specs.LinuxCapabilities{}
		if p.Capabilities != nil {
			caps = *p.Capabilities
		}
		for _, set := range []*[]string{&caps.Bounding, &caps.Effective, &caps.Permitted} {
			*set = append(slices.Clone(*set), f.caps...)
		}
		p.Capabilities = &caps
	}
	return &p, f.ids(&p.User)
}

func (f *execFlags) ids(u *specs.User) error {
	id := func(s string) (uint32, error) {
		n, err := strconv.ParseUint(s, 10, 32)
		if err != nil || n == math.MaxUint32 { // which means no id to the kernel
			return 0, fmt.Errorf("user or group %q: a number up to 4294967294 is expected: %w", s, errUsage)
		}
		return uint32(n), nil
	}
	var err error
	if f.user != "" {
		uid, gid, has := strings.Cut(f.user, ":")
		if u.UID, err = id(uid); err == nil && has {
			u.GID, err = id(gid)
		}
		if err != nil {
			return err
		}
	}
	u.AdditionalGids = slices.Clone(u.AdditionalGids)
	for _, g := range f.gids {
		n, err := id(g)
		if err != nil {
			return err
		}
		u.AdditionalGids = append(u.AdditionalGids, n)
	}
	return nil
}
