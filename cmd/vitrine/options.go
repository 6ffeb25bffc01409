package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/spf13/pflag"
)

// defaultConfigPath may be missing; a path that was asked for may not.
const defaultConfigPath = "/etc/vitrine/vitrine.toml"

// An option is one setting of a Config, with what its tags say.
type option struct {
	key   string // dotted, as in a file: cgroup.driver
	value reflect.Value
	tag   reflect.StructTag
}

// options lists the settings of c in their order.
func options(c *Config) []option { return optionsOf(reflect.ValueOf(c).Elem(), "") }

func optionsOf(v reflect.Value, prefix string) (all []option) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if f.Type.Kind() == reflect.Map {
			continue // handlers, which have names of their own
		}
		key := prefix + f.Tag.Get("toml")
		if f.Type.Kind() == reflect.Struct {
			all = append(all, optionsOf(v.Field(i), key+".")...)
			continue
		}
		all = append(all, option{key, v.Field(i), f.Tag})
	}
	return all
}

// defaults returns a Config as the tags have it.
func defaults() *Config {
	c := new(Config)
	for _, o := range options(c) {
		text := o.tag.Get("default")
		switch p := o.value.Addr().Interface().(type) {
		case *string:
			*p = text
		case *[]string:
			*p = []string{}
			if text != "" {
				*p = strings.Split(text, ",")
			}
		case *bool:
			*p = text == "true"
		case *int:
			*p, _ = strconv.Atoi(text)
		}
	}
	return c
}

// configFlags adds a flag for each setting and returns what loads the configuration
// once the flags are parsed.
func configFlags(flags *pflag.FlagSet) (load func() (*Config, error)) {
	path := flags.String("config", defaultConfigPath, "configuration file; its drop-ins are in a directory of its name with .d")
	given := defaults()
	for _, o := range options(given) {
		name, short, help := o.tag.Get("flag"), o.tag.Get("short"), o.tag.Get("help")
		switch p := o.value.Addr().Interface().(type) {
		case *string:
			flags.StringVarP(p, name, short, *p, help)
		case *[]string:
			flags.StringSliceVarP(p, name, short, *p, help)
		case *bool:
			flags.BoolVarP(p, name, short, *p, help)
		case *int:
			flags.IntVarP(p, name, short, *p, help)
		}
	}
	return func() (*Config, error) {
		c := defaults()
		if err := c.read(*path, flags.Changed("config")); err != nil {
			return nil, err
		}
		from := options(given)
		for i, o := range options(c) {
			if flags.Changed(o.tag.Get("flag")) {
				o.value.Set(from[i].value)
			}
		}
		return c, c.complete()
	}
}

// read applies the file at path and its drop-ins.
func (c *Config) read(path string, mustExist bool) error {
	err := c.readFile(path)
	if err != nil && (mustExist || !errors.Is(err, fs.ErrNotExist)) {
		return err
	}
	dropIns, err := filepath.Glob(filepath.Join(globQuote(path)+".d", "*.toml"))
	if err != nil {
		return err
	}
	slices.Sort(dropIns)
	for _, f := range dropIns {
		if err := c.readFile(f); err != nil {
			return err
		}
	}
	return nil
}

// readFile refuses what it does not know: a setting with a slip of the pen in its
// name would otherwise be one that silently is not set.
func (c *Config) readFile(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	meta, err := toml.Decode(string(text), c)
	if err != nil {
		return fmt.Errorf("read configuration %s: %w", path, err)
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		return fmt.Errorf("read configuration %s: unknown setting %s", path, unknown[0])
	}
	return nil
}

// globQuote escapes what filepath.Match would take for a pattern.
func globQuote(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// print writes c as a file that read accepts, with its documentation.
func (c *Config) print(w io.Writer) error {
	table := ""
	for _, o := range options(c) {
		head, name, nested := strings.Cut(o.key, ".")
		if !nested {
			name = head
		} else if head != table {
			table = head
			if _, err := fmt.Fprintf(w, "\n[%s]\n", table); err != nil {
				return err
			}
		}
		line, err := toml.Marshal(map[string]any{name: o.value.Interface()})
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(w, "# %s\n%s", o.tag.Get("help"), line); err != nil {
			return err
		}
	}
	return c.printHandlers(w)
}

// asMap is c in the form of its file, for Status.
func (c *Config) asMap() map[string]any {
	m := make(map[string]any)
	for _, o := range options(c) {
		m[o.key] = o.value.Interface()
	}
	m["handlers"] = c.Handlers
	return m
}
