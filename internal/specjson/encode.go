package specjson

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"unicode/utf8"
)

// Marshal returns v as JSON on one line.
func Marshal(v any) ([]byte, error) { return (&encoder{}).marshal(v) }

// MarshalIndent returns v as JSON for people, two spaces for each level.
func MarshalIndent(v any) ([]byte, error) { return (&encoder{indent: true}).marshal(v) }

type encoder struct {
	b      []byte
	indent bool
	level  int
}

func (e *encoder) marshal(v any) ([]byte, error) {
	err := e.value(reflect.ValueOf(v))
	return e.b, err
}

// line begins a new line inside of something.
func (e *encoder) line() {
	if !e.indent {
		return
	}
	e.b = append(e.b, '\n')
	for range e.level {
		e.b = append(e.b, "  "...)
	}
}

// list writes what is between two brackets; each is called with what writes a
// separator and a new line.
func (e *encoder) list(brackets string, f func(next func()) error) error {
	e.b = append(e.b, brackets[0])
	e.level++
	first := true
	err := f(func() {
		if !first {
			e.b = append(e.b, ',')
		}
		first = false
		e.line()
	})
	e.level--
	if !first {
		e.line()
	}
	e.b = append(e.b, brackets[1])
	return err
}

func (e *encoder) value(v reflect.Value) error {
	switch v.Kind() {
	case reflect.Invalid:
		e.b = append(e.b, "null"...)
	case reflect.Pointer, reflect.Interface:
		return e.value(v.Elem())
	case reflect.Bool:
		e.b = strconv.AppendBool(e.b, v.Bool())
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		e.b = strconv.AppendInt(e.b, v.Int(), 10)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		e.b = strconv.AppendUint(e.b, v.Uint(), 10)
	case reflect.String:
		e.str(v.String())
	case reflect.Slice:
		if v.IsNil() {
			e.b = append(e.b, "null"...)
			return nil
		}
		return e.list("[]", func(next func()) error {
			for i := range v.Len() {
				next()
				if err := e.value(v.Index(i)); err != nil {
					return err
				}
			}
			return nil
		})
	case reflect.Map:
		return e.keys(v)
	case reflect.Struct:
		return e.list("{}", func(next func()) error { return e.fields(v, next) })
	default:
		return fmt.Errorf("encode a %s: %w", v.Type(), ErrSyntax)
	}
	return nil
}

func (e *encoder) keys(v reflect.Value) error {
	if v.IsNil() {
		e.b = append(e.b, "null"...)
		return nil
	}
	if v.Type().Key().Kind() != reflect.String {
		return fmt.Errorf("encode a %s: %w", v.Type(), ErrSyntax)
	}
	byName := map[string]reflect.Value{}
	names := make([]string, 0, v.Len())
	for _, k := range v.MapKeys() {
		byName[k.String()] = k
		names = append(names, k.String())
	}
	slices.Sort(names)
	return e.list("{}", func(next func()) error {
		for _, n := range names {
			next()
			e.name(n)
			if err := e.value(v.MapIndex(byName[n])); err != nil {
				return err
			}
		}
		return nil
	})
}

func (e *encoder) name(n string) {
	e.str(n)
	e.b = append(e.b, ':')
	if e.indent {
		e.b = append(e.b, ' ')
	}
}

func (e *encoder) fields(v reflect.Value, next func()) error {
	t := v.Type()
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous {
			if err := e.fields(v.Field(i), next); err != nil {
				return err
			}
			continue
		}
		name, omit := nameOf(&f)
		if name == "" || omit && empty(v.Field(i)) {
			continue
		}
		next()
		e.name(name)
		if err := e.value(v.Field(i)); err != nil {
			return err
		}
	}
	return nil
}

// empty is what omitempty means: nothing in it, false, zero, or no pointer. A struct
// is never empty.
func empty(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Map, reflect.Slice, reflect.String:
		return v.Len() == 0
	case reflect.Struct:
		return false
	}
	return v.IsZero()
}

// str writes a string. What is no UTF-8 in it becomes U+FFFD.
func (e *encoder) str(s string) {
	const hex = "0123456789abcdef"
	e.b = append(e.b, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			e.b = append(e.b, '\\', byte(r))
		case r == '\n':
			e.b = append(e.b, '\\', 'n')
		case r < ' ' || r == 0x7f:
			e.b = append(e.b, '\\', 'u', '0', '0', hex[r>>4], hex[r&15])
		default:
			e.b = utf8.AppendRune(e.b, r)
		}
	}
	e.b = append(e.b, '"')
}
