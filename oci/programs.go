package oci

import (
	"cmp"
	"encoding/binary"
	"reflect"
	"slices"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/vitrine-runtime/vitrine/oci/program"
)

// programs holds encoded programs that may be wanted again: replicas, containers that are started
// anew, and probes differ in nothing that a program knows of.
//
//	Input ── essence ── key ──┬── found ───────────────────────────► program
//	                          └── not ── compile, check, encode ──► program ── keep
//
// The key is all that the compiler is given and not a digest of it: no collision could run
// another container's program. What it is not to depend on, it is not given.
//
// A program holds its process's environment, so it is forgotten when it was not
// asked for in programsKept.
var programs programCache

const (
	programsMost = 512 << 10 // bytes of keys and programs
	programsKept = time.Minute
)

type programCache struct {
	mu      sync.Mutex
	entries []keptProgram // the last used first
	bytes   int
	waiting bool // forget is to come
}

type keptProgram struct {
	key, code []byte // neither changes
	used      time.Time
}

// find returns the program for a key, or nil. It is shared, and not written to.
func (p *programCache) find(key []byte) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, e := range p.entries {
		if string(e.key) == string(key) {
			e.used = time.Now()
			copy(p.entries[1:i+1], p.entries[:i])
			p.entries[0] = e
			return e.code
		}
	}
	return nil
}

// keep adds a copy of a program that was not found.
func (p *programCache) keep(key, code []byte) {
	if len(key)+len(code) > programsMost/4 {
		return
	}
	e := keptProgram{slices.Clone(key), slices.Clone(code), time.Now()}
	p.mu.Lock()
	defer p.mu.Unlock()
	if slices.ContainsFunc(p.entries, func(o keptProgram) bool { return string(o.key) == string(key) }) {
		return
	}
	p.entries = slices.Insert(p.entries, 0, e)
	p.bytes += len(key) + len(code)
	for p.bytes > programsMost {
		p.dropLast()
	}
	if !p.waiting {
		p.waiting = true
		time.AfterFunc(programsKept, p.forget)
	}
}

// dropLast forgets the entry that was not used for longest. Preconditions: mu is held.
func (p *programCache) dropLast() {
	last := len(p.entries) - 1
	p.bytes -= len(p.entries[last].key) + len(p.entries[last].code)
	p.entries[last] = keptProgram{}
	p.entries = p.entries[:last]
}

// forget drops what was not used for long, and looks again later if there is something left.
func (p *programCache) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for n := len(p.entries); n > 0 && time.Since(p.entries[n-1].used) >= programsKept; n = len(p.entries) {
		p.dropLast()
	}
	if p.waiting = len(p.entries) > 0; p.waiting {
		time.AfterFunc(programsKept, p.forget)
	}
}

// coded is an encoded program. Whoever has one calls done with it, once.
type coded struct {
	code []byte
	key  []byte // it is to be kept under; nil if it is already, or cannot be
	own  bool   // code is a room
}

// done keeps the program for the next one, and gives its room back. It takes
// a moment, and is called when nobody waits.
func (c *coded) done() {
	if c.key != nil {
		programs.keep(c.key, c.code)
	}
	if c.own {
		putRoom(c.code)
	}
	*c = coded{}
}

// encode returns the program for in, which is a program.Input or a program.ExecInput, from
// the cache or from compile.
func encode(in any, compile func(room []byte) ([]byte, error)) (coded, error) {
	key := keyOf(in)
	if key != nil {
		if code := programs.find(key); code != nil {
			return coded{code: code}, nil
		}
	}
	code, err := compile(getRoom())
	if err != nil {
		putRoom(code)
		return coded{}, err
	}
	return coded{code: code, key: key, own: true}, nil
}

// keyOf is what a program is kept under: all of in, behind what it is, since values of different types may look the
// same. It is nil where in holds something that no key can.
func keyOf(in any) []byte {
	v := reflect.ValueOf(in)
	key, ok := appendValue(append(make([]byte, 0, 8<<10), v.Type().Name()...), v)
	if !ok {
		return nil
	}
	return key
}

// encodeContainer returns the program of a container.
func encodeContainer(in program.Input) (coded, error) {
	in.Spec = essence(in.Spec, &in)
	return encode(in, func(room []byte) ([]byte, error) { return program.Encode(in, room) })
}

// encodeExec returns the program of an exec.
func encodeExec(in program.ExecInput) (coded, error) {
	return encode(in, func(room []byte) ([]byte, error) { return program.EncodeExec(in, room) })
}

// essence returns the spec without what says nothing to a program, and differs between containers that are
// otherwise the same: what others carry out, and where things are on the host that arrive as
// descriptors.
func essence(s *specs.Spec, in *program.Input) *specs.Spec {
	e, l := *s, *s.Linux
	e.Annotations, e.Linux = nil, &l
	l.CgroupsPath, l.Resources = "", nil
	if l.Seccomp != nil {
		l.Seccomp = &specs.LinuxSeccomp{} // in.Seccomp is what came of it
	}
	if e.Root != nil {
		e.Root = &specs.Root{Readonly: s.Root.Readonly}
	}
	if len(in.Binds) > 0 {
		e.Mounts = slices.Clone(s.Mounts)
		for i := range in.Binds {
			e.Mounts[i].Source = ""
		}
	}
	l.Namespaces = slices.Clone(l.Namespaces)
	for i := range l.Namespaces {
		if slices.Contains(in.Inherit, l.Namespaces[i].Type) {
			l.Namespaces[i].Path = ""
		}
	}
	// Who the ids are outside is the namespace's to know.
	l.UIDMappings, l.GIDMappings = inside(l.UIDMappings), inside(l.GIDMappings)
	for i := range in.Binds {
		m := &e.Mounts[i]
		m.UIDMappings, m.GIDMappings = inside(m.UIDMappings), inside(m.GIDMappings)
	}
	return &e
}

// inside returns maps without the host's side of them.
func inside(maps []specs.LinuxIDMapping) []specs.LinuxIDMapping {
	maps = slices.Clone(maps)
	for i := range maps {
		maps[i].HostID = maps[i].ContainerID
	}
	return maps
}

// appendValue appends all that a value holds, so that different values of a type never look the
// same: lengths stand in front, and nil is something else than empty. It says false of what it
// does not know.
func appendValue(b []byte, v reflect.Value) ([]byte, bool) {
	ok := true
	switch v.Kind() {
	case reflect.Bool:
		if v.Bool() {
			return append(b, 1), true
		}
		b = append(b, 0)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		b = binary.AppendVarint(b, v.Int())
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		b = binary.AppendUvarint(b, v.Uint())
	case reflect.String:
		b = append(binary.AppendUvarint(b, uint64(v.Len())), v.String()...)
	case reflect.Pointer:
		if v.IsNil() {
			return append(b, 0), true
		}
		return appendValue(append(b, 1), v.Elem())
	case reflect.Struct:
		for i := 0; ok && i < v.NumField(); i++ {
			b, ok = appendValue(b, v.Field(i))
		}
	case reflect.Slice:
		if v.IsNil() {
			return append(b, 0), true
		}
		b = binary.AppendUvarint(b, uint64(v.Len())+1)
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return append(b, v.Bytes()...), true
		}
		for i := 0; ok && i < v.Len(); i++ {
			b, ok = appendValue(b, v.Index(i))
		}
	case reflect.Map:
		return appendMap(b, v)
	default:
		return b, false
	}
	return b, ok
}

// appendMap appends the elements of a map in the order of their keys.
func appendMap(b []byte, v reflect.Value) ([]byte, bool) {
	if v.IsNil() {
		return append(b, 0), true
	}
	b = binary.AppendUvarint(b, uint64(v.Len())+1)
	keys := v.MapKeys()
	switch v.Type().Key().Kind() {
	case reflect.String:
		slices.SortFunc(keys, func(x, y reflect.Value) int { return cmp.Compare(x.String(), y.String()) })
	case reflect.Int:
		slices.SortFunc(keys, func(x, y reflect.Value) int { return cmp.Compare(x.Int(), y.Int()) })
	default:
		return b, false
	}
	ok := true
	for i := 0; ok && i < len(keys); i++ {
		if b, ok = appendValue(b, keys[i]); ok {
			b, ok = appendValue(b, v.MapIndex(keys[i]))
		}
	}
	return b, ok
}
