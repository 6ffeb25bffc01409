package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/vitrine-runtime/vitrine/internal/step"
	"github.com/vitrine-runtime/vitrine/oci/program"
	"github.com/vitrine-runtime/vitrine/oci/seccomp"
)

// explain prints a program: one that ran, or one that a bundle would become.
func explain(args []string, out, errs io.Writer) int {
	if len(args) != 2 {
		say(errs, usage)
		return 2
	}
	var p *step.Program
	var err error
	switch args[0] {
	case "--program":
		p, err = load(args[1])
	case "--bundle":
		p, err = compile(args[1])
	default:
		say(errs, usage)
		return 2
	}
	if err == nil {
		err = program.Explain(out, p)
	}
	if err != nil {
		say(errs, "vitrine-oci: explain: "+err.Error()+"\n")
		return 1
	}
	return 0
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

// compile makes the program of an OCI bundle. Nothing is run or opened: every
// bind mount gets a number in the table, and is shown as a directory, unless its
// source is there and is none.
func compile(bundle string) (*step.Program, error) {
	b, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return nil, err
	}
	in := program.Input{Spec: new(specs.Spec), Binds: map[int]program.Bind{}}
	if err := json.Unmarshal(b, in.Spec); err != nil {
		return nil, fmt.Errorf("read config.json: %w", err)
	}
	for i, m := range in.Spec.Mounts {
		if !isBind(&m) {
			continue
		}
		st, err := os.Stat(m.Source)
		in.Binds[i] = program.Bind{File: len(in.Binds) + 1, Dir: err != nil || st.IsDir()}
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
	f, err := seccomp.Compile(s)
	if err != nil {
		return nil, 0, fmt.Errorf("compile linux.seccomp: %w", err)
	}
	return f.Bytes(), f.Flags, nil
}
