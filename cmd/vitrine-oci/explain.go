package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/vitrine-runtime/vitrine/internal/specjson"
	"github.com/vitrine-runtime/vitrine/internal/step"
	"github.com/vitrine-runtime/vitrine/oci/bundle"
	"github.com/vitrine-runtime/vitrine/oci/program"
	"github.com/vitrine-runtime/vitrine/oci/seccomp"
)

func prepareExplain(c *call) ([]option, func([]string) (int, error)) {
	var file, dir string
	var asJSON bool
	options := []option{
		text("bundle,b", "DIR", "of what DIR/config.json would become", &dir),
		text("program", "FILE", "of an encoded program", &file),
		toggle("json", "print it for other programs", &asJSON),
	}
	return options, func(args []string) (int, error) {
		var p *step.Program
		var err error
		switch {
		case file != "" && dir == "" && len(args) == 0:
			p, err = load(file)
		case dir != "" && file == "" && len(args) == 0:
			if p, err = bundle.Compile(dir); errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
				p, err = compile(dir)
			}
		case file == "" && dir == "" && len(args) == 1:
			p, err = c.programOf(args)
		default:
			return 1, fmt.Errorf("explain a bundle, a program or the container of an id: %w", errUsage)
		}
		if err == nil && asJSON {
			err = program.ExplainJSON(c.out, p)
		} else if err == nil {
			err = program.Explain(c.out, p)
		}
		if err != nil {
			return 1, fmt.Errorf("explain: %w", err)
		}
		return 0, nil
	}
}

// programOf returns what a container was made with.
func (c *call) programOf(args []string) (*step.Program, error) {
	id, err := oneID(args)
	if err != nil {
		return nil, err
	}
	ctr, err := c.rt.Look(id)
	if err != nil {
		return nil, err
	}
	b, err := ctr.Program()
	if err != nil {
		return nil, err
	}
	return step.Decode(b)
}

// load reads an encoded program, as the daemon leaves it in a container's
// directory.
func load(file string) (*step.Program, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return step.Decode(b)
}

// compile makes the program of an OCI bundle whose root or sources are not here, or
// not for us to open: what it would be on a machine that has them. Every
// bind mount gets a number in the table, and is shown as a directory, unless its
// source is there and is none. The socket for a terminal comes behind them.
func compile(dir string) (*step.Program, error) {
	b, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		return nil, err
	}
	in := program.Input{Spec: new(specs.Spec), Binds: map[int]program.Bind{}}
	if err := specjson.Unmarshal(b, in.Spec); err != nil {
		return nil, fmt.Errorf("read config.json: %w", err)
	}
	in.Spec.Hooks = nil // not the program's
	for i, m := range in.Spec.Mounts {
		if !isBind(&m) {
			continue
		}
		st, err := os.Stat(m.Source)
		in.Binds[i] = program.Bind{File: len(in.Binds) + 1, Dir: err != nil || st.IsDir()}
	}
	if p := in.Spec.Process; p != nil {
		if p.Rlimits = bundle.WithFileLimit(p.Rlimits); p.Terminal {
			in.ConsoleSocket = len(in.Binds) + 1
		}
	}
	if l := in.Spec.Linux; l != nil {
		if in.Seccomp, in.SeccompFlags, err = filter(l.Seccomp); err != nil {
			return nil, err
		}
		for _, ns := range l.Namespaces {
			if ns.Path != "" { // somebody else has made it
				in.Inherit = append(in.Inherit, ns.Type)
			}
		}
	}
	return program.Compile(in)
}

func isBind(m *specs.Mount) bool {
	if m.Type == "bind" {
		return true
	}
	for _, o := range m.Options {
		if o == "bind" || o == "rbind" {
			return true
		}
	}
	return false
}

// filter compiles the seccomp section.
func filter(s *specs.LinuxSeccomp) ([]byte, uint64, error) {
	if s == nil {
		return nil, 0, nil
	}
	f, err := seccomp.CompileWith(s, seccomp.Options{Notify: true})
	if err != nil {
		return nil, 0, fmt.Errorf("compile linux.seccomp: %w", err)
	}
	return f.Bytes(), f.Flags, nil
}
