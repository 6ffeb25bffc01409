package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// errUsage is wrapped by what is wrong with a command line.
var errUsage = errors.New("see vitrine-oci --help")

// option is one flag of a verb. With one dash or two, --name value or --name=value;
// one that takes no value is set by its name alone.
type option struct {
	name  string // names, separated by commas
	arg   string // what the value is, for the help; "" for one without
	help  string
	store func(value string) error
}

// None of these is inlined: that would be 4 KB of closures, each of them once for each flag.

//go:noinline
func text(name, arg, help string, to *string) option {
	return option{name, arg, help, func(v string) error { *to = v; return nil }}
}

//go:noinline
func list(name, arg, help string, to *[]string) option {
	return option{name, arg, help, func(v string) error { *to = append(*to, v); return nil }}
}

//go:noinline
func number(name, arg, help string, to *int) option {
	return option{name, arg, help, func(v string) (err error) { *to, err = strconv.Atoi(v); return err }}
}

//go:noinline
func toggle(name, help string, to *bool) option {
	return option{name, "", help, func(v string) (err error) { *to, err = strconv.ParseBool(v); return err }}
}

// ignored is a flag that others have and that changes nothing here, because what it
// asks for is so anyway.
func ignored(name, arg, help string) option {
	return option{name, arg, help, func(string) error { return nil }}
}

// refused is a flag that we know and do not honour.
func refused(name, arg, why string) option {
	return option{name, arg, "refused: " + why, func(v string) error {
		if arg == "" && v == "false" {
			return nil
		}
		return errors.New(why)
	}}
}

// parse stores the flags at the beginning of args and returns the rest.
func parse(options []option, args []string) ([]string, error) {
	for len(args) > 0 {
		a := args[0]
		if len(a) < 2 || a[0] != '-' {
			return args, nil
		}
		args = args[1:]
		if a == "--" {
			return args, nil
		}
		name, value, has := strings.Cut(strings.TrimPrefix(a[1:], "-"), "=")
		o := find(options, name)
		switch {
		case o == nil:
			return nil, fmt.Errorf("flag provided but not defined: %s: %w", a, errUsage)
		case !has && o.arg == "":
			value = "true"
		case !has && len(args) == 0:
			return nil, fmt.Errorf("flag needs an argument: %s: %w", a, errUsage)
		case !has:
			value, args = args[0], args[1:]
		}
		if err := o.store(value); err != nil {
			return nil, fmt.Errorf("flag --%s: %w", name, err)
		}
	}
	return nil, nil
}

func find(options []option, name string) *option {
	for i := range options {
		for n := range strings.SplitSeq(options[i].name, ",") {
			if n == name {
				return &options[i]
			}
		}
	}
	return nil
}

// describe lists options for people.
func describe(w io.Writer, options []option) {
	for _, o := range options {
		names := "--" + strings.ReplaceAll(o.name, ",", ", -")
		if o.arg != "" {
			names += " " + o.arg
		}
		say(w, fmt.Sprintf("  %-28s %s\n", names, o.help))
	}
}
