package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/specjson"
	"github.com/vitrine-runtime/vitrine/oci/bundle"
)

// makeOptions are the flags of create and run.
func makeOptions(o *bundle.CreateOptions) []option {
	o.Stdio = [3]int{0, 1, 2}
	return []option{
		text("bundle,b", "DIR", "directory with config.json (default .)", &o.Bundle),
		text("pid-file", "FILE", "write the pid of the container there", &o.PidFile),
		text("console-socket", "SOCKET", "send the master of the terminal there", &o.ConsoleSocket),
		refused("no-pivot", "", "the root is always entered by pivot_root"),
		refused("no-new-keyring", "", "a container always has a session keyring of its own"),
		number("preserve-fds", "N", "pass on N descriptors, from 3 on", &o.PreserveFDs),
	}
}

func prepareCreate(c *call) ([]option, func([]string) (int, error)) {
	var o bundle.CreateOptions
	return makeOptions(&o), func(args []string) (int, error) {
		id, err := oneID(args)
		if err != nil {
			return 1, err
		}
		if bundle.Stand() == bundle.Outside {
			return c.rt.EnterBundle(o.Bundle, o.PreserveFDs)
		}
		ctr, err := c.rt.Create(c.waiting(), id, o)
		if err != nil {
			return 1, err
		}
		return 0, ctr.Close()
	}
}

func prepareRun(c *call) ([]option, func([]string) (int, error)) {
	var o bundle.RunOptions
	options := append(makeOptions(&o.CreateOptions),
		toggle("detach,d", "return when the program runs", &o.Detach),
		toggle("keep", "do not delete the container when its program has ended", &o.Keep),
		ignored("no-subreaper", "", "orphans are killed with the container's cgroup"))
	return options, func(args []string) (int, error) {
		id, err := oneID(args)
		if err != nil {
			return 1, err
		}
		if bundle.Stand() == bundle.Outside {
			return c.rt.EnterBundle(o.Bundle, o.PreserveFDs)
		}
		return c.rt.Run(c.waiting(), id, o)
	}
}

// with calls f with a container, locked.
func (c *call) with(args []string, f func(ctr *bundle.Container) error) (int, error) {
	id, err := oneID(args)
	if err != nil {
		return 1, err
	}
	ctr, err := c.rt.Load(id)
	if err != nil {
		return 1, err
	}
	defer func() { _ = ctr.Close() }() // a lock that ends with us
	return 0, f(ctr)
}

// look finds a container without its lock.
func (c *call) look(args []string) (*bundle.Container, error) {
	id, err := oneID(args)
	if err != nil {
		return nil, err
	}
	return c.rt.Look(id)
}

func prepareStart(c *call) ([]option, func([]string) (int, error)) {
	return nil, func(args []string) (int, error) {
		if id, err := oneID(args); err == nil && bundle.Stand() == bundle.Outside {
			return c.rt.EnterContainer(id, 0)
		}
		return c.with(args, (*bundle.Container).Start)
	}
}

func prepareState(c *call) ([]option, func([]string) (int, error)) {
	return nil, func(args []string) (int, error) {
		ctr, err := c.look(args)
		if err != nil {
			return 1, err
		}
		s, err := ctr.State()
		if err != nil {
			return 1, err
		}
		return 0, printJSON(c.out, s)
	}
}

func printJSON(w io.Writer, v any) error {
	b, err := specjson.MarshalIndent(v)
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// printLine prints a value as JSON on one line.
func printLine(w io.Writer, v any) error {
	b, err := specjson.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

func prepareKill(c *call) ([]option, func([]string) (int, error)) {
	all := false
	return []option{toggle("all,a", "to all processes of the container", &all)}, func(args []string) (int, error) {
		sig := unix.SIGTERM
		if len(args) == 2 {
			var err error
			if sig, err = parseSignal(args[1]); err != nil {
				return 1, err
			}
			args = args[:1]
		}
		return c.with(args, func(ctr *bundle.Container) error { return ctr.Kill(sig, all) })
	}
}

// parseSignal reads a number, or a name with or without SIG.
func parseSignal(s string) (unix.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil && n >= 0 && n <= 64 {
		return unix.Signal(n), nil
	}
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if rt, ok := strings.CutPrefix(name, "SIGRTMIN+"); ok {
		if n, err := strconv.Atoi(rt); err == nil && n >= 0 && n <= 30 {
			return unix.Signal(34 + n), nil
		}
	}
	if n := unix.SignalNum(name); n != 0 {
		return n, nil
	}
	return 0, fmt.Errorf("unknown signal %q", s)
}

func prepareDelete(c *call) ([]option, func([]string) (int, error)) {
	force := false
	return []option{toggle("force,f", "kill it before; an unknown id is fine", &force)}, func(args []string) (int, error) {
		code, err := c.with(args, func(ctr *bundle.Container) error { return ctr.Delete(force) })
		if force && errors.Is(err, bundle.ErrNotExist) {
			return 0, nil
		}
		return code, err
	}
}

func prepareList(c *call) ([]option, func([]string) (int, error)) {
	format, quiet := "table", false
	options := []option{text("format,f", "FORM", "table or json", &format), toggle("quiet,q", "ids only", &quiet)}
	return options, func(args []string) (int, error) {
		states, err := c.rt.List()
		switch {
		case err != nil:
			return 1, err
		case len(args) > 0:
			return 1, fmt.Errorf("list takes no arguments: %w", errUsage)
		case quiet:
			for _, s := range states {
				say(c.out, s.ID+"\n")
			}
			return 0, nil
		case format == "json":
			return 0, printLine(c.out, states)
		case format != "table":
			return 1, fmt.Errorf("format %q: table or json: %w", format, errUsage)
		}
		rows := [][]string{{"ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"}}
		for _, s := range states {
			rows = append(rows, []string{s.ID, strconv.Itoa(s.Pid), string(s.Status), s.Bundle, s.Created, s.Owner})
		}
		table(c.out, rows)
		return 0, nil
	}
}

// table prints rows in columns that are as wide as what is in them.
func table(w io.Writer, rows [][]string) {
	width := make([]int, len(rows[0]))
	for _, r := range rows {
		for i, f := range r {
			width[i] = max(width[i], len(f)+3)
		}
	}
	for _, r := range rows {
		line := ""
		for i, f := range r {
			line += f + strings.Repeat(" ", width[i]-len(f))
		}
		say(w, strings.TrimRight(line, " ")+"\n")
	}
}
