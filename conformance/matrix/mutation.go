package matrix

import (
	"math"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// A Mutation changes one leaf of a copy of the request that it was made for.
type Mutation struct {
	Field string // path as in errors, without indices: config.mounts.host_path
	Kind  string // what was done: "nil", "NUL", "max", ...

	apply func(root protoreflect.Message)
}

// Of returns a changed copy of valid, which must have every message set that the one of Mutations had.
func (m Mutation) Of(valid proto.Message) proto.Message {
	bad := proto.Clone(valid)
	m.apply(bad.ProtoReflect())
	return bad
}

// Leaf returns the last element of the path.
func (m Mutation) Leaf() string { return m.Field[strings.LastIndexByte(m.Field, '.')+1:] }

// Mutations returns all changes of a request, always in the same order. What the request leaves unset is set to bad values as
// well; what is inside of a message is changed only where the request has that message. Windows is left out.
func Mutations(valid proto.Message) []Mutation {
	return mutations(valid.ProtoReflect(), "", func(root protoreflect.Message) protoreflect.Message { return root })
}

// Fields returns the paths of all fields that a request can have, in the form of Mutation.Field. Windows is left out.
func Fields(request protoreflect.MessageDescriptor) []string { return fieldsBelow(request, "") }

func fieldsBelow(d protoreflect.MessageDescriptor, path string) (all []string) {
	for i := range d.Fields().Len() {
		fd := d.Fields().Get(i)
		if fd.Name() == "windows" {
			continue
		}
		field := strings.TrimPrefix(path+"."+string(fd.Name()), ".")
		all = append(all, field)
		if fd.Message() != nil && !fd.IsMap() {
			all = append(all, fieldsBelow(fd.Message(), field)...)
		}
	}
	return all
}

// find leads from the root of a copy of a request to the message with the field.
type find func(root protoreflect.Message) protoreflect.Message

func mutations(m protoreflect.Message, path string, here find) (all []Mutation) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if fd.Name() == "windows" {
			continue
		}
		field := strings.TrimPrefix(path+"."+string(fd.Name()), ".")
		add := func(kind string, apply func(protoreflect.Message)) {
			all = append(all, Mutation{field, kind, func(root protoreflect.Message) { apply(here(root)) }})
		}
		if m.Has(fd) {
			add("nil", func(p protoreflect.Message) { p.Clear(fd) })
		}
		switch {
		case fd.IsMap():
			mutateMap(fd, add)
		case fd.IsList():
			mutateList(fd, add)
			if fd.Message() != nil && m.Get(fd).List().Len() > 0 {
				all = append(all, mutations(m.Get(fd).List().Get(0).Message(), field, func(root protoreflect.Message) protoreflect.Message {
					return here(root).Mutable(fd).List().Get(0).Message()
				})...)
			}
		case fd.Message() != nil:
			add("empty", func(p protoreflect.Message) { p.Set(fd, p.NewField(fd)) })
			if m.Has(fd) {
				all = append(all, mutations(m.Get(fd).Message(), field, func(root protoreflect.Message) protoreflect.Message {
					return here(root).Mutable(fd).Message()
				})...)
			}
		default:
			for _, v := range badValues(fd) {
				add(v.kind, func(p protoreflect.Message) { p.Set(fd, v.value) })
			}
		}
	}
	return all
}

func mutateMap(fd protoreflect.FieldDescriptor, add func(string, func(protoreflect.Message))) {
	for _, v := range badValues(fd.MapValue()) {
		add("value "+v.kind, func(p protoreflect.Message) {
			p.Mutable(fd).Map().Set(protoreflect.ValueOfString("net.core.x").MapKey(), v.value)
		})
	}
	for _, v := range badValues(fd.MapKey()) {
		add("key "+v.kind, func(p protoreflect.Message) {
			p.Mutable(fd).Map().Set(v.value.MapKey(), protoreflect.ValueOfString("1"))
		})
	}
	add("many", func(p protoreflect.Message) {
		for i := range manyPairs {
			p.Mutable(fd).Map().Set(protoreflect.ValueOfString("key-of-many-"+strconv.Itoa(i)).MapKey(), protoreflect.ValueOfString("1"))
		}
	})
}

// Many is how many elements a list is given that is to be too long, and manyPairs is the same for a map, whose entries take a
// client longer to write than the server to refuse.
const Many, manyPairs = 100_000, 20_000

func mutateList(fd protoreflect.FieldDescriptor, add func(string, func(protoreflect.Message))) {
	add("many", func(p protoreflect.Message) {
		l := p.Mutable(fd).List()
		for range Many {
			l.Append(l.NewElement())
		}
	})
	add("empty element", func(p protoreflect.Message) {
		l := p.Mutable(fd).List()
		l.Append(l.NewElement())
	})
	if fd.Message() != nil {
		return
	}
	for _, v := range badValues(fd) {
		add(v.kind, func(p protoreflect.Message) { p.Mutable(fd).List().Append(v.value) })
	}
}

// badValue is a value that hardly any field of its type may have.
type badValue struct {
	kind  string
	value protoreflect.Value
}

// badValues returns the bad values of a type. 2^32 is what becomes 0, and so root, where somebody cuts it down.
func badValues(fd protoreflect.FieldDescriptor) []badValue {
	switch fd.Kind() {
	case protoreflect.StringKind:
		return []badValue{
			{"1 MiB", protoreflect.ValueOfString(strings.Repeat("a", 1<<20))},
			{"NUL", protoreflect.ValueOfString("/a\x00b")},
			{"parent", protoreflect.ValueOfString("../../etc/shadow")},
			{"format", protoreflect.ValueOfString("%n%s")},
			{"newline", protoreflect.ValueOfString("a\nb")},
		}
	case protoreflect.BytesKind:
		return []badValue{{"NUL", protoreflect.ValueOfBytes([]byte("a\x00b"))}, {"1 MiB", protoreflect.ValueOfBytes(make([]byte, 1<<20))}}
	case protoreflect.EnumKind:
		return []badValue{{"99", protoreflect.ValueOfEnum(99)}, {"-1", protoreflect.ValueOfEnum(-1)}, {"max", protoreflect.ValueOfEnum(math.MaxInt32)}}
	case protoreflect.Int32Kind:
		return []badValue{{"-1", protoreflect.ValueOfInt32(-1)}, {"min", protoreflect.ValueOfInt32(math.MinInt32)}, {"max", protoreflect.ValueOfInt32(math.MaxInt32)}}
	case protoreflect.Int64Kind:
		return []badValue{{"-1", protoreflect.ValueOfInt64(-1)}, {"min", protoreflect.ValueOfInt64(math.MinInt64)},
			{"max", protoreflect.ValueOfInt64(math.MaxInt64)}, {"2^32", protoreflect.ValueOfInt64(1 << 32)}}
	case protoreflect.Uint32Kind:
		return []badValue{{"max", protoreflect.ValueOfUint32(math.MaxUint32)}}
	case protoreflect.Uint64Kind:
		return []badValue{{"max", protoreflect.ValueOfUint64(math.MaxUint64)}}
	case protoreflect.BoolKind:
		return []badValue{{"true", protoreflect.ValueOfBool(true)}}
	default:
		panic("no bad values for " + fd.Kind().String())
	}
}
