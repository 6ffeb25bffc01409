package main

import (
	"fmt"
	"os"

	"github.com/vitrine-runtime/vitrine/internal/step"
	"github.com/vitrine-runtime/vitrine/oci/bundle"
	"github.com/vitrine-runtime/vitrine/oci/program"
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
			p, err = bundle.Compile(dir)
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
	ctr, err := c.look(args)
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
