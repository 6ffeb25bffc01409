// Package specjson reads and writes JSON: as much of it as the structs of the
// runtime specification and of its command line need, by reflection over their tags.
//
//	Unmarshal ── one pass over the text, straight into the value
//	Marshal   ── fields in their order, omitempty, keys of maps sorted
//
// It is here because encoding/json costs a fifth of a megabyte in a binary of which
// one runs behind each pod, and, before the first byte of a config.json is read, a
// third of a millisecond for its plans of how to read one. What it accepts and what
// it makes of that is the same (a fuzzer holds the two together), with these exceptions:
// a value never keeps parts of what it held before, methods (UnmarshalJSON,
// MarshalJSON) are not called, and an interface stays nil.
package specjson

import (
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// ErrSyntax is wrapped by what is said of a text that is no JSON, or no JSON of the
// wanted type.
var ErrSyntax = errors.New("invalid JSON")

// maxDepth bounds the nesting of a text, and so our stack.
const maxDepth = 1000

// Unmarshal reads a text into what v points to. Fields that the struct does not have
// are passed over, those that the text does not have keep their value. After an error
// the value is of no use.
func Unmarshal(text []byte, v any) error {
	d := decoder{b: string(text)} // strings of the value are parts of it
	p := reflect.ValueOf(v)
	if p.Kind() != reflect.Pointer || p.IsNil() {
		return fmt.Errorf("decode into a %T: %w", v, ErrSyntax)
	}
	d.space()
	if err := d.value(p.Elem(), 0); err != nil {
		return err
	}
	d.space()
	if d.at < len(d.b) {
		return d.bad("something behind the end")
	}
	return nil
}

type decoder struct {
	b     string
	at    int
	known map[reflect.Type][]string
}

func (d *decoder) bad(what string) error {
	return fmt.Errorf("byte %d: %s: %w", d.at, what, ErrSyntax)
}

func (d *decoder) space() {
	for d.at < len(d.b) {
		switch d.b[d.at] {
		case ' ', '\t', '\n', '\r':
			d.at++
		default:
			return
		}
	}
}

// peek returns the next byte, or 0 at the end.
func (d *decoder) peek() byte {
	if d.at < len(d.b) {
		return d.b[d.at]
	}
	return 0
}

// word takes a literal word.
func (d *decoder) word(w string) error {
	if len(d.b)-d.at < len(w) || d.b[d.at:d.at+len(w)] != w {
		return d.bad("a value is expected")
	}
	d.at += len(w)
	return nil
}

// value reads one value into v; an invalid v drops it.
func (d *decoder) value(v reflect.Value, depth int) error {
	if depth > maxDepth {
		return d.bad("nested too deeply")
	}
	switch c := d.peek(); c {
	case 'n':
		if err := d.word("null"); err != nil {
			return err
		}
		if v.IsValid() {
			switch v.Kind() {
			case reflect.Pointer, reflect.Map, reflect.Slice, reflect.Interface:
				v.SetZero()
			default: // means nothing to others
			}
		}
		return nil
	case '{', '[', '"', 't', 'f':
		v = target(v)
		switch c {
		case '{':
			return d.object(v, depth+1)
		case '[':
			return d.array(v, depth+1)
		case '"':
			return d.str(v)
		}
		return d.truth(v, c)
	default:
		return d.number(target(v))
	}
}

// target follows pointers, making what they are to point to.
func target(v reflect.Value) reflect.Value {
	for v.IsValid() && v.Kind() == reflect.Pointer {
		v.Set(reflect.New(v.Type().Elem()))
		v = v.Elem()
	}
	if v.IsValid() && v.Kind() == reflect.Interface {
		return reflect.Value{} // nobody asks for those
	}
	return v
}

func (d *decoder) mismatch(what string, v reflect.Value) error {
	return d.bad(what + " for a " + v.Type().String())
}

func (d *decoder) truth(v reflect.Value, c byte) error {
	w := "true"
	if c == 'f' {
		w = "false"
	}
	if err := d.word(w); err != nil || !v.IsValid() {
		return err
	}
	if v.Kind() != reflect.Bool {
		return d.mismatch("truth value", v)
	}
	v.SetBool(c == 't')
	return nil
}

func (d *decoder) str(v reflect.Value) error {
	s, err := d.text()
	if err != nil || !v.IsValid() {
		return err
	}
	if v.Kind() != reflect.String {
		return d.mismatch("string", v)
	}
	v.SetString(s)
	return nil
}

// number takes the digits as the grammar has them, and no others: 01, .5 and +1 are
// no numbers.
func (d *decoder) number(v reflect.Value) error {
	begin := d.at
	if d.peek() == '-' {
		d.at++
	}
	whole := true
	switch c := d.peek(); {
	case c == '0':
		d.at++
	case c >= '1' && c <= '9':
		d.digits()
	default:
		return d.bad("a value is expected")
	}
	if d.peek() == '.' {
		d.at++
		whole = false
		if !d.digits() {
			return d.bad("a digit is expected")
		}
	}
	if c := d.peek(); c == 'e' || c == 'E' {
		d.at++
		whole = false
		if c := d.peek(); c == '+' || c == '-' {
			d.at++
		}
		if !d.digits() {
			return d.bad("a digit is expected")
		}
	}
	if !v.IsValid() {
		return nil
	}
	return d.setNumber(v, d.b[begin:d.at], whole)
}

func (d *decoder) digits() bool {
	begin := d.at
	for c := d.peek(); c >= '0' && c <= '9'; c = d.peek() {
		d.at++
	}
	return d.at > begin
}

func (d *decoder) setNumber(v reflect.Value, digits string, whole bool) error {
	var err error
	switch v.Kind() {
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		var n int64
		if n, err = strconv.ParseInt(digits, 10, v.Type().Bits()); err == nil && whole {
			v.SetInt(n)
			return nil
		}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		var n uint64
		if n, err = strconv.ParseUint(digits, 10, v.Type().Bits()); err == nil && whole {
			v.SetUint(n)
			return nil
		}
	}
	return d.mismatch("number "+digits, v)
}

func (d *decoder) array(v reflect.Value, depth int) error {
	d.at++
	if v.IsValid() {
		if v.Kind() != reflect.Slice {
			return d.mismatch("array", v)
		}
		v.Set(reflect.MakeSlice(v.Type(), 0, 4))
	}
	for first := true; ; first = false {
		d.space()
		if first && d.peek() == ']' {
			d.at++
			return nil
		}
		e := reflect.Value{}
		if v.IsValid() {
			if v.Len() == v.Cap() {
				v.Grow(max(v.Cap(), 4))
			}
			v.SetLen(v.Len() + 1)
			e = v.Index(v.Len() - 1)
			e.SetZero()
		}
		if err := d.value(e, depth); err != nil {
			return err
		}
		d.space()
		switch d.peek() {
		case ',':
			d.at++
		case ']':
			d.at++
			return nil
		default:
			return d.bad("a comma or the end of an array is expected")
		}
	}
}

func (d *decoder) object(v reflect.Value, depth int) error {
	d.at++
	if v.IsValid() && v.Kind() == reflect.Map {
		v.Set(reflect.MakeMap(v.Type()))
	} else if v.IsValid() && v.Kind() != reflect.Struct {
		return d.mismatch("object", v)
	}
	for first := true; ; first = false {
		d.space()
		if first && d.peek() == '}' {
			d.at++
			return nil
		}
		if d.peek() != '"' {
			return d.bad("a name is expected")
		}
		name, err := d.text()
		if err != nil {
			return err
		}
		d.space()
		if d.peek() != ':' {
			return d.bad("a colon is expected")
		}
		d.at++
		d.space()
		if err := d.member(v, name, depth); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		d.space()
		switch d.peek() {
		case ',':
			d.at++
		case '}':
			d.at++
			return nil
		default:
			return d.bad("a comma or the end of an object is expected")
		}
	}
}

// member reads the value of a name into a field of a struct or a key of a map.
func (d *decoder) member(v reflect.Value, name string, depth int) error {
	if !v.IsValid() {
		return d.value(v, depth)
	}
	if v.Kind() == reflect.Struct {
		return d.value(d.field(v, name), depth)
	}
	t := v.Type()
	e := reflect.New(t.Elem()).Elem()
	if err := d.value(e, depth); err != nil {
		return err
	}
	k := reflect.New(t.Key()).Elem()
	if k.Kind() != reflect.String {
		return d.mismatch("name", k)
	}
	k.SetString(name)
	v.SetMapIndex(k, e)
	return nil
}

// names returns what the fields of a struct are called in JSON: "" for those that are not
// there, and embedded for a struct whose own fields are the struct's. They are looked up once for each type: to
// ask reflection for one costs more than to read what it holds.
func (d *decoder) names(t reflect.Type) []string {
	names := d.known[t]
	if names == nil {
		names = make([]string, t.NumField())
		for i := range names {
			f := t.Field(i)
			if names[i] = embedded; !f.Anonymous {
				names[i], _ = nameOf(&f)
			}
		}
		if d.known == nil {
			d.known = map[reflect.Type][]string{}
		}
		d.known[t] = names
	}
	return names
}

// embedded is no name that a text can have: strings of it are valid UTF-8.
const embedded = "\xff"

// field finds the field of a name, or if there is none one that differs in upper
// and lower case only. It is invalid if there is none of those either.
func (d *decoder) field(v reflect.Value, name string) (found reflect.Value) {
	for i, n := range d.names(v.Type()) {
		switch {
		case n == embedded:
			if in := d.field(v.Field(i), name); in.IsValid() {
				return in
			}
		case n == "":
		case n == name:
			return v.Field(i)
		case !found.IsValid() && strings.EqualFold(n, name):
			found = v.Field(i)
		}
	}
	return found
}

// nameOf returns the name of a field in JSON, "" for none, and whether it is left out
// when it is empty.
func nameOf(f *reflect.StructField) (name string, omit bool) {
	tag := f.Tag.Get("json")
	if !f.IsExported() || tag == "-" {
		return "", false
	}
	name, options, _ := strings.Cut(tag, ",")
	if name == "" {
		name = f.Name
	}
	return name, options == "omitempty"
}

// text takes a string. What is no UTF-8 in it becomes U+FFFD.
func (d *decoder) text() (string, error) {
	d.at++
	begin := d.at
	for d.at < len(d.b) && d.b[d.at] >= ' ' && d.b[d.at] < utf8.RuneSelf && d.b[d.at] != '\\' {
		if d.b[d.at] == '"' { // as nearly all are
			d.at++
			return d.b[begin : d.at-1], nil
		}
		d.at++
	}
	out := append([]byte(nil), d.b[begin:d.at]...)
	for d.at < len(d.b) {
		switch c := d.b[d.at]; {
		case c == '"':
			d.at++
			return string(out), nil
		case c < ' ':
			return "", d.bad("control character in a string")
		case c == '\\':
			var err error
			if out, err = d.escape(out); err != nil {
				return "", err
			}
		default:
			r, n := utf8.DecodeRuneInString(d.b[d.at:])
			out = utf8.AppendRune(out, r)
			d.at += n
		}
	}
	return "", d.bad("string without an end")
}

// escape takes what follows a backslash.
func (d *decoder) escape(out []byte) ([]byte, error) {
	d.at++
	const from, to = `"\/bfnrt`, "\"\\/\b\f\n\r\t"
	if i := strings.IndexByte(from, d.peek()); i >= 0 {
		d.at++
		return append(out, to[i]), nil
	}
	r, ok := d.unit()
	if !ok {
		return nil, d.bad("escape that there is not")
	}
	if utf16.IsSurrogate(r) {
		at := d.at
		if d.peek() == '\\' {
			d.at++
			if low, ok := d.unit(); ok {
				if both := utf16.DecodeRune(r, low); both != utf8.RuneError {
					return utf8.AppendRune(out, both), nil
				}
			}
		}
		d.at, r = at, utf8.RuneError // it stands alone
	}
	return utf8.AppendRune(out, r), nil
}

// unit takes the u and four hex digits.
func (d *decoder) unit() (rune, bool) {
	if d.peek() != 'u' || len(d.b)-d.at < 5 {
		return 0, false
	}
	n, err := strconv.ParseUint(d.b[d.at+1:d.at+5], 16, 16)
	if err != nil {
		return 0, false
	}
	d.at += 5
	return rune(n), true
}
